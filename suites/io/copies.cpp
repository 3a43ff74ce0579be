// weights copy: whole and right or not there, whatever stops it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <random>
#include <thread>

#include "src/io/volume/copy.h"
#include "src/io/volume/part_file.h"
#include "suites/kit/io_files.h"

namespace dsv32::suites {
namespace {

using Files = std::map<std::string, std::string>;

constexpr uint64_t kBlock = 4096;

/// A folder's files by name, those of the copy's own folder left out.
Files files_in(const fs::path& folder) {
  Files files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.is_regular_file()) files[entry.path().filename().string()] = bytes_of(entry.path());
  return files;
}

/// A checkpoint of four shards, and a folder for its copy.
struct World {
  World() {
    io::make_checkpoint(io::find_case("tiny"), from.path(), {.shard_bytes = 1 << 16});
    put(from / "tokenizer.json", "{}");
  }
  io::CopyReport copy(io::CopyOptions options = {}) const {
    options.block = kBlock;
    options.readers = 3;
    return io::copy_checkpoint(from.path(), to.path(), options);
  }
  std::string refused(ExitCode code) const {
    return refusal([&] { copy(); }, code);
  }
  fs::path shard() const { return from / "model-00002-of-00004.safetensors"; }
  fs::path copied(const fs::path& path) const { return to / path.filename().string(); }
  void expect_equal() const {
    const Files files = files_in(from.path()), copies = files_in(to.path());
    EXPECT_EQ(files.size(), copies.size());
    for (const auto& [name, bytes] : files)
      EXPECT_TRUE(copies.contains(name) && copies.at(name) == bytes) << name;
  }
  bool is_checkpoint() const { return fs::exists(to / "model.safetensors.index.json"); }

