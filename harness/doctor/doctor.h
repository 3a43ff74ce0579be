#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "src/model/config.h"

/// What a machine has (gather), what it lacks for a job (examine), and what fits (fits). The two
/// last are functions of facts alone, so that every lack can be tested on any machine.
namespace dsv32::harness {

/// One Python that could run golden/dump.
struct PythonFacts {
  std::string path;
  std::string version;                          // "3.11.2"; empty: it did not run
  std::map<std::string, std::string> packages;  // name to version
  bool deepseek_v32 = false;                    // transformers has the model
};

struct GpuFacts {
  std::string name;
  double bytes = 0;
};

struct Facts {
  std::string cpu;
  unsigned cores = 0;
  std::set<std::string> vectors;  // "avx2", "avx512f", "amx_bf16", ...
  double memory_total = 0;        // bytes
  double memory_free = 0;         // what this process can still get
  std::string disk;               // the folder that was looked at
  double disk_free = 0;           // bytes
  double disk_speed = 0;          // bytes per second written; 0: it cannot be written
  double shm = 0;                 // bytes of /dev/shm; 0: there is none
  int64_t open_files = 0;         // limit of this process
  bool port_busy = false;         // 29500, where ranks meet by default
  std::vector<GpuFacts> gpus;
  std::string gpu_error;  // why none was found
  std::string driver;     // "580.65.06"
  std::string cuda;       // the program was built with; "none"
  std::vector<PythonFacts> pythons;
};

/// What judging a config takes. All in bytes, but for weights (a count) and seconds.
struct Needs {
  std::string config;
  double weights = 0;
  double bf16 = 0;   // resident weights
  double fp8 = 0;    // as released: linear layers in e4m3 with scales, the rest in bf16
  double judge = 0;  // memory of the judge on a CPU
  double seconds = 0;
};

enum class Health { ok, note, lack };

struct Line {
  Health health = Health::ok;
  std::string topic;
  std::string text;
  std::string remedy;  // what to do about it; empty where there is nothing to do
};

struct GatherOptions {
  std::string root;                  // before /proc, /sys and /dev; empty: this machine
  std::string disk = ".";            // where checkpoints and reports go
  std::vector<std::string> pythons;  // besides those of the environment
  std::string cuda;                  // that the program was built with
};
/// Reads the machine. Never throws: what cannot be read is a fact with value 0.
Facts gather(const GatherOptions& options);
/// Asks one Python for its packages; imports none of them.
PythonFacts ask_python(const std::string& path);
/// The Pythons of the environment and of the folder, without repetition.
std::vector<std::string> find_pythons(const std::vector<std::string>& asked);

/// What judging this config takes. `case_name`: whose sizes count.
Needs needs_of(const std::string& config, const std::string& case_name);
/// Bytes of the released FP8 layout (docs/formats.md 7), without the layers that are not read.
double fp8_bytes(const ModelConfig& config);

/// One line per topic; a lack is what the job `needs` cannot do without.
std::vector<Line> examine(const Facts& facts, const Needs& needs);
/// The table of what fits here and on machines with 80 and 141 GB devices, with the sums.
std::string fits(const Facts& facts, const std::vector<Needs>& all);

/// True when `driver` can run programs of this CUDA release ("13.0").
bool driver_is_enough(const std::string& driver, const std::string& cuda);

}  // namespace dsv32::harness
