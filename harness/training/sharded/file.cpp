#include "harness/training/sharded/run.h"
#include "src/bridge/bridge.h"
#include "src/io/io.h"

namespace dsv32::harness {
namespace {

using training::Tensor;
using training::TensorTable;

std::string key(const char* what, size_t step, const std::string& name) {
  return std::string(what) + "/" + std::to_string(step) + "/" + name;
}

Trace to_trace(const ShardedRun& run) {
  Trace trace;
  const auto put = [&](const std::string& name, const Tensor& values) {
    trace.put(name, to_host(values, dtype_of(values.scalar_type())));
  };
  for (size_t step = 0; step < run.loss.size(); ++step) {
    put(key("run", step, "loss"), torch::tensor(run.loss[step], torch::kFloat64));
    put(key("run", step, "fingerprints"), torch::tensor(run.fingerprints[step], torch::kInt64));
    std::vector<Tensor> norms;
    for (const auto& row : run.norms[step]) norms.push_back(torch::tensor(row, torch::kFloat64));
    put(key("run", step, "norms"), torch::stack(norms));
    for (const std::string& name : run.decisions[step].names())
      trace.put(key("decisions", step, name), *run.decisions[step].find(name));
    for (const std::string& name : run.gradients[step].names())
      put(key("gradients", step, name), run.gradients[step].at(name));
    for (const std::string& name : run.parameters[step].names())
      put(key("parameters", step, name), run.parameters[step].at(name));
  }
  put("state_bytes", torch::tensor(run.state_bytes, torch::kInt64));
  put("integer_fingerprints", torch::tensor(run.integer_fingerprints, torch::kInt64));
  return trace;
}

template <typename T>
std::vector<T> values_of(const io::SafetensorsFile& file, const std::string& name) {
  const HostTensor tensor = file.read(name);
  const auto values = tensor.data<T>();
  return {values.begin(), values.end()};
}

TensorTable table_of(const io::SafetensorsFile& file, const char* what, size_t step) {
  TensorTable table;
  const std::string start = key(what, step, "");
  for (const std::string& name : file.names_by_offset())
    if (name.rfind(start, 0) == 0) table.put(name.substr(start.size()), to_torch(file.read(name)));
  return table;
}

}  // namespace

void write_sharded_run(const std::filesystem::path& path, const ShardedRun& run) {
  const Trace trace = to_trace(run);
  std::vector<std::pair<std::string, io::TensorEntry>> specs;
  for (const std::string& name : trace.names()) {
    const HostTensor& tensor = *trace.find(name);
    specs.push_back({name, {.dtype = tensor.dtype(), .shape = tensor.shape()}});
  }
  io::SafetensorsWriter writer(path, {{"format", "dsv32-verify.sharded-run"}}, specs);
  for (const std::string& name : trace.names()) writer.append(*trace.find(name));
  writer.finish();
}

ShardedRun read_sharded_run(const std::filesystem::path& path) {
  const io::SafetensorsFile file(path);
  ShardedRun run;
  for (size_t step = 0; file.tensors().count(key("run", step, "loss")) != 0; ++step) {
    run.loss.push_back(values_of<double>(file, key("run", step, "loss")));
    run.fingerprints.push_back(values_of<int64_t>(file, key("run", step, "fingerprints")));
    const std::vector<double> norms = values_of<double>(file, key("run", step, "norms"));
    const size_t groups = norms.size() / run.loss.back().size();
    auto& rows = run.norms.emplace_back();
    for (size_t i = 0; i < norms.size(); i += groups)
      rows.emplace_back(norms.begin() + static_cast<int64_t>(i),
                        norms.begin() + static_cast<int64_t>(i + groups));
    Trace& decisions = run.decisions.emplace_back();
    const std::string start = key("decisions", step, "");
    for (const std::string& name : file.names_by_offset())
      if (name.rfind(start, 0) == 0) decisions.put(name.substr(start.size()), file.read(name));
    run.gradients.push_back(table_of(file, "gradients", step));
    run.parameters.push_back(table_of(file, "parameters", step));
  }
  run.state_bytes = values_of<int64_t>(file, "state_bytes");
  run.integer_fingerprints = values_of<int64_t>(file, "integer_fingerprints");
  return run;
}

}  // namespace dsv32::harness
