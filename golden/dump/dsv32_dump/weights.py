"""The model's parameters under their checkpoint names, compared bit for bit with the files.

A fork may fuse, transpose or wrap parameters, or quietly initialise one again: then every tap
differs and no op is to blame. So what was loaded is compared with the checkpoint before anything is
judged.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from dsv32_trace import case_values, unfused, weights_name
from torch import Tensor, nn

from .errors import DumpError

SPOT_CHECK = 64  # leading values of each tensor that tell a synthetic checkpoint from another


def is_transposed(model: nn.Module, name: str) -> bool:
    """Whether the module that owns a fused parameter says that it keeps it [in, out]."""
    owner = model.get_submodule(name.rpartition(".")[0])
    return bool(getattr(owner, "is_transposed", False))


def loaded_tensors(model: nn.Module, hidden: int) -> dict[str, Tensor]:
    """Every parameter and persistent buffer under its checkpoint name."""
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and not name.endswith("inv_freq"):
            out.update(unfused(name, value.detach(), hidden, is_transposed(model, name)))
    return out


SCALE = "_scale_inv"  # what the scales of an FP8 tensor are called: its name and this


def dequantised(codes: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """codes [rows, columns] times the scale of their block, in float32."""
    wide = scales.float().repeat_interleave(block[0], 0)[: codes.shape[0]]
    return codes.float() * wide.repeat_interleave(block[1], 1)[:, : codes.shape[1]]


def fp8_block(config: dict[str, Any]) -> tuple[int, int]:
    """Rows and columns of a block, as config.json says; the released ones where it does not."""
    said = config.get("quantization_config") or {}
    rows, columns = said.get("weight_block_size") or (128, 128)
    return rows, columns


def without_codes(tensors: dict[str, Tensor], block: tuple[int, int]) -> dict[str, Tensor]:
    """FP8 parameters with scales beside them as the values that they stand for."""
    out = {}
    for name, value in tensors.items():
        quantised = value.dtype == torch.float8_e4m3fn and name + SCALE in tensors
        if not (name.endswith(SCALE) and name.removesuffix(SCALE) in tensors):
            out[name] = dequantised(value, tensors[name + SCALE], block) if quantised else value
    return out


class Checkpoint:
    """Reads tensors of a directory of safetensors files one at a time; FP8 ones as their values."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        index = directory / "model.safetensors.index.json"
        single = directory / "model.safetensors"
        try:
            if index.is_file():
                self.files: dict[str, str] = json.loads(index.read_text())["weight_map"]
            elif single.is_file():
                with safetensors.safe_open(str(single), framework="pt") as file:
                    self.files = dict.fromkeys(file.keys(), single.name)
            else:
                got = "neither"
                raise DumpError(
                    4, str(directory), "checkpoint", "model.safetensors or its index", got
                )
        except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
            raise DumpError(
                4, str(directory), "checkpoint", "readable safetensors", str(error)
            ) from error

    @functools.cached_property
    def block(self) -> tuple[int, int]:
        file = self.directory / "config.json"
        return fp8_block(json.loads(file.read_text()) if file.is_file() else {})

    def _value(self, name: str, stored: Tensor) -> Tensor:
        scales = self.files.get(name + SCALE)
        if stored.dtype != torch.float8_e4m3fn or scales is None:
            return stored
        with safetensors.safe_open(str(self.directory / scales), framework="pt") as file:
            return dequantised(stored, file.get_tensor(name + SCALE), self.block)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for file_name in sorted(set(self.files.values())):
            path = self.directory / file_name
            try:
                with safetensors.safe_open(str(path), framework="pt") as file:
                    for name in sorted(n for n, f in self.files.items() if f == file_name):
                        if not name.endswith(SCALE):
                            yield name, self._value(name, file.get_tensor(name))
            except (OSError, safetensors.SafetensorError) as error:
                raise DumpError(
                    4, str(path), "checkpoint", "a safetensors file", str(error)
                ) from error


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype are the same bytes; NaN equals itself, 0 is not -0."""
    if a.shape != b.shape or a.is_meta:
        return False
    a, b = a.detach().cpu().contiguous(), b.contiguous()
    bytes_of = [x.view(-1).view(torch.uint8) for x in (a, b)] if a.numel() else [a, b]
    return torch.equal(*bytes_of)


def compare_weights(model: nn.Module, checkpoint: Checkpoint) -> dict[str, Any]:
    """Compares every loaded tensor with the checkpoint, bit for bit after a cast to its dtype.

    missing: the checkpoint has it, the implementation has no such parameter; unexpected: the other
    way round.
    """
    config = getattr(model.config, "text_config", None) or model.config
    loaded = without_codes(loaded_tensors(model, config.hidden_size), checkpoint.block)
    beyond = f"model.layers.{config.num_hidden_layers}."  # the MTP layer is not part of the model
    out: dict[str, Any] = {"identical": 0, "different": [], "missing": [], "unexpected": []}
    seen = set()
    for name, value in checkpoint.tensors():
        if name.startswith(beyond):
            continue
        seen.add(name)
        if name not in loaded:
            out["missing"].append(name)
        elif same_bits(loaded[name], value.to(loaded[name].dtype)):
            out["identical"] += 1
        else:
            out["different"].append(name)
    out["unexpected"] = sorted(set(loaded) - seen)
    return {key: sorted(value) if isinstance(value, list) else value for key, value in out.items()}


def weights_identity(
    tensors: Callable[[], Iterator[tuple[str, Tensor]]], case: dict[str, Any]
) -> str:
    """The name of the case's own weights when every tensor starts as theirs does, else a digest."""
    if all(_is_synthetic(name, value, case) for name, value in tensors()):
        return weights_name(case)
    digests = {}
    for name, value in tensors():
        data = value.detach().cpu().float().contiguous().numpy().tobytes()
        digests[name] = hashlib.sha256(data).digest()
    total = hashlib.sha256(b"".join(n.encode() + digest for n, digest in sorted(digests.items())))
    return f"sha256:{total.hexdigest()}"


def _is_synthetic(name: str, value: Tensor, case: dict[str, Any]) -> bool:
    if value.is_meta or value.dim() == 0:
        return False
    count = min(SPOT_CHECK, value.numel())
    want = case_values(case, name, tuple(value.shape), count)
    got = value.detach().reshape(-1)[:count].cpu().double()
    return torch.equal(got, torch.from_numpy(want).double())
