#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <set>
#include <sstream>

#include "harness/doctor/doctor.h"
#include "harness/report/text.h"

namespace dsv32::harness {
namespace {

namespace fs = std::filesystem;

// One "name version" a line; nothing is imported, so it takes a fraction of a second.
constexpr char kQuestion[] = R"(
import importlib.metadata as m, importlib.util as u, os, platform
print("python", platform.python_version())
for name in ("torch numpy safetensors transformers peft deepspeed accelerate tokenizers "
             "fast-hadamard-transform mlx-lm nvidia-nccl-cu13 nvidia-nccl-cu12").split():
    try: print(name, m.version(name))
    except Exception: pass
spec = u.find_spec("transformers")
places = list(spec.submodule_search_locations or []) if spec else []
if any(os.path.isdir(os.path.join(p, "models", "deepseek_v32")) for p in places):
    print("deepseek_v32 yes")
)";

std::string output_of(const std::string& command) {
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), ::pclose);
  std::string text;
  char buffer[4096];
  while (pipe && std::fgets(buffer, sizeof buffer, pipe.get()) != nullptr) text += buffer;
  return text;
}

void add_if_there(std::vector<std::string>& list, const fs::path& python) {
  std::error_code ignored;
  if (!fs::exists(python, ignored)) return;
  const std::string text = python.string();
  for (const std::string& known : list)
    if (known == text) return;
  list.push_back(text);
}

}  // namespace

PythonFacts ask_python(const std::string& path) {
  PythonFacts facts{.path = path};
  // The question has no apostrophe.
  const std::string command = "timeout 20 " + shell_word(path) + " -c '" + kQuestion + "'";
  std::istringstream lines(output_of(command + " 2>/dev/null"));
  for (std::string name, version; lines >> name >> version;) {
    if (name == "python") {
      facts.version = version;
    } else if (name == "deepseek_v32") {
      facts.deepseek_v32 = true;
    } else {
      facts.packages[name] = version;
    }
  }
  return facts;
}

std::vector<std::string> find_pythons(const std::vector<std::string>& asked) {
  std::vector<std::string> list;
  for (const std::string& path : asked) list.push_back(path);  // a wrong one is to be seen
  if (!asked.empty()) return list;
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const char* folder = std::getenv(variable))
      add_if_there(list, fs::path(folder) / "bin/python");
  }
  std::error_code ignored;
  std::set<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(".", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".venv") || name.starts_with("venv")) folders.insert(entry.path());
  }
  for (const fs::path& folder : folders) add_if_there(list, folder / "bin/python");
  std::string found = output_of("command -v python3 2>/dev/null");
  while (!found.empty() && found.back() == '\n') found.pop_back();
  if (!found.empty()) add_if_there(list, found);
  return list;
}

}  // namespace dsv32::harness
