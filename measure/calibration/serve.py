"""The worker's end of workers.Worker: lines of JSON in, one answer each."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any


def serve(write: Callable[[dict[str, Any]], None]) -> None:
    """Answers every line of stdin with `done`, or `failed` and why; prints go to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            write(json.loads(line))
            answer = "done"
        except Exception as error:
            traceback.print_exc()
            answer = f"failed {type(error).__name__}: {error}".replace("\n", " ")
        print(answer, file=answers, flush=True)
