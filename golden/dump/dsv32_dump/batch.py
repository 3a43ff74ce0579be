"""The tokens of a case, made from its seed, or a user's own data.

Every number comes from the counter-based generator Philox, so that Python, C++ and CUDA make the
same bits in any order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from .errors import DumpError


def fnv1a64(text: str) -> int:
    """The 64-bit FNV-1a hash of a name: the second half of a stream's key."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def philox_lanes(seed: int, name: str, count: int, lane: str) -> np.ndarray:
    """`count` lanes (numpy dtype `lane`) of the random stream `name`, little-endian.

    numpy increments the counter before it makes a block, so a stream starts at block 1.
    """
    per_word = 8 // np.dtype(lane).itemsize
    stream = np.random.Philox(key=np.array([seed, fnv1a64(name)], dtype=np.uint64))
    return stream.random_raw(-(-count // per_word)).astype("<u8", copy=False).view(lane)[:count]


def make_batch(case: dict[str, Any], vocab: int, index: int = 0) -> dict[str, np.ndarray]:
    """input_ids, attention_mask, position_ids, labels of batch `index`: [B,S] int64."""
    B, S = case["B"], case["S"]
    lanes = philox_lanes(case["seed"], f"batch.{index}.input_ids", B * S, "<u4").astype(np.uint64)
    ids = ((lanes * np.uint64(vocab)) >> np.uint64(32)).astype(np.int64).reshape(B, S)
    mask = np.ones((B, S), dtype=np.int64)
    right = case.get("pad_side") == "right"
    mask[B - 1, S - case["pad"] if right else 0 : S if right else case["pad"]] = 0
    offset = case.get("position_offset", 0)
    return complete_batch({"input_ids": ids, "attention_mask": mask}, offset)


def complete_batch(batch: dict[str, np.ndarray], offset: int = 0) -> dict[str, np.ndarray]:
    """The batch with position_ids, and with attention_mask and labels where they are absent.

    offset: added to every position.

    A label counts where its token is attended, follows another one of its row and lies beyond the
    first quarter.
    """
    ids = np.asarray(batch["input_ids"], dtype=np.int64)
    S = ids.shape[1]
    mask = np.asarray(batch.get("attention_mask", np.ones_like(ids)), dtype=np.int64)
    counted = np.cumsum(mask, axis=1)
    after_padding = (counted == 1) & (mask == 1) & (np.arange(S) > 0)
    labels = np.where((mask == 0) | after_padding | (np.arange(S) < S // 4), -100, ids)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.asarray(
            batch.get("position_ids", np.maximum(counted - 1, 0) + offset), dtype=np.int64
        ),
        "labels": np.asarray(batch.get("labels", labels), dtype=np.int64),
    }


def read_batch(path: Path, case: dict[str, Any], vocab: int) -> dict[str, np.ndarray]:
    """A user's own data: safetensors with input_ids, optional attention_mask and labels.

    Throws DumpError on other names, shapes, dtypes or values.
    """
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            batch = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        raise DumpError(4, str(path), "batch", "a safetensors file", str(error)) from error
    shape = (case["B"], case["S"])
    unknown = set(batch) - {"input_ids", "attention_mask", "labels"}
    if unknown or "input_ids" not in batch:
        got = ", ".join(sorted(batch)) or "none"
        raise DumpError(4, str(path), "names", "input_ids, attention_mask, labels", got)
    for name, value in batch.items():
        if value.shape != shape or value.dtype != np.int64:
            raise DumpError(
                4, str(path), name, f"{list(shape)} int64", f"{list(value.shape)} {value.dtype}"
            )
    if ((batch["input_ids"] < 0) | (batch["input_ids"] >= vocab)).any():
        raise DumpError(4, str(path), "input_ids", f"tokens in [0, {vocab})", "a token outside")
    if not np.isin(batch.get("attention_mask", np.ones(1)), (0, 1)).all():
        raise DumpError(4, str(path), "attention_mask", "0 and 1 only", "another value")
    return complete_batch(batch, case.get("position_offset", 0))
