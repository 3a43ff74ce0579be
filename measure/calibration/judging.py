"""dsv32-verify on a chunk of trace files, and what is kept of its report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from synthetic import ROOT

from calibration.plan import LARGE, Chunk

VERIFY = Path(os.environ.get("DSV32_VERIFY", ROOT / "build" / "dsv32-verify"))
FAMILIES = {
    "attn.logits": "rows over keys",
    "attn.probs": "rows over keys",
    "ix.scores": "rows over keys",
    "kl.target": "rows over keys",
    "kl.student": "rows over keys",
    "loss.lm": "scalar",
    "loss.kl": "scalar",
    "topk": "topk",
    "router.experts": "experts",
}


def verify(words: list[str], folder: Path) -> dict[str, Any]:
    """The report of one call. Throws RuntimeError when there is none."""
    command = [str(VERIFY), "--quiet", "--json", "--no-cache", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1, 5):
        raise RuntimeError(f"{VERIFY.name}: exit {done.returncode}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def judge(chunk: Chunk, folder: Path, own: bool = True) -> dict[str, Any]:
    """The report on the chunk's files; own: our models run beside them, where that is cheap."""
    words = ["--impl", "reference", "--dtype", "float32"]
    if own and chunk.case != LARGE:
        simt = ",optimized-simt" if chunk.source.simt else ""
        words = ["--impl", f"reference,optimized{simt}", "--dtype", "float32,bfloat16"]
    if chunk.source.declared(chunk.case):
        words += ["--dialect", chunk.source.declared(chunk.case)]
    for seed in chunk.seeds:
        words += ["--candidate", f"{seed}.safetensors"]
    return verify(words, folder)


def family(tap: str) -> str:
    if tap.startswith("grad."):
        return "gradient"
    short = tap.split(".", 2)[2] if tap.startswith("layers.") else tap
    return FAMILIES.get(short, "token, key rows")


def distil(chunk: Chunk, report: dict[str, Any]) -> dict[str, Any]:
    """Of each subject and kind of measure the largest; every verdict that is not a pass."""
    seeds = {v["case"]: _seed(v["subject"]["label"]) for v in report["verdicts"]
             if v["subject"]["party"] == "candidate"}  # fmt: skip
    subjects, largest, alarms = set(), {}, []
    for verdict in report["verdicts"]:
        name, dtype = subject_of(chunk, verdict["subject"])
        place = f"{chunk.case} seed {seeds.get(verdict['case'], 0)} {verdict['tap']}"
        subjects.add((name, dtype, verdict["case"]))
        if verdict["trust"] not in ("pass", "skipped"):
            alarms.append({"subject": name, "dtype": dtype, "text": describe(verdict, place)})
        for m in verdict["measures"]:
            measured, limit = float(m["measured"]), float(m["limit"])
            if limit == 0 or verdict["mode"] == "exact":
                continue
            key = (name, verdict["mode"], family(verdict["tap"]), dtype, m["metric"])
            if not measured / limit <= largest.get(key, (-1.0,))[0]:
                largest[key] = (measured / limit, measured, limit, place)
    counts: dict[str, int] = {}
    for name, dtype, _ in subjects:
        counts[f"{name}|{dtype}"] = counts.get(f"{name}|{dtype}", 0) + 1
    return {"largest": [[*k, *v] for k, v in largest.items()], "alarms": alarms, "runs": counts}


def subject_of(chunk: Chunk, subject: dict[str, str]) -> tuple[str, str]:
    """Source and dtype of a judged party: the chunk's, or one of our own."""
    if subject["party"] == "candidate":
        return chunk.source.name, chunk.source.dtype
    implementation, _, dtype = subject["label"].partition(" ")
    names = {"optimized": "our optimized model", "optimized-simt": "our kernels in the executor"}
    return names.get(implementation, f"our {implementation}"), dtype


def describe(verdict: dict[str, Any], place: str) -> str:
    beyond = [
        f"{m['metric']} {float(m['measured']):.3g} > {float(m['limit']):.3g}"
        for m in verdict["measures"]
        if not float(m["measured"]) <= float(m["limit"])
    ]
    return f"{place} ({verdict['mode']}): {verdict['trust']}: {', '.join(beyond)}"


def keep_alarms(chunk: Chunk, alarms: list[dict[str, str]], folder: Path, kept: Path) -> None:
    """The files of the seeds with an alarm stay, to be looked at."""
    kept.mkdir(parents=True, exist_ok=True)
    for seed in chunk.seeds:
        if any(f" seed {seed} " in alarm["text"] for alarm in alarms):
            shutil.copy(folder / f"{seed}.safetensors", kept / f"{chunk.name}-{seed}.safetensors")


def _seed(subject: str) -> int:
    return int(subject.removeprefix("candidate ").removesuffix(".safetensors"))
