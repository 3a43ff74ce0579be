"""Decodes with real transformers, right and with a fault of the loop in it: a trace for each.

    python decode_in_transformers.py CHECKPOINT OUT LABEL...

LABEL is a cache (dynamic, static, offloaded) or one of FAULTS; OUT gets LABEL.safetensors. Without
a CUDA device the offloaded cache moves its keys from the host to the host: its own code runs, the
copies and their streams do not.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from dsv32_dump import Options, dump
from dsv32_dump.generate import CACHES, decoding_of_case
from dsv32_dump.load import Loading, import_transformers, load_model
from torch import Tensor, nn

MODULE = "transformers.models.deepseek_v32.modeling_deepseek_v32"
NEVER = 1  # a token that this model does not emit here
Fault = Callable[[nn.Module], contextlib.AbstractContextManager]


def hook(module: nn.Module, change: Callable[..., None]) -> contextlib.AbstractContextManager:
    """`change` may edit the keyword arguments of every call of the module."""

    def before(called: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
        change(kwargs)
        return args, kwargs

    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    return contextlib.closing(_Closer(handle.remove))


class _Closer:
    def __init__(self, close: Callable[[], None]) -> None:
        self.close = close


def position_off_by_one(model: nn.Module) -> contextlib.AbstractContextManager:
    def change(kwargs: dict[str, Any]) -> None:
        if kwargs["position_ids"].shape[1] == 1:
            kwargs["position_ids"] = kwargs["position_ids"] + 1

    return hook(model.model, change)


def cache_of_another_row(model: nn.Module) -> contextlib.AbstractContextManager:
    """Keys of the indexer as well: whoever mixes up rows does so in all of the cache."""
    cache = importlib.import_module("transformers.cache_utils").Cache

    def mixed(keys: Tensor, new: int) -> Tensor:
        axis = keys.dim() - 2
        old = keys.narrow(axis, 0, keys.shape[axis] - new)
        return torch.cat([old.roll(-1, 0), keys.narrow(axis, keys.shape[axis] - new, new)], axis)

    update, index = cache.update, cache.update_indexer

    def mixed_update(self: Any, keys: Tensor, values: Tensor, *rest: Any) -> Any:
        return tuple(mixed(t, keys.shape[-2]) for t in update(self, keys, values, *rest))

    def mixed_index(self: Any, keys: Tensor, *rest: Any) -> Tensor:
        return mixed(index(self, keys, *rest), keys.shape[-2])

    return mock.patch.multiple(cache, update=mixed_update, update_indexer=mixed_index)


def indexer_cache_forgotten(model: nn.Module) -> contextlib.AbstractContextManager:
    """Only the new keys: real code broadcasts their scores over all keys."""
    cache = importlib.import_module("transformers.cache_utils").Cache
    return mock.patch.object(cache, "update_indexer", lambda self, keys, *rest: keys)


def indexer_cache_reset(model: nn.Module) -> contextlib.AbstractContextManager:
    cache = importlib.import_module("transformers.cache_utils").Cache
    index = cache.update_indexer

    def reset(self: Any, keys: Tensor, *rest: Any) -> Tensor:
        whole = index(self, keys, *rest).clone()
        whole[:, : whole.shape[1] - keys.shape[1]] = 0
        return whole

    return mock.patch.object(cache, "update_indexer", reset)


def eos_ignored(model: nn.Module) -> contextlib.AbstractContextManager:
    generate = model.generate

    def deaf(**kwargs: Any) -> Any:
        return generate(**{**kwargs, "eos_token_id": NEVER})

    return mock.patch.object(model, "generate", deaf, create=True)


def padding_attended(model: nn.Module) -> contextlib.AbstractContextManager:
    module = importlib.import_module(MODULE)
    make = module.create_causal_mask

    def unpadded(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        return make(*args, **{**kwargs, "attention_mask": torch.ones_like(mask)})

    return mock.patch.object(module, "create_causal_mask", unpadded)


@contextlib.contextmanager
def k_of_queries(model: nn.Module) -> Iterator[None]:
    topk = Tensor.topk

    def limited(self: Tensor, k: int, *args: Any, **kwargs: Any) -> Any:
        scores_of_keys = self.dim() == 3 and kwargs.get("dim") == -1
        return topk(self, min(k, self.shape[1]) if scores_of_keys else k, *args, **kwargs)

    indexer = importlib.import_module(MODULE).DeepseekV32Indexer
    forward = indexer.forward

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(Tensor, "topk", limited):
            return forward(self, *args, **kwargs)

    with mock.patch.object(indexer, "forward", watched):
        yield


class _HostStream:
    """In the place of a CUDA stream: the host does one thing after the other."""

    def __enter__(self) -> _HostStream:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def wait_stream(self, other: _HostStream) -> None:
        pass


@contextlib.contextmanager
def offloaded_to_the_host(model: nn.Module) -> Iterator[None]:
    if torch.cuda.is_available():
        yield
        return
    moved: list[int] = []
    layer = importlib.import_module("transformers.cache_utils").CacheLayerMixin
    offload = layer.offload

    def counted(self: Any) -> None:
        moved.append(0)
        offload(self)

    with (
        mock.patch("dsv32_dump.generate.check_cache"),
        mock.patch.object(torch, "Stream", _HostStream),
        mock.patch.object(torch.cuda, "default_stream", lambda device=None: _HostStream()),
        mock.patch.object(layer, "offload", counted),
    ):
        yield
    if not moved:
        raise SystemExit("offloaded: no layer of the cache was moved")


FAULTS: dict[str, Fault] = {
    "position-off-by-one": position_off_by_one,
    "cache-of-another-row": cache_of_another_row,
    "indexer-cache-forgotten": indexer_cache_forgotten,
    "indexer-cache-reset": indexer_cache_reset,
    "eos-ignored": eos_ignored,
    "padding-attended": padding_attended,
    "k-of-queries": k_of_queries,
}
CONDITIONS: dict[str, Fault] = {**FAULTS, "offloaded": offloaded_to_the_host}


def main(checkpoint: Path, out: Path, labels: list[str]) -> None:
    torch.set_num_threads(1)  # nothing in a tiny case is large enough to be split
    transformers = import_transformers()
    model = load_model(transformers, Loading(checkpoint, attn="eager"))
    case = json.loads((checkpoint / "dsv32_case.json").read_text(encoding="utf-8"))
    decoding = decoding_of_case(case, None, None)
    for label in labels:
        cache = label if label in CACHES else "dynamic"
        plant = CONDITIONS.get(label, lambda model: contextlib.nullcontext())
        with plant(model):
            options = Options(decoding=decoding, cache=cache)
            run = dump(model, case, out / f"{label}.safetensors", options, checkpoint=checkpoint)
        if run.failure:
            raise SystemExit(f"{label}: {run.failure['message']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
