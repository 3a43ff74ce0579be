#pragma once

#include <filesystem>
#include <optional>

#include "harness/report/report.h"

namespace dsv32::harness {

/// `compare A B`: every tap of two traces, relative and worst, first difference. Exit code 0 when
/// all equal within the limits of their dtype, else 1. `batch_file`: the batch of their case when
/// it names one; throws Error (artefact) without it.
Report compare_traces(const std::filesystem::path& a, const std::filesystem::path& b,
                      const std::optional<std::filesystem::path>& batch_file = {});

}  // namespace dsv32::harness
