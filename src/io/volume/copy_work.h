#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "src/io/file.h"
#include "src/io/volume/copy_files.h"
#include "src/io/volume/copy_options.h"
#include "src/io/volume/part_file.h"

namespace dsv32::io {

/// What a copy has before it: files, the bytes of all files of the checkpoint, and of those that
/// are there already.
struct CopyTask {
  std::vector<SourceFile> files;
  uint64_t bytes = 0, there = 0;
};

/// Copies files block by block in several threads and reads every block back.
class CopyWork {
 public:
  /// Called in a thread when a file is complete and right: its digest, and when the copy changed
  /// last. One call at a time.
  using Finish = std::function<void(const SourceFile&, const std::string&, int64_t)>;

  CopyWork(const std::filesystem::path& from, const CopyFolders& folders,
           const CopyOptions& options, const CopyTask& task, Finish finish);
  ~CopyWork();
  /// Throws what a thread, or `options.progress`, threw, once all threads have ended.
  void run();
  uint64_t copied() const { return copied_; }
  size_t repaired() const { return repaired_; }
  double copying_seconds() const { return copying_seconds_; }
  double seconds() const { return seconds_; }

 private:
  enum class Stage { waiting, copying, settling, checking, done };
  struct Item;
  struct Step;

  void work();
  std::optional<Step> next_step();
  std::optional<Step> step_of(Stage stage);
  void open(Item& item);
  void perform(const Step& step, std::vector<std::byte>& buffer);
  void copy_block(const Step& step, std::vector<std::byte>& buffer);
  void check_block(const Step& step, std::vector<std::byte>& buffer);
  void ended(const Step& step);
  void conclude(Item& item);
  bool all_done() const;
  CopyProgress progress();

  const std::filesystem::path from_;
  const CopyFolders folders_;
  const CopyOptions& options_;
  const CopyTask task_;
  const Finish finish_;
  std::mutex mutex_;
  std::condition_variable wake_, tick_;
  std::vector<std::unique_ptr<Item>> items_;
  int checking_ = 0;
  std::exception_ptr error_;
  bool stop_ = false;
  std::atomic<uint64_t> read_{0}, copied_{0}, there_, checked_;
  std::atomic<size_t> repaired_{0};
  std::chrono::steady_clock::time_point start_;
  double copying_seconds_ = 0, seconds_ = 0;
  struct Sample {
    std::chrono::steady_clock::time_point when;
    uint64_t read = 0, checked = 0;
  };
  std::vector<Sample> samples_;
};

}  // namespace dsv32::io
