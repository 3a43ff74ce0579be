#include "src/io/volume/copy_work.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "src/io/sha256.h"
#include "src/model/errors.h"

namespace dsv32::io {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kWindow = 20s;        // over which a rate is taken
constexpr size_t kPiece = 1 << 20;   // of a block, so that a rate is known before it is whole
constexpr int kMostRepairs = 2;      // of one file
constexpr int kReadersPerCheck = 4;  // one in so many threads reads back while others copy

}  // namespace

/// A file on its way.
struct CopyWork::Item {
  SourceFile file = {};
  Stage stage = Stage::waiting;
  std::unique_ptr<InputFile> in;
  std::unique_ptr<PartFile> part;
  std::vector<size_t> todo = {};  // blocks of this stage, last one first
  size_t in_work = 0;
  int repairs = 0;
  std::vector<size_t> wrong = {};
};

/// What a thread does next.
struct CopyWork::Step {
  Item* item;
  Stage stage;
  size_t block = 0;
};

CopyWork::CopyWork(const std::filesystem::path& from, const CopyFolders& folders,
                   const CopyOptions& options, const CopyTask& task, Finish finish)
    : from_(from),
      folders_(folders),
      options_(options),
      task_(task),
      finish_(std::move(finish)),
      there_(task.there),
      checked_(task.there) {
  for (const SourceFile& file : task_.files)
    items_.emplace_back(std::make_unique<Item>())->file = file;
}

CopyWork::~CopyWork() = default;

void CopyWork::run() {
  start_ = Clock::now();
  std::vector<std::thread> threads;
  for (int i = 0; i < options_.readers; ++i) threads.emplace_back([this] { work(); });
  {
    std::unique_lock lock(mutex_);
    while (!error_ && !all_done()) {
      tick_.wait_for(lock, options_.tick);
      if (!options_.progress) continue;
      const CopyProgress now = progress();
      lock.unlock();
      std::exception_ptr stopped;
      try {
        options_.progress(now);
      } catch (...) {
        stopped = std::current_exception();
      }
      lock.lock();
      if (stopped && !error_) error_ = stopped;
    }
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads) thread.join();
  seconds_ = std::chrono::duration<double>(Clock::now() - start_).count();
  if (error_) std::rethrow_exception(error_);
}

bool CopyWork::all_done() const {
  return std::all_of(items_.begin(), items_.end(),
                     [](const auto& item) { return item->stage == Stage::done; });
}

