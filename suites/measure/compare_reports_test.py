"""measure/compare_reports.py on reports of a few lines. ctest: `self_compare_reports`."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "measure" / "compare_reports.py"
WEIGHT = "model.layers.0.self_attn.q_a_proj.weight"


def verdict(tap: str, suite: str = "", subject: object = "golden", mode: str = "forced") -> dict:
    measure = {"metric": "relative", "measured": 0.12341, "limit": 1, "basis": "a reason"}
    return {
        "case": "tiny", "suite": suite, "subject": subject, "tap": tap, "mode": mode,
        "trust": "pass", "checked": 3, "measures": [measure],
    }  # fmt: skip


def report(*verdicts: dict, version: int = 2) -> dict:
    return {
        "schema_version": version, "exit_code": 0, "verdicts": list(verdicts), "findings": [],
        "figures": [{"case": "tiny", "suite": "sharded", "name": "final loss", "value": 4.21}],
    }  # fmt: skip


def new(tap: str, suite: str = "", label: str = "golden", mode: str = "forced") -> dict:
    subject = {"party": "golden", "label": label, "against": "oracle"}
    return verdict(tap, suite, subject, mode)


class CompareReports(unittest.TestCase):
    def run_on(self, a: dict, b: dict, expected: str | None = None) -> tuple[int, list[str]]:
        with tempfile.TemporaryDirectory() as folder:
            words = []
            for name, value in (("a", a), ("b", b)):
                path = Path(folder) / f"{name}.json"
                path.write_text(json.dumps(value))
                words.append(str(path))
            if expected is not None:
                (Path(folder) / "expected").write_text(expected)
                words += ["--expected", str(Path(folder) / "expected")]
            done = subprocess.run(
                [sys.executable, str(TOOL), *words], capture_output=True, text=True, check=False
            )
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout.splitlines()

    def test_equal_reports(self) -> None:
        both = report(verdict("embed"), verdict("step 7 loss", "sharded"))
        self.assertEqual(self.run_on(both, both), (0, ["2 checks, 0 differences, 0 expected"]))

    def test_names_of_the_older_schema(self) -> None:
        rows = [
            (verdict("step 7 loss", "sharded"), new("step.7.loss", "sharded")),
            (verdict("step 7 update lm", "sharded"), new("step.7.updates.lm", "sharded")),
            (verdict(f"step 0 grad.{WEIGHT}", "sharded"), new(f"step.0.grad.{WEIGHT}", "sharded")),
            (verdict(f"param {WEIGHT}", "sharded"), new(f"end.param.{WEIGHT}", "sharded")),
            (verdict("train.loss", "loss_descent"), new("curve.loss", "loss_descent")),
            (verdict("train.loss", "loss_descent", "reference float32"),
             new("steps.loss", "loss_descent", "reference float32")),
            (verdict("train.loss", "loss_descent", "reference float32", "free"),
             new("curve.loss", "loss_descent", "reference float32", "free")),
            (verdict(f"grad.{WEIGHT}", "dual_lora"), new(f"grad.{WEIGHT}", "dual_lora")),
            (verdict(f"grad.{WEIGHT}", "dual_lora", "optimized float32"),
             new(f"steps.grad.{WEIGHT}", "dual_lora", "optimized float32")),
            (verdict(f"grad.{WEIGHT}", "indexer_kl", "reference float32, joint"),
             new(f"grad.{WEIGHT}", "indexer_kl", "reference float32, joint")),
            (verdict(f"param.{WEIGHT}", "indexer_kl", "reference float32, joint, step by step"),
             new(f"steps.update.{WEIGHT}", "indexer_kl", "reference float32, joint, step by step")),
            (verdict("step 1 kl", "loss_descent", "candidate f vs golden"),
             new("step.1.kl", "loss_descent", "candidate f")),
            (verdict("logits"), new("logits")),
        ]  # fmt: skip
        for old_row, new_row in rows:
            with self.subTest(old_row["tap"]):
                code, lines = self.run_on(report(old_row), report(new_row, version=3))
                self.assertEqual((code, len(lines)), (0, 1), lines)

    def test_what_is_on_one_side_only(self) -> None:
        code, lines = self.run_on(report(verdict("embed")), report(verdict("logits")))
        self.assertEqual(code, 1)
        self.assertEqual(lines[:2], ["only in A: tiny/golden/embed (forced)",
                                     "only in B: tiny/golden/logits (forced)"])  # fmt: skip

    def test_a_check_that_is_there_twice(self) -> None:
        code, lines = self.run_on(report(verdict("embed"), verdict("embed")),
                                  report(verdict("embed")))  # fmt: skip
        self.assertEqual((code, lines[0]), (1, "only in A: tiny/golden/embed (forced)"))

    def test_what_differs(self) -> None:
        before = report(verdict("embed"))
        changes = {
            "verdict: pass -> fail": lambda v: v.update(trust="fail"),
            "checked: 3 -> 4": lambda v: v.update(checked=4),
            "relative: 0.123 of 1 -> 0.124 of 1": lambda v: v["measures"][0].update(measured=0.124),
            "relative: 0.123 of 1 -> 0.123 of 2": lambda v: v["measures"][0].update(limit=2),
            "relative: 0.123 of 1 -> nan of 1": lambda v: v["measures"][0].update(measured="nan"),
            "relative: 0.123 of 1 -> none": lambda v: v["measures"].clear(),
        }
        for said, change in changes.items():
            after = copy.deepcopy(before)
            change(after["verdicts"][0])
            with self.subTest(said):
                code, lines = self.run_on(before, after)
                line = f"differs: tiny/golden/embed (forced): {said}"
                self.assertEqual((code, lines[0]), (1, line))

    def test_what_is_not_printed_does_not_differ(self) -> None:
        before, after = report(verdict("embed")), report(verdict("embed"))
        after["verdicts"][0]["measures"][0] |= {"measured": 0.12344, "basis": "other words"}
        self.assertEqual(self.run_on(before, after)[0], 0)

    def test_findings_figures_and_exit_code(self) -> None:
        before, after = report(), report()
        after["exit_code"] = 1
        after["figures"][0]["value"] = 4.22
        finding = {"case": "tiny", "suite": "", "subject": "golden", "fault": "golden"}
        after["findings"] = [finding]
        self.assertEqual(self.run_on(before, after)[1][:3], [
            "differs: exit code: exit code: 0 -> 1",
            "differs: tiny/sharded/final loss (figure): value: 4.21 -> 4.22",
            "only in B: tiny/golden (finding)",
        ])  # fmt: skip

    def test_expected_differences(self) -> None:
        before, after = report(verdict("embed")), report()
        line = "only in A: tiny/golden/* (forced)"
        self.assertEqual(self.run_on(before, after, f"# why\n\n{line}\n")[0], 0)
        code, lines = self.run_on(before, before, line)
        self.assertEqual((code, lines[0]), (1, f"expected, but not found: {line}"))
        self.assertEqual(self.run_on(before, after, "only in B: *")[0], 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
