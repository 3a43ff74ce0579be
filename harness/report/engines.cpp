#include "harness/report/engines.h"

#include <algorithm>
#include <map>
#include <set>

#include "harness/report/text.h"
#include "src/model/check_name.h"
#include "src/model/trace.h"

namespace dsv32::harness {
namespace {

struct Component {
  const char* name;
  std::vector<std::string_view> stems;  // beginnings of tap stems
};

const std::vector<Component>& components() {
  static const std::vector<Component> all = {
      {"embedding", {"embed"}},
      {"norms", {"attn_norm", "ffn_norm", "final_norm"}},
      {"queries and latents", {"q_latent", "q_nope", "kv_latent"}},
      {"rotation", {"q_rope", "k_rope"}},
      {"indexer", {"ix."}},
      {"selection", {"topk"}},
      {"attention", {"attn."}},
      {"router", {"router."}},
      {"experts", {"moe.", "mlp."}},
      {"residual stream", {"hidden"}},
      {"logits and loss", {"logits", "loss.lm"}},
      {"indexer KL", {"kl.", "loss.kl"}},
      {"gradients", {"grad.", "dtap."}},
      {"training", {}},  // the last: all that is not of one pass
  };
  return all;
}

/// nullopt: a rule about the file.
std::optional<size_t> component_of(const std::string& check, const std::string& suite) {
  const CheckScope scope = check_of(check).scope;
  if (scope == CheckScope::rule) return std::nullopt;
  if (scope != CheckScope::model || !suite.empty()) return components().size() - 1;
  const std::string stem = tap_stem(check);
  for (size_t i = 0; i < components().size(); ++i)
    for (const std::string_view start : components()[i].stems)
      if (stem.starts_with(start)) return i;
  return std::nullopt;
}

std::string fact(const Provenance& p, std::string_view name) {
  for (const auto& [key, value] : p.facts)
    if (key == name) return value;
  return "";
}

/// What tells engines apart; empty where a file says nothing of its engine.
std::string identity_of(const Provenance& p) {
  std::string key;
  for (const char* name :
       {"engine", "transformers", "implementation", "transformers_commit", "modeling_sha256"}) {
    const std::string value = fact(p, name);
    if (!value.empty()) key += std::string(name) + " " + value + "\n";
  }
  return key;
}

std::string name_of(const Provenance& p) {
  for (const char* name : {"engine", "transformers", "implementation"}) {
    const std::string value = fact(p, name);
    if (value.empty()) continue;
    return name == std::string_view("engine") ? value : std::string(name) + " " + value;
  }
  return "one engine";
}

/// What is known of one component over all files.
struct Tally {
  size_t checks = 0, failed = 0, undecided = 0;
  std::set<std::string> files, failing;
  std::vector<std::string> words;  // of the defects that begin here

  std::string state() const {
    if (failed > 0) return "FAIL";
    if (undecided > 0) return "UNDECIDED";
    return checks > 0 ? "PASS" : "NOT TESTED";
  }
  std::string evidence() const {
    if (failed > 0 && words.empty())
      return std::to_string(failed) + " of " + counted(checks, "check") + " in " +
             counted(failing.size(), "file") + ", by what begins elsewhere";
    std::string text;
    for (const std::string& w : words) text += (text.empty() ? "" : "; ") + w;
    if (failed > 0) return text;
    if (undecided > 0) return counted(undecided, "check") + " undecided";
    return checks == 0 ? "" : counted(checks, "check") + " in " + counted(files.size(), "file");
  }
};

class Members {
 public:
  void add(const Provenance& p, const Group& g) {
    name_ = name_of(p);
    const std::string file = g.case_name + "/" + g.subject.label;
    files_.insert(file);
    for (const Verdict* v : g.verdicts) add(*v, file);
    for (const Finding* f : g.findings) add(*f);
  }

  Engine engine() const {
    Engine engine{.name = name_, .files = files_.size(), .profile = profile(), .rows = {}};
    for (size_t i = 0; i < components().size(); ++i) {
      const auto found = tallies_.find(i);
      const Tally tally = found == tallies_.end() ? Tally{} : found->second;
      engine.rows.push_back({components()[i].name, tally.state(), tally.evidence()});
    }
    return engine;
  }

  size_t files() const { return files_.size(); }

 private:
  void add(const Verdict& v, const std::string& file) {
    const auto component = component_of(v.tap, v.suite);
    if (!component) return;
    Tally& tally = tallies_[*component];
    if (v.trust == Trust::undecided) ++tally.undecided;
    if (v.trust != Trust::pass && v.trust != Trust::fail) return;
    ++tally.checks;
    tally.files.insert(file);
    if (v.trust == Trust::pass) return;
    ++tally.failed;
    tally.failing.insert(file);
  }

  void add(const Finding& f) {
    const size_t plus = f.profile.find(" + {");
    if (plus != std::string::npos) dialect_ = f.profile.substr(0, plus);
    for (const Defect& defect : f.defects) {
      if (defect.taps.empty()) continue;
      const std::string& first = defect.taps.front();
      const auto component = component_of(first, f.suite);
      std::set<std::string>& names = defect.unexplained() ? open_ : names_;
      names.insert(defect.unexplained() ? tap_stem(first) : defect.name);
      if (!component) continue;
      std::vector<std::string>& words = tallies_[*component].words;
      if (std::find(words.begin(), words.end(), defect.words) == words.end())
        words.push_back(defect.words);
    }
  }

  std::string profile() const {
    const auto joined = [](const std::set<std::string>& all) {
      std::string text;
      for (const std::string& one : all) text += (text.empty() ? "" : ", ") + one;
      return text;
    };
    std::string text;
    if (!names_.empty()) text = dialect_ + " + {" + joined(names_) + "}";
    if (!open_.empty()) text += (text.empty() ? "" : ", ") + ("not explained: " + joined(open_));
    return text;
  }

  std::string name_, dialect_ = "spec-1";
  std::set<std::string> files_, names_, open_;
  std::map<size_t, Tally> tallies_;
};

}  // namespace

std::vector<Engine> engines_of(const Report& report, const std::vector<Group>& groups) {
  std::map<std::string, Members> members;
  for (const Group& g : groups) {
    if (g.subject.party != Party::candidate) continue;
    const auto p =
        std::find_if(report.judged.begin(), report.judged.end(), [&](const Provenance& known) {
          return known.case_name == g.case_name && known.subject == g.subject;
        });
    if (p == report.judged.end()) continue;
    const std::string identity = identity_of(*p);
    if (!identity.empty()) members[identity].add(*p, g);
  }
  std::vector<Engine> engines;
  for (const auto& [identity, all] : members)
    if (all.files() > 1) engines.push_back(all.engine());
  return engines;
}

}  // namespace dsv32::harness
