#include "src/reference/openblas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <optional>

namespace dsv32::reference {
namespace {

constexpr const char* kLibrary = "libscipy_openblas.so";  // found by the program's rpath

/// An environment variable changed for a while.
class ChangedVariable {
 public:
  /// nullptr: removed.
  ChangedVariable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    set(value);
  }
  ~ChangedVariable() { set(before_ ? before_->c_str() : nullptr); }
  ChangedVariable(const ChangedVariable&) = delete;

 private:
  void set(const char* value) const {
    if (value == nullptr) {
      unsetenv(name_);
    } else {
      setenv(name_, value, /*overwrite=*/1);
    }
  }

  const char* name_;
  std::optional<std::string> before_;
};

/// Some machines name a core of years ago for other programs. And no threads of its own: the caller
/// has some.
void* open_library() {
  const ChangedVariable core("OPENBLAS_CORETYPE", nullptr);
  const ChangedVariable threads("OPENBLAS_NUM_THREADS", "1");
  return dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
}

/// "OpenBLAS 0.3.34.481.3 DYNAMIC_ARCH ..." -> "OpenBLAS 0.3.34"
std::string version_of(const std::string& config) {
  size_t end = config.find(' ');
  for (int numbers = 0; numbers < 3 && end != std::string::npos; ++numbers)
    end = config.find_first_of(". ", end + 1);
  return config.substr(0, end);
}

std::optional<OpenBlas> load() {
  void* library = open_library();
  if (library == nullptr) return std::nullopt;
  using Text = char* (*)();
  const auto dgemm = reinterpret_cast<OpenBlas::Dgemm>(dlsym(library, "scipy_cblas_dgemm"));
  const auto config = reinterpret_cast<Text>(dlsym(library, "scipy_openblas_get_config"));
  const auto core = reinterpret_cast<Text>(dlsym(library, "scipy_openblas_get_corename"));
  if (dgemm == nullptr || config == nullptr || core == nullptr) return std::nullopt;
  return OpenBlas{dgemm, version_of(config()) + ", " + core()};
}

}  // namespace

const OpenBlas* openblas() {
  static const std::optional<OpenBlas> loaded = load();
  return loaded ? &*loaded : nullptr;
}

}  // namespace dsv32::reference
