#include <algorithm>
#include <map>

#include "harness/report/html/html.h"
#include "harness/report/text.h"
#include "src/model/check_name.h"
#include "src/model/trace.h"

/// Pictures of single errors, decisions, training, what was left out, and who was judged.
namespace dsv32::harness::html {
namespace {

constexpr size_t kLooksBytes = 100000, kDecisionBytes = 20000, kTrainingBytes = 40000,
                 kUntestedBytes = 20000, kJudgedBytes = 30000, kListBytes = 10000;

std::string looks_of(const Problem& problem, size_t number) {
  const Verdict* v = problem.verdict;
  if (v == nullptr || !v->picture) return "";
  const bool decision = dsv32::is_decision(v->tap);
  const std::string drawn = error_picture(*v->picture, decision);
  if (drawn.empty()) return "";
  std::string caption = std::to_string(number) + ". " + element("code", "", text(v->tap, 120)) +
                        " (" + std::string(to_string(v->mode)) + ")";
  if (decision) caption += ": dark is its own pick, light a pick that is missing";
  if (!v->structure.empty()) caption += "<br>" + text(v->structure, 160);
  return "<figure class=\"look\"><figcaption>" + caption + "</figcaption>" + drawn + "</figure>\n";
}

// --- decisions
// ------------------------------------------------------------------------------------

struct Tally {
  int64_t rows = 0, free = 0, differing = 0, wrong = 0;
};

std::string margin_text(const Verdict& v) {
  const Measure* worst = worst_measure(v);
  return worst == nullptr ? "" : text(measure_text(*worst));
}

std::string decision_row(const Group& group, const Verdict& v) {
  const Choices& c = *v.choices;
  const bool good = v.trust == Trust::pass;
  std::string word = c.differing == 0 ? "no other choice"
                     : good           ? "<span class=\"ok\">ties</span>"
                                      : "<span class=\"no\">not a tie</span>";
  if (c.differing == 0 && !good) word = "<span class=\"no\">breaks a rule</span>";
  return table_row({name_of(group), element("code", "", text(v.tap, 80)),
                    std::string(to_string(v.mode)), std::to_string(c.rows - c.determined),
                    std::to_string(c.differing), word, margin_text(v)});
}

void add_up(const Verdict& v, Tally& tally) {
  tally.rows += v.choices->rows;
  tally.free += v.choices->rows - v.choices->determined;
  tally.differing += v.choices->differing;
  if (v.trust == Trust::fail) tally.wrong += v.choices->differing;
}

// --- what was left out
// ----------------------------------------------------------------------------

std::string note_items(const Group& group, Trust trust) {
  std::string items;
  for (const NoteGroup& notes : notes_of(group, trust))
    items += element("li", "",
                     name_of(group) + ": " + std::string(to_string(trust)) + " " +
                         text(note_text(notes), 500)) +
             "\n";
  return items;
}

// --- who was judged
// -------------------------------------------------------------------------------

std::string facts_table(const FactRows& facts) {
  Bounded rows(kListBytes);
  for (const auto& [name, value] : facts)
    rows.add(table_row({text(name, 60), element("code", "", text(value, 300))}));
  return "<table class=\"facts\"><tbody>" + rows.blocks() + "</tbody></table>\n" + rows.rest();
}

std::string provenance(const Provenance& p) {
  constexpr size_t kShown = 12;  // what a reader looks for comes first
  const size_t shown = std::min(kShown, p.facts.size());
  const FactRows first(p.facts.begin(), p.facts.begin() + static_cast<std::ptrdiff_t>(shown));
  const FactRows rest(p.facts.begin() + static_cast<std::ptrdiff_t>(shown), p.facts.end());
  return facts_table(first) + (rest.empty() ? "" : folded("All that it says", facts_table(rest)));
}

}  // namespace

std::string looks_part(const Page& page) {
  constexpr size_t kPictures = 3;
  Bounded list(kLooksBytes);
  for (size_t i = 0; i < std::min(page.problems.size(), kPictures); ++i)
    list.add(looks_of(page.problems[i], i + 1));
  if (list.empty()) return "";
  const std::string about = remark(
      "The tap in which each of the first defects shows first. A cell is the error of its elements "
      "over what the limit of a row allows them; neighbours share a cell where there are too many. "
      "A dashed line parts the sequences of the batch.");
  return section(
      "looks", "What the errors look like",
      about + legend() + "<div class=\"flow\">" + list.blocks() + "</div>\n" + list.rest());
}

std::string decisions_part(const Page& page) {
  Tally tally;
  const bool candidates = std::any_of(page.groups.begin(), page.groups.end(), [](const Group& g) {
    return g.subject.party == Party::candidate;
  });
  constexpr size_t kOpenRows = 12;
  size_t open_rows = 0;
  Bounded loud(kDecisionBytes), more(kDecisionBytes), quiet(kDecisionBytes);
  for (const Group& g : page.groups)
    for (const Verdict* v : g.verdicts) {
      if (!v->choices || (v->trust != Trust::pass && v->trust != Trust::fail)) continue;
      if (!candidates || g.subject.party == Party::candidate) add_up(*v, tally);
      const bool is_loud = v->choices->differing > 0 || v->trust == Trust::fail;
      Bounded& rows = !is_loud ? quiet : open_rows++ < kOpenRows ? loud : more;
      rows.add(decision_row(g, *v));
    }
  if (tally.rows == 0) return "";
  const std::vector<std::string> head = {
      "Subject", "Decision", "Mode", "Rows with a choice", "Other choice", "Why", "Measured"};
  const std::string whose = candidates ? "Candidates: in " : "In ";
  const std::string sum = whose + std::to_string(tally.differing) + " of " +
                          std::to_string(tally.free) +
                          " rows with a choice another set was chosen than the oracle's; " +
                          std::to_string(tally.differing - tally.wrong) +
                          " of these are legitimate (the scores are closer than rounding).";
  const std::string about = remark(
      "A decision is the set of keys that a query attends to (<code>topk</code>) or of experts "
      "that a token goes to. <b>band</b>: how far the worst of the other picks lies from the cut, "
      "in units of what rounding may do to a score. The oracle is the float64 run.");
  return section(
      "decisions", "Decisions",
      element("p", "", sum) + "\n" + about + table(head, loud.blocks()) + loud.rest() +
          folded("More decisions with another choice", table(head, more.blocks()) + more.rest()) +
          folded("Decisions without another choice", table(head, quiet.blocks()) + quiet.rest()));
}

std::string training_part(const Page& page) {
  Bounded list(kTrainingBytes);
  Bounded figures(kListBytes);
  for (size_t i = 0; i < page.groups.size(); ++i) {
    const Group& g = page.groups[i];
    for (const Verdict* v : g.verdicts) {
      if (!v->curve) continue;
      const std::string drawn = curve_picture(*v->curve);
      if (drawn.empty()) continue;
      list.add("<figure><figcaption>" + element("code", "", text(v->tap, 80)) + " of " +
               name_of(g) + ": " + std::string(to_string(v->trust)) + "</figcaption>" + drawn +
               "</figure>\n");
    }
    const std::string words = ends_suite(page.groups, i) ? figures_text(page.report, g) : "";
    if (!words.empty()) figures.add(element("li", "", name_of(g) + ": " + text(words, 800)) + "\n");
  }
  if (list.empty() && figures.empty()) return "";
  std::string inside;
  if (!list.empty())
    inside = remark(
                 "Solid: judged. Dashed: the float64 run, or the golden's own training. Shaded: "
                 "where clean runs stay, which differ by one rounding of the start weights.") +
             "<div class=\"flow\">" + list.blocks() + "</div>\n" + list.rest();
  if (!figures.empty())
    inside += folded("What was measured on the way",
                     "<ul>" + figures.blocks() + "</ul>" + figures.rest());
  return section("training", "Training", inside);
}

std::string answers_part(const Page& page) {
  Bounded rows(kListBytes);
  const auto add = [&](const std::string& name, const std::string& row, const AnswerScore& score) {
    rows.add(table_row({name, row, std::to_string(score.tokens), number(score.loss),
                        number(score.perplexity()), percent(score.top1)}));
  };
  for (const Answers& answers : page.report.answers) {
    const std::string name =
        text(answers.subject.label, 100) + " in " + text(answers.case_name, 80);
    add(name, "all", answers.all());
    for (size_t i = 0; i < answers.examples.size(); ++i)
      add(name, std::to_string(i), answers.examples[i]);
  }
  if (rows.empty()) return "";
  return section(
      "answers", "Labels of the batch",
      remark(
          "How well each subject predicts them, with teacher forcing and under its own choice of "
          "keys and experts. Data, not checks. <b>loss</b>: mean cross entropy of the counted "
          "labels; <b>perplexity</b>: its exponential; <b>best token</b>: share of labels with "
          "the largest logit.") +
          table({"subject", "row", "tokens", "loss", "perplexity", "best token"}, rows.blocks()) +
          rows.rest());
}

std::string untested_part(const Page& page) {
  Bounded list(kUntestedBytes), skipped(kUntestedBytes);
  for (const std::string& reason : page.report.not_tested)
    list.add(element("li", "", text(reason, 600)) + "\n");
  for (const Group& g : page.groups) {
    for (const Trust trust : {Trust::missing, Trust::vacuous, Trust::undecided}) {
      const std::string items = note_items(g, trust);
      if (!items.empty()) list.add(items);
    }
    const std::string items = note_items(g, Trust::skipped);
    if (!items.empty()) skipped.add(items);
  }
  for (const std::string& warning : page.report.warnings)
    list.add(element("li", "", "warning: " + text(warning, 600)) + "\n");
  if (list.empty() && skipped.empty()) return "";
  const std::string about = remark(
      "<b>missing</b>: no evidence where there should be some. <b>vacuous</b>: the check could not "
      "have failed. <b>undecided</b>: beyond rounding, but a near-tie may explain it and the "
      "decisions are not in the file. <b>skipped</b>: not asked for, or not in the file.");
  std::string inside = about;
  if (!list.empty()) inside += "<ul>" + list.blocks() + "</ul>" + list.rest();
  if (!skipped.empty())
    inside += "<ul class=\"soft\">" + skipped.blocks() + "</ul>" + skipped.rest();
  return section("untested", "What was not tested, and why", inside);
}

std::string judged_part(const Page& page) {
  Bounded candidates(kJudgedBytes), goldens(kJudgedBytes);
  for (const Provenance& p : page.report.judged) {
    const std::string name = text(p.subject.label, 100) + " in " + text(p.case_name, 80);
    if (p.subject.party == Party::candidate && candidates.empty()) {
      candidates.add(element("h3", "", name) + provenance(p));
    } else if (p.subject.party == Party::candidate) {
      candidates.add(folded(name, provenance(p)));
    } else {
      goldens.add(folded(name, provenance(p)));
    }
  }
  FactRows rest;
  for (const auto& [name, value] : page.report.environment) {
    const FactRows told = judge_facts(page.report);
    const bool known =
        std::any_of(told.begin(), told.end(), [&](const auto& fact) { return fact.first == name; });
    if (!known) rest.emplace_back(name, value);
  }
  std::string inside = candidates.blocks() + candidates.rest() + element("h3", "", "Judged by") +
                       facts_table(judge_facts(page.report));
  inside += goldens.blocks() + goldens.rest();
  if (!rest.empty()) inside += folded("More about this run", facts_table(rest));
  return section("judged", "What was judged", inside);
}

}  // namespace dsv32::harness::html
