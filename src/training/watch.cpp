#include "src/training/watch.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <sstream>
#include <thread>

#include "src/log/log.h"

namespace dsv32::training {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kBeat = 50ms;
constexpr auto kLook = 20ms;
constexpr auto kSilent =
    500ms;                      // after a broken connection: who has not beaten for so long is gone
constexpr auto kKnow = 900ms;   // the culprit is known by then, or never
constexpr auto kAgree = 300ms;  // for a declaration to go through the store
constexpr auto kPatience = 600ms;  // for this rank's work to notice that its world has ended
constexpr auto kLinger = 2s;       // of the store's host, for the others' last words

// First letter of a beat.
constexpr char kRunning = 'r', kDone = 'd', kFailed = 'f', kFollowed = 'l';

std::string beat_key(int rank) { return "beat/" + std::to_string(rank); }

std::vector<uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }
std::string text(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

/// What one rank says about itself.
struct Beat {
  char phase = kRunning;
  int64_t count = 0;
  int64_t step = -1;
  int64_t sequence = 0;  // collectives entered
  std::string reason;

  std::string encode() const {
    return std::string(1, phase) + " " + std::to_string(count) + " " + std::to_string(step) + " " +
           std::to_string(sequence) + " " + reason;
  }
  static Beat decode(const std::string& text) {
    Beat beat;
    std::istringstream stream(text);
    stream >> beat.phase >> beat.count >> beat.step >> beat.sequence;
    std::getline(stream >> std::ws, beat.reason);
    return beat;
  }
  bool left() const { return phase != kRunning; }
};

std::string encode(const Fault& fault) {
  return std::to_string(fault.rank) + " " + std::to_string(fault.step) + " " + fault.what;
}

Fault decode_fault(const std::string& text) {
  Fault fault;
  std::istringstream stream(text);
  stream >> fault.rank >> fault.step;
  std::getline(stream >> std::ws, fault.what);
  return fault;
}

std::string line_of(const char* file) {
  std::ifstream stream(file);
  std::string line;
  std::getline(stream, line);
  return line;
}

/// The process of this home is no more, as far as this machine can tell. A zombie is dead.
bool is_dead(const std::string& home) {
  const size_t colon = home.rfind(':');
  const std::string own = process_home();
  if (colon == std::string::npos || own.compare(0, own.rfind(':'), home, 0, colon) != 0)
    return false;
  const std::string pid = home.substr(colon + 1);
  const std::string stat = line_of(("/proc/" + pid + "/stat").c_str());
  const size_t name_end = stat.rfind(')');
  return name_end == std::string::npos || stat.compare(name_end, 3, ") Z") == 0 ||
         stat.compare(name_end, 3, ") X") == 0;
}

}  // namespace

Error to_error(const Fault& fault, int own_rank) {
  if (fault.rank < 0) {
    return Error(ExitCode::environment, {.where = "sharded world",
                                         .what = "a collective failed",
                                         .expected = "every rank to take part",
                                         .got = fault.what,
                                         .hint = "see the messages of the other ranks"});
  }
  const std::string self = fault.rank == own_rank ? " (this one)" : "";
  const std::string step = fault.step < 0 ? "before step 0" : "step " + std::to_string(fault.step);
  return Error(ExitCode::environment, {.where = "rank " + std::to_string(fault.rank) + self,
                                       .what = step,
                                       .expected = "every rank to go on",
                                       .got = fault.what});
}

std::string process_home() {
  char space[64] = {};
  if (readlink("/proc/self/ns/pid", space, sizeof space - 1) < 0) space[0] = '\0';
  std::string name = space;
  std::erase_if(name, [](char c) { return c == ':'; });
  return line_of("/proc/sys/kernel/random/boot_id") + name + ":" + std::to_string(getpid());
}

struct Watch::State {
  struct Peer {
    Beat beat;
    Clock::time_point changed = Clock::now();
    std::string home;
  };

  c10::intrusive_ptr<c10d::Store> store;
  Settings settings;

  mutable std::mutex mutex;
  std::condition_variable wake;
  Beat own;
  std::vector<Peer> peers;
  bool watching = false;  // everybody is here
  bool ending = false;
  bool main_knows = false;  // of the fault: it is about to leave
  bool last_word_said = false;
  std::optional<Clock::time_point> in_store;
  std::optional<std::string> store_error;
  std::optional<Fault> to_declare, fault;
  Clock::time_point fault_since;
  std::thread beating, judging;
  bool beating_ended = false;

