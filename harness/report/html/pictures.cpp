#include <algorithm>
#include <array>
#include <cmath>

#include "harness/report/html/html.h"
#include "harness/report/text.h"

/// Inline SVG. Cells of one shade are one path: a page of many pictures stays small.
namespace dsv32::harness::html {
namespace {

constexpr int kShades = 10;
constexpr size_t kFont = 7;  // columns of one character of a label
constexpr size_t kCellHeight = 14;

std::string num(double value) {
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.4g", value);
  return digits;
}

std::string attribute(const char* name, double value) {
  return " " + std::string(name) + "=\"" + num(value) + "\"";
}

std::string box(double x, double y, double width, double height) {
  return attribute("x", x) + attribute("y", y) + attribute("width", width) +
         attribute("height", height);
}

std::string label(double x, double y, const std::string& words, const char* anchor) {
  return element("text", attribute("x", x) + attribute("y", y) + " text-anchor=\"" + anchor + "\"",
                 text(words, 200));
}

std::string drawing(double width, double height, const std::string& name,
                    const std::string& content) {
  return "<div class=\"scroll\"><svg role=\"img\" aria-label=\"" + text(name, 400) + "\"" +
         attribute("width", width) + attribute("height", height) + " viewBox=\"0 0 " + num(width) +
         " " + num(height) + "\">" + content + "</svg></div>";
}

/// Runs of equal cells, a path for each shade.
class Shades {
 public:
  void add(int shade, double x, double y, double width, double height) {
    paths_[shade] += "M" + num(x) + " " + num(y) + "h" + num(width) + "v" + num(height) + "h-" +
                     num(width) + "z";
  }
  std::string content() const {
    std::string out;
    for (int shade = 0; shade < kShades; ++shade)
      if (!paths_[shade].empty())
        out += "<path class=\"s" + std::to_string(shade) + "\" d=\"" + paths_[shade] + "\"/>";
    return out;
  }

 private:
  std::array<std::string, kShades> paths_;
};

// --- layers by taps
// -------------------------------------------------------------------------------

size_t cell_width(size_t layers) {
  constexpr size_t kFew = 8, kSome = 32;
  return layers <= kFew ? 26 : layers <= kSome ? 12 : 7;
}

class HeatDrawing {
 public:
  HeatDrawing(const Heat& heat, const std::vector<std::string>& origins)
      : heat_(heat), origins_(origins), cell_(cell_width(heat.layers)) {
    for (const HeatRow& row : heat.rows) {
      left_ = std::max(left_, kFont * columns(printable(row.name, kLongest)) + 6);
      cells_ += row.cells.size();
    }
    layers_ = std::max<size_t>(heat.layers, 1);
  }

  std::string draw() {
    std::string out = layer_names();
    for (size_t i = 0; i < heat_.rows.size(); ++i) out += row(heat_.rows[i], top(i));
    const double width = static_cast<double>(left_ + layers_ * cell_ + 2);
    return drawing(width, static_cast<double>(top(heat_.rows.size()) + 2),
                   heat_.title + ": measured over limit, layers by taps", passing_.content() + out);
  }

 private:
  static constexpr size_t kLongest = 60, kTop = 16;
  size_t top(size_t i) const { return kTop + i * kCellHeight; }

  std::string layer_names() const {
    constexpr size_t kFew = 8, kTens = 10;
    std::string out;
    for (size_t layer = 0; layer < heat_.layers; layer += heat_.layers <= kFew ? 1 : kTens)
      out += label(static_cast<double>(left_ + layer * cell_) + static_cast<double>(cell_) / 2,
                   kTop - 5, std::to_string(layer), "middle");
    return out;
  }

  std::string row(const HeatRow& row, size_t y) {
    std::string out = label(static_cast<double>(left_ - 6), static_cast<double>(y + 11),
                            printable(row.name, kLongest), "end");
    if (row.whole) {
      if (row.cells.front() != nullptr) out += cell(*row.cells.front(), 0, y, layers_ * cell_);
      return out;
    }
    for (size_t layer = 0; layer < row.cells.size(); ++layer)
      if (row.cells[layer] != nullptr) out += cell(*row.cells[layer], layer * cell_, y, cell_);
    return out;
  }

  bool is_origin(const Verdict& v) const {
    return std::find(origins_.begin(), origins_.end(), v.tap) != origins_.end();
  }

