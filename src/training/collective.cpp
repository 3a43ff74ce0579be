#include "src/training/collective.h"

#include <c10/util/Logging.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <future>
#include <sstream>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <vector>

#include "src/model/errors.h"
#include "src/training/process_group.h"
#include "src/training/watch.h"

namespace dsv32::training {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;
using StorePointer = c10::intrusive_ptr<c10d::Store>;

constexpr auto kPoll = 20ms;
// Of a time limit: so much is kept for finding out who it was.
constexpr double kDiagnosisShare = 0.2;
constexpr double kDiagnosisSeconds = 1.2;

Milliseconds seconds(double value) { return Milliseconds(static_cast<int64_t>(1000 * value)); }

/// What a collective may take, so that the culprit is named within the time limit.
double patience(double timeout) {
  return timeout - std::min(kDiagnosisSeconds, kDiagnosisShare * timeout);
}

std::string address(const RankEnvironment& env) {
  return env.master_addr + ":" + std::to_string(env.master_port);
}

bool hosts_store(const RankEnvironment& env) { return env.rank == 0 && !env.agent_store; }

[[noreturn]] void refuse_store(const RankEnvironment& env, const std::string& error) {
  if (hosts_store(env)) {
    throw Error(ExitCode::environment,
                {.where = "rank 0 (this one)",
                 .what = "before step 0: the meeting place",
                 .expected = "to open " + address(env),
                 .got = error,
                 .hint = "the port may be taken: choose another one (launch --master-port)"});
  }
  throw Error(ExitCode::environment,
              {.where = env.agent_store ? "the launcher's store" : "rank 0",
               .what = "before step 0: the meeting place",
               .expected = "an answer at " + address(env),
               .got = error,
               .hint = "it never started, could not open the port, or another program has it"});
}

/// In a thread of its own: a port that another program has may accept and never answer.
StorePointer open_store(const RankEnvironment& env, double timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(env.master_port);
  options.isServer = hosts_store(env);
  options.waitWorkers = false;
  options.timeout = seconds(patience(timeout));
  auto opened = std::make_shared<std::promise<StorePointer>>();
  std::future<StorePointer> result = opened->get_future();
  std::thread([opened, options, host = env.master_addr] {
    try {
      opened->set_value(c10::make_intrusive<c10d::TCPStore>(host, options));
    } catch (...) {
      opened->set_exception(std::current_exception());
    }
  }).detach();
  if (result.wait_for(seconds(timeout)) != std::future_status::ready)
    refuse_store(env, "no answer in time");
  try {
    return result.get();
  } catch (const std::exception& error) {
    const std::string text = error.what();
    refuse_store(env, text.substr(0, text.find('\n')));
  }
}

std::string join_key(int rank) { return "join/" + std::to_string(rank); }

std::vector<uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }

using Card = std::map<std::string, std::string>;  // what a rank says when it joins

std::string encode(const Card& card) {
  std::string text;
  for (const auto& [name, value] : card) text += name + "\t" + value + "\n";
  return text;
}

Card decode(const std::vector<uint8_t>& bytes) {
  Card card;
  std::istringstream lines(std::string(bytes.begin(), bytes.end()));
  for (std::string line; std::getline(lines, line);) {
    const size_t tab = line.find('\t');
    if (tab != std::string::npos) card[line.substr(0, tab)] = line.substr(tab + 1);
  }
  return card;
}

std::string value_of(const Card& card, const std::string& name) {
  const auto found = card.find(name);
  return found == card.end() ? "nothing" : found->second;
}

/// What most ranks have; rank 0's where no value has a majority.
std::string common_value(const std::vector<Card>& cards, const std::string& name) {
  std::map<std::string, size_t> votes;
  for (const Card& card : cards) ++votes[value_of(card, name)];
  for (const auto& [value, count] : votes) {
    if (2 * count > cards.size()) return value;
  }
  return value_of(cards.front(), name);
}

std::optional<Fault> odd_one(const std::vector<Card>& cards,
                             const std::map<std::string, std::string>& alike) {
  for (const auto& entry : alike) {
    const std::string common = common_value(cards, entry.first);
    for (size_t rank = 0; rank < cards.size(); ++rank) {
      const std::string value = value_of(cards[rank], entry.first);
      if (value == common) continue;
      return Fault{
          .rank = static_cast<int>(rank),
          .what = "one with another " + entry.first + ": " + value + ", the others have " + common};
    }
  }
  return std::nullopt;
}

/// What breaks is our message, not a stack trace of the library. Its flight recorder of collectives
/// is off: it has one table per process, and two worlds of one process write to it without a lock.
void quieten_library() {
  static const bool once = [] {
    setenv("TORCH_CPP_LOG_LEVEL", "ERROR", 0);
    setenv("TORCH_FR_BUFFER_SIZE", "0", 0);
    c10::initLogging();
    return true;
  }();
  (void)once;
}

}  // namespace

struct World::Members {
  RankEnvironment env;
  WorldOptions options;
  StorePointer store;
  std::unique_ptr<Watch> watch;
  c10::intrusive_ptr<c10d::Backend> group;
  bool left = false;

  void join();
  std::vector<Card> wait_for_cards();
  [[noreturn]] void end(const Fault& fault);
  [[noreturn]] void lost(const std::string& error);

