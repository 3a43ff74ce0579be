"""integrations/: the Dockerfile, the SLURM job, the pins. The Modal app: modal_test.py, ci/engines.

The Dockerfile is not built here; its list of packages and its commands after the build are tried.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

from program import OK, PROGRAM, ROOT, USAGE, run

PLACE = ROOT / "integrations"


def continued(text: str) -> str:
    return text.replace("\\\n", " ")


def debian_packages() -> set[str]:
    """What ci/setup installs for the build."""
    setup = (ROOT / "ci" / "setup").read_text()
    return set(re.search(r"packages=\(\n(.*?)\n\)", setup, re.S)[1].split())


class Docker(unittest.TestCase):
    text = continued((PLACE / "Dockerfile").read_text())
    runs = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]

    def test_the_packages_are_those_of_the_setup(self) -> None:
        words = self.runs[0].split("--no-install-recommends")[1].split("&&")[0].split()
        self.assertEqual(set(words), debian_packages())

    def test_its_commands_after_the_build_work(self) -> None:
        tried = 0
        for command in self.runs[2:]:
            words = shlex.split(command)
            self.assertEqual(words[0], "build/dsv32-verify")
            done = subprocess.run([PROGRAM, *words[1:]], cwd=ROOT, capture_output=True, text=True)
            self.assertEqual(done.returncode, OK, done.stdout + done.stderr)
            tried += 1
        self.assertEqual(tried, 2)

    def test_what_it_copies_and_calls_is_there(self) -> None:
        self.assertIn("ci/build dsv32-verify", self.runs)
        self.assertTrue((ROOT / "ci" / "build").is_file())


class Slurm(unittest.TestCase):
    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)
        made = run("weights", "make", "--case", "tiny-nopad", "--out", self.folder / "ckpt")
        self.assertEqual(made.returncode, OK, made.stderr)
        tree = self.folder / "tree"  # as a user's checkout: the program in build/
        (tree / "build").mkdir(parents=True)
        for name in ("golden", "configs", ".venv-golden"):
            (tree / name).symlink_to(ROOT / name)
        (tree / "build" / "dsv32-verify").symlink_to(PROGRAM)
        self.env = os.environ | {"DSV32": str(tree), "LOCAL": str(self.folder)}
        self.env |= {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "2"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = ["bash", PLACE / "slurm.sh", self.folder / "ckpt", *words]
        return subprocess.Popen(
            list(map(str, command)),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def left(self) -> list[Path]:
        return list(self.folder.glob("dsv32-7-*"))

    def test_a_fork_is_dumped_and_judged(self) -> None:
        job = self.start("tiny-nopad", "--attn", "eager")
        out, err = job.communicate(timeout=300)
        self.assertEqual(job.returncode, OK, out + err)
        self.assertTrue((self.folder / "report-7" / "report.json").is_file())
        self.assertEqual(self.left(), [])

    def test_the_first_failure_is_the_job_s(self) -> None:
        job = self.start("no-such-case")
        out, err = job.communicate(timeout=300)
        self.assertEqual(job.returncode, USAGE, out + err)
        self.assertFalse((self.folder / "report-7").exists())
        self.assertEqual(self.left(), [])

    def test_the_signal_before_the_end_of_the_time_is_heard(self) -> None:
        job = self.start("tiny-nopad")
        deadline = time.monotonic() + 120
        while not self.left() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        job.send_signal(signal.SIGTERM)
        out, err = job.communicate(timeout=120)
        self.assertEqual(job.returncode, 143, out + err)
        self.assertIn("time is up", err)
        self.assertEqual(self.left(), [])

    def test_it_is_a_job_of_slurm(self) -> None:
        text = (PLACE / "slurm.sh").read_text()
        first = text.index("\nset -euo")
        self.assertGreater(text[:first].count("#SBATCH --"), 5)
        self.assertNotIn("#SBATCH", text[first:])  # below the first command they are not read


class Pins(unittest.TestCase):
    def test_the_pins_of_a_fork_are_those_that_are_tested(self) -> None:
        locked = (ROOT / "ci" / "requirements.txt").read_text()
        pins = (PLACE / "requirements-fork.txt").read_text()
        for name in ("torch", "numpy", "safetensors"):
            pin = re.search(rf"^{name}==\S+", pins, re.M)[0]
            self.assertRegex(locked, rf"(?m)^{re.escape(pin)} ")
        self.assertNotRegex(pins, r"@(main|master|HEAD)")
        release = re.search(r"transformers@v(\S+)", pins)[1]
        own = (ROOT / "golden" / "requirements.in").read_text()
        self.assertIn(f"transformers=={release}", own)


if __name__ == "__main__":
    unittest.main()
