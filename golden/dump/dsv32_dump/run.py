"""One capture: a model is run on a batch, watched, and gives its taps and gradients.

`capture` is the face; `Run` holds what the steps of one capture share. The model's own code may
raise anything at any time: what was seen until then is kept, and the account of the crash with it.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import numpy as np
import torch
from dsv32_trace import canonical_json, check_case, complete_batch, make_batch
from torch import Tensor, nn

from .environment import environment
from .errors import Capture, DumpError, ModelCrash, account_of
from .gradients import gradients_of, idle_experts
from .kl import KL_STAGES, expected_kl_taps
from .objective import kl_objective, training_outputs
from .parts import Sizes
from .recorder import Recorder
from .settings import Options, apply_settings, widen_selection
from .slope_taps import SlopeTaps
from .slopes import Slope, Slopes
from .taps import Taps, expected_taps, join_chunks
from .tensors import first_tensor, keep
from .trace import trace_metadata
from .watch import watch_modules, watch_rotary


def capture(model: nn.Module, case: dict[str, Any], options: Options | None = None) -> Capture:
    """Runs `model` on the case's batch and returns its taps, and its gradients when asked for.

    Throws ModelCrash when the model raises, DumpError when the request makes no sense for this case
    or model. The model is left as it was.
    """
    case = check_case(case, "case")
    return Run(model, case, (options or Options()).of_case(case)).run()


class Run:
    """One capture: settings applied, passes made, settings put back."""

    def __init__(self, model: nn.Module, case: dict[str, Any], options: Options) -> None:
        self.model, self.case, self.options = model, case, options
        self.dense = case["overrides"].get("use_sparse_attention") is False
        self.dense |= options.kl == "warmup"
        # In dense mode index_topk of the model is only a switch: the case's own value never shows.
        self.sizes = Sizes.of(model.config)
        given = options.batch
        self.batch = make_batch(case, self.sizes.vocab) if given is None else complete_batch(given)
        forced = (options.forced or {}).items()
        self.forced = {name: torch.as_tensor(np.asarray(value)) for name, value in forced}
        self.out = Capture()
        self.phase = "forward"
        self.error: Exception | None = None
        self.check()

    def check(self) -> None:
        """Throws DumpError when the options contradict each other, the case or the batch."""
        case, options = self.case, self.options
        if options.mask not in ("given", "none"):
            raise DumpError(2, "capture", "mask", "given or none", str(options.mask))
        if options.mask == "none" and (self.batch["attention_mask"] == 0).any():
            want, got = "a batch without padding", f"pad {case['pad']}"
            hint = "without a mask padding is visible: use a case with pad 0 (tiny-nopad)"
            raise DumpError(4, "capture", "mask none", want, got, hint)
        if options.kl not in ("", *KL_STAGES):
            raise DumpError(2, "capture", "kl", " or ".join(KL_STAGES), options.kl)
        chunks = list(options.chunks or ())
        if chunks and options.mode != "forward":
            raise DumpError(2, "capture", f"mode {options.mode}", "one pass", f"chunks {chunks}")
        if chunks and sum(chunks) != case["S"]:
            raise DumpError(2, "capture", "chunks", f"a sum of {case['S']}", str(chunks))
        want, got = [case["B"], case["S"]], list(self.batch["input_ids"].shape)
        if got != want:
            raise DumpError(4, "batch", "input_ids", str(want), str(got))

    def run(self) -> Capture:
        """The whole capture. Throws as `capture` does."""
        with contextlib.ExitStack() as undo:
            self.settings(undo)
            recorder = self.recorder()
            try:
                undo.enter_context(watch_rotary(recorder))
                undo.enter_context(watch_modules(recorder))
                if self.options.kl:
                    self.gradients(kl_objective(self, recorder), recorder)
                else:
                    self.gradients(self.passes(recorder), recorder)
                    training_outputs(self)
            except DumpError:
                raise
            except Exception as error:  # the model's own code may raise anything
                self.crash(recorder, error)
            finally:
                recorder.recording = False
                self.finish(recorder)
        if self.out.failure:
            raise ModelCrash(self.out) from self.error
        return self.out

    def settings(self, undo: contextlib.ExitStack) -> None:
        """Sets the model up for this run; `undo` puts everything back."""
        apply_settings(self.model, self.options, undo)
        if self.dense:
            widen_selection(self.model, self.case["S"], undo)

    def recorder(self) -> Recorder:
        recorder = Recorder(self.model, self.sizes, self.options.wanted)
        if self.options.slopes and self.options.mode != "forward":
            recorder.slopes = Slopes()
        return recorder

    def passes(self, recorder: Recorder) -> Tensor | None:
        """All chunks (or the one pass); returns the loss that the model computed."""
        lengths = self.options.chunks or (self.case["S"],)
        pieces: dict[str, list[Tensor]] = {}
        cache, start, out = None, 0, None
        for length in lengths:
            out = self.one_pass(recorder, start, start + length, cache, pieces)
            cache = getattr(out, self.cache_name, None)
            start += length
            if start < self.case["S"] and cache is None:
                raise DumpError(4, "capture", "chunks", "a cache in the model's output", "none")
        for name, parts in pieces.items():
            if len(parts) == len(lengths):
                self.out.taps[name] = join_chunks(name, parts, self.case["S"])
        loss = own_lm_loss(out)
        self.loss(loss)
        return loss

    def one_pass(
        self, recorder: Recorder, start: int, end: int, cache: Any, pieces: dict[str, list[Tensor]]
    ) -> Any:
        """Tokens [start, end) of every row; taps join their pieces, also when the model raises."""
        B = self.case["B"]
        recorder.begin(B, end - start, end)
        recorder.forced = {name: value[:, start:end] for name, value in self.forced.items()}
        mask = torch.from_numpy(self.batch["attention_mask"]).bool()
        order = torch.arange(end)
        visible = (order[None, None, :] <= order[None, start:end, None]) & mask[:, None, :end]
        taps, out = Taps(recorder, visible, self.dense), None
        try:
            grad = torch.enable_grad() if self.options.backward else torch.no_grad()
            with grad, recorder:
                recorder.recording = True
                out = self.model(**self.arguments(start, end, cache))
        finally:
            recorder.recording = False
            taps.build()
            self.logits(taps, out)
            for name, value in taps.out.items():
                pieces.setdefault(name, []).append(value)
            self.keep_taps(taps)
        return out

    def keep_taps(self, taps: Taps) -> None:
        self.out.reasons.update(taps.reasons)
        self.out.derived = sorted({*self.out.derived, *(taps.derived & set(taps.out))})
        if not self.options.chunks:  # those of chunks are joined at the end
            self.out.taps.update(taps.out)

    def logits(self, taps: Taps, out: Any) -> None:
        if out is None:
            return
        value = getattr(out, "logits", None)
        if value is None and not hasattr(out, "last_hidden_state"):
            value = first_tensor(out)
        r = taps.r
        if value is not None and r.slopes is not None:
            r.slopes.watch((-1, "logits"), Slope(value))
        taps.put("logits", None if value is None else keep(value), r.B, r.S, self.sizes.vocab)

    @property
    def cache_name(self) -> str:
        """What the model calls its cache: `cache` from transformers 5.24 on."""
        known = inspect.signature(self.model.forward).parameters
        return "cache" if "cache" in known and "past_key_values" not in known else "past_key_values"

    def arguments(self, start: int, end: int, cache: Any) -> dict[str, Any]:
        """Keyword arguments of the model for tokens [start, end)."""
        device = next(self.model.parameters()).device
        tensors = {name: torch.from_numpy(value).to(device) for name, value in self.batch.items()}
        out: dict[str, Any] = {
            name: tensors[name][:, start:end] for name in ("input_ids", "position_ids")
        }
        if self.options.mask == "given":
            out["attention_mask"] = tensors["attention_mask"][:, :end]
        if self.options.chunks:
            return {**out, self.cache_name: cache, "use_cache": True}
        use_cache = False if self.options.gradient_checkpointing else self.options.use_cache
        if use_cache is not None:
            out["use_cache"] = use_cache
        if "labels" in inspect.signature(self.model.forward).parameters:
            out["labels"] = tensors["labels"]
        return out

    def lm_loss(self) -> Tensor | None:
        """The model's own LM loss on the whole batch."""
        return own_lm_loss(self.model(**self.arguments(0, self.case["S"], None)))

    def loss(self, loss: Tensor | None) -> None:
        """Keeps loss.lm: the model's own, else that of its logits."""
        if not self.options.wanted("loss.lm"):
            return
        if loss is not None:
            self.out.taps["loss.lm"] = keep(loss).reshape(())
        elif "logits" in self.out.taps:  # chunks, or a model without labels
            logits = self.out.taps["logits"]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = torch.from_numpy(self.batch["labels"])[:, 1:].reshape(-1)
            rows = logits[:, :-1].reshape(-1, logits.shape[-1])
            self.out.taps["loss.lm"] = nn.functional.cross_entropy(rows, labels, ignore_index=-100)
            self.out.derived.append("loss.lm")

    def gradients(self, loss: Tensor | None, recorder: Recorder) -> None:
        """Runs the backward pass of the loss and keeps what it left."""
        if self.options.mode == "forward":
            return
        if loss is None or not loss.requires_grad:
            want = "a loss from the model when labels are passed"
            got = "no loss" if loss is None else "a loss without a graph"
            raise DumpError(4, "capture", "mode backward", want, got)
        self.phase = "backward"
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        self.slopes(recorder)
        found, none = gradients_of(self.model, self.sizes.hidden)
        if self.options.kl:  # nothing but the indexer has a gradient, or it is a leak
            found = {n: v for n, v in found.items() if ".indexer." in n or bool((v != 0).any())}
        else:
            found |= idle_experts(self.model, self.sizes.hidden, found, none)
        self.out.taps.update({n: v for n, v in found.items() if self.options.wanted(n)})
        self.out.metadata["gradients_none"] = canonical_json(sorted(none))
        self.model.zero_grad(set_to_none=True)

    def slopes(self, recorder: Recorder) -> None:
        """Keeps the gradient of every tap, and the names of taps where it stopped."""
        if recorder.slopes is None:
            return
        taps = SlopeTaps(recorder, recorder.slopes, self.dense)
        taps.build()
        self.out.taps.update(taps.out)
        kl = bool(self.options.kl)  # whose gradient ends at the indexer, as the other begins there
        reached = [n for n in self.out.taps if (n.split(".", 2)[-1].startswith("ix.")) == kl]
        stopped = taps.stopped(reached, self.out.derived)
        self.out.metadata["slopes_none"] = canonical_json(stopped)

    def crash(self, recorder: Recorder, error: Exception) -> None:
        self.error = error
        frame = recorder.stack[-1] if recorder.stack and self.phase == "forward" else None
        where, shapes = (frame.name, frame.shapes) if frame else ("", [])
        self.out.failure = account_of(error, self.phase, where, shapes)

    def finish(self, recorder: Recorder) -> None:
        """Orders the taps, lists what is missing and why, and describes the run."""
        layers = max((p.layer for p in recorder.parts.values()), default=-1) + 1
        layers = max(layers, self.sizes.layers)
        expected = expected_taps(layers, recorder.moe_layers, self.dense)
        expected += expected_kl_taps(layers) if self.options.kl else []
        order = {name: rank for rank, name in enumerate(expected)}
        ranked = sorted(self.out.taps.items(), key=lambda item: order.get(item[0], len(order)))
        self.out.taps = dict(ranked)
        absent = [name for name in expected if name not in self.out.taps]
        self.out.missing = [name for name in absent if self.options.wanted(name)]
        self.out.reasons = {n: self.out.reasons.get(n, "not found") for n in self.out.missing}
        self.out.metadata |= self.describe(recorder)

    def describe(self, recorder: Recorder) -> dict[str, str]:
        """The trace's metadata."""
        config, options = self.model.config, self.options
        floats = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        use_cache = "default" if options.use_cache is None else options.use_cache
        producer = {
            **environment(self.model),
            "attention_layouts": recorder.layouts,
            "experts_implementation": str(getattr(config, "_experts_implementation", None)),
            "gradient_checkpointing": options.gradient_checkpointing,
            "use_cache": True if options.chunks or options.decoding else use_cache,
        }
        if options.decoding:
            producer["cache"] = options.cache
        return trace_metadata(
            {**self.case, "chunks": list(options.chunks or ())},
            mode=options.mode,
            dtype=str(next(floats, torch.float32)).removeprefix("torch."),
            forced="true" if self.forced else "false",
            attn_implementation=str(getattr(config, "_attn_implementation", None) or "unknown"),
            mask=str(options.mask),
            missing_taps=canonical_json(self.out.missing),
            derived_taps=canonical_json(sorted(self.out.derived)),
            producer=canonical_json(producer),
        )


def own_lm_loss(out: Any) -> Tensor | None:
    """The LM loss in a model's output; `loss` of a fork with an `lm_loss` may have more terms."""
    loss = getattr(out, "lm_loss", None)
    loss = getattr(out, "loss", None) if loss is None else loss
    return loss if isinstance(loss, Tensor) else None
