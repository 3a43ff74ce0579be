#include "src/io/volume/read_ahead.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace dsv32::io {
namespace {

constexpr size_t kNever = std::numeric_limits<size_t>::max();

}  // namespace

ReadAhead::ReadAhead(const ReadAheadLimits& limits)
    : limits_(limits),
      // Each reader, and each block that is being copied out of, needs one.
      most_blocks_(
          std::max<size_t>(limits.bytes / limits.block, 2 * static_cast<size_t>(limits.readers))) {}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

ReadAhead::Plan ReadAhead::planned(const std::vector<FileRange>& ranges) const {
  Plan plan;
  for (const FileRange& range : ranges) {
    if (range.begin == range.end) continue;
    const uint64_t first = range.begin / limits_.block, last = (range.end - 1) / limits_.block;
    for (uint64_t number = first; number <= last; ++number) {
      const uint64_t end = std::min(range.end, (number + 1) * limits_.block);
      const auto [found, is_new] = plan.at.emplace(Key{range.file, number}, plan.steps.size());
      if (is_new) {
        plan.steps.push_back({found->first, end});
      } else {
        Step& step = plan.steps[found->second];
        step.last = std::max(step.last, end);
      }
    }
  }
  return plan;
}

void ReadAhead::expect(const std::vector<FileRange>& now, const std::vector<FileRange>& then) {
  Plan first = planned(now), second = planned(then);
  {
    const std::lock_guard lock(mutex_);
    now_ = std::move(first);
    then_ = std::move(second);
    low_ = front_ = 0;
    std::erase_if(blocks_, [](const auto& entry) { return entry.second.error != nullptr; });
    if (now_.steps.empty() && then_.steps.empty()) {
      std::erase_if(blocks_, [this](const auto& entry) {
        return entry.second.ready() && !pins_.contains(entry.first);
      });
      spare_.clear();
    }
    if (threads_.empty() && !now_.steps.empty())
      for (int i = 0; i < limits_.readers; ++i) threads_.emplace_back([this] { fetch(); });
  }
  work_.notify_all();
}

/// Steps until the block is needed.
size_t ReadAhead::distance(const Key& key) const {
  if (const auto at = now_.at.find(key); at != now_.at.end()) {
    const bool ahead = at->second >= low_ && !now_.steps[at->second].done;
    if (ahead) return at->second - low_;
  }
  const auto at = then_.at.find(key);
  return at == then_.at.end() ? kNever : now_.steps.size() - low_ + at->second;
}

/// Drops what is needed latest, and later than in `distance` steps, until one more block fits.
bool ReadAhead::make_room(size_t distance) {
  while (blocks_.size() >= most_blocks_) {
    auto latest = blocks_.end();
    size_t longest = distance;
    for (auto it = blocks_.begin(); it != blocks_.end(); ++it) {
      if (!it->second.ready() || pins_.contains(it->first)) continue;
      const size_t own = this->distance(it->first);
      if (own > longest) longest = own, latest = it;
    }
    if (latest == blocks_.end()) return false;
    if (latest->second.bytes) spare_.push_back(std::move(latest->second.bytes));
    blocks_.erase(latest);
  }
  return true;
}

/// What to read now: what somebody waits for, then what is needed next.
std::optional<ReadAhead::Key> ReadAhead::next_key() {
  while (!wanted_.empty()) {
    const Key key = wanted_.front();
    if (!blocks_.contains(key) && !make_room(0)) return std::nullopt;
    wanted_.pop_front();
    if (!blocks_.contains(key)) return key;
  }
  size_t ahead = 0;  // no further than there is room for
  for (const auto& [plan, from] : {std::pair(&now_, low_), std::pair(&then_, size_t{0})}) {
    for (size_t i = from; i < plan->steps.size() && ahead < most_blocks_; ++i, ++ahead) {
      const Step& step = plan->steps[i];
      if (step.done || blocks_.contains(step.key)) continue;
      if (!make_room(distance(step.key))) return std::nullopt;
      return step.key;
    }
  }
  return std::nullopt;
}

/// Memory for one block; what once was one is used again.
std::unique_ptr<std::byte[]> ReadAhead::room() {
  if (spare_.empty()) return std::make_unique_for_overwrite<std::byte[]>(limits_.block);
  std::unique_ptr<std::byte[]> bytes = std::move(spare_.back());
  spare_.pop_back();
  return bytes;
}