  std::string cell(const Verdict& v, size_t x, size_t y, size_t width) {
    constexpr double kNarrow = 10;      // columns
    constexpr size_t kManyCells = 400;  // beyond them only what fails tells its numbers
    const bool fails = v.trust == Trust::fail;
    int shade = shade_of(v.margin());
    if (fails) shade = std::max(shade, 2);
    const double left = static_cast<double>(left_ + x), w = static_cast<double>(width - 1);
    const double at = static_cast<double>(y), h = static_cast<double>(kCellHeight - 1);
    if (!fails && cells_ > kManyCells) {
      passing_.add(shade, left, at, w, h);
      return "";
    }
    const bool origin = fails && is_origin(v);
    const bool inherited = fails && !origin && v.mode != Mode::staged;
    const std::string look = "s" + std::to_string(shade) + (inherited ? " pale" : "");
    std::string out = element("rect", box(left, at, w, h) + " class=\"" + look + "\"",
                              element("title", "", about(v)));
    if (origin)
      out += element("rect",
                     box(left + 1, at + 1, w - 2, h - 2) + " class=\"origin\"" +
                         attribute("stroke-width", w < kNarrow ? 1 : 2),
                     "");
    return out;
  }

  static std::string about(const Verdict& v) {
    std::string words = v.tap + " (" + std::string(to_string(v.mode)) + "): ";
    words += std::string(to_string(v.trust));
    if (const Measure* m = worst_measure(v)) words += ", " + measure_text(*m);
    const std::string plain = plain_text(v);
    return text(plain.empty() ? words : words + ", " + plain, 300);
  }

  const Heat& heat_;
  const std::vector<std::string>& origins_;
  const size_t cell_;
  size_t left_ = 0, layers_ = 1, cells_ = 0;
  Shades passing_;
};

// --- rows by heads
// --------------------------------------------------------------------------------

int shade_of_cell(char cell) { return cell >= '0' && cell <= '9' ? cell - '0' : -1; }

std::string cells_of(const Picture& picture, double x0, double y0, double w, double h) {
  Shades shades;
  for (size_t r = 0; r < picture.cells.size(); ++r) {
    const std::string& line = picture.cells[r];
    for (size_t i = 0, end = 0; i < line.size(); i = end) {
      for (end = i + 1; end < line.size() && line[end] == line[i];) ++end;
      if (shade_of_cell(line[i]) < 0) continue;
      shades.add(shade_of_cell(line[i]), x0 + static_cast<double>(i) * w,
                 y0 + static_cast<double>(r) * h, static_cast<double>(end - i) * w, h);
    }
  }
  return shades.content();
}

double cell_side(size_t count, double room, double smallest, double largest) {
  return std::clamp(std::floor(room / static_cast<double>(std::max<size_t>(count, 1))), smallest,
                    largest);
}

std::string axis_text(const std::string& name, int64_t count) {
  return printable(name, 40) + " 0 to " + std::to_string(std::max<int64_t>(count - 1, 0));
}

// --- curves
// ---------------------------------------------------------------------------------------

class CurveDrawing {
 public:
  explicit CurveDrawing(const Curve& curve) : curve_(curve) {
    for (const auto* values : {&curve.values, &curve.expected, &curve.low, &curve.high}) {
      steps_ = std::max(steps_, values->size());
      for (const double value : *values) {
        if (!std::isfinite(value)) continue;
        low_ = std::min(low_, value);
        high_ = std::max(high_, value);
      }
    }
  }

  std::string draw() const {
    if (steps_ < 2 || !(low_ < high_)) return "";
    std::string out = "<rect class=\"frame\"" + box(kLeft, kTop, kWidth, kHeight) + "/>";
    out += label(kLeft - 5, kTop + 10, number(high_), "end");
    out += label(kLeft - 5, kTop + kHeight, number(low_), "end");
    out += label(kLeft, kTop + kHeight + 15, "step 0", "start");
    out += label(kLeft + kWidth, kTop + kHeight + 15, std::to_string(steps_ - 1), "end");
    out += band() + line(curve_.expected, "expected") + line(curve_.values, "judged" + inside());
    return drawing(kLeft + kWidth + 4, kTop + kHeight + 22, "training curve", out);
  }

