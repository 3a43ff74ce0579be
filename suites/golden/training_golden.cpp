// The reader of training goldens: hash first, then nothing but what docs/formats.md 10 allows.

#include "golden/reader/training_golden.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <random>

#include "golden/reader/golden.h"
#include "golden/reader/tamper.h"
#include "harness/cli/golden_commands.h"
#include "src/io/io.h"
#include "src/model/errors.h"
#include "src/model/sketch.h"
#include "src/model/weights.h"

namespace dsv32::golden {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSuite = "loss_descent";
constexpr const char* kCase = "tiny-wide";
constexpr const char* kFile = "loss_descent.tiny-wide.h5";
constexpr int64_t kSteps = 50;

void overwrite(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

/// A directory of its own with one training golden; gone with the test.
class SelfTrainingGolden : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::path(testing::TempDir()) / ("dsv32_train_" + std::to_string(::getpid()));
    fs::remove_all(directory_);
    fs::create_directories(directory_);
    original_ = io::read_file(default_directory() / kFile);
    overwrite(file(), original_);
    pin();
  }
  void TearDown() override { fs::remove_all(directory_); }

  /// A manifest that fits the file as it is now: what a forger of both would write.
  void pin() {
    const std::string bytes = io::read_file(file());
    overwrite(directory_ / "manifest.json",
              R"({"files":[{"case":"loss_descent.tiny-wide","file":")" + std::string(kFile) +
                  R"(","kind":"train","sha256":")" + io::sha256_hex(bytes.data(), bytes.size()) +
                  R"(","size":)" + std::to_string(bytes.size()) +
                  R"(}],"format":"dsv32-verify.golden-manifest","version":1})");
  }
  fs::path file() const { return directory_ / kFile; }

  void expect_refused(const std::string& part) const {
    try {
      load_training(kSuite, kCase, directory_);
      ADD_FAILURE() << "accepted; expected a complaint about " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::artefact) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "expected " << part << " in: " << error.what();
    }
  }

  fs::path directory_;
  std::string original_;
};

TEST_F(SelfTrainingGolden, LoadsAWholeFile) {
  const TrainingGolden golden = load_training(kSuite, kCase, directory_);
  EXPECT_EQ(golden.name, "loss_descent.tiny-wide");
  EXPECT_EQ(golden.dialect, "hf");
  const size_t count = golden.parameter_names.size();
  EXPECT_EQ(golden.series.at("loss").size(), size_t{kSteps});
  EXPECT_EQ(golden.series.at("grad_norm").size(), size_t{kSteps});
  ASSERT_EQ(golden.decisions.size(), size_t{kSteps});
  EXPECT_EQ(golden.decisions[49].find("layers.0.topk")->shape(), (Shape{2, 33, 8}));
  EXPECT_EQ(golden.decisions[49].find("layers.1.router.experts")->shape(), (Shape{2, 33, 4}));
  EXPECT_EQ(golden.parameter_norms.size(), kSteps * count);
  EXPECT_EQ(golden.parameter_projections.size(), kSteps * count * kParameterProjections);
  ASSERT_TRUE(golden.band.has_value());
  EXPECT_EQ(golden.band->runs, 64);
  EXPECT_EQ(golden.band->components.size(), size_t{5 * kSteps});
}

TEST_F(SelfTrainingGolden, FirstStepStartsFromTheDecisionsOfTheCaseGolden) {
  const TrainingGolden golden = load_training(kSuite, kCase, directory_);
  const Golden start = load(kCase);
  for (const std::string& name : golden.decisions[0].names())
    EXPECT_TRUE(golden.decisions[0].find(name)->identical(*start.trace.find(name))) << name;
  EXPECT_FLOAT_EQ(static_cast<float>(golden.series.at("loss")[0]),
                  static_cast<float>(start.trace.find("loss.lm")->at(0)));
}

/// One step of AdamW moves an element by about the learning rate: the sketch of the golden after
/// step 0 lies that near to the sketch of the start weights, made by the C++ twin.
TEST_F(SelfTrainingGolden, SketchesAreThoseOfTheCppTwin) {
  constexpr double kLearningRate = 1e-3;
  const TrainingGolden golden = load_training(kSuite, kCase, directory_);
  const Case c = io::find_case(kCase);
  const SyntheticWeights weights(c);
  for (size_t i = 0; i < golden.parameter_names.size(); ++i) {
    const std::string& name = golden.parameter_names[i];
    const HostTensor value = weights.load({name, *weight_shape(c.config, name)});
    const ParameterSketch sketch =
        sketch_parameter(value.data<float>(), parameter_codes(name, value.numel()));
    const double moved = 1.1 * kLearningRate * static_cast<double>(value.numel());
    EXPECT_LT(std::abs(sketch.norm - golden.parameter_norms[i]), moved) << name;
    EXPECT_GT(sketch.norm, 0) << name;
    for (int p = 0; p < kParameterProjections; ++p) {
      const double got = golden.parameter_projections[i * kParameterProjections + p];
      EXPECT_LT(std::abs(sketch.projections[p] - got), moved) << name << " projection " << p;
    }
  }
}