/// A thread's life.
void CopyWork::work() {
  std::vector<std::byte> buffer(options_.block);
  std::unique_lock lock(mutex_);
  while (!stop_ && !error_) {
    const std::optional<Step> step = next_step();
    if (!step) {
      wake_.wait(lock);
      continue;
    }
    lock.unlock();
    std::exception_ptr error;
    try {
      perform(*step, buffer);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    try {
      if (error) std::rethrow_exception(error);
      ended(*step);
    } catch (...) {
      if (!error_) error_ = std::current_exception();
    }
    wake_.notify_all();
    if (error_ || all_done()) tick_.notify_all();
  }
}

/// Copying comes first, because the source is slow; but what is complete is read back meanwhile, so
/// that not all of it is left for the end.
std::optional<CopyWork::Step> CopyWork::next_step() {
  if (auto step = step_of(Stage::settling)) return step;
  if (checking_ < std::max(1, options_.readers / kReadersPerCheck))
    if (auto step = step_of(Stage::checking)) return step;
  if (auto step = step_of(Stage::copying)) return step;
  if (auto step = step_of(Stage::waiting)) return step;
  return step_of(Stage::checking);
}

std::optional<CopyWork::Step> CopyWork::step_of(Stage stage) {
  for (const auto& item : items_) {
    if (item->stage != stage) continue;
    const bool whole = stage == Stage::waiting || stage == Stage::settling;
    if (whole ? item->in_work > 0 : item->todo.empty()) continue;
    Step step{item.get(), stage};
    if (!whole) {
      step.block = item->todo.back();
      item->todo.pop_back();
    }
    ++item->in_work;
    if (stage == Stage::checking) ++checking_;
    return step;
  }
  return std::nullopt;
}

void CopyWork::open(Item& item) {
  const SourceFile& file = item.file;
  item.in = std::make_unique<InputFile>(from_ / file.name);
  if (item.in->size() != file.size || item.in->changed_at() != file.changed_at)
    throw Error(ExitCode::artefact, {.where = (from_ / file.name).string(),
                                     .what = "file",
                                     .expected = "a file that stays as it is while it is copied",
                                     .got = "a change of size or modification time"});
  item.part = std::make_unique<PartFile>(
      folders_.parts / file.name, folders_.blocks / file.name,
      PartOf{.size = file.size, .changed_at = file.changed_at, .block = options_.block});
}

void CopyWork::perform(const Step& step, std::vector<std::byte>& buffer) {
  switch (step.stage) {
    case Stage::waiting:
      return open(*step.item);
    case Stage::copying:
      return copy_block(step, buffer);
    case Stage::settling:
      return step.item->part->settle();
    case Stage::checking:
      return check_block(step, buffer);
    case Stage::done:
      return;
  }
}

void CopyWork::copy_block(const Step& step, std::vector<std::byte>& buffer) {
  Item& item = *step.item;
  const size_t size = item.part->size(step.block);
  const uint64_t begin = item.part->begin(step.block);
  for (size_t done = 0, count = 0; done < size; done += count) {
    count = std::min(kPiece, size - done);
    item.in->read(begin + done, buffer.data() + done, count);
    read_ += count;
  }
  item.in->forget(begin, size);
  Sha256 sha;
  sha.update(buffer.data(), size);
  item.part->put(step.block, {buffer.data(), size}, sha.bytes());
  copied_ += size;
  there_ += size;
}

void CopyWork::check_block(const Step& step, std::vector<std::byte>& buffer) {
  Item& item = *step.item;
  const bool right = item.part->is_right(step.block, buffer);
  const std::lock_guard lock(mutex_);
  if (!right) item.wrong.push_back(step.block);
  if (right) checked_ += item.part->size(step.block);
}

/// The stage of a file that ended goes over into the next one. Called under the lock.
void CopyWork::ended(const Step& step) {
  Item& item = *step.item;
  --item.in_work;
  if (step.stage == Stage::checking) --checking_;
  if (step.stage == Stage::copying)
    copying_seconds_ = std::chrono::duration<double>(Clock::now() - start_).count();
  if (!item.todo.empty() || item.in_work > 0) return;
  const auto fill = [&](bool have) {
    item.todo.clear();
    for (size_t block = item.part->blocks(); block-- > 0;)
      if (item.part->has(block) == have) item.todo.push_back(block);
  };
  switch (step.stage) {
    case Stage::waiting:
      fill(false);
      for (size_t block = 0; block < item.part->blocks(); ++block)
        if (item.part->has(block)) there_ += item.part->size(block);
      item.stage = item.todo.empty() ? Stage::settling : Stage::copying;
      return;
    case Stage::copying:
      item.stage = Stage::settling;
      return;
    case Stage::settling:
      fill(true);
      item.stage = Stage::checking;
      if (!item.todo.empty()) return;
      break;  // an empty file
    case Stage::checking:
      break;
    case Stage::done:
      return;
  }
  conclude(item);
}

/// All blocks were read back. Called under the lock.
void CopyWork::conclude(Item& item) {
  if (item.wrong.empty()) {
    const std::string digest = item.part->digest();
    const int64_t changed_at = item.part->changed_at();
    item.part.reset();
    item.in.reset();
    finish_(item.file, digest, changed_at);
    item.stage = Stage::done;
    return;
  }
  if (++item.repairs > kMostRepairs)
    throw Error(ExitCode::environment,
                {.where = (folders_.parts / item.file.name).string(),
                 .what = "block at byte " + std::to_string(item.part->begin(item.wrong.front())),
                 .expected = "the bytes that were written",
                 .got = "others, " + std::to_string(item.repairs) + " times",
                 .hint = "the disk does not keep what it is given"});
  repaired_ += item.wrong.size();
  uint64_t right = item.file.size;
  for (const size_t block : item.wrong) {
    item.part->forget(block);
    there_ -= item.part->size(block);
    right -= item.part->size(block);
  }
  checked_ -= right;  // the file is read back anew
  item.todo = std::exchange(item.wrong, {});
  item.stage = Stage::copying;
}

CopyProgress CopyWork::progress() {
  const auto now = Clock::now();
  samples_.push_back({now, read_, checked_});
  while (samples_.size() > 2 && now - samples_.front().when > kWindow)
    samples_.erase(samples_.begin());
  CopyProgress out{.bytes = task_.bytes, .there = there_, .checked = checked_};
  const Sample& first = samples_.front();
  const double seconds = std::chrono::duration<double>(now - first.when).count();
  if (seconds <= 0) return out;
  out.rate = static_cast<double>(read_ - first.read) / seconds;
  const double to_copy = static_cast<double>(out.bytes - out.there);
  const auto in_work = static_cast<double>(read_ - std::min(read_.load(), copied_.load()));
  if (out.rate > 0) out.seconds_left = std::max(0.0, to_copy - in_work) / out.rate;
  if (to_copy > 0) return out;
  const double check_rate =
      checked_ > first.checked ? static_cast<double>(checked_ - first.checked) / seconds : 0;
  if (check_rate > 0) out.seconds_left = static_cast<double>(out.bytes - out.checked) / check_rate;
  return out;
}

}  // namespace dsv32::io
