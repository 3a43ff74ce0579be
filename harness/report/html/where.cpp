#include <algorithm>
#include <map>
#include <set>

#include "harness/report/html/html.h"
#include "harness/report/text.h"
#include "src/model/check_name.h"
#include "src/model/trace.h"

/// Where an implementation is off: layers by taps, and gradients by layer.
namespace dsv32::harness::html {
namespace {

constexpr size_t kWhereBytes = 200000, kGradientBytes = 80000;
constexpr size_t kOpen = 3;  // groups that are not folded

bool has_number(const Verdict& v) {
  const bool executed =
      v.trust == Trust::pass || v.trust == Trust::fail || v.trust == Trust::undecided;
  return executed && !v.measures.empty();
}

/// Experts share a row.
std::string row_name(const Verdict& verdict) {
  std::string stem = tap_stem(verdict.tap);
  const size_t at = stem.find(".experts.");
  if (at == std::string::npos || !is_gradient_check(verdict.tap)) return stem;
  const size_t number = at + std::string_view(".experts.").size(), end = stem.find('.', number);
  if (end == std::string::npos) return stem;
  return stem.substr(0, number) + "*" + stem.substr(end);
}

bool is_worse(const Verdict& a, const Verdict* b) {
  if (b == nullptr) return true;
  if ((a.trust == Trust::fail) != (b->trust == Trust::fail)) return a.trust == Trust::fail;
  return a.margin() > b->margin();
}

void put(Heat& heat, std::map<std::string, size_t>& at, const Verdict& v, const std::string& name) {
  const auto [it, added] = at.try_emplace(name, heat.rows.size());
  if (added) heat.rows.push_back({.name = name, .cells = {}, .whole = !v.layer});
  const size_t layer = v.layer ? static_cast<size_t>(*v.layer) : 0;
  constexpr size_t kMostLayers = 256;
  if (layer >= kMostLayers) return;
  std::vector<const Verdict*>& cells = heat.rows[it->second].cells;
  if (cells.size() <= layer) cells.resize(layer + 1);
  if (is_worse(v, cells[layer])) cells[layer] = &v;
  heat.layers = std::max(heat.layers, layer + 1);
}

bool is_of_model(const Verdict& v) {
  const std::optional<CheckName> check = parse_check(v.tap);
  return check && check->scope == CheckScope::model && has_number(v);
}

/// One heat map for each mode that has numbers; `gradients`: of these, else of the taps.
std::vector<Heat> heats_of(const Group& group, bool gradients) {
  std::vector<Heat> heats;
  for (const Mode mode : {Mode::staged, Mode::forced, Mode::free, Mode::exact}) {
    Heat heat{.title = std::string(to_string(mode)), .rows = {}};
    std::map<std::string, size_t> at;
    for (const Verdict* v : group.verdicts) {
      if (v->mode != mode || !is_of_model(*v) || is_gradient_check(v->tap) != gradients) continue;
      const std::string name = row_name(*v);
      put(heat, at, *v, gradients ? name.substr(std::string_view("grad.").size()) : name);
    }
    if (!heat.rows.empty()) heats.push_back(std::move(heat));
  }
  return heats;
}

/// The taps that a defect starts at; without defects those that fail alone on right inputs, else
/// the first failure.
std::vector<std::string> origins_of(const Group& group) {
  std::vector<std::string> origins;
  for (const Finding* f : group.findings)
    for (const Defect& defect : f->defects)
      origins.insert(origins.end(), defect.taps.begin(), defect.taps.end());
  if (!origins.empty()) return origins;
  for (const Verdict* v : group.verdicts)
    if (v->trust == Trust::fail && v->mode == Mode::staged) origins.push_back(v->tap);
  if (origins.empty() && group.first_failure != nullptr)
    origins.push_back(group.first_failure->tap);
  return origins;
}

/// The failing ones and the candidates first.
std::vector<const Group*> by_interest(const std::vector<Group>& groups) {
  std::vector<const Group*> order;
  for (const Group& g : groups) order.push_back(&g);
  const auto rank = [](const Group* g) {
    return (g->failed() ? 0 : 2) + (g->subject.party == Party::candidate ? 0 : 1);
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](const Group* a, const Group* b) { return rank(a) < rank(b); });
  return order;
}

std::string maps_of(const Group& group, bool gradients) {
  std::string maps;
  const std::vector<std::string> origins = origins_of(group);
  for (const Heat& heat : heats_of(group, gradients)) maps += heat_picture(heat, origins);
  return maps.empty() ? "" : "<div class=\"flow\">" + maps + "</div>\n";
}

std::string all_maps(const Page& page, bool gradients, size_t bytes) {
  Bounded list(bytes), rest(bytes / 2);
  std::set<std::string> shown;  // cases: another dump of one looks the same
  const bool red = std::any_of(page.groups.begin(), page.groups.end(),
                               [](const Group& g) { return g.failed(); });
  for (const Group* g : by_interest(page.groups)) {
    const std::string maps = maps_of(*g, gradients);
    if (maps.empty()) continue;
    const bool opens = shown.size() < kOpen && (red ? g->failed() : shown.empty()) &&
                       !shown.contains(g->case_name);
    if (opens) {
      shown.insert(g->case_name);
      list.add(element("h3", "", name_of(*g)) + maps);
    } else {
      rest.add(folded(name_of(*g) + " (" + text(g->state()) + ")", maps));
    }
  }
  if (list.empty() && rest.empty()) return "";
  return list.blocks() + list.rest() + folded("The other subjects", rest.blocks() + rest.rest());
}

}  // namespace

std::string where_part(const Page& page) {
  const std::string maps = all_maps(page, false, kWhereBytes);
  if (maps.empty()) return "";
  const std::string about = remark(
      "A row is a tap (a named intermediate value), in the order of computation; a column is a "
      "layer. <b>staged</b>: each operation alone, on the implementation's own inputs, so that an "
      "error shows where it starts. <b>forced</b>: end to end, with its own choices of keys and "
      "experts replayed. <b>free</b>: end to end with nothing replayed. <b>exact</b>: there is one "
      "answer. Outlined: where a defect starts. Pale: an error that is inherited.");
  return section("where", "Where", about + legend() + maps);
}

std::string gradients_part(const Page& page) {
  const std::string maps = all_maps(page, true, kGradientBytes);
  if (maps.empty()) return "";
  const std::string about = remark(
      "A row is a weight, in the order of back-propagation; <code>experts.*</code> is the "
      "worst of all experts. Same shades as above.");
  return section("gradients", "Gradients by layer", about + maps);
}

}  // namespace dsv32::harness::html
