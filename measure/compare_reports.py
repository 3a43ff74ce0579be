"""Two report.json files, check by check: what a change of the code did to the verdicts.

    python measure/compare_reports.py before.json after.json [--expected FILE]

The same checks, each with the same verdict, the same measured values to the printed digit (three)
and the same limits; the same findings, figures and exit code. Notes, bases and costs are not
compared. Names of schema 2 are read as those of schema 3 (docs/report.md). One line for each
difference:

    only in A: CASE/[SUITE/]SUBJECT/CHECK (MODE)
    only in B: ...
    differs: CASE/[SUITE/]SUBJECT/CHECK (MODE): WHAT: A -> B

Exit 1 for a difference that no line of --expected matches (a pattern of fnmatch; # begins a
comment). A line that matches nothing is named, too: it is out of date, and also exit 1.
"""

from __future__ import annotations

import argparse
import collections
import fnmatch
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]


class Rename(NamedTuple):
    """Names of schema 2 that match are `new` in schema 3; the first row that fits counts."""

    old: str
    new: str
    suite: str = ".*"
    subject: str = ".*"
    mode: str = ".*"


OURS = "(reference|optimized).*"
STEP_BY_STEP = ".*, step by step"
RENAMES = [
    Rename(r"golden file (\w+)\..*", r"golden.file.\1"),
    Rename("golden file", "golden.file"),
    Rename("weights loaded", "load.weights"),
    Rename("ran to its end", "run.finished"),
    Rename("selection exercised", "selection.exercised"),
    Rename("logits or loss.lm|logits, loss.lm or loss.kl|train.loss or train.kl", "result"),
    # one step of a world or of a curve
    Rename(r"step (\d+) grad\.(.+)", r"step.\1.grad.\2"),
    Rename(r"step (\d+) grad_norm (\w+)", r"step.\1.grad_norm.\2"),
    Rename(r"step (\d+) update", r"step.\1.updates"),
    Rename(r"step (\d+) update (\w+)", r"step.\1.updates.\2"),
    Rename(r"step (\d+) ranks agree", r"step.\1.ranks"),
    Rename(r"step (\d+) rank (\d+)", r"step.\1.rank.\2"),
    Rename(r"step (\d+) (\w+)", r"step.\1.\2"),
    # every judged step
    Rename("step by step", "steps"),
    Rename(r"train\.(\w+), one step", r"steps.\1"),
    Rename(r"train\.(\w+)", r"steps.\1", suite="loss_descent", subject=OURS, mode="forced"),
    Rename(r"grad\.(.+)", r"steps.grad.\1", suite="loss_descent|dual_lora", subject=OURS),
    Rename(r"param\.(.+)", r"steps.update.\1", suite="loss_descent|dual_lora", subject=OURS),
    Rename(r"train\.(\w+)", r"steps.\1", suite="indexer_kl", subject=STEP_BY_STEP),
    Rename(r"grad\.(.+)", r"steps.grad.\1", suite="indexer_kl", subject=STEP_BY_STEP),
    Rename(r"param\.(.+)", r"steps.update.\1", suite="indexer_kl", subject=STEP_BY_STEP),
    # a whole training
    Rename(r"train\.(.+)", r"curve.\1"),
    Rename("kl curve", "curve.kl"),
    Rename("loss curve", "curve.loss"),
    Rename("loss falls", "curve.loss.falls"),
    Rename("KL falls", "curve.kl.falls"),
    Rename("recall rises", "curve.recall"),
    Rename("loss in the band of clean runs", "curve.loss.band"),
    Rename(r"param[ .](.+)", r"end.param.\1"),
    Rename("parameters", "end.params"),
    # rules of the suites
    Rename("trainable parameters", "parameters.trainable"),
    Rename("adapted modules", "parameters.adapted"),
    Rename("every other parameter moves|who moves", "parameters.moved"),
    Rename(r"grad\.(.+), not frozen", r"unfrozen.grad.\1"),
    Rename(r"grad\.(.+)", r"frozen.grad.\1", suite="sft_frozen_indexer", mode="exact"),
    Rename("loss is the mean over counted tokens", "labels.mean"),
    Rename("masked tokens: loss", "labels.masked.loss"),
    Rename("masked tokens: gradients", "labels.masked.gradients"),
    Rename("detached hidden state", "detached.hidden"),
    Rename("detached query latent", "detached.q_latent"),
    Rename("detached target", "detached.target"),
    Rename("gradient paths", "gradient_paths"),
    Rename("B = 0 changes nothing", "lora.no_op"),
    Rename("gradients at B = 0", "lora.first_gradients"),
    Rename("LM loss alone", "lora.lm_alone"),
    Rename("KL alone", "lora.kl_alone"),
    Rename("scale alpha / rank", "lora.scale"),
    Rename(r"logits\.(adapter|merged)", r"end.logits.\1"),
    Rename("merged equals adapter path", "lora.merge"),
    Rename("base weights", "lora.base"),
    Rename("optimizer bytes per rank", "optimizer.bytes"),
    Rename("integer mode", "optimizer.integers"),
]


