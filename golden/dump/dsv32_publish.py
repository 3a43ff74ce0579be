"""A report.json to a tracker: Weights & Biases, TensorBoard, or lines of JSON.

    dsv32-publish report/report.json --to wandb [--project P] [--name N] [--offline]
    dsv32-publish report/report.json --to tensorboard --out logs/
    dsv32-publish report/report.json --to jsonl
    dsv32-publish --to wandb -- dsv32-verify --config small --out report/

The last form runs the command, tells the tracker at least once a minute that it is alive (and, of
a streamed run, where it stands), and then publishes its report. This file runs alone:
`python golden/dump/dsv32_publish.py`. Nothing but the standard library is imported, and the package
of the tracker that was asked for.

Exit codes: 0 published, 2 usage, 4 not a report, 6 the package is missing or the tracker failed; in
the last form that of the command, unless it is 0.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

FORMAT = "dsv32-verify.report"
VERSIONS = (4,)
MINUTE = 60.0
RENDERINGS = ("report.html", "report.md", "junit.xml")  # beside it, they go with the report
STEP = re.compile(r"step\.(\d+)\.(.+)")
FACE = "dsv32-publish"


class PublishError(Exception):
    """Says where, what, what was expected and what was there; `code` is the exit code."""

    def __init__(self, code: int, where: str, what: str, expected: str, got: str, hint: str = ""):
        more = f"; hint: {hint}" if hint else ""
        super().__init__(f"{where}: {what}: expected {expected}, got {got}{more}")
        self.code = code


@dataclasses.dataclass(frozen=True)
class Point:
    """One number. axis: `layer`, `step`, or empty for one of the whole run; index on that axis."""

    name: str
    value: float
    axis: str = ""
    index: int = 0


class Tracker(Protocol):
    """What a report is handed to."""

    def points(self, axis: str, index: int, values: dict[str, float]) -> None:
        """Numbers that belong together, at one place of an axis."""

    def beat(self, values: dict[str, float]) -> None:
        """A sign of life, with what is known by then."""

    def finish(self, report: dict[str, Any] | None, file: Path | None) -> None:
        """The report itself (None: there is none), and the end."""


# A report to points.


def read_report(file: Path) -> dict[str, Any]:
    """Throws PublishError when the file is not a report of a version that is known."""
    try:
        report = json.loads(file.read_text())
    except OSError as error:
        raise PublishError(4, str(file), "report", "a readable file", str(error)) from error
    except ValueError as error:
        raise PublishError(4, str(file), "report", "JSON", str(error)) from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        got = str(report.get("format")) if isinstance(report, dict) else type(report).__name__
        hint = "dsv32-verify --out DIR writes DIR/report.json"
        raise PublishError(4, str(file), "format", FORMAT, got, hint)
    if report.get("schema_version") not in VERSIONS:
        want, got = " or ".join(map(str, VERSIONS)), str(report.get("schema_version"))
        raise PublishError(4, str(file), "schema_version", want, got)
    return report


def number(value: Any) -> float:
    """A number of a report: NaN and infinity are texts there."""
    return float(value)


def used(verdict: dict[str, Any]) -> float | None:
    """The largest part of a limit that a check used; of a limit of 0 how often it was broken."""
    parts = []
    for measure in verdict["measures"]:
        measured, limit = number(measure["measured"]), number(measure["limit"])
        parts.append(measured / limit if limit > 0 else measured)
    bad = [part for part in parts if part != part]
    return bad[0] if bad else max(parts, default=None)


def place(verdict: dict[str, Any]) -> tuple[str, str, int]:
    """Name of a check without its place, the axis, the place."""
    tap, layer = verdict["tap"], verdict["layer"]
    step = STEP.fullmatch(tap)
    if step:
        return step[2], "step", int(step[1])
    if layer is None:
        return tap, "", 0
    return re.sub(rf"(?:model\.)?layers\.{layer}\.", "", tap, count=1), "layer", layer


def points_of(report: dict[str, Any]) -> Iterator[Point]:
    """Every number of a report: checks, curves, figures, costs, counts."""
    for verdict in report["verdicts"]:
        head = [verdict["case"], verdict["suite"], verdict["subject"]["label"]]
        group = "/".join(part.replace("/", "_") for part in head if part)
        name, axis, index = place(verdict)
        base = f"{group}/{verdict['mode']}/{name}"
        part = used(verdict)
        if part is not None:
            yield Point(f"{base}/of limit", part, axis, index)
        if verdict["plain"]:
            for key in ("relative", "allowed"):
                yield Point(f"{base}/{key}", number(verdict["plain"][key]), axis, index)
        if verdict["choices"]:
            yield Point(f"{base}/differing", number(verdict["choices"]["differing"]), axis, index)
        for key, values in (verdict["curve"] or {}).items():
            for at, value in enumerate(values):
                yield Point(f"{base}/{key}", number(value), "step", at)
    for figure in report["figures"]:
        group = "/".join(x for x in (figure["case"], figure["suite"]) if x)
        yield Point(f"{group}/figures/{figure['name']}", number(figure["value"]))
    for answers in report.get("answers", []):
        label = answers["subject"]["label"].replace("/", "_")
        for key in ("loss", "perplexity", "top1"):
            base = f"{answers['case']}/{label}/answers/{key}"
            yield Point(base, number(answers["all"][key]))
            for row, score in enumerate(answers["examples"]):
                yield Point(f"{base}/example", number(score[key]), "step", row)
    for cost in report["timing"]["costs"]:
        group = "/".join(x for x in (cost["case"], cost["suite"]) if x)
        for key in ("seconds", "tokens_per_second", "peak_gib"):
            if number(cost[key]):
                yield Point(f"cost/{group}/{key}", number(cost[key]))
    yield Point("cost/seconds", number(report["timing"]["seconds"]))
    yield Point("verdict/exit code", number(report["exit_code"]))
    for trust, count in report["counts"].items():
        yield Point(f"verdict/{trust}", number(count))


def grouped(report: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, float]]]:
    """The points of one place together, places in order."""
    places: dict[tuple[str, int], dict[str, float]] = {}
    for point in points_of(report):
        places.setdefault((point.axis, point.index), {})[point.name] = point.value
    for axis, index in sorted(places):
        yield axis, index, places[axis, index]


def headlines(report: dict[str, Any]) -> list[str]:
    """What the report says first, a line for each subject."""
    return [f"{f['case']}: {f['subject']['label']}: {f['fault']}: {f['headline'] or 'passed'}"
            for f in report["findings"]]  # fmt: skip


# The trackers.


def package(name: str, tracker: str) -> Any:
    """An imported package. Throws PublishError when it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        hint = f"pip install {tracker}, or --to jsonl"
        what = f"package {name}"
        raise PublishError(6, f"--to {tracker}", what, "it to import", str(error), hint) from error


