#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "harness/report/diff.h"
#include "harness/report/problems.h"

/// The parts of report.html, in the order of the page. Each is a whole element, or "" where it has
/// nothing to say, and keeps within its number of bytes.
namespace dsv32::harness::html {

/// What all parts are made from.
struct Page {
  const Report& report;
  const std::vector<Group>& groups;
  const std::vector<Problem>& problems;
  const ReportDiff* diff = nullptr;  // against the base, where there is one
};

std::string style();
std::string verdict_part(const Page& page);
std::string defects_part(const Page& page);
/// What the change did to the base: defects, then checks.
std::string changes_part(const Page& page);
/// What all files of one engine say together, part by part of the model.
std::string engines_part(const Page& page);
/// Layers by taps, shade = measured / limit.
std::string where_part(const Page& page);
/// What the errors of the first defects look like.
std::string looks_part(const Page& page);
std::string decisions_part(const Page& page);
std::string gradients_part(const Page& page);
std::string training_part(const Page& page);
std::string answers_part(const Page& page);
std::string untested_part(const Page& page);
std::string judged_part(const Page& page);
std::string numbers_part(const Page& page);

// --- elements
// -------------------------------------------------------------------------------------

/// Text of anybody, as element text or attribute value.
std::string text(std::string_view foreign, size_t max_bytes = 300);
/// `attributes` with a leading blank, or "".
std::string element(const char* tag, const std::string& attributes, const std::string& content);
std::string section(const char* id, const char* title, const std::string& content);
/// A folded part.
std::string folded(const std::string& summary, const std::string& content);
/// What a term means, where it stands.
std::string remark(const std::string& sentence);
std::string table(const std::vector<std::string>& head, const std::string& rows);
/// `cells` are elements' contents; the first is the head of its row.
std::string table_row(const std::vector<std::string>& cells);

/// Contents up to a number of bytes; what no longer fits is counted.
class Bounded {
 public:
  explicit Bounded(size_t bytes) : bytes_(bytes) {}
  void add(const std::string& block);
  bool empty() const { return text_.empty() && left_out_ == 0; }
  const std::string& blocks() const { return text_; }
  /// "3 more: see report.json", or "".
  std::string rest() const;

 private:
  size_t bytes_, left_out_ = 0;
  std::string text_;
};

// --- pictures
// -------------------------------------------------------------------------------------

/// Subject and case of a group: "mlx.safetensors in tiny-bias".
std::string name_of(const Group& group);

/// Rows of cells; what a heat map shows.
struct HeatRow {
  std::string name;
  std::vector<const Verdict*> cells;  // by layer; nullptr: there is none
  bool whole = false;                 // one cell across all layers
};
struct Heat {
  std::string title;
  std::vector<HeatRow> rows;
  size_t layers = 0;
};
/// `origins`: names of taps that are outlined; a failing cell of another name is pale.
std::string heat_picture(const Heat& heat, const std::vector<std::string>& origins);
/// The scale of shades.
std::string legend();
std::string error_picture(const Picture& picture, bool decision);
std::string curve_picture(const Curve& curve);

}  // namespace dsv32::harness::html