def renamed(check: str, suite: str, subject: str, mode: str) -> str:
    """A check of schema 2 by its name in schema 3."""
    for row in RENAMES:
        match = re.fullmatch(row.old, check)
        rest = ((row.suite, suite), (row.subject, subject), (row.mode, mode))
        if match and all(re.fullmatch(pattern, text) for pattern, text in rest):
            return match.expand(row.new)
    return check


def label(entry: Json) -> str:
    """The subject's label; in schema 2 it said what the subject was measured against as well."""
    subject = entry["subject"]
    return subject.removesuffix(" vs golden") if isinstance(subject, str) else subject["label"]


def printed(value: float | str) -> str:
    return f"{float(value):.3g}"


def path(entry: Json, *rest: str) -> str:
    return "/".join(filter(None, (entry["case"], entry["suite"], label(entry), *rest)))


Table = dict[str, list[Json]]


def checks(report: Json) -> Table:
    """What each check of a report says, in the order of the report where a name is there twice."""
    table: Table = collections.defaultdict(list)
    for v in report["verdicts"]:
        name = v["tap"]
        if report["schema_version"] < 3:
            name = renamed(name, v["suite"], label(v), v["mode"])
        said: Json = {"verdict": v["trust"], "checked": str(v["checked"])}
        for m in v["measures"]:
            said[m["metric"]] = f"{printed(m['measured'])} of {printed(m['limit'])}"
        table[f"{path(v, name)} ({v['mode']})"].append(said)
    return table


def others(report: Json) -> Table:
    """Findings with a fault, figures and the exit code."""
    table: Table = {"exit code": [{"exit code": str(report["exit_code"])}]}
    for f in report["findings"]:
        if f["fault"] != "none":
            table[f"{path(f)} (finding)"] = [{"fault": f["fault"]}]
    for f in report["figures"]:
        name = "/".join((f["case"], f["suite"], f["name"]))
        table[f"{name} (figure)"] = [{"value": printed(f["value"])}]
    return table


def differences(a: Table, b: Table) -> Iterator[str]:
    for name in a | b:
        left, right = a.get(name, []), b.get(name, [])
        for one, other in zip(left, right, strict=False):
            for what in one | other:
                if one.get(what) != other.get(what):
                    change = f"{one.get(what, 'none')} -> {other.get(what, 'none')}"
                    yield f"differs: {name}: {what}: {change}"
        for side, more in (("A", len(left) - len(right)), ("B", len(right) - len(left))):
            yield from [f"only in {side}: {name}"] * more


def compare(a: Json, b: Json) -> list[str]:
    return [*differences(checks(a), checks(b)), *differences(others(a), others(b))]


def patterns(file: Path | None) -> list[str]:
    lines = file.read_text().splitlines() if file else []
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def matches(line: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(line, pattern.replace("[", "[[]"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    parser.add_argument("--expected", type=Path, metavar="FILE", help="differences that are right")
    arguments = parser.parse_args()
    a, b = (json.loads(file.read_text()) for file in (arguments.a, arguments.b))
    found, expected = compare(a, b), patterns(arguments.expected)
    surprises = [line for line in found if not any(matches(line, p) for p in expected)]
    stale = [p for p in expected if not any(matches(line, p) for line in found)]
    for line in surprises:
        print(line)
    for pattern in stale:
        print(f"expected, but not found: {pattern}")
    compared = sum(len(rows) for rows in checks(b).values())
    print(f"{compared} checks, {len(found)} differences, {len(found) - len(surprises)} expected")
    return 1 if surprises or stale else 0


if __name__ == "__main__":
    sys.exit(main())
