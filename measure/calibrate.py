"""Measures how far correct code is from the limits: real transformers over many seeds.

    ci/calibrate [--seeds 300] [--out docs/calibration.md]

For each seed the parameters of a live model are overwritten with that seed's synthetic weights, the
taps and gradients go into a trace file, and dsv32-verify judges it as a candidate of dialect `hf`.
Every run is correct, so every failure is a false alarm. What is kept is the largest value of every
measure in every run, by mode, family of tap and dtype: the limits of harness/judge/limits.cpp are
set from that table.

Finished chunks stay in build/calibration/ and are used again while program and sources are the
same.
Exit codes: 0 no false alarm · 1 false alarms · 6 program or environment absent.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from dsv32_dump import Options, dump
from dsv32_dump.environment import package_sha256
from dsv32_dump.load import Loading, import_transformers, load_model
from dsv32_dump.weights import loaded_tensors
from synthetic import ROOT, Case, load_cases, weight, weight_specs, write_checkpoint

VERIFY = Path(os.environ.get("DSV32_VERIFY", ROOT / "build" / "dsv32-verify"))
KEPT = ROOT / "build" / "calibration"
CHUNK = 25  # trace files per call of dsv32-verify
PART = 5  # other backends and bfloat16 run on one seed in so many
TOLERANCES = ("row ratio", "tensor ratio", "cap", "tail", "max tail", "band", "own logits")
JUDGED = {"candidate": "Hugging Face", "reference": "reference"}  # parties that are counted
FAMILIES = {
    "attn.logits": "rows over keys",
    "attn.probs": "rows over keys",
    "ix.scores": "rows over keys",
    "loss.lm": "scalar",
    "topk": "topk",
    "router.experts": "experts",
}


@dataclasses.dataclass(frozen=True)
class Setup:
    """One way in which real code computes a case."""

    case: str
    dtype: str
    attention: str
    experts: str

    @property
    def name(self) -> str:
        return f"{self.case} {self.dtype}, {self.attention} attention, {self.experts} experts"

    def seeds(self, count: int) -> range:
        usual = self.dtype == "float32" and self.attention == "eager"
        return range(1, count + 1, 1 if usual else PART)


SETUPS = [
    Setup(case, *how)
    for case in ("tiny-wide", "tiny-yarn")
    for how in (
        ("float32", "eager", "eager"),
        ("float32", "sdpa", "batched_mm"),
        ("bfloat16", "eager", "eager"),
    )
]


@dataclasses.dataclass
class Row:
    """One line of the table: the largest value of one measure in each run."""

    values: list[float] = dataclasses.field(default_factory=list)
    largest: float = -1
    where: str = ""
    limit: float = 0
    margin: float = 0
    alarms: int = 0

    def add(self, measured: float, limit: float, where: str) -> None:
        self.values.append(measured)
        self.alarms += not measured <= limit
        self.margin = max(self.margin, measured / limit)
        if not measured <= self.largest:
            self.largest, self.limit, self.where = measured, limit, where


def model_of(setup: Setup, case: Case) -> torch.nn.Module:
    transformers = import_transformers()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(case, Path(folder))
        loading = Loading(Path(folder), attn=setup.attention, dtype=setup.dtype)
        return load_model(transformers, loading)


def reseed(model: torch.nn.Module, case: Case, seed: int) -> None:
    """The synthetic weights of another seed, in place."""
    own = loaded_tensors(model, case.config["hidden_size"])
    with torch.no_grad():
        for name, shape in weight_specs(case.config).items():
            own[name].copy_(torch.from_numpy(weight(seed, name, shape, case.bias_offset)))


def write_traces(
    setup: Setup, model: torch.nn.Module, case: Case, seeds: list[int], folder: Path
) -> None:
    options = Options(
        backward=True,
        attn_implementation=setup.attention,
        experts_implementation=setup.experts,
    )
    for seed in seeds:
        reseed(model, case, seed)
        file = folder / f"{seed}.safetensors"
        dump(model, case.fields() | {"seed": seed}, file, options)


def judge(setup: Setup, seeds: list[int], folder: Path) -> dict[str, Any]:
    """The report of one call of dsv32-verify."""
    command = [str(VERIFY), "--quiet", "--json", "--dialect", "hf", "--dtype", setup.dtype]
    for seed in seeds:
        command += ["--candidate", f"{seed}.safetensors"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{VERIFY.name}: exit {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def family(tap: str) -> str:
    if tap.startswith("grad."):
        return "gradient"
    short = tap.split(".", 2)[2] if tap.startswith("layers.") else tap
    return FAMILIES.get(short, "token, key rows")


def distil(setup: Setup, report: dict[str, Any]) -> dict[str, Any]:
    """Of each run and each kind of measure the largest; every verdict that is not a pass."""
    files = [v for v in report["verdicts"] if v["subject"]["party"] == "candidate"]
    seeds = {v["case"]: _seed(v["subject"]["label"]) for v in files}
    largest: dict[tuple[str, ...], tuple[float, float, str]] = {}
    alarms, absent = [], 0
    for verdict in report["verdicts"]:
        who = JUDGED.get(verdict["subject"]["party"])
        if who is None:
            continue
        place = f"{setup.case} seed {seeds[verdict['case']]} {verdict['tap']}"
        absent += verdict["trust"] == "missing"
        if verdict["trust"] not in ("pass", "missing", "skipped"):
            alarms.append(f"{who}, {setup.name}: {describe(verdict, place)}")
        for m in verdict["measures"]:
            key = (who, verdict["mode"], family(verdict["tap"]), m["metric"], place.split()[2])
            measured = float(m["measured"])
            if m["metric"] in TOLERANCES and not measured <= largest.get(key, (-1.0,))[0]:
                largest[key] = (measured, float(m["limit"]), place)
    runs = [[*key, *value] for key, value in largest.items()]
    return {"runs": runs, "alarms": alarms, "absent": absent, "count": len(seeds)}


def describe(verdict: dict[str, Any], place: str) -> str:
    beyond = [
        f"{m['metric']} {number(float(m['measured']))} > {number(float(m['limit']))}"
        for m in verdict["measures"]
        if not float(m["measured"]) <= float(m["limit"])
    ]
    return f"{place} ({verdict['mode']}): {verdict['trust']}: {', '.join(beyond)}"


def _seed(subject: str) -> int:
    return int(subject.removeprefix("candidate ").removesuffix(".safetensors"))


def fingerprint() -> str:
    """Of everything that a stored chunk depends on."""
    total = hashlib.sha256(VERIFY.read_bytes())
    for name in ("measure/calibrate.py", "golden/make/synthetic.py"):
        total.update((ROOT / name).read_bytes())
    total.update(package_sha256().encode())
    total.update(import_transformers().__version__.encode())
    return total.hexdigest()


def chunks(setup: Setup, count: int) -> Iterator[list[int]]:
    seeds = list(setup.seeds(count))
    for start in range(0, len(seeds), CHUNK):
        yield seeds[start : start + CHUNK]


def finish(file: Path, key: str, setup: Setup, seeds: list[int], folder: Any) -> dict[str, Any]:
    with folder:
        result = distil(setup, judge(setup, seeds, Path(folder.name)))
    result |= {"key": key, "setup": setup.name, "dtype": setup.dtype, "seeds": seeds}
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    partial.replace(file)
    return result


def measure(count: int) -> list[dict[str, Any]]:
    """All chunks; transformers computes one while dsv32-verify judges the one before."""
    key = fingerprint()
    KEPT.mkdir(parents=True, exist_ok=True)
    results = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for setup in SETUPS:
            case = load_cases()[setup.case]
            model = None
            for seeds in chunks(setup, count):
                file = KEPT / f"{setup.name.replace(', ', '-').replace(' ', '-')}-{seeds[0]}.json"
                kept = json.loads(file.read_text()) if file.is_file() else {}
                if kept.get("key") == key and kept.get("seeds") == seeds:
                    results.append(pool.submit(dict, kept))
                    continue
                model = model or model_of(setup, case)
                folder = tempfile.TemporaryDirectory(dir=KEPT)
                write_traces(setup, model, case, seeds, Path(folder.name))
                results.append(pool.submit(finish, file, key, setup, seeds, folder))
            say(f"{setup.name}: {len(setup.seeds(count))} seeds")
        return [result.result() for result in results]


def table(results: list[dict[str, Any]]) -> dict[tuple[str, ...], Row]:
    rows: dict[tuple[str, ...], Row] = {}
    for result in results:
        for who, mode, kind, metric, _, measured, limit, where in result["runs"]:
            key = (who, mode, kind, result["dtype"], metric)
            rows.setdefault(key, Row()).add(measured, limit, where)
    order = {"staged": 0, "forced": 1, "free": 2, "exact": 3}
    return dict(
        sorted(rows.items(), key=lambda i: (i[0][0], order[i[0][1]], i[0][2:4], -i[1].margin))
    )


def number(value: float) -> str:
    return f"{value:.3g}"


def markdown(results: list[dict[str, Any]], count: int) -> str:
    rows = table(results)
    lines = [
        "# Calibration",
        "",
        "Made by `ci/calibrate`. Every run is real Hugging Face code on synthetic weights, forward",
        "and backward, judged as a candidate of dialect `hf`: each failure is a false alarm.",
        "A run gives the largest value of each measure over all its taps; `median` and `largest`",
        "are over the runs. `reference` is our own reference in the same cases: it has no ratio to",
        "itself. Exact rules (limit 0) are not in the table, but count as alarms when broken.",
        "",
        f"- transformers {import_transformers().__version__}, torch {torch.__version__},",
        f"  CPU, one thread, seeds 1 to {count}; other backends and bfloat16 on every {PART}th",
    ]
    runs: dict[str, int] = {}
    for result in results:
        runs[result["setup"]] = runs.get(result["setup"], 0) + result["count"]
    lines += [f"- {name}: {n} runs" for name, n in runs.items()]
    alarms = [alarm for result in results for alarm in result["alarms"]]
    absent = sum(result["absent"] for result in results)
    lines += [f"- false alarms: {len(alarms)}; verdicts without a tap: {absent}", ""]
    lines += [f"  - {alarm}" for alarm in alarms[:40]]
    for who in ("Hugging Face", "reference"):
        lines += ["", f"## {who}", "", *header()]
        lines += [line(key, row) for key, row in rows.items() if key[0] == who]
    return "\n".join(lines) + "\n"


def header() -> list[str]:
    names = "mode rows dtype measure median largest limit largest/limit alarms where".split()
    return ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]


def line(key: tuple[str, ...], row: Row) -> str:
    cells = [*key[1:], number(statistics.median(row.values)), number(row.largest)]
    cells += [number(row.limit), f"{row.margin:.2f}", str(row.alarms), row.where]
    return "| " + " | ".join(cells) + " |"


def say(text: str) -> None:
    print(f"calibrate: {text}", file=sys.stderr, flush=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ci/calibrate", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=300, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: only print")
    arguments = parser.parse_args(words)
    if not VERIFY.is_file():
        say(f"{VERIFY}: expected the program, got none; hint: ci/build dsv32-verify")
        return 6
    torch.set_num_threads(1)
    results = measure(arguments.seeds)
    text = markdown(results, arguments.seeds)
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)
    return 1 if any(result["alarms"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
