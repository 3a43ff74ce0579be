"""Many dumps in one process: `dump --jobs FILE`.

Nearly all of the time of a dump goes into imports. So the implementation is imported once, and each
job runs in a child of that process (bounds.py).

The file is JSON, `{"version": 1, "import_seconds": 300, "modular": false, "jobs": [...]}`; a job is
an object: checkpoint, mode and out, and if wanted case, suite, sketch, seconds and gib. modular:
first see whether the generated files of the source tree are what its modular files say
(modular.py).

Progress is one JSON object a line on standard output: `event` is `imported`, `modular`, `start` or
`end`. docs/formats.md 4 has their fields.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .bounds import Ended, caught_output, in_child, tail_of, time_limit
from .case import find_case, json_object
from .errors import DumpError, account_of
from .load import find_class, import_transformers
from .modular import check_modular
from .packages import refuse_missing_package, with_stand_in

LAST_FRAMES = "; last frames: "  # between a message and where it came from
LINES = 20  # of output that are shown of a job that failed
Run = Callable[[argparse.Namespace], int]


@dataclasses.dataclass(frozen=True)
class Job:
    """One dump. sketch: as `--sketch`, of this one alone; seconds: its time limit; gib: its memory
    beyond the imports, 0: no limit."""

    checkpoint: str
    mode: str
    out: str
    case: str | None = None
    suite: str | None = None
    sketch: bool = False
    seconds: float = 120.0
    gib: float = 0.0


@dataclasses.dataclass(frozen=True)
class JobList:
    """The file of `--jobs`."""

    jobs: tuple[Job, ...]
    import_seconds: float = 300.0
    modular: bool = False


def read_jobs(path: Path) -> JobList:
    """Throws DumpError on anything but the format above."""
    try:
        text = path.read_text()
    except OSError as error:
        raise DumpError(4, str(path), "jobs", "a readable file", str(error)) from error
    content = json_object(text, str(path))
    if content.pop("version", None) != 1 or not isinstance(content.get("jobs"), list):
        raise DumpError(4, str(path), "jobs", "version 1 and a list `jobs`", "something else")
    try:
        jobs = tuple(Job(**{k: _field(k, v) for k, v in job.items()}) for job in content["jobs"])
        return JobList(**{**content, "jobs": jobs})
    except (TypeError, AttributeError) as error:
        keys = ", ".join(field.name for field in dataclasses.fields(Job))
        raise DumpError(4, str(path), "job", f"an object of {keys}", str(error)) from error


def _field(name: str, value: Any) -> Any:
    wanted = {"seconds": (int, float), "gib": (int, float), "sketch": bool}.get(name, str)
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, wanted):
        raise TypeError(f"{name} {value!r}")
    return value


class Server:
    """Imports the implementation, then runs job after job, and tells of it on `events`.

    run: what one dump is. write_failure: writes the trace of a job that could not write its own.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        run: Run,
        write_failure: Callable[[argparse.Namespace, dict[str, Any], str], None],
    ) -> None:
        self.arguments, self.run, self.write_failure = arguments, run, write_failure
        self.list = read_jobs(arguments.jobs)
        self.events = os.fdopen(os.dup(1), "w")

    def tell(self, event: str, **fields: Any) -> None:
        self.events.write(json.dumps({"event": event, **fields}) + "\n")
        self.events.flush()

    def serve(self) -> int:
        """Runs everything; 1 when a job has no trace or one with a failure."""
        if self.list.modular:
            self.tell("modular", **check_modular(self.arguments.transformers))
        failure, output = self.prepare()
        worst = 0
        for number, job in enumerate(self.list.jobs):
            arguments = self.arguments_of(job)
            self.tell("start", job=number)
            if failure is not None:
                self.write_failure(arguments, failure, "import")
                self.end(number, 1, 0.0, output, failure)
                worst = 1
                continue
            ended = self.run_job(job, arguments)
            told = self.account(job, arguments, ended)
            self.end(number, ended.code, ended.seconds, ended.output if ended.code else "", told)
            worst = max(worst, 1 if ended.code else 0)
        return worst

    def end(
        self, number: int, code: int, seconds: float, output: str, failure: dict[str, Any] | None
    ) -> None:
        phase, message = (failure or {}).get("phase", ""), (failure or {}).get("message", "")
        lines = output.splitlines()[-LINES:]
        said = {"phase": phase, "message": message, "output": lines}
        self.tell("end", job=number, code=code, seconds=round(seconds, 3), **said)

    def prepare(self) -> tuple[dict[str, Any] | None, str]:
        """Imports the implementation; the account of a failure, and what was printed.

        Throws DumpError when it is not the implementation's fault.
        """
        start, failure = time.monotonic(), None
        with caught_output() as caught:
            try:
                with time_limit(self.list.import_seconds):
                    module = with_stand_in(lambda: import_transformers(self.arguments.transformers))
                    self.warm(module)
            except DumpError:
                raise
            except (Exception, SystemExit) as error:  # whatever it raises is its verdict
                refuse_missing_package(error)
                failure = account_of(error, "import")
            output = tail_of(caught)
        module = sys.modules.get("transformers")
        self.tell(
            "imported",
            seconds=round(time.monotonic() - start, 3),
            version=str(getattr(module, "__version__", "unknown")),
            path=str(getattr(module, "__file__", "unknown")),
        )
        return failure, output

    def warm(self, transformers: Any) -> None:
        """Imports the model's own file too, as from_pretrained would.

        What fails here fails again in each job, with its own account.
        """
        arguments = self.arguments
        if arguments.trust_remote_code or not self.list.jobs:
            return
        try:
            cls = find_class(transformers, arguments.cls)
            config = transformers.AutoConfig.from_pretrained(self.list.jobs[0].checkpoint)
            mapping = getattr(cls, "_model_mapping", None)
            if mapping is not None:
                mapping[type(config)]
        except Exception:
            return

    def arguments_of(self, job: Job) -> argparse.Namespace:
        """The job as if it had been asked for on the command line."""
        arguments = copy.copy(self.arguments)
        arguments.checkpoint, arguments.out = Path(job.checkpoint), Path(job.out)
        arguments.case, arguments.mode, arguments.suite = job.case, job.mode, job.suite
        arguments.sketch = self.arguments.sketch or job.sketch
        return arguments

    def run_job(self, job: Job, arguments: argparse.Namespace) -> Ended:
        Path(job.out).unlink(missing_ok=True)  # an older one is not this run's
        on_device = self.arguments.device_map not in (None, "cpu")
        if on_device and torch.cuda.is_initialized():
            return self.run_fresh(job)
        return in_child(lambda: self.run(arguments), job.seconds, 0 if on_device else job.gib)

    def run_fresh(self, job: Job) -> Ended:
        """In a process of its own: one that has begun to use CUDA cannot be forked."""
        words = [*self.arguments.words, "--checkpoint", job.checkpoint, "--out", job.out]
        words += ["--mode", job.mode, *(["--case", job.case] if job.case else [])]
        words += ["--suite", job.suite] if job.suite else []
        words += ["--sketch"] if job.sketch and not self.arguments.sketch else []
        command = [sys.executable, sys.argv[0], *words]

        def become() -> int:
            return subprocess.run(command, check=False).returncode

        return in_child(become, job.seconds, 0)

    def account(
        self, job: Job, arguments: argparse.Namespace, ended: Ended
    ) -> dict[str, Any] | None:
        """What is told of a failure. A child that died leaves a trace that says so."""
        out = Path(job.out)
        if out.is_file():
            return self.told_in(out) if ended.code else None
        if ended.code in (2, 4, 6):  # a request that makes no sense, or the environment
            last = ended.output.strip().splitlines()[-1:]
            return {"phase": "refused", "message": "".join(last).removeprefix("dump: ")}
        message, last = ended.fate(job.seconds), ended.output.strip().splitlines()[-LINES:]
        failure = {"phase": "run", "where": "run", "message": message, "shapes": []}
        failure["frames"] = last
        self.write_failure(arguments, failure, "run")
        return failure

    @staticmethod
    def told_in(out: Path) -> dict[str, Any] | None:
        """The failure that a trace tells of."""
        import safetensors

        with safetensors.safe_open(str(out), framework="pt") as file:
            text = (file.metadata() or {}).get("failure")
        if not text:
            return None
        failure = json.loads(text)
        return {**failure, "message": failure["message"].partition(LAST_FRAMES)[0]}


def check_jobs(jobs: JobList) -> None:
    """Throws DumpError on a job that could not be asked for, before anything is imported."""
    for job in jobs.jobs:
        checkpoint = Path(job.checkpoint)
        if not (checkpoint / "config.json").is_file():
            raise DumpError(4, job.checkpoint, "checkpoint", "a folder with config.json", "none")
        find_case(job.case, checkpoint)