TEST_F(SelfTrainingGolden, WrongHashIsRefusedBeforeAnythingIsOpened) {
  overwrite(file(), std::string(original_.size(), 'x'));
  expect_refused("sha256");
}

TEST_F(SelfTrainingGolden, TruncatedFileIsRefused) {
  overwrite(file(), original_.substr(0, original_.size() / 2));
  expect_refused("size");
  pin();
  expect_refused("something that HDF5 cannot open");
}

TEST_F(SelfTrainingGolden, EverySingleChangedByteIsRefusedByItsHash) {
  std::mt19937_64 random(20250301);
  for (int i = 0; i < 100; ++i) {
    std::string bytes = original_;
    bytes[random() % bytes.size()] ^= static_cast<char>(1 + random() % 255);
    overwrite(file(), bytes);
    expect_refused("sha256");
  }
}

TEST_F(SelfTrainingGolden, EveryKindOfDamageIsNamedEvenWithAMatchingHash) {
  for (const Damage& damage : training_damages()) {
    SCOPED_TRACE(damage.name);
    overwrite(file(), original_);
    ASSERT_NO_THROW(damage.apply(file()));
    pin();
    expect_refused(damage.complaint);
  }
}

/// 0 loaded, 1 refused as an artefact, 2 another error, -1 a crash or a hang; in a process of its
/// own.
int load_in_child(const fs::path& directory) {
  constexpr unsigned kSeconds = 20;
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(kSeconds);
    try {
      load_training(kSuite, kCase, directory);
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
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_F(SelfTrainingGolden, DamagedBytesWithAForgedManifestNeverEscape) {
  std::mt19937_64 random(20250302);
  int refused = 0;
  for (int i = 0; i < 150; ++i) {
    std::string bytes = original_;
    const size_t span = i % 2 == 0 ? size_t{16384} : bytes.size();  // metadata, all
    for (size_t k = 0; k < 1 + i % 8u; ++k)
      bytes[random() % span] ^= static_cast<char>(1 + random() % 255);
    overwrite(file(), bytes);
    pin();
    const int outcome = load_in_child(directory_);
    EXPECT_TRUE(outcome == 0 || outcome == 1) << "damage " << i << ": outcome " << outcome;
    refused += outcome == 1 ? 1 : 0;
  }
  EXPECT_GT(refused, 0);
}

TEST_F(SelfTrainingGolden, UnknownGoldenNamesTheNearest) {
  EXPECT_TRUE(training_exists(kSuite, kCase, directory_));
  EXPECT_FALSE(training_exists("loss_decent", kCase, directory_));
  try {
    load_training("loss_decent", kCase, directory_);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(std::string(error.what()).find("did you mean loss_descent.tiny-wide"),
              std::string::npos)
        << error.what();
  }
}

TEST_F(SelfTrainingGolden, IsNoGoldenOfACase) {
  EXPECT_FALSE(exists("loss_descent.tiny-wide", directory_));
  EXPECT_THROW(load("loss_descent.tiny-wide", directory_), Error);
}

std::string printed(ExitCode (*command)(const std::string&, const fs::path&),
                    const std::string& name, const fs::path& directory) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(command(name, directory), ExitCode::ok);
  return testing::internal::GetCapturedStdout();
}

TEST_F(SelfTrainingGolden, ShowTellsProvenanceSeriesAndParameters) {
  const std::string text =
      printed(harness::golden_show_command, "loss_descent.tiny-wide", directory_);
  for (const char* part :
       {"transformers 5.23.0", "recipe", "grad_norm", "lm_head.weight", "band of 64 runs"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " in " << text;
}

TEST_F(SelfTrainingGolden, DiffFindsAChangedLoss) {
  testing::internal::CaptureStdout();
  EXPECT_EQ(harness::golden_diff_command(directory_, directory_), ExitCode::ok);
  const std::string text = testing::internal::GetCapturedStdout();
  EXPECT_NE(text.find("loss_descent.tiny-wide: identical"), std::string::npos) << text;
}

}  // namespace
}  // namespace dsv32::golden
