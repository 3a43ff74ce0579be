"""Real mlx-lm as a candidate: what docs/trace-kit.md 5 says of it. Run by ci/engines."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from program import OK, PARITY, ROOT, run

CASES = ("tiny", "tiny-wide", "tiny-nopad", "tiny-square", "tiny-dense", "tiny-short7",
         "tiny-chunk", "tiny-yarn")  # fmt: skip

scratch = tempfile.TemporaryDirectory(prefix="dsv32-mlx-")
folder = Path(scratch.name)


def judged(case: str, *words: str) -> tuple[int, list[dict]]:
    """Exit code and the candidate's findings for a run of mlx-lm."""
    ckpt, out = folder / case, folder / f"{case}.safetensors"
    if not ckpt.exists():
        made = run("weights", "make", "--case", case, "--out", ckpt)
        assert made.returncode == OK, made.stderr
    engine = ROOT / "integrations" / "engines" / "mlx_engine.py"
    backward = () if case == "tiny-chunk" else ("--backward",)
    subprocess.run([sys.executable, engine, ckpt, out, *backward, *words], check=True)
    dialect = ("--dialect", "hf") if case == "tiny-yarn" else ()
    done = run("--candidate", out, "--json", *dialect)
    findings = json.loads(done.stdout)["findings"]
    return done.returncode, [f for f in findings if f["subject"]["party"] == "candidate"]


def causes(findings: list[dict]) -> str:
    return json.dumps([finding["causes"] for finding in findings])


class Mlx(unittest.TestCase):
    def test_the_eps_of_the_k_norm_is_named(self) -> None:
        for case in CASES:
            code, findings = judged(case)
            self.assertEqual(code, PARITY, case)
            self.assertIn("k-norm-eps", causes(findings), case)

    def test_with_the_right_eps_it_passes(self) -> None:
        for case in CASES:
            code, findings = judged(case, "--k-norm-eps", "1e-6")
            self.assertEqual(code, OK, f"{case}: {findings}")

    def test_the_fill_of_excluded_groups_is_named(self) -> None:
        code, findings = judged("tiny-bias", "--k-norm-eps", "1e-6")
        self.assertEqual(code, PARITY)
        self.assertIn("group-fill-zero", causes(findings))
        self.assertNotIn("k-norm-eps", causes(findings))


if __name__ == "__main__":
    unittest.main()
