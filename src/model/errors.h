#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace dsv32 {

/// The exit codes of the process. When several apply, `worst` decides: 3 > 4 > 6 > 1 > 5 > 0.
enum class ExitCode : int {
  ok = 0,
  parity = 1,       // a parity check failed
  usage = 2,        // wrong command line
  internal = 3,     // a bug of this tool
  artefact = 4,     // malformed file, wrong hash, wrong version, wrong shape
  nothing = 5,      // nothing was checked, or only vacuous checks
  environment = 6,  // device, memory, disk, lost rank, timeout
  interrupted = 130,
  terminated = 143,
};

ExitCode worst(ExitCode a, ExitCode b);

/// What a user needs to mend a wrong input. Printed as
/// `where: what: expected X, got Y (context); hint: ...`; empty parts are left out.
struct Complaint {
  std::string where;          // file, op or option
  std::string what;           // field, argument or rule
  std::string expected = {};  // what would have been right
  std::string got = {};       // what was there
  std::string context = {};
  std::string hint = {};
};

std::string to_string(const Complaint& complaint);

/// Wrong input of any kind. A numerical difference is never an Error: it is a Verdict.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, Complaint complaint);
  ExitCode code() const { return code_; }
  const Complaint& complaint() const { return complaint_; }

 private:
  ExitCode code_;
  Complaint complaint_;
};

/// The known word nearest to `word` by edit distance, or "" when none is near: for "did you mean".
std::string nearest(const std::string& word, const std::vector<std::string>& known);

}  // namespace dsv32
