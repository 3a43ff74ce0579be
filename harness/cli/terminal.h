#pragma once

#include <cstddef>

namespace dsv32::harness {

/// `--color`.
enum class ColorChoice { automatic, always, never };

/// Colour on standard output? `--color`, then NO_COLOR, then FORCE_COLOR and CLICOLOR_FORCE, then
/// whether it is a terminal that knows colours (TERM other than dumb).
bool use_color(ColorChoice choice);

/// A progress line that redraws itself makes sense: standard error is a terminal, not dumb, not CI.
bool can_redraw();

/// Columns of the terminal on standard output; 0 when it is none: there lines are not broken.
size_t output_width();

/// Columns of the terminal on standard error; 80 when it does not say.
int terminal_width();

}  // namespace dsv32::harness
