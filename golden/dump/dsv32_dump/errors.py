"""What a run gives (Capture) and what can go wrong: wrong input (DumpError), a crash (ModelCrash).

The two errors are kept apart because they blame different people: a DumpError is about the command
line, the files or the environment, a ModelCrash is a finding about the implementation under test.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import traceback
from typing import Any

from dsv32_trace import DumpError
from torch import Tensor

FRAMES = 5  # of a traceback that are kept
IMPORTING = re.compile(r"importlib|/dsv32_dump/|transformers/utils/import_utils\.py$")

__all__ = ["Capture", "DumpError", "ModelCrash", "account_of", "raised_at", "say"]


@dataclasses.dataclass
class Capture:
    """What one run gave, in the names, shapes and layout of a trace file.

    missing: taps of the model that were not found; reasons: what was seen instead of each.
    derived: taps computed here from what the model passed on.
    failure: the account of a crash, as `account_of` gives it.
    """

    taps: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    derived: list[str] = dataclasses.field(default_factory=list)
    failure: dict[str, Any] | None = None


class ModelCrash(Exception):
    """The implementation itself raised; `__cause__` is what it raised.

    `capture` holds the account (`failure`) and the taps seen until then.
    """

    def __init__(self, capture: Capture) -> None:
        super().__init__(capture.failure["message"] if capture.failure else "")
        self.capture = capture


def account_of(
    error: BaseException, phase: str, where: str = "", shapes: list[list[int]] | None = None
) -> dict[str, Any]:
    """What a trace says of a crash: the phase, the module (else the phase again), its inputs."""
    root, message = cause_of(error), f"{type(error).__name__}: {error}"
    if str(root) not in message:
        message += f" (from {type(root).__name__}: {root})"
    return {
        "phase": phase,
        "where": where or phase,
        "message": message[:4000],
        "shapes": shapes or [],
        "raised_at": raised_at(root),
        "frames": frames_of(root),
    }


def cause_of(error: BaseException) -> BaseException:
    """What an error was raised from, at the start of the chain: a lazy import wraps its cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def frames_of(error: BaseException) -> list[str]:
    """The last frames of the traceback, the innermost first: file, line, function, source.

    Those of importing itself say nothing, and there are many of them.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not IMPORTING.search(f.filename)]
    told = [f"{_short(f.filename)}:{f.lineno} in {f.name}: {f.line}"[:200] for f in own[-FRAMES:]]
    return told[::-1]


def _short(file: str) -> str:
    """The file and its folder."""
    return "/".join(file.split("/")[-2:])


def raised_at(error: BaseException) -> str:
    """File and line of the innermost frame that is neither torch's nor this package's.

    That is where the implementation raised; of a crash inside torch it is the line that called it.
    """
    place, trace = "", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in ("torch", __package__) or not place:
            place = f"{frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def say(text: str) -> None:
    """Tells people one line; standard output stays free for data."""
    print(f"dump: {text}", file=sys.stderr, flush=True)
