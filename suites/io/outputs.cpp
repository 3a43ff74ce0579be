// The one writer of this program: what it may replace, what it writes through, what it never
// destroys.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <thread>

#include "src/io/output.h"
#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

constexpr uid_t kNobody = 65534;

bool is_root() { return ::geteuid() == 0; }

struct stat status_of(const fs::path& path) {
  struct stat status = {};
  EXPECT_EQ(::lstat(path.c_str(), &status), 0) << path;
  return status;
}

int count_files(const fs::path& folder) {
  return static_cast<int>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

/// A process number that nobody has any more.
pid_t dead_process() {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  return child;
}

/// Standard output leads to a file while this lives.
class Redirected {
 public:
  explicit Redirected(const fs::path& path) : kept_(::dup(STDOUT_FILENO)) {
    std::fflush(stdout);
    std::FILE* file = std::fopen(path.c_str(), "w");
    ::dup2(::fileno(file), STDOUT_FILENO);
    std::fclose(file);
  }
  ~Redirected() {
    ::dup2(kept_, STDOUT_FILENO);
    ::close(kept_);
  }

 private:
  int kept_;
};

/// Everything that comes out of a pipe while `action` runs.
std::string through_pipe(const fs::path& pipe, const std::function<void()>& action) {
  std::string seen;
  std::thread reader([&] { seen = bytes_of(pipe); });
  action();
  reader.join();
  return seen;
}

TEST(SelfOutputs, WholeFilesOrNone) {
  const Folder folder;
  io::write_file(folder / "x", "first");
  io::write_file(folder / "x", "second");
  EXPECT_EQ(io::read_file(folder / "x"), "second");
  const std::string text =
      refusal([&] { io::write_file(folder / "none/x", "text"); }, ExitCode::environment);
  EXPECT_TRUE(has(text, {"create", "No such file"})) << text;
  {
    io::OutputFile unfinished(folder / "x");
    unfinished.write(0, "third", 5);
  }
  EXPECT_EQ(bytes_of(folder / "x"), "second");
  EXPECT_EQ(count_files(folder.path()), 1);
}

TEST(SelfOutputs, LinksAreFollowed) {
  const Folder folder;
  fs::create_directory(folder / "far");
  put(folder / "far/real", "old");
  fs::create_symlink("far/real", folder / "near");
  fs::create_symlink("near", folder / "link");
  fs::create_symlink("far/new", folder / "dangling");
  io::write_file(folder / "link", "new");
  io::write_file(folder / "dangling", "made");
  EXPECT_TRUE(fs::is_symlink(folder / "link") && fs::is_symlink(folder / "near"));
  EXPECT_EQ(bytes_of(folder / "far/real"), "new");
  EXPECT_TRUE(fs::is_symlink(folder / "dangling"));
  EXPECT_EQ(bytes_of(folder / "far/new"), "made");
  fs::create_symlink("circle", folder / "circle");
  refusal([&] { io::write_file(folder / "circle", "x"); }, ExitCode::environment);
}

TEST(SelfOutputs, ModeAndOwnerAreKept) {
  const Folder folder;
  for (const mode_t mode : {0600, 0640, 0666, 0444}) {
    put(folder / "x", "old");
    ::chmod((folder / "x").c_str(), mode);
    if (mode == 0444 && !is_root()) continue;
    io::write_file(folder / "x", "new");
    EXPECT_EQ(status_of(folder / "x").st_mode & 07777, mode);
    EXPECT_EQ(bytes_of(folder / "x"), "new");
  }
  if (!is_root()) return;
  constexpr gid_t kGroup = 4711;
  ASSERT_EQ(::chown((folder / "x").c_str(), kNobody, kGroup), 0);
  io::write_file(folder / "x", "newer");
  EXPECT_EQ(status_of(folder / "x").st_uid, kNobody);
  EXPECT_EQ(status_of(folder / "x").st_gid, kGroup);
}

/// Root gives up its rights while this lives.
class AsNobody {
 public:
  AsNobody() : root_(is_root()) {
    if (root_) {
      EXPECT_EQ(::seteuid(kNobody), 0);
    }
  }
  ~AsNobody() {
    if (root_) {
      EXPECT_EQ(::seteuid(0), 0);
    }
  }

 private:
  bool root_;
};

TEST(SelfOutputs, WhatMayNotBeWrittenIsNotReplaced) {
  const Folder folder;
  const fs::path path = folder / "x";
  put(path, "precious");
  ::chmod(folder.path().c_str(), 0777);
  ::chmod(path.c_str(), 0444);
  const auto attempt = [&] {
    const AsNobody nobody;
    return refusal([&] { io::write_file(path, "x"); }, ExitCode::environment);
  };
  EXPECT_TRUE(has(attempt(), {"may be written"}));
  if (is_root()) {
    ::chmod(path.c_str(), 0666);  // writable by everybody, but the new file's owner is another
    EXPECT_TRUE(has(attempt(), {"owner may be kept"}));
  }
  EXPECT_EQ(bytes_of(path), "precious");
  EXPECT_EQ(count_files(folder.path()), 1);
}

TEST(SelfOutputs, PipesAndDevicesAreWrittenThrough) {
  const Folder folder;
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(through_pipe(pipe, [&] { io::write_file(pipe, "whole"); }), "whole");
  EXPECT_TRUE(fs::is_fifo(pipe));
  const std::string full =
      refusal([] { io::write_file("/dev/full", "text"); }, ExitCode::environment);
  EXPECT_TRUE(has(full, {"/dev/full", "write", "No space"})) << full;
  io::write_file("/dev/null", "text");
  EXPECT_TRUE(fs::is_character_file("/dev/null") && fs::is_character_file("/dev/full"));
  if (!is_root()) return;
  constexpr unsigned kMemory = 1, kNull = 3;
  const fs::path node = folder / "node";
  if (::mknod(node.c_str(), S_IFCHR | 0600, makedev(kMemory, kNull)) != 0) return;  // a container
  io::write_file(node, "text");
  EXPECT_TRUE(fs::is_character_file(node));
}

TEST(SelfOutputs, APipeWithoutAReaderIsAnError) {
  const Folder folder;
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  io::OutputFile file(pipe);
  ::close(reader);
  const std::string text = refusal([&] { file.write(0, "text", 4); }, ExitCode::environment);
  EXPECT_TRUE(has(text, {"Broken pipe"})) << text;
}

TEST(SelfOutputs, StreamsTakeBytesInOrder) {
  const Folder folder;
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  // The narrow type first: in the file it comes last.
  const std::vector<std::pair<std::string, HostTensor>> tensors = {
      {"narrow", HostTensor(DType::bfloat16, {3})}, {"wide", int64_tensor({2}, {4, 5})}};
  put_tensors(folder / "file", {}, tensors);
  EXPECT_EQ(through_pipe(pipe, [&] { put_tensors(pipe, {}, tensors); }), bytes_of(folder / "file"));
  std::thread reader([&] { bytes_of(pipe); });
  {
    io::OutputFile file(pipe);
    file.write(1, "b", 1);
    refusal([&] { file.seal(); }, ExitCode::internal);
  }
  reader.join();
}

TEST(SelfOutputs, FoldersAndSocketsAreRefused) {
  const Folder folder;
  refusal([&] { io::write_file(folder.path(), "x"); }, ExitCode::environment);
  const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  (folder / "socket").string().copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  const std::string text =
      refusal([&] { io::write_file(folder / "socket", "x"); }, ExitCode::environment);
  EXPECT_TRUE(has(text, {"a socket"})) << text;
  ::close(listener);
}

TEST(SelfOutputs, StandardOutputHasThreeNames) {
  const Folder folder;
  fs::create_symlink("/dev/stdout", folder / "link");
  for (const fs::path& name : {fs::path("-"), fs::path("/dev/stdout"), folder / "link"}) {
    EXPECT_TRUE(io::is_standard_output(name)) << name;
    const Redirected redirected(folder / "seen");
    const auto inode = status_of(folder / "seen").st_ino;
    io::write_file(name, "one ");
    io::write_file(name, "two");
    EXPECT_EQ(bytes_of(folder / "seen"), "one two") << name;
    EXPECT_EQ(status_of(folder / "seen").st_ino, inode) << name;
  }
  EXPECT_FALSE(io::is_standard_output(folder / "seen"));
  EXPECT_FALSE(io::is_standard_output("/dev/stderr"));
  EXPECT_TRUE(fs::is_symlink("/dev/stdout"));
}

TEST(SelfOutputs, AFullDiskKeepsTheOlderFile) {
  const Folder folder;
  put(folder / "x", "old");
  const std::string large(1 << 16, 'x');
  {
    const FileSizeLimit limit(1 << 12);
    const std::string text =
        refusal([&] { io::write_file(folder / "x", large); }, ExitCode::environment);
    EXPECT_TRUE(has(text, {"write", "File too large"})) << text;
  }
  EXPECT_EQ(bytes_of(folder / "x"), "old");
  EXPECT_EQ(count_files(folder.path()), 1);
}

TEST(SelfOutputs, SeveralChangeTogetherOrNotAtAll) {
  const Folder folder;
  put(folder / "a", "old a");
  put(folder / "b", "old b");
  const std::string large(1 << 16, 'x');
  {
    const FileSizeLimit limit(1 << 12);
    refusal(
        [&] {
          io::write_files({{folder / "a", "new"}, {folder / "b", large}});
        },
        ExitCode::environment);
  }
  EXPECT_EQ(bytes_of(folder / "a"), "old a");
  {
    io::OutputSet set;
    set.put(folder / "a", "new a");
    set.put(folder / "new", "new");
    set.put(folder / "b", "new b");
    fs::remove(folder / "b");
    fs::create_directory(folder / "b");  // its name can no longer be taken
    refusal([&] { set.commit(); }, ExitCode::environment);
  }
  EXPECT_EQ(bytes_of(folder / "a"), "old a");
  EXPECT_FALSE(fs::exists(folder / "new"));
  fs::remove(folder / "b");
  io::write_files({{folder / "a", "newer a"}, {folder / "b", "newer b"}});
  EXPECT_EQ(bytes_of(folder / "a") + bytes_of(folder / "b"), "newer anewer b");
  EXPECT_EQ(count_files(folder.path()), 2);
}

TEST(SelfOutputs, TemporariesOfDeadRunsGo) {
  const Folder folder;
  const std::string dead = std::to_string(dead_process());
  const fs::path held = folder / (".x.tmp." + dead);
  put(held, "of another container");
  std::FILE* file = std::fopen(held.c_str(), "r");
  ASSERT_EQ(::flock(::fileno(file), LOCK_EX), 0);
  const std::vector<std::string> kept = {".x.tmp.1", ".x.tmp.", ".x.tmp.soon", ".y.tmp." + dead,
                                         "x.tmp." + dead};
  for (const std::string& name : kept) put(folder / name, "mine");
  put(folder / (".x.tmp." + std::to_string(::getpid())), "of an earlier run with this number");
  io::write_file(folder / "x", "text");
  for (const std::string& name : kept) EXPECT_TRUE(fs::exists(folder / name)) << name;
  EXPECT_TRUE(fs::exists(held));
  std::fclose(file);
  io::probe_output(folder / "x");
  EXPECT_FALSE(fs::exists(held));
  EXPECT_EQ(count_files(folder.path()), static_cast<int>(kept.size()) + 1);
  EXPECT_EQ(bytes_of(folder / "x"), "text");
}

TEST(SelfOutputs, AStoppedRunLeavesNoTemporaries) {
  const Folder folder;
  io::OutputFile file(folder / "x");
  EXPECT_EQ(count_files(folder.path()), 1);
  io::remove_temporaries();
  EXPECT_EQ(count_files(folder.path()), 0);
}

TEST(SelfOutputs, OneFileHasManyNames) {
  const Folder folder;
  put(folder / "x", "x");
  put(folder / "y", "x");
  fs::create_symlink("x", folder / "link");
  fs::create_hard_link(folder / "x", folder / "hard");
  fs::create_symlink("none", folder / "dangling");
  fs::create_directory_symlink(".", folder / "here");
  for (const char* name : {"x", "link", "hard", "here/x", "here/../"})
    EXPECT_EQ(io::same_file(folder / "x", folder / name), std::string(name) != "here/../") << name;
  EXPECT_FALSE(io::same_file(folder / "x", folder / "y"));
  EXPECT_TRUE(io::same_file(folder / "none", folder / "dangling"));
  EXPECT_TRUE(io::same_file(folder / "here/none", folder / "none"));
  EXPECT_FALSE(io::same_file(folder / "none", folder / "x"));
  EXPECT_FALSE(io::same_file("/dev/null", "/dev/null"));
}

TEST(SelfOutputs, ProbesLeaveNothing) {
  const Folder folder;
  io::probe_output(folder / "x");
  EXPECT_EQ(count_files(folder.path()), 0);
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  io::probe_output(folder / "pipe");  // must not wait for a reader
  refusal([&] { io::probe_output(folder.path()); }, ExitCode::environment);
  refusal([&] { io::probe_output(folder / "none/x"); }, ExitCode::environment);
}

}  // namespace
}  // namespace dsv32::suites
