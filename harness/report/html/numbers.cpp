#include <algorithm>
#include <map>
#include <set>

#include "harness/report/html/html.h"
#include "harness/report/text.h"

/// Every number with its limit, the basis of the limit, and a plain relative error; folded.
namespace dsv32::harness::html {
namespace {

constexpr size_t kBytes = 180000, kBasisBytes = 10000;

struct Term {
  const char* name;
  const char* means;
};
constexpr Term kTerms[] = {
    {"off",
     "relative L2 error of the whole tap against float64; beside it what rounding may make "
     "of it"},
    {"row ratio", "largest error of a row, over the error of plain code in the same type"},
    {"tensor ratio", "the same of the whole tensor: a small error in every row shows here"},
    {"cap", "error of a row over what one rounding of all inputs and weights does to it"},
    {"tail", "how many single elements lie further off than noise explains"},
    {"max tail", "the element that lies furthest off, in units of its noise"},
    {"exact", "how many things are wrong where there is one answer"},
    {"band",
     "how far another pick lies from the cut, in units of what rounding does to a score; of "
     "a training curve: how far it leaves the band of clean runs"},
    {"own scores", "sets that do not follow from the scores in the same file"},
    {"own logits", "the same of experts and their logits, in units of rounding"},
    {"relative", "relative error of a single number"},
};

class Bases {
 public:
  std::string mark(const std::string& basis) {
    if (basis.empty()) return "";
    const auto [it, added] = numbers_.try_emplace(basis, numbers_.size() + 1);
    if (added) order_.push_back(basis);
    return " <sup>" + std::to_string(it->second) + "</sup>";
  }
  std::string list() const {
    Bounded items(kBasisBytes);
    for (const std::string& basis : order_) items.add(element("li", "", text(basis, 400)) + "\n");
    if (items.empty()) return "";
    return "<ol class=\"soft\">" + items.blocks() + "</ol>\n" + items.rest();
  }

 private:
  std::map<std::string, size_t> numbers_;
  std::vector<std::string> order_;
};

std::string trust_cell(const Verdict& v) {
  const char* look = v.trust == Trust::pass ? "ok" : v.trust == Trust::fail ? "no" : "weak";
  return "<span class=\"" + std::string(look) + "\">" + std::string(to_string(v.trust)) + "</span>";
}

std::string number_row(const Verdict& v, Bases& bases) {
  std::string measures;
  for (const Measure& m : v.measures)
    measures += (measures.empty() ? "" : "<br>") + text(m.metric, 60) + " " + number(m.measured) +
                " / " + number(m.limit) + bases.mark(m.basis);
  const std::string plain =
      v.plain ? percent(v.plain->relative) + " / " + percent(v.plain->allowed) : "";
  return table_row({element("code", "", text(v.tap, 160)), std::string(to_string(v.mode)),
                    trust_cell(v), plain, measures});
}

std::string terms_list() {
  std::string items;
  for (const Term& term : kTerms)
    items += element("dt", "", term.name) + element("dd", "", term.means) + "\n";
  return "<dl>" + items + "</dl>\n";
}

}  // namespace

std::string numbers_part(const Page& page) {
  const std::vector<std::string> head = {"Check", "Mode", "Verdict", "Off / allowed",
                                         "Measured / limit"};
  Bounded groups(kBytes);
  Bases bases;
  std::vector<const Group*> order;
  for (const Group& g : page.groups) order.push_back(&g);
  const auto rank = [](const Group* g) {
    return (g->failed() ? 0 : 2) + (g->subject.party == Party::candidate ? 0 : 1);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](const Group* a, const Group* b) { return rank(a) < rank(b); });
  for (const Group* g : order) {
    Bounded rows(kBytes / 2);
    for (const Verdict* v : worst_first(g->verdicts))
      if (!v->measures.empty()) rows.add(number_row(*v, bases));
    if (!rows.empty())
      groups.add(folded(name_of(*g) + ": " + text(g->state()) + ", " + text(coverage_text(*g)),
                        table(head, rows.blocks()) + rows.rest()));
  }
  if (groups.empty()) return "";
  return section("numbers", "All numbers",
                 groups.blocks() + groups.rest() + folded("What the words mean", terms_list()) +
                     folded("Where the limits come from", bases.list()));
}

}  // namespace dsv32::harness::html
