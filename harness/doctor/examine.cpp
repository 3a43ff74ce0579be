#include <cstdio>
#include <cstdlib>

#include "harness/doctor/doctor.h"
#include "harness/report/text.h"

namespace dsv32::harness {
namespace {

constexpr double kGB = 1e9;
constexpr double kMiB = 1024.0 * 1024;
constexpr double kSlowDisk = 50e6;     // bytes per second: a checkpoint of `small` takes 10 s
constexpr double kSmallShm = 1 << 30;  // NCCL and data loaders of 8 ranks
constexpr int64_t kFewFiles = 4096;    // shards, libraries and sockets of 8 ranks

std::string gb(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, bytes < 10 * kGB ? "%.1f GB" : "%.0f GB", bytes / kGB);
  return text;
}

std::string joined(const std::set<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

Line cpu(const Facts& facts) {
  // What the matrix products of each dtype run on; the other flags say nothing more.
  std::set<std::string> telling;
  for (const char* unit : {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"})
    if (facts.vectors.contains(unit)) telling.insert(unit);
  const std::string text = (facts.cpu.empty() ? "unknown" : facts.cpu) + ", " +
                           counted(facts.cores, "core") + ", " +
                           (telling.empty() ? "no vector unit that torch uses" : joined(telling));
  if (telling.empty())
    return {Health::note, "cpu", text, "expect ten times the times of docs/performance.md"};
  if (!facts.vectors.contains("avx512_bf16") && !facts.vectors.contains("amx_bf16"))
    return {Health::note, "cpu", text + "; bfloat16 is emulated",
            "--dtype float32 leaves out the slow half"};
  return {Health::ok, "cpu", text, ""};
}

Line memory(const Facts& facts, const Needs& needs) {
  const std::string text = gb(facts.memory_free) + " free of " + gb(facts.memory_total) +
                           "; judging " + needs.config + " takes " + gb(needs.judge);
  if (needs.judge <= facts.memory_free) return {Health::ok, "memory", text, ""};
  return {
      Health::lack, "memory", text,
      "end other programs, raise the container's limit, or judge a smaller config: dsv32-verify "
      "--config " +
          std::string(needs.config == "small" ? "tiny" : "small")};
}

Line disk(const Facts& facts, const Needs& needs) {
  const std::string text = facts.disk + ": " + gb(facts.disk_free) + " free, " +
                           (facts.disk_speed > 0 ? number(facts.disk_speed / 1e6) + " MB/s written"
                                                 : "cannot be written") +
                           "; a bf16 checkpoint of " + needs.config + " takes " + gb(needs.bf16);
  if (facts.disk_speed <= 0)
    return {Health::lack, "disk", text,
            "run in a folder that you may write, or give --weights DIR"};
  if (facts.disk_free < needs.bf16)
    return {
        Health::lack, "disk", text,
        "free space, or another volume: --weights DIR; synthetic weights of our own models need "
        "no file"};
  if (facts.disk_speed < kSlowDisk)
    return {Health::note, "disk", text,
            "a slow volume: copy the checkpoint to a local disk before the run"};
  return {Health::ok, "disk", text, ""};
}

Line shm(const Facts& facts) {
  const std::string text =
      "/dev/shm has " + (facts.shm < kGB ? number(facts.shm / kMiB) + " MiB" : gb(facts.shm));
  if (facts.shm >= kSmallShm) return {Health::ok, "shared memory", text, ""};
  const bool ranks = facts.gpus.size() > 1;
  return {ranks ? Health::lack : Health::note, "shared memory", text,
          "docker run --shm-size=8g (or --ipc=host): NCCL and data loaders of several ranks fail "
          "with \"No space left on device\""};
}

Line files(const Facts& facts) {
  const std::string text = "limit " + std::to_string(facts.open_files);
  if (facts.open_files >= kFewFiles) return {Health::ok, "open files", text, ""};
  constexpr int64_t kLeast = 64;  // the program, its libraries and one checkpoint
  return {facts.open_files < kLeast ? Health::lack : Health::note, "open files", text,
          "ulimit -n 65536 before the run: several ranks need " + std::to_string(kFewFiles)};
}

Line port(const Facts& facts) {
  if (!facts.port_busy) return {Health::ok, "ports", "29500 is free", ""};
  return {Health::note, "ports", "29500 is taken: torchrun's ranks cannot meet there",
          "torchrun --master-port 29501; dsv32-verify launch looks for a free one by itself"};
}

Line gpu(const Facts& facts) {
  if (facts.gpus.empty()) {
    const bool broken = facts.gpu_error != "nvidia-smi is not there";
    return {Health::note, "gpu", "none: " + facts.gpu_error,
            broken
                ? "load or update the driver; until then everything runs on the CPU: --device cpu"
                : "nothing to do: everything runs on the CPU"};
  }
  double bytes = 0;
  for (const GpuFacts& device : facts.gpus) bytes += device.bytes;
  return {Health::ok, "gpu",
          std::to_string(facts.gpus.size()) + " x " + facts.gpus.front().name + ", " + gb(bytes) +
              " in all",
          ""};
}

Line driver(const Facts& facts) {
  const std::string text = "driver " + facts.driver + ", CUDA " + facts.cuda + " in this build";
  if (facts.cuda == "none")
    return {
        Health::note, "cuda", text,
        "build with CUDA (-DDSV32_CUDA=ON) to judge on the GPU; torch in Python is not concerned"};
  if (driver_is_enough(facts.driver, facts.cuda)) return {Health::ok, "cuda", text, ""};
  return {
      Health::lack, "cuda", text,
      "the driver is too old for this CUDA: update it to 580 or later (CUDA 13), or use --device "
      "cpu"};
}

std::string version_of(const PythonFacts& python, const std::string& package) {
  const auto it = python.packages.find(package);
  return it == python.packages.end() ? "" : it->second;
}

/// What it has, as "torch 2.11.0, numpy 2.2.6".
std::string inventory(const PythonFacts& python) {
  std::string text = "python " + python.version;
  for (const auto& [name, version] : python.packages) text += ", " + name + " " + version;
  return text;
}

Line python(const PythonFacts& facts) {
  const std::string topic = "python " + facts.path;
  if (facts.version.empty())
    return {Health::note, topic, "does not run", "give another one: --python PATH"};
  std::string lacking;
  for (const char* name : {"torch", "numpy", "safetensors", "transformers"})
    if (version_of(facts, name).empty())
      lacking += (lacking.empty() ? "" : " ") + std::string(name);
  if (!lacking.empty()) {
    const bool numpy = !version_of(facts, "numpy").empty();
    return {Health::note, topic,
            inventory(facts) + ": cannot dump" + (numpy ? ", has the trace kit's numpy" : ""),
            "pip install " + lacking};
  }
  if (!facts.deepseek_v32)
    return {Health::note, topic, inventory(facts) + ": this transformers has no deepseek_v32",
            "pip install 'transformers>=5.12', or --transformers PATH of the fork's tree, on the "
            "branch that has the model"};
  std::string does = inventory(facts) + ": dumps forward, backward, KL, train, generate";
  if (!version_of(facts, "peft").empty()) does += ", dual_lora";
  if (version_of(facts, "fast-hadamard-transform").empty())
    return {Health::ok, topic, does + "; no fast-hadamard-transform, plain torch stands in", ""};
  return {Health::ok, topic, does, ""};
}

}  // namespace

bool driver_is_enough(const std::string& driver, const std::string& cuda) {
  // Least driver of a CUDA release, from NVIDIA's compatibility table.
  const int major = std::atoi(cuda.c_str());
  const int least = major >= 13 ? 580 : major == 12 ? 525 : 450;
  return std::atoi(driver.c_str()) >= least;
}

std::vector<Line> examine(const Facts& facts, const Needs& needs) {
  std::vector<Line> lines = {cpu(facts), memory(facts, needs), disk(facts, needs), gpu(facts)};
  if (!facts.gpus.empty()) lines.push_back(driver(facts));
  for (const Line& line : {shm(facts), files(facts), port(facts)}) lines.push_back(line);
  for (const PythonFacts& each : facts.pythons) lines.push_back(python(each));
  if (facts.pythons.empty())
    lines.push_back({Health::note, "python", "none found",
                     "--python PATH: the environment of the fork that is to be dumped"});
  return lines;
}

}  // namespace dsv32::harness
