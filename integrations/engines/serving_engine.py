"""A serving engine, which hands out the logits of the last token alone, as a candidate.

    python integrations/engines/serving_engine.py ckpt/ serving.safetensors MODULE:FUNCTION

FUNCTION(folder, prompts) gets the checkpoint folder and a list of lists of token ids, without
padding, and returns one row of logits per prompt, [vocab] each. Log-probabilities are no logits:
they lack a constant per row. A prompt is each row of the case up to a length; several lengths make
several rows, and prompts that share a beginning meet a prefix cache.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden" / "dump"))
import dsv32_trace as kit

LENGTHS = (0.5, 0.75, 1.0)  # of the tokens of a row


def prompts_of(case: kit.CaseData) -> list[tuple[int, list[int]]]:
    """The row b * S + s of each prompt's last token, and its tokens, padding left out."""
    S, out = case.fields["S"], []
    for b, (ids, mask) in enumerate(zip(case.input_ids, case.batch["attention_mask"], strict=True)):
        tokens = ids[mask == 1].tolist()
        padding = S - len(tokens)
        for length in (max(1, int(part * len(tokens))) for part in LENGTHS):
            out.append((b * S + padding + length - 1, tokens[:length]))
    return out


def trace_of(
    case: kit.CaseData, folder: str, logits_of: Callable[[str, Sequence[Sequence[int]]], Any]
) -> kit.Trace:
    """The trace of the last rows that `logits_of` gives."""
    prompts = prompts_of(case)
    rows = [kit.as_array(row) for row in logits_of(folder, [tokens for _, tokens in prompts])]
    trace = kit.Trace(case, engine="serving_engine")
    trace.put_rows("logits", rows, [row for row, _ in prompts])
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("out")
    parser.add_argument("engine", metavar="MODULE:FUNCTION")
    words = parser.parse_args()
    module, _, function = words.engine.partition(":")
    sys.path.insert(0, ".")
    logits_of = getattr(importlib.import_module(module), function)
    trace_of(kit.open_case(words.checkpoint), words.checkpoint, logits_of).write(words.out)


if __name__ == "__main__":
    main()
