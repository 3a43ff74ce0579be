#include "src/training/zero2.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "src/model/errors.h"
#include "src/model/tensor.h"

namespace dsv32::training {
namespace {

constexpr const char* kStep = "/step";
constexpr const char* kFirst = "/exp_avg";
constexpr const char* kSecond = "/exp_avg_sq";

int64_t share_of(int64_t elements, int ranks) { return (elements + ranks - 1) / ranks; }

[[noreturn]] void refuse_state(const std::string& what, const std::string& expected,
                               const std::string& got) {
  throw Error(ExitCode::artefact,
              {.where = "optimizer state", .what = what, .expected = expected, .got = got});
}

/// Where one parameter lies in the flat buffer, and which part of it this rank owns.
struct Piece {
  std::string name;
  Shape shape;
  int64_t begin = 0;  // in the flat buffer
  int64_t elements = 0;
  int64_t share_begin = 0;  // in this rank's share
  int64_t first = 0;        // of its elements, the first that this rank owns
  int64_t owned = 0;
  bool stepped = false;
};

double sum_of_squares(const Tensor& values) {
  constexpr int64_t kChunk = int64_t{1} << 22;  // bounds the float64 copy
  double sum = 0;
  for (const Tensor& chunk : values.split(kChunk))
    sum += chunk.to(torch::kFloat64).square().sum().item<double>();
  return sum;
}

/// One group: a flat padded buffer of equal shares, and the moments of this rank's share.
class GroupShards {
 public:
  GroupShards(const Group& group, const TensorTable& parameters, World& world, Bug bug)
      : group_(group), world_(world), bug_(bug) {
    torch::ScalarType type = torch::kFloat32;
    for (const std::string& name : parameters_of(group, parameters)) {
      const Tensor& tensor = parameters.at(name);
      type = tensor.scalar_type();
      pieces_.push_back({.name = name,
                         .shape = tensor.sizes().vec(),
                         .begin = elements_,
                         .elements = tensor.numel()});
      elements_ += tensor.numel();
    }
    share_ = share_of(elements_, world.size());
    for (Piece& piece : pieces_) own(piece);
    options_ = torch::TensorOptions().dtype(type).device(world.device());
    first_ = torch::zeros({share_}, options_);
    second_ = torch::zeros({share_}, options_);
  }

  const std::vector<Piece>& pieces() const { return pieces_; }
  int64_t state_bytes() const {
    return static_cast<int64_t>(first_.storage().nbytes() + second_.storage().nbytes());
  }

  double step(TensorTable& parameters, const TensorTable& gradients) {
    const std::vector<bool> present = present_anywhere(gradients);
    Tensor gradient = mean_gradient(gradients);
    const double own_squares = sum_of_squares(gradient);
    const double norm = std::sqrt(all_ranks(own_squares));
    last_gradient_ = gradient.clone();
    if (group_.clip) {
      constexpr double kNormEps = 1e-6;  // as torch and DeepSpeed have it
      const double clipped = bug_ == Bug::clip_by_local_norm ? std::sqrt(own_squares) : norm;
      gradient.mul_(std::min(1.0, *group_.clip / (clipped + kNormEps)));
    }
    ++steps_;
    Tensor values = own_values(parameters);
    for (size_t i = 0; i < pieces_.size(); ++i) {
      if (!present[i]) continue;
      pieces_[i].stepped = true;
      if (!drops_share()) adamw(pieces_[i], values, gradient);
    }
    hand_out(values, parameters);
    return norm;
  }

  void write(OptimizerState& state) const {
    state.put(group_.name + kStep, torch::tensor(steps_, torch::kInt64));
    const Tensor first = gathered(first_), second = gathered(second_);
    for (const Piece& piece : pieces_) {
      if (!piece.stepped) continue;
      state.put(key(piece) + kFirst, cut(first, piece));
      state.put(key(piece) + kSecond, cut(second, piece));
    }
  }

  /// Throws unless every entry fits; takes them out of `unknown`.
  void check(const OptimizerState& state, std::set<std::string>& unknown) const {
    const std::string count = group_.name + kStep;
    if (unknown.erase(count) == 0) refuse_state(count, "a count", "nothing");
    const Tensor& steps = state.at(count);
    if (steps.numel() != 1 || torch::isFloatingType(steps.scalar_type()))
      refuse_state(count, "one integer", to_string(Shape(steps.sizes().vec())));
    check_entries(state, unknown);
  }

