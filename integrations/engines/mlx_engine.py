"""mlx-lm's DeepSeek-V3.2, loaded by its own strict loader, as a candidate.

    pip install 'mlx[cpu]' mlx-lm          # on a Mac: mlx-lm alone
    python integrations/engines/mlx_engine.py ckpt/ mlx.safetensors [--backward]
    dsv32-verify --candidate mlx.safetensors

Padding and chunks go through its caches, gradients come from its own autograd. Tried with mlx-lm
0.32.2 on mlx 0.32.4 (CPU). Its gather of experts takes float32 alone on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import deepseek_v32
from mlx_lm.models.cache import BatchKVCache, CacheList
from mlx_lm.utils import load_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden" / "dump"))
import dsv32_trace as kit

# Tap -> module whose output it is, as it is.
OUTPUTS = {
    "attn_norm": "input_layernorm",
    "q_latent": "self_attn.q_a_layernorm",
    "kv_latent": "self_attn.kv_a_layernorm",
    "ix.weights": "self_attn.indexer.weights_proj",
    "attn.out": "self_attn",
    "ffn_norm": "post_attention_layernorm",
    "moe.shared": "mlp.shared_experts",
    "mlp.out": "mlp",
}


class Seen:
    """What passed through modules and argpartition: name -> (inputs, output) of each call."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self.calls: dict[str, list[tuple[tuple, Any]]] = {}
        self.stack: list[str] = []

    def call(self, function: Any) -> Any:
        def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.stack.append(self.names.get(id(module), ""))
            out = function(module, *args, **kwargs)
            name = self.stack.pop()
            self.calls.setdefault(name, []).append((args, out))
            return out

        return watched

    def argpartition(self, scores: mx.array, **kwargs: Any) -> mx.array:
        out = mx.argpartition(scores, **kwargs)
        if self.stack and self.stack[-1].endswith("indexer"):
            self.calls.setdefault(self.stack[-1] + ".order", []).append(((scores,), out))
        return out


class Watched:
    """mlx.core with another argpartition: scores and picks are no module's output."""

    def __init__(self, seen: Seen) -> None:
        self.argpartition = seen.argpartition

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)


@contextlib.contextmanager
def watch(model: nn.Module) -> Iterator[Seen]:
    """Patches `__call__` of every class in the model, and takes it off again."""
    seen = Seen(model)
    classes = {type(module) for _, module in model.named_modules()}
    originals = {cls: cls.__call__ for cls in classes if "__call__" in vars(cls)}
    try:
        for cls, function in originals.items():
            cls.__call__ = seen.call(function)
        deepseek_v32.mx = Watched(seen)
        yield seen
    finally:
        deepseek_v32.mx = mx
        for cls, function in originals.items():
            cls.__call__ = function


def taps_of_pass(seen: Seen, c: dict, valid: np.ndarray, start: int) -> dict[str, np.ndarray]:
    """The taps of one pass over tokens [start, start + S); valid: [B, keys] of the whole cache."""

    def out(name: str, which: int = 0) -> np.ndarray:
        return np.array(seen.calls[name][which][1])

    taps = {
        "embed": out("model.embed_tokens"),
        "final_norm": out("model.norm"),
        "logits": out(""),
    }
    B, S = taps["embed"].shape[:2]
    T = start + S
    visible = (np.arange(T) <= np.arange(start, T)[:, None]) & (valid[:, None, :T] == 1)
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}."
        layer = {t: out(at + m) for t, m in OUTPUTS.items() if at + m in seen.calls}
        if "ix.weights" in layer:
            scale = np.float32((c["index_n_heads"] * c["index_head_dim"]) ** -0.5)
            layer["ix.weights"] = layer["ix.weights"] * scale
        q = out(at + "self_attn.q_b_proj").reshape(B, S, c["num_attention_heads"], -1)
        layer["q_nope"] = q[..., : c["qk_nope_head_dim"]]
        layer["q_rope"] = out(at + "self_attn.rope").transpose(0, 2, 1, 3)
        layer["k_rope"] = out(at + "self_attn.rope", 1)[:, 0]
        layer["ix.q"] = out(at + "self_attn.indexer.rope").transpose(0, 2, 1, 3)
        layer["ix.k"] = out(at + "self_attn.indexer.rope", 1)[:, 0]
        selected = visible
        if at + "self_attn.indexer.order" in seen.calls:  # else there are too few keys to choose
            scores = np.array(seen.calls[at + "self_attn.indexer.order"][0][0][0])[:, 0]
            layer["ix.scores"] = np.where(visible, scores, -np.inf)
            picks = out(at + "self_attn.indexer")[:, 0].astype(np.int64)
            selected = np.zeros_like(visible)
            np.put_along_axis(selected, picks, True, -1)
            selected &= visible
        layer["selected"] = selected
        ctx = np.array(seen.calls[at + "self_attn.o_proj"][0][0][0])
        layer["attn.ctx"] = ctx.reshape(B, S, c["num_attention_heads"], -1)
        if at + "mlp.gate" in seen.calls:
            (x,), (experts, weights) = seen.calls[at + "mlp.gate"][0]
            gate = seen.gates[n]
            layer["router.logits"] = np.array(x @ gate.T)
            layer["router.experts"] = np.array(experts).astype(np.int32)
            layer["router.weights"] = np.array(weights)
            routed = np.array(seen.calls[at + "mlp.switch_mlp"][0][1])
            layer["moe.routed"] = (routed * layer["router.weights"][..., None]).sum(-2)
        layer["hidden"] = out(f"model.layers.{n}")
        taps |= {f"layers.{n}.{tap}": value for tap, value in layer.items()}
    return taps