  void beat();
  void beat_once();
  void judge();
  std::optional<Fault> sure_culprit() const;
  std::optional<Fault> silent_culprit(Clock::time_point since) const;
  std::optional<Fault> late_culprit() const;
  void set_fault(const Fault& value) {
    if (fault) return;
    fault = value;
    fault_since = Clock::now();
  }
  /// Ranks go from step to step together: one that has not told of this step yet died in it.
  Fault of(int rank, const std::string& what) const {
    return {rank, std::max(peers[rank].beat.step, own.step), what};
  }
  bool others_left() const;
  void give_up();
};

void Watch::State::beat() {
  std::unique_lock lock(mutex);
  while (!ending) {
    in_store = Clock::now();
    lock.unlock();
    std::optional<std::string> error;
    try {
      beat_once();
    } catch (const std::exception& e) {
      error = e.what();
    }
    lock.lock();
    in_store.reset();
    if (error) {
      store_error = error;
      break;
    }
    wake.wait_for(lock, kBeat, [&] {
      return ending || (to_declare && !fault) || (own.left() && !last_word_said);
    });
  }
  beating_ended = true;
  wake.notify_all();
}

void Watch::State::beat_once() {
  std::unique_lock lock(mutex);
  ++own.count;
  const std::string said = own.encode();
  const auto declared = fault ? std::nullopt : to_declare;
  const bool all_here = watching;
  lock.unlock();

  store->set(beat_key(settings.rank), bytes(said));
  std::string official;
  if (declared) {
    official = text(store->compareSet("fault", {}, bytes(encode(*declared))));
  } else if (store->check({"fault"})) {
    official = text(store->get("fault"));
  }
  std::vector<std::string> keys;
  for (int rank = 0; all_here && rank < settings.size; ++rank) keys.push_back(beat_key(rank));
  const auto values = keys.empty() ? std::vector<std::vector<uint8_t>>() : store->multiGet(keys);

  lock.lock();
  if (Beat::decode(said).left()) last_word_said = true;
  if (!official.empty()) set_fault(decode_fault(official));
  for (size_t rank = 0; rank < values.size(); ++rank) {
    const Beat beat = Beat::decode(text(values[rank]));
    if (beat.count != peers[rank].beat.count) peers[rank].changed = Clock::now();
    peers[rank].beat = beat;
  }
  wake.notify_all();
}

/// A rank of which there is no doubt.
std::optional<Fault> Watch::State::sure_culprit() const {
  for (int rank = 0; watching && rank < settings.size; ++rank) {
    const Peer& peer = peers[rank];
    if (rank == settings.rank) continue;
    if (peer.beat.phase == kFailed) return of(rank, "one that ended: " + peer.beat.reason);
    // Its last beat may still be on its way: only an old one counts.
    if (!peer.beat.left() && Clock::now() - peer.changed > 2 * kBeat && is_dead(peer.home))
      return of(rank, "one that died");
  }
  return std::nullopt;
}

/// After a broken connection: who has not been heard of since.
std::optional<Fault> Watch::State::silent_culprit(Clock::time_point since) const {
  const auto now = Clock::now();
  const bool other_hosts = settings.rank0_hosts && settings.rank != 0 && !peers[0].beat.left();
  if (store_error && other_hosts) return of(0, "one that died, or cannot be reached");
  if (in_store && now - *in_store > kSilent && other_hosts)
    return of(0, "one that does not answer: stopped, or cut off");
  if (now - since < kSilent || store_error || !watching) return std::nullopt;
  std::optional<int> silent;
  for (int rank = 0; rank < settings.size; ++rank) {
    if (rank == settings.rank || peers[rank].beat.left() || now - peers[rank].changed < kSilent)
      continue;
    if (!silent || peers[rank].changed < peers[*silent].changed) silent = rank;
  }
  if (silent) return of(*silent, "one whose heartbeat stopped: died, stopped, or cut off");
  return std::nullopt;
}

/// After a timeout: who has not come to the collective in which the others wait.
std::optional<Fault> Watch::State::late_culprit() const {
  std::optional<int> late;
  for (int rank = 0; watching && rank < settings.size; ++rank) {
    if (rank == settings.rank || peers[rank].beat.left()) continue;
    if (peers[rank].beat.sequence >= own.sequence) continue;
    if (!late || peers[rank].beat.sequence < peers[*late].beat.sequence) late = rank;
  }
  if (late) return of(*late, "one that hangs: the others waited for it until the time limit");
  return std::nullopt;
}