  Folder from, to;
};

/// Stops a copy by an exception once so many bytes are there.
struct Stopped {};
void stop_after(const World& world, uint64_t bytes) {
  EXPECT_THROW(world.copy({.tick = std::chrono::milliseconds(0),
                           .progress =
                               [&](const io::CopyProgress& now) {
                                 if (now.there >= bytes) throw Stopped();
                               }}),
               Stopped);
}

TEST(Copy, HasTheBytesOfTheCheckpoint) {
  const World world;
  fs::create_directory(world.from / "original");
  put(world.from / "other.bin", "weights of another format");
  const io::CopyReport report = world.copy();
  fs::remove(world.from / "other.bin");
  world.expect_equal();
  EXPECT_EQ(report.copied, report.bytes);
  EXPECT_TRUE(has(report.text(), {"8 files", "read back", "left out", "2: original, other.bin"}))
      << report.text();
  EXPECT_TRUE(io::check_checkpoint(world.to.path(), true).good);
}

TEST(Copy, IsNotMadeTwice) {
  const World world;
  world.copy();
  const auto before = fs::last_write_time(world.copied(world.shard()));
  const io::CopyReport again = world.copy();
  EXPECT_EQ(again.copied, 0U);
  EXPECT_TRUE(has(again.text(), {"nothing to copy: 8 files"})) << again.text();
  EXPECT_EQ(fs::last_write_time(world.copied(world.shard())), before);
}

TEST(Copy, TakesFromTheSourceWhatHasChangedThere) {
  const World world;
  world.copy();
  std::string bytes = bytes_of(world.shard());
  bytes.back() ^= 1;
  put(world.shard(), bytes);
  const io::CopyReport again = world.copy();
  EXPECT_EQ(again.copied, bytes.size());
  world.expect_equal();
}

TEST(Copy, MendsWhatHasChangedInIt) {
  const World world;
  world.copy();
  std::string bytes = bytes_of(world.shard());
  bytes[bytes.size() / 2] ^= 1;
  put(world.copied(world.shard()), bytes);
  const io::CopyReport again = world.copy();
  EXPECT_EQ(again.copied, kBlock);  // the one block
  EXPECT_EQ(again.repaired, 1U);
  world.expect_equal();
  fs::remove(world.copied(world.shard()));
  EXPECT_EQ(world.copy().copied, bytes.size());
  world.expect_equal();
}

TEST(Copy, IsNoCheckpointUntilItIsComplete) {
  const World world;
  stop_after(world, 100'000);
  EXPECT_TRUE(files_in(world.to.path()).empty());
  const io::CopyReport rest = world.copy();
  EXPECT_LE(rest.copied, rest.bytes - 100'000);
  EXPECT_TRUE(has(rest.text(), {" were there"})) << rest.text();
  world.expect_equal();
}

TEST(Copy, ReadsBackWhatAnEarlierRunWrote) {
  const World world;
  stop_after(world, 100'000);
  size_t spoilt = 0;
  for (const auto& part : fs::directory_iterator(world.to / ".dsv32-copy/parts")) {
    std::string bytes = bytes_of(part.path());
    const std::string list = bytes_of(world.to / ".dsv32-copy/blocks" / part.path().filename());
    if (std::count(list.begin(), list.end(), '\n') < 2) continue;
    const size_t line = list.find('\n') + 1;
    bytes[std::stoul(list.substr(line)) * kBlock] ^= 1;
    put(part.path(), bytes);
    ++spoilt;
  }
  EXPECT_GT(spoilt, 0U);
  EXPECT_EQ(world.copy().repaired, spoilt);
  world.expect_equal();
}

TEST(Copy, GoesOnAfterAKillAtAnyMoment) {
  using Clock = std::chrono::steady_clock;
  const World world;
  const auto start_copy = [&] {
    const pid_t child = ::fork();
    if (child == 0) {
      world.copy();
      ::_exit(0);
    }
    return child;
  };
  const auto clear = [&] {
    for (const auto& entry : fs::directory_iterator(world.to.path())) fs::remove_all(entry.path());
  };
  const auto begin = Clock::now();
  ::waitpid(start_copy(), nullptr, 0);
  const auto whole = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin);
  clear();
  std::mt19937 random(32);
  constexpr int kKills = 12, kTries = 400;  // a copy that goes on may be through before its kill
  int killed = 0;
  for (int i = 0; killed < kKills && i < kTries; ++i) {
    const pid_t child = start_copy();
    std::this_thread::sleep_for(std::chrono::microseconds(random() % whole.count()));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    const bool finished = !WIFSIGNALED(status);
    killed += finished ? 0 : 1;
    for (const auto& [name, bytes] : files_in(world.to.path()))
      EXPECT_TRUE(bytes == bytes_of(world.from / name)) << name << " after kill " << i;
    if (world.is_checkpoint()) world.expect_equal();
    if (finished) clear();
  }
  EXPECT_EQ(killed, kKills);
  world.copy();
  world.expect_equal();
}

TEST(Copy, SaysThatTheDiskIsFullAndGoesOnWhenItIsNot) {
  const World world;
  {
    const FileSizeLimit full(50'000);
    const std::string said = world.refused(ExitCode::environment);
    EXPECT_TRUE(has(said, {"/parts/model-", "room for", "the same command goes on"})) << said;
    EXPECT_FALSE(world.is_checkpoint());
  }
  world.copy();
  world.expect_equal();
}

TEST(Copy, StaysOutOfItsSource) {
  const World world;
  for (const char* inside : {"", ".", "copy", "a/b/c"})
    EXPECT_TRUE(has(refusal([&] { io::copy_checkpoint(world.from.path(), world.from / inside); },
                            ExitCode::usage),
                    {"outside of"}))
        << inside;
  fs::create_directory_symlink(world.from.path(), world.to / "link");
  EXPECT_TRUE(has(refusal([&] { io::copy_checkpoint(world.from.path(), world.to / "link/copy"); },
                          ExitCode::usage),
                  {"outside of"}));
}

TEST(Copy, ReplacesNothingThatItDidNotMake) {
  World world;
  put(world.to / "config.json", "{}");
  EXPECT_TRUE(has(world.refused(ExitCode::usage), {"config.json of other origin"}));
  EXPECT_EQ(files_in(world.to.path()).size(), 1U);
  fs::remove(world.to / "config.json");
  fs::create_symlink(world.from / "config.json", world.to / "config.json");
  EXPECT_TRUE(has(world.refused(ExitCode::usage), {"config.json of other origin"}));
  fs::remove(world.to / "config.json");
  world.copy();
  const World other;
  EXPECT_TRUE(has(
      refusal([&] { io::copy_checkpoint(other.from.path(), world.to.path()); }, ExitCode::usage),
      {"a copy of"}));
  world.expect_equal();
}

TEST(Copy, IsAloneInItsFolder) {
  const World world;
  world.copy();
  const int fd = ::open((world.to / ".dsv32-copy/lock").c_str(), O_RDONLY | O_CLOEXEC);
  EXPECT_EQ(::flock(fd, LOCK_EX | LOCK_NB), 0);
  EXPECT_TRUE(has(world.refused(ExitCode::environment), {"another dsv32-verify weights copy"}));
  ::close(fd);
}

TEST(Copy, WantsASoundCheckpoint) {
  const World world;
  fs::resize_file(world.shard(), fs::file_size(world.shard()) - 1);
  EXPECT_TRUE(has(world.refused(ExitCode::artefact), {"model-00002"}));
  EXPECT_TRUE(files_in(world.to.path()).empty());
}

TEST(Copy, FollowsLinksOfAHubCacheAlone) {
  const World world;
  const Folder cache;
  const fs::path blobs = cache / "blobs", snapshot = cache / "snapshots/abc";
  fs::create_directories(blobs);
  fs::create_directories(snapshot);
  for (const auto& [name, bytes] : files_in(world.from.path())) {
    put(blobs / name, bytes);
    fs::create_symlink("../../blobs/" + name, snapshot / name);
  }
  io::copy_checkpoint(snapshot, world.to.path());
  world.expect_equal();
  const Folder secrets;
  put(secrets / "secret.json", "{}");
  for (const char* name : {"config.json", "model-00002-of-00004.safetensors"}) {
    const World linked;
    fs::rename(linked.from / name, secrets / name);
    fs::create_symlink(secrets / name, linked.from / name);
    EXPECT_TRUE(has(linked.refused(ExitCode::artefact), {name, "one that leads to"}));
  }
}

TEST(Copy, TakesAFolderOfOneFileAndOneOfRanks) {
  const Folder one, ranks, to_one, to_ranks;
  io::make_checkpoint(io::find_case("tiny"), ranks.path(), {.format = io::CheckpointFormat::demo});
  EXPECT_EQ(io::copy_checkpoint(ranks.path(), to_ranks.path()).files, 3U);
  EXPECT_TRUE(io::check_checkpoint(to_ranks.path(), true).good);
  put(one / "model.safetensors", bytes_of(ranks / "model0-mp1.safetensors"));
  io::copy_checkpoint(one.path(), to_one.path());
  EXPECT_EQ(files_in(to_one.path()), files_in(one.path()));
}

TEST(Copy, DropsShardsThatTheSourceHasNoMore) {
  const World world;
  world.copy();
  for (const auto& [name, bytes] : files_in(world.from.path())) fs::remove(world.from / name);
  io::make_checkpoint(io::find_case("tiny"), world.from.path(), {.shard_bytes = 1 << 20});
  world.copy();
  world.expect_equal();
}

TEST(CopyProgress, IsOneLineForPeople) {
  const io::CopyProgress now{
      .bytes = uint64_t{10} << 30, .there = 3 << 29, .checked = 1 << 20, .rate = 1e8};
  EXPECT_EQ(to_string(now), "1.5 GiB of 10.0 GiB copied, 1.0 MiB checked, 95.4 MiB/s");
  io::CopyProgress later = now;
  later.seconds_left = 3725;
  EXPECT_TRUE(has(to_string(later), {"95.4 MiB/s, 1:02:05 left"}));
}

// --- the parts ----------------------------------------------------------------------------------

TEST(PartFile, TakesWholeLinesOfItsOwnSourceAlone) {
  const Folder folder;
  const io::PartOf of{.size = 10'000, .changed_at = 5, .block = kBlock};
  const std::vector<std::byte> bytes(kBlock, std::byte{7});
  const auto open = [&](io::PartOf what) {
    return std::make_unique<io::PartFile>(folder / "part", folder / "list", what);
  };
  {
    const auto part = open(of);
    part->put(0, bytes, {});
    part->put(1, bytes, {});
  }
  const std::string list = bytes_of(folder / "list");
  put(folder / "list", list.substr(0, list.size() - 1));  // cut by a kill
  {
    const auto part = open(of);
    EXPECT_EQ(part->blocks(), 3U);
    EXPECT_TRUE(part->has(0));
    EXPECT_FALSE(part->has(1));
    EXPECT_FALSE(part->has(2));
    std::vector<std::byte> buffer(kBlock);
    EXPECT_FALSE(part->is_right(0, buffer)) << "no digest of these bytes";
  }
  put(folder / "list", list + "1 00\nx 11\n99 " + std::string(64, '0') + "\n");
  EXPECT_TRUE(open(of)->has(1));
  EXPECT_FALSE(open({.size = 10'000, .changed_at = 6, .block = kBlock})->has(0));
}

}  // namespace
}  // namespace dsv32::suites
