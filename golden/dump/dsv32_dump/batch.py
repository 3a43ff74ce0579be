"""A user's own data in place of a case's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from dsv32_trace import DumpError, complete_batch


def read_batch(path: Path, case: dict[str, Any], vocab: int) -> dict[str, np.ndarray]:
    """A user's own data: safetensors with input_ids [B, S], optional attention_mask and labels.

    B and S are the file's own; of the case only what shifts positions counts.
    Throws DumpError on other names, shapes, dtypes or values.
    """
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            batch = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise DumpError(4, str(path), "batch", "a safetensors file", str(error)) from error
    unknown = set(batch) - {"input_ids", "attention_mask", "labels"}
    if unknown or "input_ids" not in batch:
        got = ", ".join(sorted(batch)) or "none"
        raise DumpError(4, str(path), "names", "input_ids, attention_mask, labels", got)
    shape = batch["input_ids"].shape
    if len(shape) != 2 or 0 in shape:
        raise DumpError(4, str(path), "input_ids", "[B, S] int64", str(list(shape)))
    for name, value in batch.items():
        if value.shape != shape or value.dtype != np.int64:
            raise DumpError(
                4, str(path), name, f"{list(shape)} int64", f"{list(value.shape)} {value.dtype}"
            )
    if ((batch["input_ids"] < 0) | (batch["input_ids"] >= vocab)).any():
        worst = int(batch["input_ids"].max())
        got = f"a token outside ({worst if worst >= vocab else int(batch['input_ids'].min())})"
        hint = "tokens of another tokenizer? the checkpoint's own has vocab_size in config.json"
        raise DumpError(4, str(path), "input_ids", f"tokens in [0, {vocab})", got, hint)
    if not np.isin(batch.get("attention_mask", np.ones(1)), (0, 1)).all():
        raise DumpError(4, str(path), "attention_mask", "0 and 1 only", "another value")
    return complete_batch(batch, case.get("position_offset", 0))


def case_with(case: dict[str, Any], batch: dict[str, np.ndarray], digest: str) -> dict[str, Any]:
    """The case with this batch in place of its tokens; of another size it is no listed one."""
    B, S = batch["input_ids"].shape
    if (case["B"], case["S"]) == (B, S):
        return {**case, "batch": digest}
    rest = {key: value for key, value in case.items() if key != "name"}
    return {**rest, "B": B, "S": S, "pad": 0, "chunks": [], "batch": digest}
