"""Greedy decoding by the implementation's own `generate`: prompts in, tokens and logits out.

The loop, the cache, the positions and the stop rule are those of the library under test. What it
selects on the way is read as in any other pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from dsv32_trace import canonical_json, check_case, listed_cases
from torch import Tensor, nn

from .errors import Capture, DumpError, ModelCrash, account_of
from .run import Run
from .settings import Decoding, Options, widen_selection
from .taps import Taps
from .tensors import keep
from .watch import watch_modules

# Of --cache, in the words of generate's `cache_implementation`; None is what users get.
CACHES = {"dynamic": None, "static": "static", "offloaded": "offloaded"}
DECISIONS = ("topk", "router.experts")
DEFAULT_STEPS = 24


def decoding_of_case(case: dict[str, Any], eos: int | None, steps: int | None) -> Decoding:
    """How the case is decoded: as configs/cases.json says where it is listed there.

    Throws DumpError when nobody says which token ends a row.
    """
    listed = listed_cases().get(case.get("name", ""), {}).get("decoding", {})
    eos = listed.get("eos") if eos is None else eos
    if eos is None:
        got = f"neither --eos nor one of case {case.get('name', 'that has no name')}"
        raise DumpError(2, "--mode generate", "eos", "the token that ends a row", got, "--eos ID")
    return Decoding(steps or listed.get("steps", DEFAULT_STEPS), eos)


def check_cache(cache: str) -> None:
    """Throws DumpError for a cache that no transformers makes on this machine."""
    if cache == "offloaded" and not torch.cuda.is_available():
        want = "a CUDA device: keys are moved between it and the host"
        raise DumpError(6, "--cache", "offloaded", want, "none", "--cache dynamic or static")


def decoding_metadata(decoding: Decoding) -> dict[str, str]:
    """What a trace says of it."""
    return {"decoding": canonical_json({"eos": decoding.eos, "steps": decoding.steps})}


def generate(model: nn.Module, case: dict[str, Any], options: Options) -> Capture:
    """Decodes greedily after the case's prompts, as `options.decoding` says.

    Taps: gen.tokens int64 [B,N], gen.logits [B,N,vocab], and the decisions over the whole history.
    Throws as `capture` does; DumpError too where this release cannot make the cache.
    """
    case = check_case(case, "case")
    options = dataclasses.replace(options.of_case(case), taps=DECISIONS)
    return Generation(model, case, options).run()


class Generation:
    """One call of `generate`, watched forward pass by forward pass."""

    def __init__(self, model: nn.Module, case: dict[str, Any], options: Options) -> None:
        self.model, self.case, self.options = model, case, options
        self.decoding = options.decoding or Decoding()
        self.frame = Run(model, case, options)  # settings and metadata of any run
        self.recorder = self.frame.recorder()
        self.out = Capture()
        self.pieces: dict[str, list[Tensor]] = {}
        self.seen = 0  # tokens that went through the model so far
        self.check()

    def check(self) -> None:
        if not hasattr(self.model, "generate"):
            want, got = "a model with a method generate", type(self.model).__name__
            raise DumpError(2, "--mode", "generate", want, got)
        if (self.frame.batch["attention_mask"][:, -1] == 0).any():
            want, got = "padding on the left: decoding goes on at the end", "padding on the right"
            raise DumpError(2, "--mode generate", "batch", want, got)
        check_cache(self.options.cache)
        vocab = self.frame.sizes.vocab
        if not 0 <= self.decoding.eos < vocab:
            raise DumpError(2, "--eos", "token", f"0..{vocab - 1}", str(self.decoding.eos))

    def run(self) -> Capture:
        with contextlib.ExitStack() as undo:
            self.frame.settings(undo)
            if self.frame.dense:
                widen_selection(self.model, self.case["S"] + self.decoding.steps, undo)
            error: Exception | None = None
            try:
                self.watch(undo)
                self.keep(self.call())
            except DumpError:
                raise
            except Exception as raised:  # the library's own code may raise anything
                error = raised
                self.refuse_cache(raised)
                frame = self.recorder.stack[-1] if self.recorder.stack else None
                where, shapes = (frame.name, frame.shapes) if frame else ("", [])
                self.out.failure = account_of(raised, "generate", where, shapes)
            self.describe()
        if error is not None:
            raise ModelCrash(self.out) from error
        return self.out

    def refuse_cache(self, error: Exception) -> None:
        """What went wrong before the model was called is about the cache that was asked for."""
        if self.seen or self.options.cache == "dynamic":
            return
        want = "a cache that this transformers makes for this model"
        got = f"{type(error).__name__}: {error}"[:400]
        raise DumpError(4, "--cache", self.options.cache, want, got, "--cache dynamic") from error

    def call(self) -> Any:
        device = next(self.model.parameters()).device
        batch = {
            name: torch.from_numpy(value).to(device) for name, value in self.frame.batch.items()
        }
        arguments: dict[str, Any] = {"input_ids": batch["input_ids"]}
        if self.options.mask == "given":
            arguments["attention_mask"] = batch["attention_mask"]
        cache = CACHES[self.options.cache]
        if cache is not None:
            arguments["cache_implementation"] = cache
        with self.recorder:
            return self.model.generate(
                **arguments,
                max_new_tokens=self.decoding.steps,
                do_sample=False,
                num_beams=1,
                eos_token_id=self.decoding.eos,
                pad_token_id=self.decoding.eos,
                use_cache=True,
                return_dict_in_generate=True,
                output_logits=True,
            )

    def watch(self, undo: contextlib.ExitStack) -> None:
        """Each forward pass of the whole model is one chunk of the history."""
        before = self.model.register_forward_pre_hook(self.begin, with_kwargs=True)
        undo.callback(before.remove)
        undo.enter_context(watch_modules(self.recorder))
        after = self.model.register_forward_hook(self.end, with_kwargs=True)
        undo.callback(after.remove)

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            return
        B, S = ids.shape
        self.seen += S
        self.recorder.begin(B, S, self.keys_of(kwargs))
        self.recorder.recording = True

    def keys_of(self, kwargs: dict[str, Any]) -> int:
        """How many keys a query is scored against: all so far, or as many as a static cache has."""
        cache = kwargs.get(self.frame.cache_name)
        names = ("get_max_length", "get_max_cache_shape")  # the second before transformers 5.16
        asked = next((getattr(cache, name) for name in names if hasattr(cache, name)), None)
        size = asked() if asked else None
        return size if isinstance(size, int) and size > 0 else self.seen

    def end(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        r = self.recorder
        if not r.recording:
            return
        r.recording = False
        queries = torch.arange(self.seen - r.S, self.seen)
        mask = torch.ones(r.B, r.T, dtype=torch.bool)
        prompt = torch.from_numpy(self.frame.batch["attention_mask"]).bool()
        mask[:, : prompt.shape[1]] = prompt
        visible = (torch.arange(r.T)[None, None] <= queries[None, :, None]) & mask[:, None]
        taps = Taps(r, visible, self.frame.dense)
        taps.build()
        self.out.reasons.update(taps.reasons)
        for name, value in taps.out.items():
            self.pieces.setdefault(name, []).append(value)

    def keep(self, out: Any) -> None:
        """Tokens, logits and decisions, each of full length; steps that were not run are filled."""
        S, steps = self.case["S"], self.decoding.steps
        tokens = out.sequences[:, S:].cpu().long()
        fill = steps - tokens.shape[1]  # every row has ended before
        logits = torch.stack([keep(one) for one in out.logits], dim=1)
        self.out.taps["gen.tokens"] = nn.functional.pad(tokens, (0, fill), value=self.decoding.eos)
        self.out.taps["gen.logits"] = nn.functional.pad(logits, (0, 0, 0, fill))
        for name, pieces in sorted(self.pieces.items()):
            joined = torch.cat(pieces, dim=1)
            if joined.shape[1] != S + tokens.shape[1] - 1:
                self.out.reasons[name] = f"seen for {joined.shape[1]} tokens"
                continue
            self.out.taps[name] = nn.functional.pad(joined, (0, 0, 0, fill), value=0)

    def describe(self) -> None:
        expected = [f"layers.{layer}.{tap}" for layer in self.layers() for tap in DECISIONS]
        known = [n for n in expected if n in self.out.reasons or n in self.pieces]
        self.out.missing = [name for name in known if name not in self.out.taps]
        self.frame.out = self.out
        self.out.metadata |= self.frame.describe(self.recorder)
        self.out.metadata |= decoding_metadata(self.decoding)

    def layers(self) -> list[int]:
        return sorted({part.layer for part in self.recorder.parts.values() if part.layer >= 0})
