#include "src/model/at_once.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace dsv32 {

int processors() {
  constexpr int kDecimal = 10;
  const char* asked = std::getenv("OMP_NUM_THREADS");
  const auto threads =
      asked == nullptr ? 0 : static_cast<int>(std::strtol(asked, nullptr, kDecimal));
  return threads > 0 ? threads
                     : static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

void at_once(size_t count, const std::function<void(size_t)>& work, int threads) {
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr first;
  const auto run = [&] {
    try {
      for (size_t i = next++; i < count; i = next++) work(i);
    } catch (...) {
      next = count;
      const std::lock_guard lock(mutex);
      if (!first) first = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  const size_t more = std::min(count, static_cast<size_t>(threads));
  for (size_t i = 1; i < more; ++i) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace dsv32