  void read(const OptimizerState& state) {
    steps_ = state.at(group_.name + kStep).item<int64_t>();
    first_.zero_();
    second_.zero_();
    for (Piece& piece : pieces_) {
      piece.stepped = state.has(key(piece) + kFirst);
      if (!piece.stepped || piece.owned == 0) continue;
      take(state.at(key(piece) + kFirst), piece, first_);
      take(state.at(key(piece) + kSecond), piece, second_);
    }
  }

  void write_mean_gradients(TensorTable& table) const {
    const Tensor whole = gathered(last_gradient_);
    for (const Piece& piece : pieces_)
      if (piece.stepped) table.put(piece.name, cut(whole, piece));
  }

 private:
  std::string key(const Piece& piece) const { return group_.name + "/" + piece.name; }

  bool drops_share() const {
    return bug_ == Bug::last_shard_dropped && world_.rank() == world_.size() - 1;
  }

  /// The part of a parameter inside this rank's share of the buffer.
  void own(Piece& piece) const {
    const int64_t begin = world_.rank() * share_, end = begin + share_;
    const int64_t from = std::max(begin, piece.begin);
    const int64_t to = std::min(end, piece.begin + piece.elements);
    piece.owned = std::max<int64_t>(0, to - from);
    if (piece.owned == 0) return;
    piece.share_begin = from - begin;
    piece.first = from - piece.begin;
  }

  /// Ranks may differ in which parameters have a gradient: one that has it anywhere is stepped.
  std::vector<bool> present_anywhere(const TensorTable& gradients) {
    Tensor counts = torch::zeros({static_cast<int64_t>(pieces_.size())}, torch::kFloat32);
    for (size_t i = 0; i < pieces_.size(); ++i)
      counts[static_cast<int64_t>(i)] = gradients.has(pieces_[i].name) ? 1 : 0;
    counts = counts.to(world_.device());
    world_.all_reduce(counts);
    counts = counts.to(torch::kCPU);
    std::vector<bool> present;
    for (size_t i = 0; i < pieces_.size(); ++i)
      present.push_back(counts[static_cast<int64_t>(i)].item<float>() > 0);
    return present;
  }

  /// This rank's share of the mean over ranks.
  Tensor mean_gradient(const TensorTable& gradients) {
    Tensor flat = torch::zeros({share_ * world_.size()}, options_);
    for (const Piece& piece : pieces_) {
      if (!gradients.has(piece.name)) continue;
      flat.narrow(0, piece.begin, piece.elements).copy_(gradients.at(piece.name).reshape(-1));
    }
    if (bug_ == Bug::gradient_accumulated_twice) flat.add_(flat.clone());
    if (bug_ == Bug::padding_in_norm) flat.narrow(0, elements_, flat.numel() - elements_).fill_(1);
    Tensor share = torch::empty({share_}, options_);
    world_.reduce_scatter(share, flat);
    if (bug_ != Bug::sum_instead_of_mean) share.div_(world_.size());
    return share;
  }

  double all_ranks(double value) {
    Tensor sum = torch::full({1}, value, torch::kFloat64).to(world_.device());
    world_.all_reduce(sum);
    return sum.item<double>();
  }

  Tensor own_values(const TensorTable& parameters) const {
    Tensor values = torch::zeros({share_}, options_);
    for (const Piece& piece : pieces_)
      if (piece.owned > 0) take(parameters.at(piece.name), piece, values);
    return values;
  }

  static void take(const Tensor& whole, const Piece& piece, Tensor& share) {
    share.narrow(0, piece.share_begin, piece.owned)
        .copy_(whole.reshape(-1).narrow(0, piece.first, piece.owned));
  }

  /// One rounding per operation, none fused: where a share begins cannot change a bit.
  void adamw(const Piece& piece, Tensor& values, const Tensor& gradient) {
    if (piece.owned == 0) return;
    const AdamW& a = group_.adamw;
    const auto part = [&](const Tensor& share) {
      return share.narrow(0, piece.share_begin, piece.owned);
    };
    const Tensor g = part(gradient);
    Tensor p = part(values), m = part(first_), v = part(second_);
    p.mul_(1 - a.lr * a.weight_decay);
    m.mul_(a.beta1).add_(g * (1 - a.beta1));
    v.mul_(a.beta2).add_((g * g).mul_(1 - a.beta2));
    const double first_correction = 1 - std::pow(a.beta1, steps_);
    const double second_correction = std::sqrt(1 - std::pow(a.beta2, steps_));
    const Tensor denominator = v.sqrt().div_(second_correction).add_(a.eps);
    p.sub_((m / denominator).mul_(a.lr / first_correction));
  }

