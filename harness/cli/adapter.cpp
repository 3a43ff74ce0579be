#include <algorithm>
#include <iostream>
#include <sstream>

#include "harness/cli/commands.h"
#include "harness/cli/watch.h"
#include "harness/training/merge_check.h"
#include "src/io/io.h"
#include "src/log/log.h"

namespace dsv32::harness {
namespace {

/// "8", or "4 to 16" where modules differ.
template <typename Value>
std::string range_of(const std::vector<LoraModule>& modules, Value (*value)(const LoraModule&)) {
  const auto less = [&](const LoraModule& a, const LoraModule& b) { return value(a) < value(b); };
  const auto [low, high] = std::minmax_element(modules.begin(), modules.end(), less);
  std::ostringstream text;
  text << value(*low);
  if (value(*low) < value(*high)) text << " to " << value(*high);
  return text.str();
}

/// The adapters of one loss: "lm  16 modules, rank 8, scale 2".
std::string line_of(const char* name, const std::vector<LoraModule>& modules) {
  std::string line = std::string(name) + "  " + std::to_string(modules.size()) + " modules";
  if (modules.empty()) return line + "\n";
  line += ", rank " + range_of<int64_t>(modules, [](const LoraModule& m) { return m.rank; });
  return line + ", scale " +
         range_of<double>(modules, [](const LoraModule& m) { return m.scale(); }) + "\n";
}

/// Modules whose B is zero: they change nothing yet.
int64_t idle_modules(const io::Adapter& adapter) {
  return std::count_if(adapter.modules.begin(), adapter.modules.end(), [&](const LoraModule& m) {
    const HostTensor& b = adapter.tensors.at(m.b_name());
    for (int64_t i = 0; i < b.numel(); ++i)
      if (b.at(i) != 0) return false;
    return true;
  });
}

/// "98.2 %".
std::string percent(double share) {
  std::ostringstream text;
  text.precision(3);
  text << 100 * share << " %";
  return text.str();
}

std::string text_of(const MergeReport& report) {
  constexpr size_t kShown = 20;
  std::ostringstream text;
  text << "merged  " << report.adapted - std::ssize(report.wrong) << " of " << report.adapted
       << " tensors with an adapter are base + alpha / rank B A, as their type holds it; "
       << percent(report.kept) << " of what the adapter adds is there\n";
  text << "others  " << report.others - std::ssize(report.changed) << " of " << report.others
       << " tensors without one are the base's\n";
  for (size_t i = 0; i < std::min(report.wrong.size(), kShown); ++i) {
    const WrongMerge& wrong = report.wrong[i];
    text << "wrong   " << wrong.tensor << ": "
         << (wrong.name.empty() ? "off for no known reason" : wrong.name + ": " + wrong.words)
         << " (" << percent(wrong.kept) << " of what the adapter adds)\n";
  }
  if (report.wrong.size() > kShown)
    text << "wrong   and " << report.wrong.size() - kShown << " more\n";
  for (size_t i = 0; i < std::min(report.changed.size(), kShown); ++i)
    text << "changed " << report.changed[i] << "\n";
  return text.str();
}

}  // namespace

ExitCode adapter_merged_command(const Options& options) {
  const std::string &base_folder = options.arguments[1], &merged_folder = options.arguments[2];
  const ModelConfig config = io::read_config(base_folder);
  const io::Adapter adapter = io::read_adapter(options.arguments[0], config);
  for (const std::string& warning : adapter.warnings) log_warning(warning);
  const auto base = io::open_checkpoint(base_folder, config);
  const auto merged = io::open_checkpoint(merged_folder, io::read_config(merged_folder));
  MergeReport report;
  {
    Watch watch(options);
    report = check_merge(config, adapter, *base, *merged,
                         [&](const std::string& tensor) { watch.step(tensor); });
    watch.stop.disarm();
  }
  std::cout << text_of(report);
  return report.good() ? ExitCode::ok : ExitCode::parity;
}

ExitCode adapter_check_command(const Options& options) {
  const ModelConfig config = chosen_config(options);
  const io::Adapter adapter = io::read_adapter(options.arguments.front(), config,
                                               {.rank = options.rank, .scale = options.scale});
  for (const std::string& warning : adapter.warnings) log_warning(warning);
  std::vector<LoraModule> lm, kl;
  for (const LoraModule& module : adapter.modules) (module.is_kl() ? kl : lm).push_back(module);
  std::cout << line_of("lm", lm) << line_of("kl", kl);
  if (const int64_t idle = idle_modules(adapter); idle > 0)
    std::cout << "B is zero in " << idle << " of " << adapter.modules.size()
              << " modules: these change nothing\n";
  return ExitCode::ok;
}

}  // namespace dsv32::harness
