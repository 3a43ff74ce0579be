// Each lack is seen on a machine that has it, and on none that has it not.
#include "harness/doctor/doctor.h"

#include <gtest/gtest.h>

#include "src/io/io.h"

namespace dsv32::harness {
namespace {

constexpr double kGB = 1e9;

/// A node on which nothing is lacking.
Facts whole_machine() {
  Facts facts;
  facts.cpu = "a CPU", facts.cores = 16;
  facts.vectors = {"avx2", "avx512f", "avx512_bf16"};
  facts.memory_total = 128 * kGB, facts.memory_free = 120 * kGB;
  facts.disk = "/data", facts.disk_free = 4000 * kGB, facts.disk_speed = kGB;
  facts.shm = 64 * kGB;
  facts.open_files = 65536;
  facts.gpus = std::vector<GpuFacts>(8, {.name = "H200", .bytes = 141 * kGB});
  facts.driver = "580.65.06", facts.cuda = "13.0";
  PythonFacts python{.path = "/env/bin/python", .version = "3.11.2"};
  for (const char* name : {"torch", "numpy", "safetensors", "transformers", "peft"})
    python.packages[name] = "9.9";
  python.deepseek_v32 = true;
  facts.pythons = {python};
  return facts;
}

const Needs& small() {
  static const Needs needs = needs_of("small", "small");
  return needs;
}

Line line_of(const Facts& facts, const std::string& topic) {
  for (const Line& line : examine(facts, small()))
    if (line.topic.starts_with(topic)) return line;
  ADD_FAILURE() << "no line about " << topic;
  return {};
}

TEST(SelfDoctor, FindsNothingOnAWholeMachine) {
  for (const Line& line : examine(whole_machine(), small())) {
    EXPECT_EQ(line.health, Health::ok) << line.topic << ": " << line.text;
    EXPECT_EQ(line.remedy, "") << line.topic;
  }
}

struct Lack {
  std::string topic;
  void (*take)(Facts&);
  Health health;
  std::string text, remedy;
};

const Lack kLacks[] = {
    {"memory", [](Facts& f) { f.memory_free = kGB; }, Health::lack, "1.0 GB free",
     "smaller config"},
    {"disk", [](Facts& f) { f.disk_free = 1e8; }, Health::lack, "0.1 GB free", "--weights DIR"},
    {"disk", [](Facts& f) { f.disk_speed = 0; }, Health::lack, "cannot be written", "may write"},
    {"disk", [](Facts& f) { f.disk_speed = 5e6; }, Health::note, "5 MB/s", "local disk"},
    {"shared memory", [](Facts& f) { f.shm = 64 << 20; }, Health::lack, "64 MiB", "--shm-size"},
    {"open files", [](Facts& f) { f.open_files = 1024; }, Health::note, "1024", "ulimit -n"},
    {"open files", [](Facts& f) { f.open_files = 32; }, Health::lack, "32", "ulimit -n"},
    {"ports", [](Facts& f) { f.port_busy = true; }, Health::note, "29500", "--master-port"},
    {"cuda", [](Facts& f) { f.driver = "535.104.05"; }, Health::lack, "535.104.05", "update it"},
    {"cuda", [](Facts& f) { f.cuda = "none"; }, Health::note, "CUDA none", "DDSV32_CUDA=ON"},
    {"gpu", [](Facts& f) { f.gpus.clear(), f.gpu_error = "couldn't communicate"; }, Health::note,
     "couldn't communicate", "driver"},
    {"cpu", [](Facts& f) { f.vectors = {"avx2"}; }, Health::note, "emulated", "--dtype float32"},
    {"cpu", [](Facts& f) { f.vectors.clear(); }, Health::note, "no vector unit", "ten times"},
    {"python", [](Facts& f) { f.pythons.clear(); }, Health::note, "none found", "--python"},
    {"python", [](Facts& f) { f.pythons[0].version = ""; }, Health::note, "does not run",
     "--python"},
    {"python", [](Facts& f) { f.pythons[0].packages.erase("torch"); }, Health::note, "cannot dump",
     "pip install torch"},
    {"python", [](Facts& f) { f.pythons[0].deepseek_v32 = false; }, Health::note, "no deepseek_v32",
     "transformers>=5.12"},
};

TEST(SelfDoctor, EachLackHasItsLineAndItsRemedy) {
  for (const Lack& lack : kLacks) {
    Facts facts = whole_machine();
    lack.take(facts);
    const Line line = line_of(facts, lack.topic);
    EXPECT_EQ(line.health, lack.health) << line.topic << ": " << line.text;
    EXPECT_NE(line.text.find(lack.text), std::string::npos) << line.text;
    EXPECT_NE(line.remedy.find(lack.remedy), std::string::npos) << line.remedy;
  }
}

TEST(SelfDoctor, ALackIsOfItsTopicAlone) {
  for (const Lack& lack : kLacks) {
    Facts facts = whole_machine();
    lack.take(facts);
    for (const Line& line : examine(facts, small()))
      if (!line.topic.starts_with(lack.topic)) {
        EXPECT_EQ(line.health, Health::ok) << line.topic;
      }
  }
}

TEST(SelfDoctor, SharedMemoryMattersToSeveralRanks) {
  Facts facts = whole_machine();
  facts.shm = 64 << 20;
  facts.gpus.resize(1);
  EXPECT_EQ(line_of(facts, "shared memory").health, Health::note);
}

TEST(SelfDoctor, DriversOfEachCudaRelease) {
  EXPECT_TRUE(driver_is_enough("580.65.06", "13.0"));
  EXPECT_FALSE(driver_is_enough("575.51.03", "13.0"));
  EXPECT_TRUE(driver_is_enough("535.104.05", "12.8"));
  EXPECT_FALSE(driver_is_enough("", "13.0"));
}

TEST(SelfDoctor, TheFullModelsSums) {
  const Needs full = needs_of("full", "full");
  EXPECT_EQ(full.weights, 671877944064.0);  // docs/formats.md 1
  EXPECT_EQ(full.bf16, 2 * full.weights);
  EXPECT_GT(full.fp8, full.weights);
  EXPECT_LT(full.fp8, 689e9);  // the released folder, which has the MTP layer too
}

/// The row of the table that begins with these words.
std::string row_of(const std::string& table, const std::string& name) {
  const size_t at = table.find("\n" + name);
  EXPECT_NE(at, std::string::npos) << name << " in\n" << table;
  return table.substr(at + 1, table.find('\n', at + 1) - at - 1);
}

TEST(SelfDoctor, SaysWhoHoldsTheFullModel) {
  const std::string table = fits(whole_machine(), {small(), needs_of("full", "full")});
  const auto ends = [&](const std::string& name, const std::string& words) {
    const std::string row = row_of(table, name);
    std::string squeezed;
    for (const char c : row)
      if (c != ' ' || squeezed.back() != ' ') squeezed += c;
    EXPECT_TRUE(squeezed.ends_with(words)) << row;
  };
  ends("8 x 80 GB", "640 GB no no");
  ends("4 x 141 GB", "564 GB no no");
  ends("8 x 141 GB", "1128 GB no fits");
  ends("16 x 141 GB", "2256 GB fits fits");
  ends("this machine", "1128 GB no fits");
}

}  // namespace
}  // namespace dsv32::harness
