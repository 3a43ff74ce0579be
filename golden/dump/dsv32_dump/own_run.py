"""Somebody's own training, with their data, weights, trainer: a few steps of it as traces.

    from dsv32_dump import follow

    with follow(model, optimizer, "parity/", steps=(0, 1, 100), checkpoint="ckpt/"):
        for batch in loader:                       # the training as it is
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

Of each wanted step: taps and gradients of its first micro-batch, the update, the micro-batch and
the weights that it read. Nothing is run again and nothing is changed: the forward pass of the
training itself is watched. What goes wrong in here ends the watching, never the training.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adapters import base_model, target_findings
from .errors import DumpError, say
from .own_step import OwnStep, write_summary
from .parity import find_program
from .trace import check_output

SUMMARY = "summary.json"


class OwnRun:
    """Watches a training. `finish` takes everything off again.

    model: also inside of DistributedDataParallel, accelerate or peft. optimizers: all that move it;
    a step is over when each of them has stepped. steps: which are taken, from 0. checkpoint: the
    folder that the model was loaded from. weights: write those of a step that no checkpoint holds.
    Throws DumpError when the folder cannot be written or this is no model of the family.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        out: str | Path,
        steps: Sequence[int] = (0, 1),
        *,
        checkpoint: str | Path | None = None,
        weights: bool = True,
    ) -> None:
        given = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else list(optimizers)
        self.outer, self.model = model, base_model(model)
        self.folder, self.steps = Path(out), set(steps)
        self.checkpoint = Path(checkpoint) if checkpoint else None
        self.weights = weights
        self.findings = target_findings(_with_adapters(model))
        self.done: list[dict[str, Any]] = []
        self.index, self.stepped, self.step = 0, 0, None
        self.inside = False
        self.handles: list[Any] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where, got = str(self.folder), str(error)
            raise DumpError(6, where, "output", "a writable folder", got) from error
        check_output(self.folder / SUMMARY)
        for finding in self.findings:
            say(f"finding: {finding}")
        if _is_main_process():
            self.install([_torch_optimizer(optimizer) for optimizer in given])
        self.write_summary()

    def install(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Hooks on the forward pass, the gradients and the optimizers."""
        self.count = len(optimizers)
        add = self.handles.append
        add(self.model.register_forward_pre_hook(self.guard(self.before_forward), with_kwargs=True))
        add(self.model.register_forward_hook(self.guard(self.after_forward), always_call=True))
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                hook = functools.partial(self.guard(self.accumulated), name)
                add(parameter.register_post_accumulate_grad_hook(hook))
        for optimizer in optimizers:
            add(optimizer.register_step_pre_hook(self.guard(self.before_update)))
            add(optimizer.register_step_post_hook(self.guard(self.after_update)))

    def guard(self, act: Callable[..., None]) -> Callable[..., None]:
        """A hook that never fails: the training is worth more than what is seen of it."""

        @functools.wraps(act)
        def call(*args: Any, **kwargs: Any) -> None:
            try:
                act(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  whatever it is
                self.give_up(error)

        return call

    def give_up(self, error: Exception) -> None:
        told = f"step {self.index}: not taken: {type(error).__name__}: {error}"
        say(told)
        self.findings.append(told)
        if self.step is not None:
            self.step.undo.close()
        self.step, self.inside = None, False
        self.write_summary()

    # In the order in which they are called.

    def before_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        wanted = self.index in self.steps and module.training and torch.is_grad_enabled()
        if self.step is not None:  # a later micro-batch
            self.step.first = False
        elif wanted:
            self.step = OwnStep(self.index, self.model, _with_adapters(self.outer))
            self.inside = True
            self.step.begin(args, kwargs)

    def after_forward(self, module: nn.Module, args: tuple, out: Any) -> None:
        if self.inside and self.step is not None:
            self.inside = False
            self.step.end(out)

    def accumulated(self, name: str, parameter: nn.Parameter) -> None:
        if self.step is not None:
            self.step.accumulated(name, parameter)

    def before_update(self, *_: Any) -> None:
        if self.step is not None and not self.step.before:
            if self.weights or self.checkpoint is not None:
                folder = self.folder / f"step-{self.index}.weights"
                self.step.save_weights(folder, self.checkpoint, self.weights)
            self.step.before_update()

    def after_update(self, *_: Any) -> None:
        self.stepped += 1
        if self.stepped < self.count:
            return
        self.stepped = 0
        step, self.step = self.step, None
        try:
            if step is not None:
                step.after_update()
                self.done.append(step.write(self.folder))
                say(f"step {self.index}: " + " ".join(self.done[-1]["command"]))
                for note in step.notes:
                    say(f"step {self.index}: {note}")
                self.write_summary()
        finally:
            self.index += 1

    def finish(self) -> None:
        """Takes all hooks off. The model is as it was."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        if self.step is not None:
            self.step.undo.close()
            self.step = None
        missed = sorted(n for n in self.steps if n >= self.index)
        if missed and _is_main_process():
            self.findings.append(f"steps {missed}: the training ended before them")
        self.write_summary()

    def write_summary(self) -> None:
        if _is_main_process():
            write_summary(self.folder, self.findings, self.done)


@contextlib.contextmanager
def follow(model: nn.Module, optimizers: Any, out: str | Path, **words: Any) -> Iterator[OwnRun]:
    """An OwnRun while the training inside runs; its arguments are those of OwnRun."""
    run = OwnRun(model, optimizers, out, **words)
    try:
        yield run
    finally:
        run.finish()


def judge(
    folder: str | Path, program: str | Path | None = None, *words: str
) -> tuple[int, list[dict[str, Any]]]:
    """Has dsv32-verify judge every step of a folder; returns the worst exit code and the reports.

    1 also where the folder has findings of its own. words: more for the program (`--dialect hf`).
    Throws DumpError when there is no such folder or no program.
    """
    file = Path(folder) / SUMMARY
    if not file.is_file():
        raise DumpError(4, str(folder), "own run", f"a folder with {SUMMARY}", "none")
    summary, reports = json.loads(file.read_text()), []
    codes = [1 if summary["findings"] else 0]
    for step in summary["steps"]:
        out = Path(folder) / f"step-{step['step']}.report"
        command = [find_program(program), *step["command"][1:], *words, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        codes.append(done.returncode)
        if not (out / "report.json").is_file():
            raise DumpError(done.returncode, step["trace"], done.stderr.strip() or "no report")
        reports.append(json.loads((out / "report.json").read_text()))
    order = (0, 5, 1, 6, 4, 3)  # the gravest last, as the program itself orders them
    return max(codes, key=lambda code: order.index(code) if code in order else len(order)), reports


def _with_adapters(model: nn.Module) -> nn.Module:
    """The model of peft, where there is one, else the model itself."""
    while not hasattr(model, "peft_config") and isinstance(
        getattr(model, "module", None), nn.Module
    ):
        model = model.module
    return model


def _torch_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """torch's own optimizer inside of what accelerate puts around it."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _is_main_process() -> bool:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not there or torch.distributed.get_rank() == 0
