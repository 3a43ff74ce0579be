"""The same as own_run.follow for the Trainer of transformers.

from dsv32_dump import ParityCallback

trainer = Trainer(model, args, ..., callbacks=[ParityCallback("parity/", steps=(0, 1, "last"))])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .own_run import OwnRun, judge


class ParityCallback(TrainerCallback):
    """Takes some steps of a training by transformers' Trainer.

    steps: counted from 0; "last" is the last one. words: as OwnRun has them (checkpoint, weights).
    run: the OwnRun, once the training has begun. A folder that cannot be written stops the training
    before its first step; nothing else does.
    """

    def __init__(self, out: str | Path, steps: Sequence[int | str] = (0, 1, "last"), **words: Any):
        self.out, self.steps, self.words = Path(out), steps, words
        self.run: OwnRun | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        last = state.max_steps - 1
        steps = {last if step == "last" else int(step) for step in self.steps}
        self.run = OwnRun(given["model"], given["optimizer"], self.out, sorted(steps), **self.words)
        self.run.index = state.global_step  # a training that goes on from a checkpoint

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.run is not None:
            self.run.finish()

    def judge(self, program: str | Path | None = None, *words: str) -> tuple[int, list[dict]]:
        """own_run.judge of its folder."""
        return judge(self.out, program, *words)
