"""Real transformers as candidates, as the owner of a fork runs them."""

from __future__ import annotations

import functools
import json
import subprocess
import unittest
from pathlib import Path

from program import OK, PARITY, PROGRAM, ROOT, checkpoint, clean_up, run, scratch

RELEASES = ("5.12", "5.17", "5.24")  # oldest, one between, newest
NEWEST = RELEASES[-1]
PRODUCER = "5.23"  # of the goldens: .venv-golden

tearDownModule = clean_up


@functools.cache
def dump(release: str, case: str, *words: str) -> Path:
    """The trace that this release of transformers gives."""
    out = scratch / f"{release}-{case}{'-'.join(words)}.safetensors"
    venv = ".venv-golden" if release == PRODUCER else f".venv-golden-{release}"
    python = ROOT / venv / "bin" / "python"
    command = [python, ROOT / "golden" / "dump", "--checkpoint", checkpoint(case), "--out", out]
    done = subprocess.run(
        [*map(str, command), "--mode", "backward", "--experts", "eager", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def judge(trace: Path, *words: str) -> tuple[int, dict]:
    done = run("--candidate", trace, "--json", *words)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def candidate_findings(report: dict) -> list[dict]:
    return [f for f in report["findings"] if f["subject"]["party"] == "candidate"]


class RealTransformers(unittest.TestCase):
    def expect_pass(self, trace: Path, *words: str) -> None:
        code, report = judge(trace, *words)
        self.assertEqual(code, OK, json.dumps(candidate_findings(report), indent=1))
        judged = [v for v in report["verdicts"] if v["subject"]["party"] == "candidate"]
        self.assertGreater(sum(v["trust"] == "pass" for v in judged), 100)

    def test_every_release_passes_as_spec_1(self) -> None:
        for release in RELEASES:
            with self.subTest(release):
                self.expect_pass(dump(release, "tiny-wide", "--attn", "eager"))

    def test_the_default_backend_passes(self) -> None:
        self.expect_pass(dump(NEWEST, "tiny-wide"))

    def test_yarn_passes_as_the_declared_dialect(self) -> None:
        for release in RELEASES:
            with self.subTest(release):
                self.expect_pass(dump(release, "tiny-yarn", "--attn", "eager"), "--dialect", "hf")

    def test_yarn_undeclared_is_a_finding_that_names_the_dialect(self) -> None:
        code, report = judge(dump(NEWEST, "tiny-yarn", "--attn", "eager"))
        self.assertEqual(code, PARITY)
        causes = " ".join(cause for f in candidate_findings(report) for cause in f["causes"])
        self.assertIn("matches dialect hf", causes)

    def test_bfloat16_passes_undeclared(self) -> None:
        trace = dump(NEWEST, "tiny-wide", "--attn", "eager", "--dtype", "bfloat16")
        self.expect_pass(trace)

    def test_several_candidates_are_judged_in_one_report(self) -> None:
        traces = [dump(release, "tiny-wide", "--attn", "eager") for release in RELEASES]
        words = [word for trace in traces for word in ("--candidate", str(trace))]
        done = run(*words, "--json")
        self.assertEqual(done.returncode, OK, done.stderr)
        subjects = {f["subject"]["label"] for f in candidate_findings(json.loads(done.stdout))}
        self.assertEqual(len(subjects), len(RELEASES))


if __name__ == "__main__":
    assert Path(PROGRAM).exists(), f"{PROGRAM} is not built"
    unittest.main(verbosity=2)
