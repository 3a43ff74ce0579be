"""What a sketch keeps of a large tap: chosen rows, row norms, 8 seeded projections.

Twin of src/model/sketch.h; the definition is in docs/formats.md.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .batch import philox_lanes

PROJECTIONS = 8
DECISIONS = (".topk", ".router.experts")
BLOCK_ROWS = 256  # rows whose float64 copy is held at once


@dataclasses.dataclass(frozen=True)
class Sketch:
    """rows [n, size], row_index [n], row_norms [count], projections [count, 8]."""

    shape: tuple[int, ...]
    rows: np.ndarray
    row_index: np.ndarray
    row_norms: np.ndarray
    projections: np.ndarray


def signs(tap: str, size: int) -> np.ndarray:
    """[size] uint8: bit p is 1 where element i counts +1 in projection p, 0 where it counts -1."""
    return philox_lanes(0, "sketch." + tap, size, "u1")


def chosen_rows(B: int, S: int, index_topk: int) -> np.ndarray:
    """Rows b * S + s: first beyond top-k, last of batch row 0, a middle one, last of row B-1."""
    first, last = min(index_topk, S - 1), S - 1
    rows = {first, last, (B // 2) * S + S // 2, (B - 1) * S + last}
    return np.array(sorted(rows), dtype=np.int64)


def tap_rows(tap: str, value: np.ndarray) -> np.ndarray:
    """A forward tap as [B * S, row size], -inf as 0. Unattended attn.logits must be 0 already."""
    value = np.where(np.isneginf(value), 0, value)
    if tap.endswith(("attn.logits", "attn.probs")):
        value = value.transpose(0, 2, 1, 3)  # [B,H,S,T] -> [B,S,H,T]
    return value.reshape(value.shape[0] * value.shape[1], -1)


def sketch_tap(tap: str, value: np.ndarray, row_index: np.ndarray) -> Sketch:
    rows = tap_rows(tap, value)
    norms, projections = measure(rows, signs(tap, rows.shape[1]))
    return Sketch(value.shape, rows[row_index], row_index, norms, projections)


def sketch_gradient(tap: str, value: np.ndarray, index: int) -> Sketch:
    """Norm and projections of the whole tensor; `rows` keeps one index of the first axis."""
    whole = value.reshape(1, -1)
    norms, projections = measure(whole, signs(tap, whole.shape[1]))
    rows, chosen = (whole, 0) if value.ndim == 1 else (value[index].reshape(1, -1), index)
    return Sketch(value.shape, rows, np.array([chosen], dtype=np.int64), norms, projections)


def measure(rows: np.ndarray, sign_bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row norms [count] and projections [count, 8], summed in float64, stored in float32."""
    count, size = rows.shape
    norms, projections = np.zeros(count), np.zeros((count, PROJECTIONS))
    columns = max(1, (1 << 20) // min(count, BLOCK_ROWS))
    for left in range(0, size, columns):
        part = slice(left, min(left + columns, size))
        bits = sign_bits[part, None] >> np.arange(PROJECTIONS, dtype=np.uint8) & 1
        plus = bits * 2.0 - 1.0
        for top in range(0, count, BLOCK_ROWS):
            block = rows[top : top + BLOCK_ROWS, part].astype(np.float64)
            norms[top : top + BLOCK_ROWS] += np.einsum("ij,ij->i", block, block)
            projections[top : top + BLOCK_ROWS] += block @ plus
    return np.sqrt(norms).astype(np.float32), projections.astype(np.float32)


def pack_topk(topk: np.ndarray, keys: int) -> np.ndarray:
    """[B, S, K] key indices, -1 for none -> bitset [B, S, ceil(keys / 8)], lowest bit first."""
    B, S, _ = topk.shape
    chosen = np.zeros((B, S, keys + 1), dtype=np.uint8)
    np.put_along_axis(chosen, np.where(topk < 0, keys, topk).astype(np.int64), 1, axis=2)
    return np.packbits(chosen[..., :keys], axis=2, bitorder="little")


def unpack_topk(bits: np.ndarray, k: int, keys: int) -> np.ndarray:
    """Inverse of pack_topk: int32 [B, S, k], ascending, -1 at the end."""
    chosen = np.unpackbits(bits, axis=2, count=keys, bitorder="little").astype(bool)
    return sort_topk(np.where(chosen, np.arange(keys), -1))[..., :k]


def sort_topk(topk: np.ndarray) -> np.ndarray:
    """Ascending along the last axis, -1 at the end."""
    largest = np.iinfo(np.int32).max
    ordered = np.sort(np.where(topk < 0, largest, topk), axis=-1)
    return np.where(ordered == largest, -1, ordered).astype(np.int32)


def sketched_taps(
    taps: dict[str, np.ndarray], batch: dict[str, np.ndarray], index_topk: int
) -> dict[str, np.ndarray]:
    """The tensors of a sketched trace file: decisions and scalars whole, of other taps the parts.

    attn.logits count as 0 where no key is attended.
    """
    B, S = batch["input_ids"].shape
    rows = chosen_rows(B, S, index_topk)
    out: dict[str, np.ndarray] = {}
    for name, value in taps.items():
        if value.ndim == 0 or name.startswith("train.") or name.endswith(DECISIONS):
            out[name] = value
            continue
        if name.startswith("grad."):
            kept = sketch_gradient(name, value, _gradient_row(name, value, batch))
        else:
            kept = sketch_tap(name, _attended(name, value, taps), rows)
        out[f"{name}#rows"] = kept.rows.astype(np.float32)
        out[f"{name}#row_index"] = kept.row_index.astype(np.int64)
        out[f"{name}#row_norms"] = kept.row_norms.astype(np.float32)
        out[f"{name}#projections"] = kept.projections.astype(np.float32)
    return out


def _gradient_row(name: str, value: np.ndarray, batch: dict[str, np.ndarray]) -> int:
    if name == "grad.model.embed_tokens.weight":  # this token predicts a counted label
        return int(batch["input_ids"][0, -2])
    return value.shape[0] // 2


def _attended(name: str, value: np.ndarray, taps: dict[str, np.ndarray]) -> np.ndarray:
    probs = taps.get(name.replace("attn.logits", "attn.probs"))
    if not name.endswith("attn.logits") or probs is None:
        return value
    return np.where(probs == 0, np.float32(0), value)