  /// Runs one collective; a failure of it is somebody's fault.
  template <typename Operation>
  void collective(Operation operation) {
    if (const auto fault = watch->fault()) end(*fault);
    watch->enter();
    try {
      operation();
    } catch (const std::exception& error) {
      lost(error.what());
    }
  }
};

void World::Members::end(const Fault& fault) {
  if (!left) {
    left = true;
    watch->leave(Watch::Leaving::followed, fault.what);
  }
  throw to_error(fault, env.rank);
}

void World::Members::lost(const std::string& error) {
  const bool timed_out =
      error.find("imed out") != std::string::npos || error.find("imeout") != std::string::npos;
  end(watch->explain(error.substr(0, error.find('\n')), timed_out));
}

/// Every rank's card, or the fault of the ranks that never came.
std::vector<Card> World::Members::wait_for_cards() {
  const auto last = Clock::now() + seconds(patience(options.timeout));
  std::vector<Card> cards(env.world_size);
  for (int rank = 0; rank < env.world_size; ++rank) {
    while (!store->check({join_key(rank)})) {
      if (const auto fault = watch->fault()) end(*fault);
      if (Clock::now() > last) {
        end(watch->declare({.rank = rank,
                            .what = "one that never joined the world of " +
                                    std::to_string(env.world_size) + " ranks"}));
      }
      std::this_thread::sleep_for(kPoll);
    }
    cards[rank] = decode(store->get(join_key(rank)));
  }
  return cards;
}

void World::Members::join() {
  Card card = options.alike;
  card["home"] = process_home();
  const std::string size = std::to_string(env.world_size);
  options.alike["world size"] = card["world size"] = size;
  store->set("beat/" + std::to_string(env.rank), bytes("r 0 -1 0 "));
  store->set(join_key(env.rank), bytes(encode(card)));
  const std::vector<Card> cards = wait_for_cards();
  if (const auto fault = odd_one(cards, options.alike)) end(watch->declare(*fault));
  std::vector<std::string> homes;
  for (const Card& other : cards) homes.push_back(value_of(other, "home"));
  watch->everybody_is_here(homes);
}

World::World() = default;

World::World(const RankEnvironment& env, const WorldOptions& options)
    : rank_(env.rank), size_(env.world_size), members_(std::make_unique<Members>()) {
  quieten_library();
  Members& m = *members_;
  m.env = env;
  m.options = options;
  const StorePointer raw = open_store(env, options.timeout);
  // torchrun's agent keeps keys of its own in the same store.
  m.store = c10::make_intrusive<c10d::PrefixStore>("dsv32", raw);
  m.watch = std::make_unique<Watch>(c10::make_intrusive<c10d::PrefixStore>("dsv32", raw->clone()),
                                    Watch::Settings{.rank = env.rank,
                                                    .size = env.world_size,
                                                    .timeout = options.timeout,
                                                    .rank0_hosts = !env.agent_store});
  try {
    m.join();
    const StorePointer own = c10::make_intrusive<c10d::PrefixStore>("group", m.store);
    const Milliseconds limit = seconds(patience(options.timeout));
    m.collective([&] {
      m.group = options.device == "cpu" ? make_gloo(own, env, limit) : make_nccl(own, env, limit);
    });
  } catch (const Error& error) {
    if (!m.left) fail(error.what());
    throw;
  } catch (const std::exception& error) {
    m.lost(error.what());
  }
}

World::~World() {
  if (!members_) return;
  if (!members_->left) fail("it left in the middle of its work");
  members_->group.reset();
}

torch::Device World::device() const {
  if (!members_ || members_->options.device == "cpu") return torch::kCPU;
  return {torch::kCUDA, static_cast<c10::DeviceIndex>(members_->env.local_rank)};
}

void World::all_reduce(Tensor& tensor) {
  if (!members_) return;
  members_->collective([&] {
    std::vector<Tensor> tensors = {tensor};
    members_->group->allreduce(tensors)->wait();
  });
}

void World::reduce_scatter(Tensor& share, Tensor& whole) {
  if (!members_) {
    share.copy_(whole);
    return;
  }
  members_->collective([&] { members_->group->_reduce_scatter_base(share, whole)->wait(); });
}

void World::all_gather(Tensor& whole, Tensor& share) {
  if (!members_) {
    whole.copy_(share);
    return;
  }
  members_->collective([&] { members_->group->_allgather_base(whole, share)->wait(); });
}

void World::broadcast(Tensor& tensor, int root) {
  if (!members_) return;
  members_->collective([&] {
    std::vector<Tensor> tensors = {tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    members_->group->broadcast(tensors, options)->wait();
  });
}

void World::barrier() {
  Tensor token = torch::ones({1}, device());
  all_reduce(token);
  token.item<float>();  // waits for a device
}

void World::set_step(int64_t step) {
  if (!members_) return;
  members_->watch->set_step(step);
  barrier();
}

void World::finish() {
  if (!members_ || members_->left) return;
  barrier();
  members_->left = true;
  members_->watch->leave(Watch::Leaving::done, "");
}

void World::fail(const std::string& reason) {
  if (!members_ || members_->left) return;
  members_->left = true;
  members_->watch->leave(Watch::Leaving::failed, reason);
}

}  // namespace dsv32::training