/// Never touches the store.
void Watch::State::judge() {
  std::unique_lock lock(mutex);
  const auto limit = std::chrono::duration<double>(settings.timeout);
  while (!ending) {
    wake.wait_for(lock, kLook);
    if (ending) break;
    if (!fault && !to_declare) {
      to_declare = sure_culprit();
      // The store may be gone with the culprit.
      if (to_declare && store_error) set_fault(*to_declare);
    }
    if (!fault && in_store && Clock::now() - *in_store > limit && settings.rank != 0)
      set_fault(of(0, "one that does not answer: stopped, or cut off"));
    if (!fault && store_error && settings.rank0_hosts && settings.rank != 0 &&
        !peers[0].beat.left() && watching)
      set_fault(of(0, "one that died, or cannot be reached"));
    if (fault && !main_knows && Clock::now() - fault_since > kPatience) give_up();
  }
}

void Watch::State::give_up() {
  const Error error = to_error(*fault, settings.rank);
  log_error(error.what());
  _exit(static_cast<int>(error.code()));
}

bool Watch::State::others_left() const {
  // Also the culprit, if it hangs, shall read whose fault it is.
  if (fault && Clock::now() - fault_since < 4 * kBeat) return false;
  for (int rank = 0; rank < settings.size; ++rank) {
    const Peer& peer = peers[rank];
    if (rank == settings.rank || peer.beat.left() || (fault && fault->rank == rank)) continue;
    if (Clock::now() - peer.changed < 2 * kSilent) return false;
  }
  return true;
}

Watch::Watch(c10::intrusive_ptr<c10d::Store> store, Settings settings)
    : state_(std::make_shared<State>()) {
  state_->store = std::move(store);
  state_->settings = settings;
  state_->peers.resize(settings.size);
  state_->beating = std::thread([state = state_] { state->beat(); });
  state_->judging = std::thread([state = state_] { state->judge(); });
}

Watch::~Watch() {
  std::unique_lock lock(state_->mutex);
  state_->ending = true;
  state_->wake.notify_all();
  const bool ended = state_->wake.wait_for(lock, kSilent, [&] { return state_->beating_ended; });
  lock.unlock();
  state_->judging.join();
  if (ended) {
    state_->beating.join();
  } else {
    state_->beating.detach();  // stuck in a store that does not answer; it holds the state
  }
}

void Watch::everybody_is_here(std::vector<std::string> homes) {
  const std::lock_guard lock(state_->mutex);
  for (size_t rank = 0; rank < homes.size(); ++rank) {
    state_->peers[rank].home = homes[rank];
    state_->peers[rank].changed = Clock::now();
  }
  state_->watching = true;
}

void Watch::set_step(int64_t step) {
  const std::lock_guard lock(state_->mutex);
  state_->own.step = step;
}

void Watch::enter() {
  const std::lock_guard lock(state_->mutex);
  ++state_->own.sequence;
}

std::optional<Fault> Watch::fault() const {
  const std::lock_guard lock(state_->mutex);
  return state_->fault;
}

Fault Watch::explain(const std::string& error, bool timed_out) {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  s.main_knows = true;
  const auto since = Clock::now();
  std::optional<Fault> found;
  while (!s.fault && !found && Clock::now() - since < kKnow) {
    found = s.sure_culprit();
    if (!found) found = s.silent_culprit(since);
    // A rank that neither beats nor comes is silent, not late: let the other rule speak first.
    if (!found && timed_out && Clock::now() - since > kSilent + 2 * kBeat) found = s.late_culprit();
    if (!s.fault && !found) s.wake.wait_for(lock, kLook);
  }
  if (s.fault) return *s.fault;
  lock.unlock();
  return declare(found.value_or(Fault{.rank = -1, .step = s.own.step, .what = error}));
}

Fault Watch::declare(const Fault& fault) {
  std::unique_lock lock(state_->mutex);
  state_->main_knows = true;
  if (!state_->to_declare) state_->to_declare = fault;
  state_->wake.notify_all();
  state_->wake.wait_for(lock, kAgree, [&] { return state_->fault || state_->store_error; });
  return state_->fault.value_or(fault);
}

void Watch::leave(Leaving how, const std::string& reason) {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  s.main_knows = true;
  s.own.phase = how == Leaving::done ? kDone : how == Leaving::failed ? kFailed : kFollowed;
  s.own.reason = reason;
  std::replace(s.own.reason.begin(), s.own.reason.end(), '\n', ' ');
  s.wake.notify_all();
  s.wake.wait_for(lock, kAgree, [&] { return s.last_word_said || s.store_error; });
  if (s.settings.rank0_hosts && s.settings.rank == 0) {
    const auto limit = s.watching ? Clock::duration(kLinger) : Clock::duration(kSilent);
    s.wake.wait_for(lock, limit, [&] { return (s.watching && s.others_left()) || s.store_error; });
  }
  s.ending = true;  // the store may be gone from here on
  s.wake.notify_all();
}

}  // namespace dsv32::training
