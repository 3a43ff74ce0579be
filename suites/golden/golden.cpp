// The golden reader: a file is opened only after its hash matched, and then only what
// docs/formats.md 8 allows is read.

#include "golden/reader/golden.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <string>

#include "golden/reader/tamper.h"
#include "harness/cli/golden_commands.h"
#include "src/io/io.h"
#include "src/model/errors.h"

namespace dsv32::golden {
namespace {

namespace fs = std::filesystem;

constexpr const char* kCase = "tiny-short7";
constexpr const char* kFile = "tiny-short7.h5";

/// Without the care of io::write_file: hundreds of them must be quick.
void overwrite(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

bool holds(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::string manifest_text(const fs::path& directory, const std::string& file = kFile) {
  const std::string bytes = io::read_file(directory / kFile);
  return R"({"files":[{"case":"tiny-short7","file":")" + file + R"(","kind":"full","sha256":")" +
         io::sha256_hex(bytes.data(), bytes.size()) + R"(","size":)" +
         std::to_string(bytes.size()) +
         R"(}],"format":"dsv32-verify.golden-manifest","version":1})";
}

/// A directory of its own with one golden; gone with the test.
class SelfGolden : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / ("dsv32_golden_" + std::to_string(::getpid()));
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    original_ = io::read_file(default_directory() / kFile);
    restore();
  }
  void TearDown() override { fs::remove_all(directory_); }

  void restore() {
    overwrite(file(), original_);
    pin();
  }
  /// A manifest that fits the file as it is now: what a forger of both would write.
  void pin() { overwrite(directory_ / "manifest.json", manifest_text(directory_)); }
  fs::path file() const { return directory_ / kFile; }

  void expect_refused(const std::string& part, ExitCode code = ExitCode::artefact) const {
    try {
      load(kCase, directory_);
      ADD_FAILURE() << "accepted; expected a complaint about " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_TRUE(holds(error.what(), part)) << "expected " << part << " in: " << error.what();
    }
  }

  fs::path directory_;
  std::string original_;
};

// --- the hash comes first -----------------------------------------------------------------------

TEST_F(SelfGolden, LoadsAWholeFile) {
  const Golden golden = load(kCase, directory_);
  EXPECT_EQ(golden.kind, "full");
  EXPECT_EQ(golden.dialect, "hf");
  EXPECT_EQ(golden.trace.find("embed")->shape(), (Shape{2, 7, 64}));
  EXPECT_EQ(golden.trace.find("layers.0.topk")->dtype(), DType::int32);
  EXPECT_TRUE(golden.trace.has("grad.model.embed_tokens.weight"));
  EXPECT_EQ(golden.trace.metadata.at("case_name"), kCase);
  EXPECT_EQ(golden.trace.names().front(), "embed");
}

/// A manifest that gives another golden out as one of decoding.
std::string as_generated(const fs::path& file, const std::string& name) {
  const std::string bytes = io::read_file(file);
  return R"({"files":[{"case":")" + name + R"(","file":"g.h5","kind":"generate","sha256":")" +
         io::sha256_hex(bytes.data(), bytes.size()) + R"(","size":)" +
         std::to_string(bytes.size()) +
         R"(}],"format":"dsv32-verify.golden-manifest","version":1})";
}

TEST_F(SelfGolden, LoadsADecoding) {
  const Golden golden = load("generate.tiny-wide");
  EXPECT_EQ(golden.kind, "generate");
  EXPECT_EQ(golden.trace.find("gen.tokens")->shape(), (Shape{2, 24}));
  EXPECT_EQ(golden.trace.find("gen.logits")->shape(), (Shape{2, 24, 100}));
  EXPECT_EQ(golden.trace.find("layers.1.topk")->shape(), (Shape{2, 56, 8}));
  EXPECT_TRUE(holds(golden.attributes.at("producer"), "5.23.0"));
}

