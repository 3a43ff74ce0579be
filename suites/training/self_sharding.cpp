// ZeRO-2 without a model: worlds of threads, integer gradients, exact answers.

#include <gtest/gtest.h>

#include <map>
#include <mutex>
#include <sstream>

#include "src/model/errors.h"
#include "src/model/philox.h"
#include "src/training/zero2.h"
#include "suites/kit/threaded_world.h"

namespace dsv32::suites {
namespace {

using training::Bug;
using training::Group;
using training::OptimizerState;
using training::Tensor;
using training::TensorTable;
using training::World;

constexpr int kWorlds[] = {1, 2, 3, 4, 5, 8};
constexpr int kSlices = 120;  // a multiple of every world size: the mean over ranks is exact
constexpr int kSteps = 4;

const std::map<std::string, std::vector<int64_t>>& shapes() {
  // 3 * 5 + 1 + 7 + 64 * 3 = 215: no world size divides it.
  static const std::map<std::string, std::vector<int64_t>> all = {
      {"a", {3, 5}}, {"b", {1}}, {"c", {7}}, {"d", {64, 3}}};
  return all;
}

/// Integers in [-8, 8): every sum and product of the tests is exact.
Tensor integers(const std::vector<int64_t>& shape, const std::string& name) {
  Tensor values = torch::zeros(shape);
  PhiloxStream stream(7, name);
  float* to = values.data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i)
    to[i] = static_cast<float>(stream.lane16(static_cast<uint64_t>(i)) & 15) - 8;
  return values;
}

TensorTable start() {
  TensorTable table;
  for (const auto& [name, shape] : shapes()) table.put(name, integers(shape, "start." + name));
  return table;
}

/// The gradient of one of kSlices equal parts of the batch, times kSlices.
Tensor part(const std::string& name, int step, int slice) {
  return integers(shapes().at(name),
                  "grad." + name + "." + std::to_string(step) + "." + std::to_string(slice));
}

/// Mean of the parts of one rank: kSlices / size integers, made exact by the common factor.
TensorTable gradients(int step, const World& world) {
  TensorTable table;
  const int each = kSlices / world.size();
  for (const auto& [name, shape] : shapes()) {
    Tensor sum = torch::zeros(shape);
    for (int i = 0; i < each; ++i) sum.add_(part(name, step, world.rank() * each + i));
    table.put(name, sum.mul_(world.size()));  // mean over ranks of these = sum of all parts
  }
  return table;
}

std::vector<Group> one_group() { return {{.name = "all", .clip = 1.0}}; }
std::vector<Group> two_groups() {
  return {{.name = "lm", .clip = 4.0, .takes = [](const std::string& n) { return n < "c"; }},
          {.name = "kl", .adamw = {.lr = 1e-2}, .takes = [](const std::string& n) {
             return n >= "d";
           }}};  // "c" is frozen
}

struct Result {
  TensorTable parameters;
  OptimizerState state;
  std::vector<double> norms;
  std::vector<int64_t> bytes;  // per rank
  bool same_everywhere = true;
};

using Work = std::function<void(World&, training::ShardedOptimizer&, TensorTable&, Result&)>;

/// kSteps steps of a world; rank 0's result, and whether all ranks hold the same parameters.
Result train(int size, const std::vector<Group>& groups, Bug bug = Bug::none,
             const std::function<TensorTable(int, const World&)>& gradients_of = gradients) {
  Result result;
  result.bytes.resize(size);
  std::vector<TensorTable> tables(size);
  in_world(size, [&](World& world) {
    torch::set_num_threads(1);
    TensorTable table = start();
    auto optimizer = training::make_zero2(groups, table, world, bug);
    for (int step = 0; step < kSteps; ++step) {
      world.set_step(step);
      const auto norms = optimizer->step(table, gradients_of(step, world));
      if (world.rank() == 0) result.norms.insert(result.norms.end(), norms.begin(), norms.end());
    }
    result.bytes[world.rank()] = optimizer->state_bytes();
    const OptimizerState state = optimizer->state().clone();
    if (world.rank() == 0) result.state = state;
    tables[world.rank()] = table;
  });
  for (const TensorTable& table : tables)
    for (const std::string& name : table.names())
      if (!torch::equal(table.at(name), tables[0].at(name))) result.same_everywhere = false;
  result.parameters = tables[0];
  return result;
}

bool same_bits(const TensorTable& a, const TensorTable& b) {
  if (a.names() != b.names()) return false;
  for (const std::string& name : a.names())
    if (!torch::equal(a.at(name), b.at(name))) return false;
  return true;
}

bool same_bits(const Result& a, const Result& b) {
  return a.same_everywhere && b.same_everywhere && same_bits(a.parameters, b.parameters) &&
         same_bits(a.state, b.state) && a.norms == b.norms;
}

TEST(Zero2, IntegerGradientsGiveTheSameBitsInEveryWorld) {
  const Result alone = train(1, one_group());
  EXPECT_FALSE(same_bits(alone.parameters, start()));
  for (const int size : kWorlds)
    EXPECT_TRUE(same_bits(train(size, one_group()), alone)) << size << " ranks";
}

TEST(Zero2, TwoGroupsAndAFrozenParameterGiveTheSameBitsInEveryWorld) {
  const Result alone = train(1, two_groups());
  EXPECT_TRUE(torch::equal(alone.parameters.at("c"), start().at("c")));
  for (const int size : kWorlds)
    EXPECT_TRUE(same_bits(train(size, two_groups()), alone)) << size << " ranks";
}

TEST(Zero2, NormIsThatOfTheMeanGradient) {
  double squares = 0;
  for (const auto& [name, shape] : shapes()) {
    Tensor sum = torch::zeros(shape, torch::kFloat64);
    for (int i = 0; i < kSlices; ++i) sum.add_(part(name, 0, i));
    squares += sum.square().sum().item<double>();
  }
  for (const int size : kWorlds)
    EXPECT_EQ(train(size, one_group()).norms.front(), std::sqrt(squares)) << size << " ranks";
}

TEST(Zero2, EveryRankHoldsItsShareOfTheMomentsAndNoMore) {
  for (const int size : kWorlds) {
    const int64_t share = (215 + size - 1) / size;
    for (const int64_t bytes : train(size, one_group()).bytes) {
      EXPECT_EQ(bytes, 2 * 4 * share) << size << " ranks";
      EXPECT_EQ(bytes, training::zero2_state_bytes({215}, size, 4));
    }
  }
}

/// A parameter that only rank 0 has a gradient of: an expert that got no tokens elsewhere.
TensorTable missing_elsewhere(int step, const World& world) {
  TensorTable all = gradients(step, world), some;
  const Tensor whole = part("d", step, 0) * kSlices;
  for (const std::string& name : all.names())
    if (name != "d") some.put(name, all.at(name));
  if (world.rank() == 0) some.put("d", whole * world.size());
  return some;
}

TEST(Zero2, GradientOnOneRankOnlyCountsAsZeroOnTheOthers) {
  const Result alone = train(1, one_group(), Bug::none, missing_elsewhere);
  EXPECT_FALSE(torch::equal(alone.parameters.at("d"), start().at("d")));
  for (const int size : kWorlds)
    EXPECT_TRUE(same_bits(train(size, one_group(), Bug::none, missing_elsewhere), alone))
        << size << " ranks";
}

TEST(Zero2, ParameterWithoutAnyGradientIsNotTouched) {
  const auto frozen = [](int step, const World& world) {
    TensorTable all = gradients(step, world), some;
    for (const std::string& name : all.names())
      if (name != "a") some.put(name, all.at(name));
    return some;
  };
  for (const int size : {1, 3}) {
    const Result result = train(size, one_group(), Bug::none, frozen);
    EXPECT_TRUE(torch::equal(result.parameters.at("a"), start().at("a")));
    EXPECT_FALSE(result.state.has("all/a/exp_avg"));
  }
}

/// The step after `state`, in a world of `size`.
TensorTable resume(int size, const TensorTable& parameters, const OptimizerState& state) {
  TensorTable result;
  in_world(size, [&](World& world) {
    torch::set_num_threads(1);
    TensorTable table = parameters.clone();
    auto optimizer = training::make_zero2(one_group(), table, world);
    optimizer->set_state(state);
    optimizer->step(table, gradients(kSteps, world));
    if (world.rank() == 0) result = table;
  });
  return result;
}

TEST(Zero2, StateSavedOnAnyWorldGoesOnInAnyOther) {
  const Result alone = train(1, one_group());
  const TensorTable next = resume(1, alone.parameters, alone.state);
  EXPECT_FALSE(same_bits(next, alone.parameters));
  for (const int saved : {1, 2, 3, 8}) {
    const Result result = train(saved, one_group());
    for (const int loaded : {1, 2, 4, 5})
      EXPECT_TRUE(same_bits(resume(loaded, result.parameters, result.state), next))
          << saved << " to " << loaded;
  }
}

void expect_refused(const OptimizerState& state, const std::string& word) {
  World world;
  const TensorTable table = start();
  const auto optimizer = training::make_zero2(one_group(), table, world);
  try {
    optimizer->set_state(state);
    ADD_FAILURE() << "not refused: " << word;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::artefact);
    EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

TEST(Zero2, StateOfAnotherModelIsRefused) {
  const OptimizerState good = train(2, one_group()).state;
  OptimizerState shape = good.clone(), half, more = good.clone(), none;
  shape.put("all/d/exp_avg", torch::zeros({64, 4}));
  for (const std::string& name : good.names())
    if (name != "all/d/exp_avg_sq") half.put(name, good.at(name));
  more.put("all/z/exp_avg", torch::zeros({3}));
  expect_refused(shape, "all/d/exp_avg: expected [64,3], got [64,4]");
  expect_refused(half, "all/d: expected both moments");
  expect_refused(more, "all/z/exp_avg");
  expect_refused(none, "all/step");
}

TEST(Zero2, RefusedStateChangesNothing) {
  World world;
  TensorTable table = start();
  const auto optimizer = training::make_zero2(one_group(), table, world);
  optimizer->step(table, gradients(0, world));
  const OptimizerState before = optimizer->state().clone();
  for (const char* name : {"all/d/exp_avg", "all/z/exp_avg"}) {
    OptimizerState bad = before.clone();
    bad.put("all/step", torch::tensor(int64_t{9}));
    bad.put(name, torch::zeros({64, 4}));
    EXPECT_THROW(optimizer->set_state(bad), Error);
    EXPECT_TRUE(same_bits(optimizer->state(), before));
  }
}

struct Planted {
  Bug bug;
  const char* name;
};

TEST(Zero2, EveryPlantedBugShowsInEveryWorldThatCanHaveIt) {
  const Result alone = train(1, one_group());
  for (const Planted& planted : {Planted{Bug::sum_instead_of_mean, "sum"},
                                 {Bug::last_shard_dropped, "last shard"},
                                 {Bug::padding_in_norm, "padding"},
                                 {Bug::stale_parameters, "stale"},
                                 {Bug::gradient_accumulated_twice, "twice"},
                                 {Bug::clip_by_local_norm, "local norm"}}) {
    for (const int size : {2, 3, 8}) {
      EXPECT_FALSE(same_bits(train(size, one_group(), planted.bug), alone))
          << planted.name << ", " << size << " ranks";
    }
  }
}

TEST(Collective, SumsGathersAndBroadcasts) {
  for (const int size : {2, 3}) {
    in_world(size, [&](World& world) {
      const float rank = static_cast<float>(world.rank()), n = static_cast<float>(size);
      Tensor sum = torch::full({3}, rank);
      world.all_reduce(sum);
      EXPECT_TRUE(torch::equal(sum, torch::full({3}, n * (n - 1) / 2)));
      Tensor whole = torch::arange(2 * size).to(torch::kFloat), share = torch::zeros({2});
      world.reduce_scatter(share, whole);
      EXPECT_TRUE(torch::equal(share, n * torch::tensor({2 * rank, 2 * rank + 1})));
      Tensor gathered = torch::zeros({2 * size});
      world.all_gather(gathered, share);
      EXPECT_TRUE(torch::equal(gathered, n * torch::arange(2 * size).to(torch::kFloat)));
      Tensor told = torch::full({1}, rank);
      world.broadcast(told, size - 1);
      EXPECT_EQ(told.item<float>(), n - 1);
      world.barrier();
    });
  }
}

std::optional<training::RankEnvironment> read(const std::map<std::string, std::string>& variables) {
  return training::read_rank_environment([&](const char* name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    if (found == variables.end() || found->second.empty()) return std::nullopt;
    return found->second;
  });
}

const std::map<std::string, std::string> kTorchrun = {{"RANK", "3"},
                                                      {"WORLD_SIZE", "4"},
                                                      {"LOCAL_RANK", "1"},
                                                      {"LOCAL_WORLD_SIZE", "2"},
                                                      {"MASTER_ADDR", "node1"},
                                                      {"MASTER_PORT", "29500"}};
const std::map<std::string, std::string> kSlurm = {
    {"SLURM_PROCID", "5"},  {"SLURM_NTASKS", "8"},    {"SLURM_LOCALID", "1"},
    {"SLURM_STEP_ID", "0"}, {"SLURM_JOB_ID", "4711"}, {"SLURM_JOB_NODELIST", "gpu[07-09,12]"}};
const std::map<std::string, std::string> kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                                                     {"OMPI_COMM_WORLD_SIZE", "2"},
                                                     {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                                     {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                                                     {"PMIX_NAMESPACE", "prterun-1"}};

std::map<std::string, std::string> with(std::map<std::string, std::string> variables,
                                        const std::string& name, const std::string& value) {
  variables[name] = value;
  return variables;
}

TEST(RankEnvironment, NothingIsNoWorld) {
  EXPECT_FALSE(read({}));
  EXPECT_FALSE(read({{"MASTER_ADDR", "node1"}, {"MASTER_PORT", "29500"}}));
  // A batch script or a shell inside SLURM.
  EXPECT_FALSE(read({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_JOB_ID", "1"}}));
  auto shell = with(with(kSlurm, "SLURM_PROCID", "0"), "SLURM_LOCALID", "0");
  EXPECT_TRUE(read(shell));
  EXPECT_FALSE(read(with(shell, "SLURM_NTASKS", "1")));
}

TEST(RankEnvironment, ReadsEveryLauncher) {
  const auto torchrun = read(kTorchrun);
  ASSERT_TRUE(torchrun);
  EXPECT_EQ(torchrun->source, "torchrun");
  EXPECT_EQ(torchrun->rank, 3);
  EXPECT_EQ(torchrun->master_addr, "node1");
  EXPECT_EQ(torchrun->master_port, 29500);
  EXPECT_FALSE(torchrun->agent_store);
  EXPECT_TRUE(read(with(kTorchrun, "TORCHELASTIC_USE_AGENT_STORE", "True"))->agent_store);
  const auto slurm = read(kSlurm);
  ASSERT_TRUE(slurm);
  EXPECT_EQ(slurm->source, "SLURM");
  EXPECT_EQ(slurm->world_size, 8);
  EXPECT_EQ(slurm->master_addr, "gpu07");
  EXPECT_EQ(slurm->master_port, read(with(kSlurm, "SLURM_PROCID", "6"))->master_port);
  EXPECT_NE(slurm->master_port, read(with(kSlurm, "SLURM_JOB_ID", "4712"))->master_port);
  const auto mpi = read(kOpenMpi);
  ASSERT_TRUE(mpi);
  EXPECT_EQ(mpi->source, "Open MPI");
  EXPECT_EQ(mpi->master_addr, "127.0.0.1");
}

TEST(RankEnvironment, TorchrunInsideAnotherLauncherWins) {
  auto both = kSlurm;
  both.insert(kTorchrun.begin(), kTorchrun.end());
  EXPECT_EQ(read(both)->rank, 3);
}

void expect_refused(const std::map<std::string, std::string>& variables, const std::string& words) {
  try {
    read(variables);
    ADD_FAILURE() << "not refused: " << words;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::environment);
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

TEST(RankEnvironment, MissingVariablesAreNamed) {
  for (const auto& base : {kTorchrun, kSlurm}) {
    for (const auto& [name, value] : base) {
      const bool optional = name == "LOCAL_WORLD_SIZE" || name == "SLURM_PROCID" ||
                            name == "SLURM_STEP_ID";  // without these there is no step
      if (!optional) expect_refused(with(base, name, ""), name);
    }
  }
  expect_refused(with(kOpenMpi, "OMPI_COMM_WORLD_RANK", ""), "OMPI_COMM_WORLD_RANK: missing");
  expect_refused(with(kOpenMpi, "OMPI_COMM_WORLD_LOCAL_SIZE", "1"), "MASTER_ADDR: missing");
  expect_refused(with(kOpenMpi, "PMIX_NAMESPACE", ""), "MASTER_PORT: missing");
  expect_refused({{"WORLD_SIZE", "2"}}, "RANK: missing");
}

TEST(RankEnvironment, ContradictionsAreNamed) {
  expect_refused(with(kTorchrun, "RANK", "4"), "RANK: contradicts the world size");
  expect_refused(with(kTorchrun, "LOCAL_RANK", "2"), "LOCAL_RANK: contradicts LOCAL_WORLD_SIZE");
  expect_refused(with(with(kTorchrun, "RANK", "0"), "LOCAL_RANK", "1"),
                 "LOCAL_RANK: contradicts the rank");
  for (const char* value : {"-1", "two", "1.5", "99999999999", " 1"})
    expect_refused(with(kTorchrun, "RANK", value), "RANK: not usable");
  for (const char* value : {"0", "65536", "http"})
    expect_refused(with(kTorchrun, "MASTER_PORT", value), "MASTER_PORT: not usable");
  auto both = with(with(kOpenMpi, "OMPI_COMM_WORLD_SIZE", "4"), "OMPI_COMM_WORLD_RANK", "2");
  both.insert(kTorchrun.begin(), kTorchrun.end());
  expect_refused(both, "RANK: contradicts OMPI_COMM_WORLD_RANK");
}

}  // namespace
}  // namespace dsv32::suites
