#include "src/io/dump_jobs.h"

#include "src/io/json.h"
#include "src/model/errors.h"
#include "src/model/weights.h"

namespace dsv32::io {
namespace {

std::string text_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

double number_of(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : 0;
}

std::vector<std::string> lines_of(const Json& object, const char* key) {
  std::vector<std::string> lines;
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) return lines;
  for (const Json& line : *found)
    if (line.is_string()) lines.push_back(line.get<std::string>());
  return lines;
}

}  // namespace

std::string dump_jobs_json(const std::vector<DumpJob>& jobs, double import_seconds, bool modular) {
  Json list = Json::array();
  for (const DumpJob& job : jobs) {
    Json entry = {{"case", job.case_name},  {"checkpoint", job.checkpoint.string()},
                  {"mode", job.mode},       {"out", job.out.string()},
                  {"seconds", job.seconds}, {"gib", job.gib}};
    if (!job.suite.empty()) entry["suite"] = job.suite;
    if (job.sketch) entry["sketch"] = true;
    list.push_back(std::move(entry));
  }
  const Json file = {
      {"version", 1}, {"import_seconds", import_seconds}, {"modular", modular}, {"jobs", list}};
  return file.dump(1) + "\n";
}

std::optional<DumpEvent> parse_dump_event(const std::string& line) {
  if (!line.starts_with("{\"event\"")) return std::nullopt;
  try {
    const Json object = parse_json(line, "golden/dump");
    if (!object.is_object()) return std::nullopt;
    return DumpEvent{.event = text_of(object, "event"),
                     .job = static_cast<size_t>(number_of(object, "job")),
                     .code = static_cast<int>(number_of(object, "code")),
                     .seconds = number_of(object, "seconds"),
                     .phase = text_of(object, "phase"),
                     .message = text_of(object, "message"),
                     .output = lines_of(object, "output"),
                     .state = text_of(object, "state"),
                     .file = text_of(object, "file"),
                     .note = text_of(object, "note"),
                     .version = text_of(object, "version"),
                     .path = text_of(object, "path")};
  } catch (const Error&) {
    return std::nullopt;
  }
}

void write_failure_trace(const DumpJob& job, const std::string& where, const std::string& message) {
  const Case& c = find_case(job.case_name);
  Trace trace;
  trace.metadata = {
      {"format", "dsv32-verify.trace"},
      {"version", "1"},
      {"case", c.name},
      {"mode", job.mode},
      {"dtype", "float32"},
      {"rope_layout", "interleaved"},
      {"forced", "false"},
      {"attn_implementation", "unknown"},
      {"producer", "{}"},
      {"weights", SyntheticWeights(c).identity()},
      {"mask", c.mask_given ? "given" : "none"},
      {"failure",
       canonical_json(
           {{"phase", where}, {"where", where}, {"message", message}, {"shapes", Json::array()}})}};
  if (!job.suite.empty()) trace.metadata["suite"] = job.suite;
  write_trace(job.out, trace);
}

}  // namespace dsv32::io
