"""One step of somebody's own training: taps and gradients of its first micro-batch, its update.

What is kept goes into a folder that the judge takes: a trace, the micro-batch, and the weights that
this step read, unless they are a checkpoint that is there already.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dsv32_trace import (
    CASE_FILE,
    canonical_json,
    check_case,
    released_config,
    unfused,
    write_safetensors,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from .adapters import BASE, dropout_of, effective_parameters
from .errors import DumpError
from .gradients import idle_experts
from .parts import Sizes
from .run import Run, own_lm_loss
from .settings import Options
from .sketch import sketch_gradient, sketched_taps
from .taps import Taps
from .tensors import keep
from .trace import write_trace
from .watch import watch_modules, watch_rotary
from .weights import Checkpoint, is_transposed, same_bits, weights_identity

# What a config.json of this family says of the numbers; the rest of a live config is not judged.
CONFIG_KEYS = (
    "model_type vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers "
    "num_attention_heads num_key_value_heads n_shared_experts n_routed_experts num_experts_per_tok "
    "n_group topk_group routed_scaling_factor norm_topk_prob scoring_func topk_method q_lora_rank "
    "kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim first_k_dense_replace "
    "max_position_embeddings index_n_heads index_head_dim index_topk rms_norm_eps rope_theta "
    "rope_scaling use_sparse_attention tie_word_embeddings attention_bias hidden_act moe_layer_freq"
).split()
SKETCH_BYTES = 256 << 20  # a trace that would be larger is sketched


def config_of(model: nn.Module) -> dict[str, Any]:
    """The model's config in the released style."""
    config = getattr(model.config, "text_config", None) or model.config
    known = released_config(config.to_dict())
    return {key: known[key] for key in CONFIG_KEYS if known.get(key) is not None}