class Wandb:
    """A run of Weights & Biases; offline it is a folder that `wandb sync` uploads later."""

    def __init__(self, words: argparse.Namespace) -> None:
        self.wandb = package("wandb", "wandb")
        if words.out:
            words.out.mkdir(parents=True, exist_ok=True)
        # Its console capture would stand between the command and the terminal.
        settings = self.wandb.Settings(console="off", silent=True)
        self.run = self.wandb.init(
            project=words.project,
            name=words.name,
            dir=str(words.out) if words.out else None,
            mode="offline" if words.offline else None,
            job_type="dsv32-verify",
            settings=settings,
        )
        for axis in ("layer", "step", "minute"):
            self.run.define_metric(f"axis/{axis}")
        self.beats, self.known = 0, set()

    def points(self, axis: str, index: int, values: dict[str, float]) -> None:
        if not axis:
            self.run.summary.update(values)
            return
        for name in values.keys() - self.known:
            self.run.define_metric(name, step_metric=f"axis/{axis}")
            self.known.add(name)
        self.run.log({f"axis/{axis}": index, **values})

    def beat(self, values: dict[str, float]) -> None:
        self.run.log({"axis/minute": self.beats, **values})
        self.beats += 1

    def finish(self, report: dict[str, Any] | None, file: Path | None) -> None:
        if report is not None and file is not None:
            facts = {key: report[key] for key in ("command", "tool_version", "suites", "cases")}
            self.run.config.update(facts | {"environment": report["environment"]})
            self.run.summary["headlines"] = "\n".join(headlines(report))
            artifact = self.wandb.Artifact("dsv32-report", type="report")
            for path in [file, *(file.with_name(name) for name in RENDERINGS)]:
                if path.is_file():
                    artifact.add_file(str(path))
            self.run.log_artifact(artifact)
        failed = report is None or report["exit_code"] != 0
        self.run.finish(exit_code=int(failed))


class TensorBoard:
    """Event files, by torch's writer or tensorboardX's; a scalar's step is the layer or step."""

    def __init__(self, words: argparse.Namespace) -> None:
        if words.out is None:
            raise PublishError(2, "--to tensorboard", "--out", "a folder", "none")
        try:
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError:
            writer = package("tensorboardX", "tensorboardX").SummaryWriter
        self.writer, self.beats = writer(str(words.out)), 0

    def points(self, axis: str, index: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, index)

    def beat(self, values: dict[str, float]) -> None:
        self.points("minute", self.beats, values)
        self.writer.flush()
        self.beats += 1

    def finish(self, report: dict[str, Any] | None, file: Path | None) -> None:
        if report is not None and file is not None:
            self.writer.add_text("verdict", "\n\n".join(headlines(report)))
            self.writer.add_text("report.json", f"```json\n{file.read_text()}\n```")
        self.writer.close()


