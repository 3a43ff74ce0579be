"""Every bug of the catalogue, planted in the float32 reference: how far beyond its limit it is."""

from __future__ import annotations

import concurrent.futures
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from calibration.judging import VERIFY, verify

# A bug shows in the first of these; tiny-chunk has no backward pass.
CASES = ("tiny-wide", "tiny-yarn", "tiny-bias", "tiny-square", "tiny-dense", "tiny-chunk")
USAGE = 2  # exit code
LISTED = re.compile(r"^\s+(\S+)\s+.*\(first seen in (\S+)\)$", re.MULTILINE)


def listed() -> dict[str, str]:
    """Name to first tap of every bug that the program lists."""
    command = [str(VERIFY), "list", "bugs"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(LISTED.findall(text))


def modes(name: str, case: str) -> tuple[str, ...]:
    if name.startswith("kl-"):
        return ("kl-sparse", "kl-warmup")
    return ("forward",) if case == "tiny-chunk" else ("backward",)


def report_of(name: str, case: str, mode: str, folder: Path) -> dict[str, Any] | None:
    """None where the bug cannot be made in this case, as that of one size alone."""
    file = folder / "mutant.safetensors"
    command = [str(VERIFY), "dump", "--quiet", "--case", case, "--mode", mode]
    command += ["--dialect", f"spec-1+{name}", "--out", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == USAGE:
        return None
    if done.returncode != 0:
        raise RuntimeError(f"{name} in {case}: exit {done.returncode}: {done.stderr.strip()}")
    words = ["--impl", "reference", "--dtype", "float32", "--candidate", str(file)]
    return verify(words, folder)


def stem(tap: str) -> str:
    """The tap without its layer, as the list of bugs has it."""
    return re.sub(r"^(grad\.)?(model\.)?layers\.\d+\.", r"\1", tap)


def margin(report: dict[str, Any], first_tap: str) -> dict[str, Any] | None:
    """The largest measured / limit of the candidate's failed checks, and at the bug's first tap.

    A rule without tolerance has no ratio: `exact` tells that one is broken. None: nothing failed.
    """
    checks = [v for v in report["verdicts"] if v["subject"]["party"] == "candidate"]
    failed = [v for v in checks if v["trust"] == "fail"]
    best: dict[str, Any] = {"ratio": -1.0, "first": -1.0, "exact": False, "failed": len(failed)}
    for verdict in failed:
        for m in verdict["measures"]:
            measured, limit = float(m["measured"]), float(m["limit"])
            best["exact"] |= limit == 0 and not measured <= 0
            ratio = measured / limit if limit > 0 else -1.0
            if stem(verdict["tap"]) == first_tap and not ratio <= best["first"]:
                best["first"] = ratio
            if not ratio <= best["ratio"]:
                best |= {"ratio": ratio, "measure": m["metric"], "tap": verdict["tap"],
                         "mode": verdict["mode"]}  # fmt: skip
    return best if failed else None


def find(name: str, first_tap: str) -> dict[str, Any]:
    """The margin in the first case that shows the bug; `case` is empty where none does."""
    for case in CASES:
        for mode in modes(name, case):
            with tempfile.TemporaryDirectory() as folder:
                report = report_of(name, case, mode, Path(folder))
            found = margin(report, first_tap) if report else None
            if found:
                return {"name": name, "case": case, "pass": mode} | found
    return {"name": name, "case": ""}


def measure(kept: Path, key: str, threads: int, end: float) -> list[dict[str, Any]]:
    """Of every listed bug; what was found with the same program is used again.

    A bug whose turn comes after `end`, of time.monotonic(), is left out.
    """
    kept.mkdir(parents=True, exist_ok=True)

    def one(bug: tuple[str, str]) -> dict[str, Any] | None:
        name, first_tap = bug
        file = kept / f"{name}.json"
        old = json.loads(file.read_text()) if file.is_file() else {}
        if old.get("key") == key or time.monotonic() > end:
            return old if old.get("key") == key else None
        found = find(name, first_tap) | {"key": key}
        file.write_text(json.dumps(found))
        return found

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return [found for found in pool.map(one, listed().items()) if found]