def joined(pieces: list[dict[str, np.ndarray]], S: int) -> dict[str, np.ndarray]:
    """The concatenation over the chunks, keys padded to the final length."""
    out = {}
    for name in pieces[-1]:
        parts = [piece[name] for piece in pieces if name in piece]
        if len(parts) < len(pieces):
            continue
        fill = {"ix.scores": -np.inf, "selected": False}.get(name.split(".", 2)[-1])
        if fill is not None:
            lacking = [[(0, 0), (0, 0), (0, S - p.shape[-1])] for p in parts]
            parts = [
                np.pad(p, pad, constant_values=fill) for p, pad in zip(parts, lacking, strict=True)
            ]
        out[name.replace("selected", "topk")] = np.concatenate(parts, axis=1)
    return out


def run(model: nn.Module, case: kit.CaseData) -> dict[str, np.ndarray]:
    """The taps of the case, through the engine's caches where it has padding or chunks."""
    ids, mask = case.input_ids, case.batch["attention_mask"]
    S, padding = ids.shape[1], (mask == 0).sum(1).tolist()
    chunks = case.fields["chunks"] or [S]
    cached = any(padding) or len(chunks) > 1
    layers = range(case.config["num_hidden_layers"])
    cache = None
    if cached:
        cache = [CacheList(BatchKVCache(padding), BatchKVCache(padding)) for _ in layers]
    pieces, start = [], 0
    for length in chunks:
        with watch(model) as seen:
            seen.gates = {n: model.model.layers[n].mlp.gate.weight for n in layers
                          if "gate" in model.model.layers[n].mlp}  # fmt: skip
            mx.eval(model(mx.array(ids[:, start : start + length]), cache=cache))
        pieces.append(taps_of_pass(seen, case.config, mask, start))
        start += length
    return joined(pieces, S)


def gradients(model: nn.Module, case: kit.CaseData) -> tuple[float, dict[str, mx.array]]:
    """The mean loss over counted labels and the gradient of every parameter."""
    labels = case.labels[:, 1:]
    counted = mx.array((labels != -100).astype(np.float32))
    targets = mx.array(np.where(labels == -100, 0, labels))
    padding = (case.batch["attention_mask"] == 0).sum(1).tolist()

    def loss(model: nn.Module) -> mx.array:
        cache = None
        if any(padding):
            cache = [CacheList(BatchKVCache(padding), BatchKVCache(padding))
                     for _ in model.layers]  # fmt: skip
        logits = model(mx.array(case.input_ids), cache=cache)[:, :-1]
        each = nn.losses.cross_entropy(logits, targets, reduction="none")
        return (each * counted).sum() / counted.sum()

    value, tree = nn.value_and_grad(model, loss)(model)
    return value.item(), dict(tree_flatten(tree))


def put_gradients(trace: kit.Trace, found: dict[str, mx.array]) -> None:
    """Under the checkpoint's names; kv_b_proj is two parameters here, the first transposed."""
    for name, value in found.items():
        if name.endswith("unembed_out.weight"):
            k = np.array(found[name.replace("unembed_out", "embed_q")]).swapaxes(1, 2)
            both = kit.joined_kv_b(k, np.array(value))
            trace.put_gradient(name.replace("unembed_out", "kv_b_proj"), both)
        elif ".indexer." in name or name.endswith("e_score_correction_bias"):
            if np.array(value).any():  # the language model's loss reaches neither
                trace.put_gradient(name, value)
        elif not name.endswith("embed_q.weight"):
            trace.put_gradient(name, value)


def trace_of(checkpoint: Path, backward: bool, k_norm_eps: float | None = None) -> kit.Trace:
    """The engine's taps in the case of a folder of `weights make`.

    backward: gradients too. k_norm_eps: of the indexer's norm, in place of the engine's own.
    """
    case = kit.open_case(checkpoint)
    model, _ = load_model(checkpoint)
    model.update(tree_map(lambda x: x.astype(mx.float32), model.parameters()))
    for layer in model.layers if k_norm_eps else ():
        layer.self_attn.indexer.k_norm.eps = k_norm_eps
    sparse = case.config.get("use_sparse_attention", True)
    for layer in () if sparse else model.layers:  # there is no such switch here
        layer.self_attn.indexer.index_topk = case.fields["S"]
    mode = "backward" if backward else "forward"
    trace = kit.Trace(case, mode, engine=f"mlx-lm {mlx_lm.__version__}, mlx {mx.__version__}")
    for name, value in run(model, case).items():
        if sparse or not name.endswith(".topk"):
            trace.put(name, value)
    trace.derive_loss()
    if backward:
        loss, found = gradients(model, case)
        trace.put("loss.lm", np.float32(loss))
        put_gradients(trace, found)
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backward", action="store_true")
    parser.add_argument("--k-norm-eps", type=float, help="in place of the engine's own")
    words = parser.parse_args()
    trace_of(words.checkpoint, words.backward, words.k_norm_eps).write(words.out)


if __name__ == "__main__":
    main()