def micro_batch(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of one call of the model's forward, by name, on the host.

    Throws DumpError when the call has no tokens.
    """
    given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    given |= given.pop("kwargs", {})
    names = ("input_ids", "attention_mask", "position_ids", "labels")
    batch = {n: given[n].detach().cpu().long() for n in names if isinstance(given.get(n), Tensor)}
    if "input_ids" not in batch:
        raise DumpError(4, "forward", "arguments", "input_ids", ", ".join(sorted(given)) or "none")
    if batch.get("attention_mask", batch["input_ids"]).dim() != 2:
        raise DumpError(4, "forward", "attention_mask", "[B, S] of 0 and 1", "another shape")
    return batch


class OwnStep:
    """What is taken of one training step. The order of the methods is that of the step."""

    def __init__(self, index: int, model: nn.Module, outer: nn.Module) -> None:
        self.index, self.model, self.outer = index, model, outer
        self.sizes = Sizes.of(model.config)
        self.undo = contextlib.ExitStack()  # of the forward pass
        self.gradients: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.notes: list[str] = []
        self.factor: float | None = None  # d objective / d the model's own loss
        self.first = True  # still the first micro-batch
        self.weights: str | None = None
        self.identity = self.loaded = ""
        self.autocast = ""  # what the pass computes in, where that is not what parameters are

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # The forward pass of the first micro-batch.

    def begin(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Watches from here on. Throws DumpError when the call cannot be judged."""
        given = micro_batch(self.model, args, kwargs)
        self.given, self.masked = given, "attention_mask" in given
        batch = {name: given[name].numpy() for name in given if name != "position_ids"}
        self.file = {"input_ids": batch["input_ids"], **batch}
        B, S = batch["input_ids"].shape
        case = {"config": config_of(self.model), "overrides": {}, "seed": 0, "B": B, "S": S,
                "pad": 0, "bias_offset": 0, "chunks": [], "mask_given": self.masked}  # fmt: skip
        options = Options(backward=True, attn_implementation=None, experts_implementation=None,
                          batch=batch, mask="given" if self.masked else "none")  # fmt: skip
        self.run = Run(self.model, case, options.of_case(case))
        self.recorder = self.run.recorder()
        self.gradients_are_own()
        self.scale = self.token_scale(kwargs.get("num_items_in_batch"))
        if dropout_of(self.outer) and self.model.training:
            self.note(f"lora_dropout {dropout_of(self.outer):g}: taps after the first step cannot "
                      "be judged, no pass repeats: set it to 0 for this run")  # fmt: skip
        device = next(self.model.parameters()).device
        if torch.is_autocast_enabled(device.type):
            self.autocast = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
        self.recorder.begin(B, S, S)
        self.undo.enter_context(watch_rotary(self.recorder))
        self.undo.enter_context(watch_modules(self.recorder, whole=False))
        self.undo.enter_context(self.recorder)
        self.recorder.recording = True

    def gradients_are_own(self) -> None:
        """Gradients that are there already, or of other ranks, are not those of this pass."""
        held = (p.grad for p in self.model.parameters() if p.grad is not None)
        self.dirty = any(bool(grad.any()) for grad in held)
        if self.dirty:
            self.note("gradients: there were some before the first micro-batch: left out")
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        if there and torch.distributed.get_world_size() > 1:
            self.dirty = True
            self.note("gradients: the ranks' are summed on the way: left out")

    def token_scale(self, items: Any) -> float:
        """From a loss over all tokens of a step to the mean over this micro-batch's own."""
        if items is None or "labels" not in self.file:
            return 1.0
        counted = int((self.file["labels"][:, 1:] != -100).sum())
        return float(items) / max(counted, 1)

    def end(self, out: Any) -> None:
        """The pass is over: its taps are made, and its loss is watched."""
        self.recorder.recording = False
        self.undo.close()
        if out is None:
            return
        S = self.recorder.S
        mask = torch.from_numpy(self.run.batch["attention_mask"]).bool()
        visible = torch.ones(S, S, dtype=torch.bool).tril() & mask[:, None, :]
        taps = Taps(self.recorder, visible, self.run.dense)
        taps.build()
        self.run.logits(taps, out)
        self.run.keep_taps(taps)
        loss = own_lm_loss(out)
        if loss is None:
            self.note("the model returned no loss (labels were not passed): no gradients")
            return
        self.run.loss(loss.detach() * self.scale)
        if loss.requires_grad:
            loss.register_hook(self.loss_gradient)
        self.check_positions()

    def loss_gradient(self, gradient: Tensor) -> None:
        self.factor = float(gradient.detach().float().reshape(-1)[0])

    def check_positions(self) -> None:
        """Positions that are not the judge's are a finding, not a reason to stop."""
        position = self.given.get("position_ids")
        mask, rule = self.run.batch["attention_mask"], self.run.batch["position_ids"]
        if position is None:
            position = torch.arange(mask.shape[1]).expand(mask.shape)
        other = (position.numpy() != rule) & (mask == 1)
        if other.any():
            row = int(np.argwhere(other)[0][0])
            self.note(f"position_ids: batch row {row}: not max(cumsum(mask) - 1, 0): padding "
                      "moves its tokens")  # fmt: skip

    # Its backward pass, then the step.

    def accumulated(self, name: str, parameter: nn.Parameter) -> None:
        """Called when a parameter has its gradient of one micro-batch added."""
        self.norms[name] = parameter.grad.detach().float().norm()
        if self.first and not self.dirty:
            for part, value in self.unfused(name, parameter.grad.detach()):
                self.gradients[f"grad.{part}"] = keep(value).contiguous()

    def unfused(self, name: str, value: Tensor) -> list[tuple[str, Tensor]]:
        """A parameter of the live model under the names of the checkpoint."""
        try:
            transposed = is_transposed(self.model, name)
        except AttributeError:  # an adapter stands around its module
            transposed = False
        return list(unfused(name.replace(BASE, ""), value, self.sizes.hidden, transposed))

    def before_update(self) -> None:
        self.first = False
        self.before = {n: keep(p) for n, p in self.model.named_parameters() if p.requires_grad}

    def after_update(self) -> None:
        at = f"step.{self.index}"
        for name, parameter in self.model.named_parameters():
            if name in self.before and ".lora_" not in name:
                moved = keep(parameter).float() - self.before[name].float()
                for part, value in self.unfused(name, moved):
                    self.run.out.taps[f"{at}.update.{part}"] = value.contiguous()
        self.before = {}
        if self.norms:
            total = math.sqrt(sum(float(norm) ** 2 for norm in self.norms.values()))
            self.run.out.taps[f"{at}.grad_norm"] = torch.tensor(total, dtype=torch.float32)
        loss = self.run.out.taps.get("loss.lm")
        if loss is not None:
            self.run.out.taps[f"{at}.loss"] = loss.float()

    # Files.

    def keep_gradients(self) -> None:
        """Those of the model's own loss, whatever the trainer multiplied it with."""
        if not self.factor or not self.gradients:
            if "loss.lm" in self.run.out.taps and not self.dirty:
                self.note("gradients: none came from the model's own loss: left out")
            return
        by = self.scale / self.factor
        found = {n: g.float() * by for n, g in self.gradients.items() if ".lora_" not in n}
        none = [
            part
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and ".lora_" not in name
            for part, _ in self.unfused(name, parameter.detach())
            if f"grad.{part}" not in found
        ]
        if not dropout_of(self.outer) and len(found) > 0 and not hasattr(self.outer, "peft_config"):
            found |= idle_experts(self.model, self.sizes.hidden, found, none)
        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), None)
        self.run.out.taps.update({n: g.to(dtype) for n, g in found.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the checkpoint as the forward pass reads it, adapters merged."""
        out: dict[str, Tensor] = {}
        for name, value in effective_parameters(self.model):
            out.update(self.unfused(name, value))
        return out

    def save_weights(self, folder: Path, checkpoint: Path | None, write: bool) -> None:
        """The weights that this step reads: the checkpoint's own, or a folder written here."""
        own = self.tensors()
        self.run.case |= weight_keys(checkpoint)
        self.identity = weights_identity(lambda: iter(own.items()), self.run.case)
        if checkpoint is not None:
            loaded = compare_tensors(own, checkpoint, self.sizes.layers)
            wrong = [kind for kind in ("different", "missing", "unexpected") if loaded[kind]]
            if not wrong:
                self.weights, self.loaded = str(checkpoint), canonical_json(loaded)
                return
            if self.index == 0:
                told = ", ".join(f"{len(loaded[kind])} {kind}" for kind in wrong)
                self.note(f"weights: not those of {checkpoint}: {told}")
        if not write:
            self.note("weights: not written: judge with the checkpoint of this step, --weights DIR")
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = {name: keep(value).contiguous().clone() for name, value in own.items()}
        save_file(kept, str(folder / "model.safetensors"), metadata={"format": "pt"})
        (folder / "config.json").write_text(canonical_json(config_of(self.model)) + "\n")
        self.weights = str(folder)

    def write(self, folder: Path) -> dict[str, Any]:
        """Trace and batch. What summary.json says of the step."""
        trace = folder / f"step-{self.index}.safetensors"
        tokens = folder / f"step-{self.index}.batch.safetensors"
        write_safetensors(tokens, self.file, {})
        self.keep_gradients()
        self.run.case["batch"] = hashlib.sha256(tokens.read_bytes()).hexdigest()
        self.run.finish(self.recorder)
        taps, metadata = self.run.out.taps, self.run.out.metadata
        metadata |= {"weights": self.identity} if self.identity else {}
        metadata |= {"weights_loaded": self.loaded} if self.loaded else {}
        if not any(name.startswith("grad.") for name in taps):
            metadata["mode"] = "forward"
        metadata["notes"] = canonical_json(self.notes)
        metadata["dtype"] = self.autocast or metadata["dtype"]
        size = sum(value.numel() * value.element_size() for value in taps.values())
        if size > SKETCH_BYTES:
            parts, metadata["sketch"] = self.sketched(taps), "1"
            updates = {name: value for name, value in parts.items() if ".update." in name}
            taps = {name: value for name, value in parts.items() if name not in updates}
            # A trace has updates whole or not at all.
            write_trace(folder / f"step-{self.index}.update.safetensors", updates, metadata)
        write_trace(trace, taps, metadata)
        command = ["dsv32-verify", "--candidate", str(trace), "--batch", str(tokens)]
        command += ["--weights", self.weights] if self.weights else []
        return {"step": self.index, "trace": trace.name, "batch": tokens.name,
                "weights": self.weights, "notes": self.notes, "command": command}  # fmt: skip

    def sketched(self, taps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parts of every tap (docs/formats.md 9); an update counts as a gradient does."""
        wide = {n: (v.float() if v.is_floating_point() else v).cpu().numpy()
                for n, v in taps.items()}  # fmt: skip
        parts = sketched_taps(wide, self.run.batch, self.sizes.topk)
        for name in [n for n in parts if ".update." in n]:
            value = parts.pop(name)
            kept = sketch_gradient(name, value, value.shape[0] // 2)
            parts |= {f"{name}#{part}": getattr(kept, part)
                      for part in ("rows", "row_index", "row_norms", "projections")}  # fmt: skip
        return {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in parts.items()}


def weight_keys(checkpoint: Path | None) -> dict[str, Any]:
    """What a synthetic checkpoint is made from, as the case says it; of another one nothing."""
    file = checkpoint / CASE_FILE if checkpoint else None
    if file is None or not file.is_file():
        return {}
    case = check_case(json.loads(file.read_text()), str(file))
    return {key: case[key] for key in ("seed", "bias_offset", "edits")}


def compare_tensors(own: dict[str, Tensor], checkpoint: Path, layers: int) -> dict[str, Any]:
    """`weights_loaded` of a trace (docs/formats.md 4); the MTP layer is not part of the model."""
    out: dict[str, Any] = {"identical": 0, "different": [], "missing": [], "unexpected": []}
    left = set(own)
    for name, value in Checkpoint(checkpoint).tensors():
        if name.startswith(f"model.layers.{layers}."):
            continue
        left.discard(name)
        if name not in own:
            out["missing"].append(name)
        elif same_bits(own[name], value.to(own[name].dtype)):
            out["identical"] += 1
        else:
            out["different"].append(name)
    return out | {"unexpected": sorted(left)}


def write_summary(folder: Path, findings: list[str], steps: list[dict[str, Any]]) -> None:
    """summary.json: what was found without a judge, and a command for each step."""
    document = {"format": "dsv32-verify.own-run", "version": 1}
    text = json.dumps(document | {"findings": findings, "steps": steps}, indent=1)
    (folder / "summary.json").write_text(text + "\n")
