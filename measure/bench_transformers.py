"""Time and memory of transformers' own model on one case, for bench.py.

bench_transformers.py CASE keep|drop    resident bytes of one pass in float32, as JSON
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from calibration.live import reseed
from dsv32_dump.load import import_transformers
from synthetic import Case, load_cases, make_batch

PASSES = ("forward", "forward and backward")


@dataclasses.dataclass
class Times:
    """Seconds of one implementation in one dtype and pass, on the clock and of all processors."""

    clock: list[float] = dataclasses.field(default_factory=list)
    work: list[float] = dataclasses.field(default_factory=list)
    loss: float = 0.0

    def add(self, clock: float, work: float, loss: float) -> None:
        self.clock.append(clock)
        self.work.append(work)
        self.loss = loss

    def extend(self, other: Times) -> None:
        self.clock += other.clock
        self.work += other.work
        self.loss = other.loss

    def beside(self, other: Times, measure: str) -> list[str]:
        """Cells of the table: medians, their quotient, runs, losses."""
        a, b = (statistics.median(getattr(times, measure)) for times in (self, other))
        cells = [f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}x", str(len(self.clock))]
        return [*cells, f"{self.loss:.6f}, {other.loss:.6f}"]


def release() -> str:
    return import_transformers().__version__


def live_model(case: Case, dtype: str) -> torch.nn.Module:
    """transformers' own model with the case's weights."""
    transformers = import_transformers()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(case.config))
        config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=getattr(torch, dtype)
    )
    model.set_experts_implementation("eager")
    reseed(model, case)
    return model


def live_batch(case: Case) -> dict[str, Any]:
    return {name: torch.from_numpy(value) for name, value in make_batch(case).items()}


def run(model: torch.nn.Module, batch: dict[str, Any], backward: bool) -> float:
    model.train(backward)
    with torch.set_grad_enabled(backward):
        loss = model(**batch, use_cache=False).loss
        if backward:
            loss.backward()
    return float(loss.detach())


def time_transformers(case: Case, dtype: str, repetitions: int) -> dict[str, Times]:
    model, batch = live_model(case, dtype), live_batch(case)
    found = {name: Times() for name in PASSES}
    for name, times in found.items():
        for number in range(repetitions + 1):
            model.zero_grad(set_to_none=True)
            start, work = time.perf_counter(), time.process_time()
            loss = run(model, batch, name != "forward")
            if number > 0:  # the first run allocates
                times.add(time.perf_counter() - start, time.process_time() - work, loss)
    return found


def status_bytes(field: str) -> int:
    """A line of this process's status: VmRSS, or VmHWM, the peak of VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def reset_peak() -> None:
    """What is resident is what is in use; the peak starts from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


def peak(case: Case, keeps: bool) -> dict[str, int]:
    run(live_model(load_cases()["tiny"], "float32"), live_batch(load_cases()["tiny"]), True)
    model, batch = live_model(case, "float32"), live_batch(case)
    if not keeps:
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(drop_gradient)
    reset_peak()
    before = status_bytes("VmRSS")
    run(model, batch, True)
    sizes = {"before": before, "peak": status_bytes("VmHWM")}
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    for name, tensors in (("weights", model.parameters()), ("gradients", gradients)):
        sizes[name] = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return sizes


def memory_of_transformers(case: Case, gradients: str) -> dict[str, int]:
    """`peak` in a process of its own; gradients: keep or drop."""
    command = [sys.executable, __file__, case.name, gradients]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    torch.set_num_threads(os.cpu_count() or 1)
    print(json.dumps(peak(load_cases()[sys.argv[1]], keeps=sys.argv[2] == "keep")))
