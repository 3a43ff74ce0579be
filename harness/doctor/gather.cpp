#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>

#include "harness/doctor/doctor.h"
#include "harness/job/memory.h"

namespace dsv32::harness {
namespace {

constexpr int kMeetingPort = 29500;  // torchrun's default

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\n") - first + 1);
}

void read_cpu(const std::string& root, Facts& facts) {
  std::ifstream file(root + "/proc/cpuinfo");
  unsigned processors = 0;
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string key = trimmed(line.substr(0, colon)), value = trimmed(line.substr(colon + 1));
    if (key == "processor") ++processors;
    if (key == "model name") facts.cpu = value;
    if (key != "flags" && key != "Features") continue;
    std::istringstream words(value);
    for (std::string word; words >> word;)
      if (word.starts_with("avx") || word.starts_with("amx") || word.starts_with("sve") ||
          word == "asimd" || word == "fma")
        facts.vectors.insert(word);
  }
  facts.cores = root.empty() ? std::thread::hardware_concurrency() : processors;
}

void read_memory(const std::string& root, Facts& facts) {
  std::ifstream file(root + "/proc/meminfo");
  double available = 0;
  for (std::string line; std::getline(file, line);) {
    double kib = 0;
    if (std::sscanf(line.c_str(), "MemTotal: %lf kB", &kib) == 1) facts.memory_total = kib * 1024;
    if (std::sscanf(line.c_str(), "MemAvailable: %lf kB", &kib) == 1) available = kib * 1024;
  }
  facts.memory_free = root.empty() ? available_memory_bytes() : available;
}

double size_of_file_system(const std::string& path, bool unused_alone) {
  struct statvfs stat = {};
  if (::statvfs(path.c_str(), &stat) != 0) return 0;
  const auto blocks = static_cast<double>(unused_alone ? stat.f_bavail : stat.f_blocks);
  return blocks * static_cast<double>(stat.f_frsize);
}

/// The option `size=` of the file system mounted on `where`; 0 without one.
double mounted_size(const std::string& mounts, const std::string& where) {
  std::ifstream file(mounts);
  for (std::string device, place, type, options, rest;
       file >> device >> place >> type >> options;) {
    std::getline(file, rest);
    const size_t size = options.find("size=");
    if (place != where || size == std::string::npos) continue;
    char unit = 0;
    double number = 0;
    std::sscanf(options.c_str() + size, "size=%lf%c", &number, &unit);
    return number * (unit == 'k' ? 1024.0 : unit == 'm' ? 1024.0 * 1024 : 1.0);
  }
  return 0;
}

/// Bytes per second of 64 MiB that reach the disk; 0 where nothing can be written.
double write_speed(const std::string& folder) {
  constexpr size_t kBlock = 1 << 20, kBlocks = 64;
  std::string path = folder + "/.dsv32-doctor-XXXXXX";
  const int file = ::mkstemp(path.data());
  if (file < 0) return 0;
  ::unlink(path.c_str());
  const std::string block(kBlock, 'x');
  const auto start = std::chrono::steady_clock::now();
  size_t written = 0;
  for (size_t i = 0; i < kBlocks; ++i) {
    const ssize_t n = ::write(file, block.data(), block.size());
    if (n < 0) break;
    written += static_cast<size_t>(n);
  }
  const bool whole = ::fdatasync(file) == 0 && written == kBlock * kBlocks;
  ::close(file);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
  return whole ? static_cast<double>(written) / taken.count() : 0;
}

int64_t open_file_limit(const std::string& root) {
  if (root.empty()) {
    struct rlimit limit = {};
    return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? static_cast<int64_t>(limit.rlim_cur) : 0;
  }
  std::ifstream file(root + "/proc/self/limits");
  for (std::string line; std::getline(file, line);) {
    long soft = 0;
    if (std::sscanf(line.c_str(), "Max open files %ld", &soft) == 1) return soft;
  }
  return 0;
}

bool is_busy(int port) {
  const int meeting = ::socket(AF_INET, SOCK_STREAM, 0);
  if (meeting < 0) return true;
  const int yes = 1;
  ::setsockopt(meeting, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const bool busy = ::bind(meeting, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0;
  ::close(meeting);
  return busy;
}

/// Name, memory in MiB and driver of each device, as nvidia-smi says them.
void read_gpus(Facts& facts) {
  constexpr char kCommand[] =
      "timeout 20 nvidia-smi --query-gpu=name,memory.total,driver_version "
      "--format=csv,noheader,nounits 2>&1";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(kCommand, "r"), ::pclose);
  char buffer[512];
  while (pipe && std::fgets(buffer, sizeof buffer, pipe.get()) != nullptr) {
    char name[128] = "", driver[64] = "";
    double mib = 0;
    if (std::sscanf(buffer, "%127[^,], %lf, %63s", name, &mib, driver) == 3) {
      facts.gpus.push_back({.name = name, .bytes = mib * 1024 * 1024});
      facts.driver = driver;
    } else if (facts.gpu_error.empty()) {
      facts.gpu_error = trimmed(buffer);
    }
  }
  if (facts.gpu_error.find("not found") != std::string::npos ||
      facts.gpu_error.find("No such file") != std::string::npos || facts.gpu_error.empty())
    facts.gpu_error = "nvidia-smi is not there";
}

}  // namespace

Facts gather(const GatherOptions& options) {
  Facts facts;
  read_cpu(options.root, facts);
  read_memory(options.root, facts);
  facts.disk = options.disk;
  facts.disk_free = size_of_file_system(options.disk, true);
  facts.disk_speed = write_speed(options.disk);
  facts.shm = options.root.empty() ? size_of_file_system("/dev/shm", false)
                                   : mounted_size(options.root + "/proc/mounts", "/dev/shm");
  facts.open_files = open_file_limit(options.root);
  facts.port_busy = is_busy(kMeetingPort);
  read_gpus(facts);
  facts.cuda = options.cuda;
  for (const std::string& path : find_pythons(options.pythons))
    facts.pythons.push_back(ask_python(path));
  return facts;
}

}  // namespace dsv32::harness