class Lines:
    """Lines of JSON, into --out or on standard output: axis, index, name, value."""

    def __init__(self, words: argparse.Namespace) -> None:
        self.file = words.out.open("w") if words.out else sys.stdout

    def points(self, axis: str, index: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            number = value if value - value == 0 else str(value)  # JSON has no NaN, no infinity
            line = {"axis": axis, "index": index, "name": name, "value": number}
            print(json.dumps(line), file=self.file)

    def beat(self, values: dict[str, float]) -> None:
        self.points("minute", 0, values)
        self.file.flush()

    def finish(self, report: dict[str, Any] | None, file: Path | None) -> None:
        for line in headlines(report) if report is not None else ():
            print(json.dumps({"headline": line}), file=self.file)
        if self.file is sys.stdout:
            self.file.flush()
        else:
            self.file.close()


TRACKERS = {"wandb": Wandb, "tensorboard": TensorBoard, "jsonl": Lines}


# The command.


def publish(report: dict[str, Any], file: Path, tracker: Tracker) -> int:
    """Hands over a report; returns how many numbers it had."""
    count = 0
    for axis, index, values in grouped(report):
        tracker.points(axis, index, values)
        count += len(values)
    tracker.finish(report, file)
    return count


def report_of(command: list[str]) -> Path:
    """Where a command line puts its report. Throws PublishError when it makes none."""
    for at, word in enumerate(command):
        if word == "--out" and at + 1 < len(command):
            return Path(command[at + 1]) / "report.json"
        if word.startswith("--out="):
            return Path(word.removeprefix("--out=")) / "report.json"
    raise PublishError(2, "--", "command", "--out DIR in it", " ".join(command) or "nothing")


def follow(command: list[str], folder: Path, tracker: Tracker, every: float) -> int:
    """Runs a command with signs of life; returns its exit code."""
    start = time.monotonic()
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        raise PublishError(6, command[0], "command", "a program", str(error)) from error
    while True:
        try:
            return child.wait(timeout=every)
        except subprocess.TimeoutExpired:
            beat = {"run/seconds": time.monotonic() - start}
            tracker.beat(beat | heartbeat(folder / "heartbeat.json"))
        except KeyboardInterrupt:
            child.wait()  # the terminal told it as well
            raise


def heartbeat(file: Path) -> dict[str, float]:
    """The numbers of a streamed run's heartbeat; none where there is no file yet."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    numbers = {k: v for k, v in known.items() if isinstance(v, (int, float))}
    return {f"run/{key}": float(value) for key, value in numbers.items()}


def parse_arguments(words: list[str]) -> argparse.Namespace:
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog=FACE, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("report", nargs="?", type=Path, metavar="report.json")
    add("--to", required=True, choices=sorted(TRACKERS))
    add("--out", type=Path, help="file of lines, or folder of the tracker's own files")
    add("--project", default="dsv32-verify", help="of wandb")
    add("--name", help="of the run in wandb")
    add("--offline", action="store_true", help="wandb: no network; `wandb sync` uploads it later")
    add("--every", type=float, default=MINUTE, help="seconds between signs of life")
    arguments = parser.parse_args(words[:at])
    arguments.command = words[at + 1 :]
    if (arguments.report is None) == (not arguments.command):
        parser.error("expected a report.json, or `-- COMMAND`")
    if not arguments.every > 0:
        parser.error(f"--every: expected seconds above 0, got {arguments.every:g}")
    return arguments


def run(words: argparse.Namespace) -> int:
    """One publication. Throws PublishError."""
    command, code = words.command, 0
    file = report_of(command) if command else words.report
    report = None if command else read_report(file)  # before a tracker is told anything
    before = file.stat().st_mtime_ns if command and file.is_file() else None
    tracker: Tracker = TRACKERS[words.to](words)
    if command:
        code = follow(command, file.parent, tracker, words.every)
        fresh = file.is_file() and file.stat().st_mtime_ns != before
        if not fresh:
            tracker.finish(None, None)
            raise PublishError(code or 4, str(file), "report", "one of this run", f"exit {code}")
        report = read_report(file)
    count = publish(report, file, tracker)
    print(f"{FACE}: {count} numbers of {file} to {words.to}", file=sys.stderr)
    return code


def main(words: list[str] | None = None) -> int:
    try:
        return run(parse_arguments(sys.argv[1:] if words is None else words))
    except PublishError as error:
        print(f"{FACE}: error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        where = error.filename or "output"
        print(f"{FACE}: error: {where}: {error.strerror}", file=sys.stderr)
        return 6


if __name__ == "__main__":
    sys.exit(main())