TEST_F(SelfGolden, RefusesADecodingThatIsNone) {
  struct Row {
    const char *file, *name, *complaint;
  };
  const Row rows[] = {{"tiny-short7.h5", "generate.tiny-wide", "attribute format"},
                      {"loss_descent.tiny-wide.h5", "generate.tiny-wide", "attribute format"},
                      {"generate.tiny-wide.h5", "generate.tiny-nopad", "attribute case_name"},
                      {"generate.tiny-wide.h5", "tiny-wide", "generate.CASE"}};
  for (const auto& [source, name, complaint] : rows) {
    fs::copy_file(default_directory() / source, directory_ / "g.h5",
                  fs::copy_options::overwrite_existing);
    overwrite(directory_ / "manifest.json", as_generated(directory_ / "g.h5", name));
    try {
      load(name, directory_);
      ADD_FAILURE() << source << " accepted as " << name;
    } catch (const Error& error) {
      EXPECT_TRUE(holds(error.what(), complaint)) << error.what();
    }
  }
}

TEST_F(SelfGolden, WrongHashIsRefusedBeforeAnythingIsOpened) {
  // Not HDF5 at all, of the right size: only a reader that hashes first complains about the hash.
  overwrite(file(), std::string(original_.size(), 'x'));
  expect_refused("sha256");
}

TEST_F(SelfGolden, TruncatedFileIsRefused) {
  overwrite(file(), original_.substr(0, original_.size() / 2));
  expect_refused("size");
  pin();
  expect_refused("something that HDF5 cannot open");
}

TEST_F(SelfGolden, EverySingleChangedByteIsRefusedByItsHash) {
  std::mt19937_64 random(20250101);
  for (int i = 0; i < 200; ++i) {
    std::string bytes = original_;
    bytes[random() % bytes.size()] ^= static_cast<char>(1 + random() % 255);
    overwrite(file(), bytes);
    expect_refused("sha256");
  }
}

TEST_F(SelfGolden, AbsentFileIsRefused) {
  fs::remove(file());
  expect_refused("the golden of case tiny-short7");
}

TEST_F(SelfGolden, UnknownCaseNamesTheNearest) {
  try {
    load("tiny-shord7", directory_);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_TRUE(holds(error.what(), "did you mean tiny-short7")) << error.what();
  }
}

// --- manifest -----------------------------------------------------------------------------------

TEST_F(SelfGolden, ManifestNamesPlainFilesOnly) {
  for (const char* name :
       {"../tiny.h5", "/etc/passwd", ".h5", "a/b.h5", "x.txt", "a\\u0000.h5", ""}) {
    overwrite(directory_ / "manifest.json", manifest_text(directory_, name));
    expect_refused("plain file name");
  }
}

TEST_F(SelfGolden, DamagedManifestIsRefused) {
  const std::string text = manifest_text(directory_);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    return changed.replace(changed.find(from), from.size(), to);
  };
  const std::map<std::string, std::string> broken = {
      {text.substr(0, text.size() - 5), "JSON"},
      {with("\"version\":1", "\"version\":2"), "version"},
      {with("\"kind\":\"full\"", "\"kind\":\"half\""), "kind"},
      {with("\"sha256\":\"", "\"sha256\":\"Z"), "64 lower-case hex digits"},
      {with("\"size\":", "\"size\":9"), "size"},
      {with("\"size\":", "\"size\":-"), "size"},
      {with("\"files\":[", "\"files\":[3,"), "an object"}};
  for (const auto& [manifest, part] : broken) {
    overwrite(directory_ / "manifest.json", manifest);
    expect_refused(part);
  }
}

// --- what HDF5 may hold -------------------------------------------------------------------------

TEST_F(SelfGolden, EveryKindOfDamageIsNamedEvenWithAMatchingHash) {
  for (const Damage& damage : damages()) {
    SCOPED_TRACE(damage.name);
    overwrite(file(), original_);
    ASSERT_NO_THROW(damage.apply(file()));
    pin();
    expect_refused(damage.complaint);
  }
}

/// What came of loading a file in a process of its own.
enum class Outcome { loaded, refused, other_error, crashed };

Outcome load_in_child(const fs::path& directory) {
  constexpr unsigned kSeconds = 20;
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(kSeconds);
    try {
      load(kCase, directory);
      ::_exit(0);
    } catch (const Error& error) {
      ::_exit(error.code() == ExitCode::artefact ? 1 : 2);
    } catch (...) {
      ::_exit(2);
    }
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status)) return Outcome::crashed;
  return static_cast<Outcome>(WEXITSTATUS(status));
}