 private:
  static constexpr double kLeft = 52, kTop = 6, kWidth = 270, kHeight = 150;
  double x(size_t step) const {
    return kLeft + kWidth * static_cast<double>(step) / static_cast<double>(steps_ - 1);
  }
  double y(double value) const { return kTop + kHeight * (high_ - value) / (high_ - low_); }
  std::string inside() const {
    for (size_t t = 0; t < std::min(curve_.values.size(), curve_.low.size()); ++t)
      if (!(curve_.values[t] >= curve_.low[t] && curve_.values[t] <= curve_.high[t])) return "";
    return " inside";
  }

  std::string points(const std::vector<double>& values, bool backwards) const {
    std::string out;
    for (size_t i = 0; i < values.size(); ++i) {
      const size_t t = backwards ? values.size() - 1 - i : i;
      if (std::isfinite(values[t])) out += num(x(t)) + "," + num(y(values[t])) + " ";
    }
    return out;
  }
  std::string band() const {
    if (curve_.low.empty()) return "";
    return "<polygon class=\"band\" points=\"" + points(curve_.low, false) +
           points(curve_.high, true) + "\"/>";
  }
  std::string line(const std::vector<double>& values, const std::string& look) const {
    return "<polyline class=\"" + look + "\" points=\"" + points(values, false) + "\"/>";
  }

  const Curve& curve_;
  size_t steps_ = 0;
  double low_ = INFINITY, high_ = -INFINITY;
};

}  // namespace

std::string heat_picture(const Heat& heat, const std::vector<std::string>& origins) {
  return "<figure class=\"heat\"><figcaption>" + text(heat.title) + "</figcaption>" +
         HeatDrawing(heat, origins).draw() + "</figure>\n";
}

std::string legend() {
  constexpr double kWidth = 26, kHeight = 12;
  std::string out;
  for (int shade = 0; shade < kShades; ++shade)
    out += "<rect class=\"s" + std::to_string(shade) + "\"" +
           box(shade * kWidth, 0, kWidth - 1, kHeight) + "/>";
  const double limit = 2 * kWidth - 0.5;
  out += "<path class=\"origin\" d=\"M" + num(limit) + " 0v16\"/>";
  out += label(limit, 28, "limit", "middle") + label(4 * kWidth, 28, "10x", "middle");
  out += label(6 * kWidth, 28, "100x", "middle") + label(8 * kWidth, 28, "1000x", "middle");
  return "<figure class=\"legend\"><figcaption>measured / limit</figcaption>" +
         drawing(kShades * kWidth, 32, "scale of shades", out) + "</figure>\n";
}

std::string error_picture(const Picture& picture, bool decision) {
  if (picture.cells.empty() || picture.cells.front().empty()) return "";
  constexpr double kLeft = 18, kTop = 18;
  constexpr int64_t kMostSequences = 64;
  const size_t wide = picture.cells.front().size(), high = picture.cells.size();
  const double w = cell_side(wide, 300, 4, 26), h = cell_side(high, 320, 4, 16);
  const double width = w * static_cast<double>(wide), height = h * static_cast<double>(high);
  std::string out = "<rect class=\"none\"" + box(kLeft, kTop, width, height) + "/>";
  out += cells_of(picture, kLeft, kTop, w, h);
  const int64_t sequences = picture.batch > 0 ? picture.row_count / picture.batch : 0;
  for (int64_t i = 1; i < std::min(sequences, kMostSequences); ++i) {
    const double y = kTop + height * static_cast<double>(i * picture.batch) /
                                static_cast<double>(picture.row_count);
    out += "<path class=\"cut\" d=\"M" + num(kLeft) + " " + num(y) + "h" + num(width) + "\"/>";
  }
  out += label(kLeft, kTop - 6, axis_text(picture.columns, picture.column_count), "start");
  out += "<text transform=\"translate(4 " + num(kTop) + ") rotate(90)\">" +
         text(axis_text(picture.rows, picture.row_count)) + "</text>";
  const double room = kLeft + std::max(width, 190.0) + 2;
  return drawing(room, kTop + std::max(height, 130.0) + 2,
                 decision ? "whose picks" : "error over limit", out);
}

std::string curve_picture(const Curve& curve) { return CurveDrawing(curve).draw(); }

}  // namespace dsv32::harness::html
