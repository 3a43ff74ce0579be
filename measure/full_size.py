"""What a streamed run took, out of its report.json: the tables of docs/performance.md.

    dsv32-verify --config full --layers 0,3,60 ... --json > report.json
    python measure/full_size.py report.json

One row for each segment (seconds, and the highest memory since the one before), and one for each
pass over it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PASS = re.compile(r"(?P<segment>.*) \(\d+/\d+\), (?P<side>.*)")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def segments(timing: dict[str, Any]) -> str:
    costs = [cost for cost in timing["costs"] if cost["suite"]]
    passes = [PASS.fullmatch(one["what"]) and one for one in timing["passes"]]

    def in_passes(segment: str) -> float:
        return sum(p["seconds"] for p in passes if p and p["what"].startswith(segment + " ("))

    rows = [
        [
            c["suite"],
            f"{c['peak_gib']:.1f}",
            f"{c['seconds']:.0f}",
            f"{c['seconds'] - in_passes(c['suite']):.0f}",
        ]
        for c in costs
    ]
    return table(("segment", "GiB", "seconds", "of them judging"), rows)


def sides(timing: dict[str, Any]) -> str:
    found: dict[str, dict[str, float]] = {}
    names: list[str] = []
    for one in timing["passes"]:
        if known := PASS.fullmatch(one["what"]):
            found.setdefault(known["side"], {})[known["segment"]] = one["seconds"]
            names += [known["segment"]] if known["segment"] not in names else []
    rows = [
        [side, *(f"{times[n]:.1f}" if n in times else "-" for n in names)]
        for side, times in found.items()
    ]
    return table(("pass, seconds", *names), rows)


def main(words: list[str]) -> int:
    timing = json.loads(Path(words[0]).read_text())["timing"]
    print(segments(timing), sides(timing), sep="\n", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