/// A thread's life.
void ReadAhead::fetch() {
  std::unique_lock lock(mutex_);
  while (true) {
    std::optional<Key> key;
    work_.wait(lock, [&] { return stop_ || (key = next_key()); });
    if (stop_) return;
    blocks_[*key];
    peak_blocks_ = std::max(peak_blocks_, blocks_.size());
    std::unique_ptr<std::byte[]> bytes = room();
    std::exception_ptr error;
    lock.unlock();
    const uint64_t begin = key->second * limits_.block;
    try {
      key->first->read(begin, bytes.get(), std::min(limits_.block, key->first->size() - begin));
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    if (error) spare_.push_back(std::move(bytes));
    blocks_[*key].bytes = std::move(bytes);
    blocks_[*key].error = error;
    arrived_.notify_all();
  }
}

void ReadAhead::want(const Key& key, uint64_t end) {
  const uint64_t last = (end - 1) / limits_.block;
  const auto readers = static_cast<uint64_t>(limits_.readers);
  for (uint64_t number = key.second; number <= last && number < key.second + readers; ++number) {
    const Key other = {key.first, number};
    const bool asked = std::find(wanted_.begin(), wanted_.end(), other) != wanted_.end();
    if (!blocks_.contains(other) && !asked) wanted_.push_back(other);
  }
  work_.notify_all();
}

/// A read has had the block's bytes up to `end`.
void ReadAhead::passed(const Key& key, uint64_t end) {
  const auto at = now_.at.find(key);
  if (at == now_.at.end() || end < now_.steps[at->second].last) return;
  now_.steps[at->second].done = true;
  // A read far ahead is out of turn; a step that was passed by long ago is not coming any more.
  if (at->second <= low_ + most_blocks_) front_ = std::max(front_, at->second);
  const size_t passed_by = front_ - std::min(front_, most_blocks_ / 2);
  while (low_ < now_.steps.size() && (now_.steps[low_].done || low_ < passed_by)) ++low_;
}

/// Waits for a block that `pins_` holds. `end`: of the read that goes on behind it.
const std::byte* ReadAhead::arrived(const Key& key, uint64_t end,
                                    std::unique_lock<std::mutex>& lock) {
  while (true) {
    const auto found = blocks_.find(key);
    if (found == blocks_.end()) {
      want(key, end);
    } else if (found->second.error) {
      const std::exception_ptr error = found->second.error;
      blocks_.erase(found);  // the next one who asks tries again
      std::rethrow_exception(error);
    } else if (found->second.bytes) {
      return found->second.bytes.get();
    }
    arrived_.wait(lock);
  }
}

void ReadAhead::copy_from(const Key& key, uint64_t offset, void* out, size_t size, uint64_t end) {
  std::unique_lock lock(mutex_);
  ++pins_[key];
  std::exception_ptr error;
  try {
    const std::byte* bytes = arrived(key, end, lock);
    lock.unlock();
    std::memcpy(out, bytes + (offset - key.second * limits_.block), size);
    lock.lock();
    passed(key, offset + size);
  } catch (...) {
    error = std::current_exception();
  }
  if (--pins_[key] == 0) pins_.erase(key);
  work_.notify_all();
  if (error) std::rethrow_exception(error);
}

void ReadAhead::read(const InputFile& file, uint64_t offset, void* out, size_t size) {
  if (size == 0) return;
  const uint64_t end = offset + size;
  auto* at = static_cast<std::byte*>(out);
  while (offset < end) {
    const Key key = {&file, offset / limits_.block};
    const size_t count = std::min(end, (key.second + 1) * limits_.block) - offset;
    bool expected = false;
    {
      const std::lock_guard lock(mutex_);
      expected = now_.at.contains(key) || blocks_.contains(key);
    }
    if (!expected) {
      file.read(offset, at, end - offset);
      return;
    }
    copy_from(key, offset, at, count, end);
    at += count, offset += count;
  }
  file.check_unchanged();
}

uint64_t ReadAhead::peak() const {
  const std::lock_guard lock(mutex_);
  return peak_blocks_ * limits_.block;
}

}  // namespace dsv32::io
