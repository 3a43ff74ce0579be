"""The judge on real transformers with one bug in it: each is caught, named right or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unittest
from pathlib import Path

from planted_backward import BACKWARD
from planted_bugs import KNOWN, UNKNOWN, Bug
from program import PARITY, PROGRAM, ROOT, checkpoint, clean_up, run, scratch

PYTHON = ROOT / ".venv-golden" / "bin" / "python"
BUGS = KNOWN + UNKNOWN + BACKWARD
tearDownModule = clean_up


def make_traces(bugs: tuple[Bug, ...]) -> None:
    checkpoints = {checkpoint(bug.case).parent for bug in bugs}
    here = Path(__file__).parent
    done = subprocess.run(
        [PYTHON, here / "plant_in_transformers.py", *checkpoints, scratch],
        env=os.environ | {"PYTHONPATH": f"{here}:{ROOT / 'golden' / 'dump'}"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def names_of(defect: dict) -> list[str]:
    return defect["name"].split(" or ") if defect["name"] else []


class Diagnosed:
    """What the judge says of one bug."""

    def __init__(self, number: int, bug: Bug) -> None:
        words = ["--dialect", bug.dialect] if bug.dialect else []
        done = run("--candidate", scratch / f"{number}.safetensors", "--json", *words)
        self.code = done.returncode
        report = json.loads(done.stdout)
        self.findings = [f for f in report["findings"] if f["subject"]["party"] == "candidate"]
        self.defects = [d for f in self.findings for d in f.get("defects", [])]
        self.first = self.findings[0]["first_tap"] if self.findings else ""

    def named(self) -> list[str]:
        return [name for defect in self.defects for name in names_of(defect)]

    def told(self) -> str:
        lines = [
            f"{d['name'] or 'unexplained'}: {d['words']} {d['taps'][:3]}" for d in self.defects
        ]
        return "; ".join(lines) or f"no defect; first {self.first}"


class Planted(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        make_traces(BUGS)
        cls.seen = [Diagnosed(i, bug) for i, bug in enumerate(BUGS)]
        for bug, seen in zip(BUGS, cls.seen, strict=True):
            print(f"{bug.label:34} {seen.code} {seen.told()[:300]}", file=sys.stderr)

    def test_every_bug_is_caught(self) -> None:
        for bug, seen in zip(BUGS, self.seen, strict=True):
            with self.subTest(bug.label):
                self.assertEqual(seen.code, PARITY)

    def test_a_bug_of_the_catalogue_is_named_first(self) -> None:
        for bug, seen in zip(KNOWN, self.seen, strict=False):
            with self.subTest(bug.label):
                self.assertTrue(seen.defects, seen.told())
                self.assertIn(bug.name, names_of(seen.defects[0]), seen.told())
                self.assertEqual(len(seen.defects), 1, seen.told())

    def test_a_bug_outside_of_the_catalogue_gets_its_place_and_no_name(self) -> None:
        for bug, seen in zip(UNKNOWN, self.seen[len(KNOWN) :], strict=False):
            with self.subTest(bug.label):
                self.assertEqual(seen.named(), [], seen.told())
                stems = [tap for defect in seen.defects for tap in defect["taps"]]
                self.assertTrue(any(bug.tap in tap for tap in stems), seen.told())
                self.assertIn(bug.words, seen.told())

    def test_a_wrong_backward_pass_gets_its_op_and_layer(self) -> None:
        for bug, seen in zip(BACKWARD, self.seen[-len(BACKWARD) :], strict=True):
            with self.subTest(bug.label):
                self.assertEqual(len(seen.defects), 1, seen.told())
                defect = seen.defects[0]
                self.assertEqual(defect["name"], "")
                self.assertIn(bug.words, defect["words"])
                self.assertRegex(defect["words"], rf"\b{bug.tap}\b|residual path")
                self.assertTrue(seen.first.startswith(("dtap.", "grad.")), seen.first)


if __name__ == "__main__":
    assert Path(PROGRAM).exists(), f"{PROGRAM} is not built"
    unittest.main(verbosity=2)
