"""dsv32-verify on Modal: a GPU node for an hour, from a laptop.

    modal run --detach integrations/modal_app.py --case tiny-wide        # our own models
    modal run --detach integrations/modal_app.py --fork FORK@COMMIT      # a fork of transformers

`--detach` keeps the run going when the laptop sleeps. Reports land in the volume `dsv32-reports`:
`modal volume get dsv32-reports NAME`.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

import modal

ROOT = Path(__file__).resolve().parents[1]
PLACE = "/opt/dsv32-verify"
MINUTE, HOUR = 60, 3600
# A fork of transformers by commit, never by branch: a branch is another program tomorrow.
FORK = os.environ.get("DSV32_FORK", "git+https://github.com/huggingface/transformers@v5.23.0")

app = modal.App("dsv32-verify")

image = (
    modal.Image.debian_slim(python_version="3.11")
    # The compiler and the libraries of ci/setup; the CUDA toolkit is in the locked wheels.
    .apt_install(
        *"g++ git ca-certificates python3 python3-venv ccache nlohmann-json3-dev libhdf5-dev "
        "libspdlog-dev libcli11-dev libgtest-dev libbenchmark-dev librandom123-dev "
        "libboost-context-dev libgloo-dev".split()
    )
    .add_local_dir(ROOT, PLACE, copy=True, ignore=[".git", ".venv*", "build*", ".ccache"])
    .run_commands(f"cd {PLACE} && ci/build dsv32-verify")
    # Packages that compile kernels look for a GPU while they are built: give the build one.
    .run_commands(
        f"{PLACE}/.venv/bin/pip install 'packaging' 'wheel' 'setuptools<81'",
        f"{PLACE}/.venv/bin/pip install --no-build-isolation fast-hadamard-transform || "
        "echo 'no fast-hadamard-transform: golden/dump puts plain torch in its place'",
        gpu="H100",
    )
    .run_commands(f"{PLACE}/.venv/bin/pip install '{FORK}'")
    .env({"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"})
)

reports = modal.Volume.from_name("dsv32-reports", create_if_missing=True)
# Version 2 for checkpoints: many large files, written by several containers.
weights = modal.Volume.from_name("dsv32-weights", create_if_missing=True, version=2)
# Only where a checkpoint is fetched: modal secret create huggingface HF_TOKEN=...
SECRETS = [modal.Secret.from_name(name) for name in os.environ.get("DSV32_SECRETS", "").split()]


@contextmanager
def heartbeat(what: str) -> Iterator[None]:
    """One line a minute, so that nobody takes a long layer for a dead container."""
    done = threading.Event()

    def beat() -> None:
        start = time.monotonic()
        while not done.wait(MINUTE):
            print(f"{what}: {(time.monotonic() - start) / MINUTE:.0f} min", flush=True)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def local_copy(folder: str) -> str:
    """The checkpoint on the container's own disk: a volume is read once, in order, not by pages."""
    copy = f"{gettempdir()}/{Path(folder).name}"
    subprocess.run(["cp", "-r", folder, copy], check=True)
    return copy


def verify(*words: str) -> int:
    return subprocess.run([f"{PLACE}/build/dsv32-verify", *words], cwd=PLACE).returncode


@app.function(
    image=image,
    gpu="H100",
    timeout=2 * HOUR,
    memory=64 * 1024,
    volumes={"/reports": reports, "/weights": weights},
    secrets=SECRETS,
)
def judge(case: str, direct: bool = False) -> int:
    """Dumps the fork in the image and judges it; returns the judge's exit code."""
    checkpoint, trace = f"/weights/{case}", f"{gettempdir()}/fork.safetensors"
    verify("doctor", "--config", "tiny")
    if not Path(checkpoint).exists():
        verify("weights", "make", "--case", case, "--out", checkpoint)
        weights.commit()
    where = checkpoint if direct else local_copy(checkpoint)
    with heartbeat(f"dump {case}"):
        python, dump = f"{PLACE}/.venv/bin/python", f"{PLACE}/golden/dump"
        words = ["--checkpoint", where, "--case", case, "--mode", "backward", "--out", trace]
        subprocess.run([python, dump, *words], check=True)
    with heartbeat(f"judge {case}"):
        code = verify("--candidate", trace, "--out", f"/reports/{case}")
    reports.commit()
    return code


@app.local_entrypoint()
def main(case: str = "tiny-wide", direct: bool = False) -> None:
    """direct: read the checkpoint from the volume itself, without the local copy."""
    raise SystemExit(judge.remote(case, direct))
