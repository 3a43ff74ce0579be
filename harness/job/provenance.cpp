#include "harness/job/provenance.h"

#include <algorithm>

#include "src/bridge/runtime.h"

namespace dsv32::harness {
namespace {

/// What a reader looks for, by the names of docs/formats.md 4; whatever else the file says follows.
const char* const kFirst[] = {"transformers", "transformers_commit",
                              "engine",       "implementation",
                              "model_class",  "modeling_sha256",
                              "attention",    "experts_implementation",
                              "device",       "torch"};

std::string value_of(const io::Facts& facts, const std::string& name) {
  for (const auto& [key, value] : facts)
    if (key == name) return value;
  return "";
}

class FactList {
 public:
  void add(const std::string& name, const std::string& value) {
    const bool known = std::any_of(facts_.begin(), facts_.end(),
                                   [&](const auto& fact) { return fact.first == name; });
    if (!value.empty() && !known) facts_.emplace_back(name, value);
  }
  void add_producer(const io::Facts& producer) {
    constexpr size_t kMostFacts = 48;
    for (const char* name : kFirst) add(name, value_of(producer, name));
    for (const auto& [name, value] : producer)
      if (facts_.size() < kMostFacts) add(name, value);
  }
  io::Facts take() { return std::move(facts_); }

 private:
  io::Facts facts_;
};

}  // namespace

Provenance provenance_of(const Candidate& candidate, const io::CandidateNotes& notes) {
  FactList facts;
  facts.add("file", candidate.path.filename().string());
  facts.add("sha256", io::sha256_file(candidate.path));
  for (const char* name : {"mode", "dtype", "attn_implementation", "weights"}) {
    const auto found = candidate.trace.metadata.find(name);
    if (found != candidate.trace.metadata.end()) facts.add(name, found->second);
  }
  facts.add_producer(notes.producer);
  return {candidate.the_case.name, candidate.subject, facts.take()};
}

Provenance provenance_of(const golden::Golden& golden, const Subject& subject) {
  FactList facts;
  facts.add("sha256", golden_digest(golden.case_name));
  facts.add("dtype", std::string(to_string(golden.dtype)));
  facts.add("dialect", golden.dialect);
  const auto attention = golden.attributes.find("attn_implementation");
  if (attention != golden.attributes.end()) facts.add("attn_implementation", attention->second);
  const auto producer = golden.attributes.find("producer");
  if (producer != golden.attributes.end())
    facts.add_producer(io::facts_of(producer->second, "golden " + golden.case_name));
  return {golden.case_name, subject, facts.take()};
}

void tell_environment(const std::string& device, Report& report) {
  report.environment["torch"] = torch_version();
  report.environment["arithmetic"] = arithmetic_library();
  report.environment["device"] = device;
  report.environment["data"] = (io::home() / "golden" / "data").lexically_normal().string();
}

std::string golden_digest(const std::string& name) {
  for (const auto& entry : golden::read_manifest(golden::default_directory()))
    if (entry.case_name == name) return entry.sha256;
  return "";
}

}  // namespace dsv32::harness
