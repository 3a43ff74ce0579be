"""One process per engine that writes trace files, kept for all chunks: imports cost seconds."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from synthetic import ROOT

HERE = Path(__file__).resolve().parent
MODULES = ("golden/dump", "golden/make", "measure", "integrations/engines")


class Failure(Exception):
    """A trace file that was not written: where, and why."""


class Worker:
    """A process that answers one line for each line of JSON. Throws Failure as its face."""

    def __init__(self, python: Path, words: list[str]) -> None:
        paths = os.pathsep.join(str(ROOT / module) for module in MODULES)
        self.name = words[-1]
        self.process = subprocess.Popen(
            [str(python), str(HERE / words[0]), *words[1:]],
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self, job: dict[str, Any]) -> None:
        try:
            print(json.dumps(job), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if answer != "done":
            raise Failure(f"{self.name}: {job['case']} seed {job['seed']}: {answer or 'it ended'}")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Workers:
    """Workers by interpreter and words, started when first asked for."""

    def __init__(self) -> None:
        self.running: dict[tuple[str, ...], Worker] = {}

    def get(self, python: Path, words: tuple[str, ...]) -> Worker:
        key = (str(python), *words)
        if key not in self.running:
            self.running[key] = Worker(python, list(words))
        return self.running[key]

    def close(self) -> None:
        for worker in self.running.values():
            worker.close()
