"""docs/calibration.md."""

from __future__ import annotations

from typing import Any

MODES = ("staged", "forced", "free", "exact")
OWN = "our reference"
ENOUGH = 2  # a mutant below this is an exception
SHOWN = 40  # alarms


def number(value: float) -> str:
    return f"{value:.3g}"


def table(names: str, rows: list[list[str]]) -> list[str]:
    columns = names.split("|")
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*head, *("| " + " | ".join(row) + " |" for row in rows)]


def runs_of(results: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """Judged runs by source and dtype; our reference is the yardstick and no source."""
    runs: dict[tuple[str, str], int] = {}
    for result in results:
        for key, count in result["runs"].items():
            name, _, dtype = key.partition("|")
            if name != OWN:
                runs[name, dtype] = runs.get((name, dtype), 0) + count
    return runs


def largest_of(results: list[dict[str, Any]]) -> list[list[Any]]:
    """Every [name, mode, rows, dtype, measure, share, measured, limit, place] of a source."""
    return [row for result in results for row in result["largest"] if row[0] != OWN]


def by_measure(rows: list[list[Any]]) -> list[list[str]]:
    best: dict[tuple[str, ...], list[Any]] = {}
    for row in rows:
        key = tuple(row[1:5])
        if key not in best or not row[5] <= best[key][5]:
            best[key] = row

    def order(row: list[Any]) -> tuple[Any, ...]:
        return MODES.index(row[1]), row[2], row[3], -row[5]

    return [
        [mode, rows_, dtype, measure, number(measured), number(limit), f"{share:.2f}", name, place]
        for name, mode, rows_, dtype, measure, share, measured, limit, place in sorted(
            best.values(), key=order
        )
        if share >= 0.005
    ]  # fmt: skip


def by_source(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = largest_of(results)
    alarms = alarms_of(results)
    lines = []
    for (name, dtype), count in sorted(runs_of(results).items()):
        own = [row for row in rows if (row[0], row[3]) == (name, dtype)]
        worst = max(own, key=lambda row: row[5])
        cases = {row[8].split()[0] for row in own}
        told = f"{worst[1]} {worst[4]} {number(worst[6])} of {number(worst[7])}, {worst[8]}"
        wrong = sum((alarm["subject"], alarm["dtype"]) == (name, dtype) for alarm in alarms)
        lines.append([name, dtype, str(len(cases)), str(count), str(wrong), f"{worst[5]:.2f}",
                      told])  # fmt: skip
    return lines


def alarms_of(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [alarm for result in results for alarm in result["alarms"]]


def mutant_rows(mutants: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for found in mutants:
        if not found["case"]:
            rows.append([found["name"], "none", "", "", "", "", ""])
            continue
        where = f"{found.get('mode', '')} {found.get('measure', '')}".strip() or "rules only"
        rows.append([found["name"], found["case"], found.get("tap", "-"), where,
                     ratio_of(found["ratio"]), ratio_of(found["first"]),
                     "yes" if found["exact"] else ""])  # fmt: skip
    return rows


def ratio_of(ratio: float) -> str:
    """-1 is no ratio: every broken rule was one without tolerance."""
    return "-" if ratio < 0 else number(ratio)


def exceptions(mutants: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Below ENOUGH, and no rule without tolerance broken."""
    return [m for m in mutants if not m["case"] or (m["ratio"] < ENOUGH and not m["exact"])]


def markdown(
    results: list[dict[str, Any]], mutants: list[dict[str, Any]], absent: list[str]
) -> str:
    alarms, runs = alarms_of(results), runs_of(results)
    lines = [
        "# Calibration",
        "",
        "Made by `ci/calibrate`: how far correct code is from the limits, and wrong code beyond",
        "them. Every run is correct code on synthetic weights, so every failure is a false alarm.",
        "A candidate declares nothing; where YaRN differs it declares `hf`, and mlx-lm declares",
        "what it does otherwise. Our own models run beside the candidates, on the same seeds.",
        "",
        f"- {sum(runs.values())} runs of {len(runs)} sources of arithmetic: {len(alarms)} alarms",
        *(f"- left out: {line}" for line in absent),
        *(f"- ALARM: {a['subject']}: {a['text']}" for a in alarms[:SHOWN]),
        "",
        "## By measure",
        "",
        "The largest share of its limit that any run reached, forward and backward, and which run.",
        "Rules without tolerance count as alarms when broken; shares below 0.005 are left out.",
        "",
        *table("mode|rows|dtype|measure|measured|limit|share|source|where",
               by_measure(largest_of(results))),
        "",
        "## By source",
        "",
        *table("source|dtype|cases|runs|alarms|worst share|where", by_source(results)),
    ]  # fmt: skip
    if mutants:
        lines += ["", "## Bugs of the catalogue", "", *mutant_text(mutants)]
    return "\n".join(lines) + "\n"


def mutant_text(mutants: list[dict[str, Any]]) -> list[str]:
    below = exceptions(mutants)
    names = ", ".join(f"`{m['name']}`" for m in below) or "none"
    return [
        "Each planted in the float32 reference, in the first case that shows it: the largest",
        "measured / limit over its failed checks, and at the op that the bug is planted in.",
        "`rule`: a rule without tolerance is broken too.",
        "",
        f"- {len(mutants)} bugs; below {ENOUGH}: {names}",
        "",
        *table("bug|case|tap|measure|measured / limit|at its first tap|rule", mutant_rows(mutants)),
    ]
