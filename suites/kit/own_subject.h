#pragma once

#include <string>

#include "harness/cases/case_run.h"
#include "harness/cases/implementations.h"

namespace dsv32::suites {

/// One of our implementations as a streamed run judges it.
inline harness::JudgedTrace own(const std::string& impl, DType dtype) {
  harness::JudgedTrace judged{
      .subject = harness::implementation_subject(impl, ""), .impl = impl, .dtype = dtype};
  judged.against_reference = judged.subject.party != harness::Party::reference;
  if (is_narrow(dtype) && harness::rounds_every_op(impl))
    judged.dialect.rounding = RoundingStyle::transformers;
  return judged;
}

}  // namespace dsv32::suites