TEST_F(SelfGolden, DamagedBytesWithAForgedManifestNeverEscape) {
  std::mt19937_64 random(20250102);
  std::map<Outcome, int> outcomes;
  for (int i = 0; i < 300; ++i) {
    std::string bytes = original_;
    const size_t flips = 1 + random() % 8;
    const size_t span =
        i % 2 == 0 ? std::min<size_t>(bytes.size(), 8192) : bytes.size();  // metadata, all
    for (size_t k = 0; k < flips; ++k)
      bytes[random() % span] ^= static_cast<char>(1 + random() % 255);
    overwrite(file(), bytes);
    pin();
    ++outcomes[load_in_child(directory_)];
  }
  std::cout << "loaded " << outcomes[Outcome::loaded] << ", refused " << outcomes[Outcome::refused]
            << ", crashed in HDF5 " << outcomes[Outcome::crashed] << "\n";
  EXPECT_EQ(outcomes[Outcome::other_error], 0);
  EXPECT_EQ(outcomes[Outcome::crashed], 0);
  EXPECT_GT(outcomes[Outcome::refused], 0);
}

// --- commands -----------------------------------------------------------------------------------

struct Printed {
  int code;
  std::string text;
};

template <typename Command>
Printed run(Command&& command) {
  testing::internal::CaptureStdout();
  const ExitCode code = command();
  return {static_cast<int>(code), testing::internal::GetCapturedStdout()};
}

TEST_F(SelfGolden, VerifyReportsBadUnlistedAndAbsentFiles) {
  overwrite(directory_ / "stray.h5", "x");
  const Printed stray = run([&] { return harness::golden_verify_command(directory_); });
  EXPECT_EQ(stray.code, 4);
  EXPECT_TRUE(holds(stray.text, "ok   ")) << stray.text;
  EXPECT_TRUE(holds(stray.text, "UNLISTED  stray.h5")) << stray.text;
  EXPECT_TRUE(holds(stray.text, "ABSENT    small has no golden")) << stray.text;
  overwrite(file(), std::string(original_.size(), 'x'));
  const Printed bad = run([&] { return harness::golden_verify_command(directory_); });
  EXPECT_EQ(bad.code, 4);
  EXPECT_TRUE(holds(bad.text, "BAD ")) << bad.text;
}

TEST_F(SelfGolden, VerifyOfAnEmptyManifestIsNotGreen) {
  overwrite(directory_ / "manifest.json",
            R"({"files":[],"format":"dsv32-verify.golden-manifest","version":1})");
  EXPECT_EQ(run([&] { return harness::golden_verify_command(directory_); }).code, 5);
}

TEST_F(SelfGolden, ShowTellsProvenanceAndTaps) {
  const Printed shown = run([&] { return harness::golden_show_command(kCase, directory_); });
  EXPECT_EQ(shown.code, 0);
  for (const char* part :
       {"transformers", "config_sha256", "input_ids", "layers.0.ix.scores", "[2,7,64]"}) {
    EXPECT_TRUE(holds(shown.text, part)) << part;
  }
}

TEST_F(SelfGolden, DiffFindsNothingBetweenEqualDirectories) {
  const Printed same = run([&] { return harness::golden_diff_command(directory_, directory_); });
  EXPECT_EQ(same.code, 0);
  EXPECT_TRUE(holds(same.text, "tiny-short7: identical")) << same.text;
  const Printed other =
      run([&] { return harness::golden_diff_command(default_directory(), directory_); });
  EXPECT_EQ(other.code, 1);
  EXPECT_TRUE(holds(other.text, "small: removed")) << other.text;
}

// --- the committed goldens ----------------------------------------------------------------------

TEST(SelfGoldenData, EveryCommittedGoldenIsWhole) {
  const Printed all = run([] { return harness::golden_verify_command(default_directory()); });
  EXPECT_EQ(all.code, 0) << all.text;
}

TEST(SelfGoldenData, SketchHoldsDecisionsAndChosenRows) {
  const Golden golden = load("small");
  EXPECT_EQ(golden.kind, "sketch");
  EXPECT_EQ(golden.trace.find("layers.0.topk")->shape(), (Shape{2, 544, 256}));
  const SketchedTap& logits = golden.sketches.at("logits");
  EXPECT_EQ(logits.shape, (Shape{2, 544, 10000}));
  EXPECT_EQ(logits.row_norms.size(), 1088u);
  EXPECT_EQ(logits.projections.size(), 1088u * 8);
  EXPECT_EQ(logits.rows.size(), logits.row_index.size() * 10000);
}

}  // namespace
}  // namespace dsv32::golden