  /// Every rank's share into every rank's parameters.
  void hand_out(Tensor& values, TensorTable& parameters) {
    const Tensor whole = gathered(values);
    if (bug_ == Bug::stale_parameters && world_.rank() == 1) return;
    for (const Piece& piece : pieces_) parameters.at(piece.name).copy_(cut(whole, piece));
  }

  Tensor gathered(Tensor share) const {
    Tensor whole = torch::empty({share_ * world_.size()}, options_);
    world_.all_gather(whole, share);
    return whole;
  }

  static Tensor cut(const Tensor& whole, const Piece& piece) {
    return whole.narrow(0, piece.begin, piece.elements).reshape(piece.shape);
  }

  void check_entries(const OptimizerState& state, std::set<std::string>& unknown) const {
    for (const Piece& piece : pieces_) {
      const bool first = unknown.erase(key(piece) + kFirst) != 0;
      const bool second = unknown.erase(key(piece) + kSecond) != 0;
      if (first != second) refuse_state(key(piece), "both moments", "one of them");
      for (const char* moment : {kFirst, kSecond}) {
        if (!first) continue;
        const Shape shape = state.at(key(piece) + moment).sizes().vec();
        if (shape != piece.shape)
          refuse_state(key(piece) + moment, to_string(piece.shape), to_string(shape));
      }
    }
  }

  Group group_;
  World& world_;
  Bug bug_;
  torch::TensorOptions options_;
  std::vector<Piece> pieces_;
  int64_t elements_ = 0;
  int64_t share_ = 0;
  int64_t steps_ = 0;
  Tensor first_, second_;  // [share_]
  Tensor last_gradient_;   // [share_]
};

class Zero2 : public ShardedOptimizer {
 public:
  Zero2(const std::vector<Group>& groups, const TensorTable& parameters, World& world, Bug bug) {
    std::set<std::string> taken;
    for (const Group& group : groups) {
      groups_.emplace_back(group, parameters, world, bug);
      for (const Piece& piece : groups_.back().pieces()) claim(piece.name, taken);
    }
  }

  std::vector<double> step(TensorTable& parameters, const TensorTable& gradients) override {
    torch::NoGradGuard no_grad;
    std::vector<double> norms;
    for (GroupShards& group : groups_) norms.push_back(group.step(parameters, gradients));
    return norms;
  }

  OptimizerState state() const override {
    torch::NoGradGuard no_grad;
    OptimizerState state;
    for (const GroupShards& group : groups_) group.write(state);
    return state;
  }

  void set_state(const OptimizerState& state) override {
    torch::NoGradGuard no_grad;
    std::set<std::string> unknown(state.names().begin(), state.names().end());
    for (const GroupShards& group : groups_) group.check(state, unknown);
    if (!unknown.empty())
      refuse_state("entry", "a moment of a parameter of this optimizer", *unknown.begin());
    for (GroupShards& group : groups_) group.read(state);
  }

  int64_t state_bytes() const override {
    int64_t bytes = 0;
    for (const GroupShards& group : groups_) bytes += group.state_bytes();
    return bytes;
  }

  TensorTable mean_gradients() const override {
    torch::NoGradGuard no_grad;
    TensorTable table;
    for (const GroupShards& group : groups_) group.write_mean_gradients(table);
    return table;
  }

 private:
  static void claim(const std::string& name, std::set<std::string>& taken) {
    if (taken.insert(name).second) return;
    throw Error(ExitCode::internal,
                {.where = "optimizer", .what = name, .expected = "one group", .got = "two"});
  }

  std::vector<GroupShards> groups_;
};

}  // namespace

int64_t zero2_state_bytes(const std::vector<int64_t>& group_elements, int ranks,
                          int64_t element_size) {
  constexpr int64_t kMoments = 2;
  int64_t bytes = 0;
  for (const int64_t elements : group_elements)
    bytes += kMoments * element_size * share_of(elements, ranks);
  return bytes;
}

std::unique_ptr<ShardedOptimizer> make_zero2(const std::vector<Group>& groups,
                                             const TensorTable& parameters, World& world, Bug bug) {
  return std::make_unique<Zero2>(groups, parameters, world, bug);
}

}  // namespace dsv32::training
