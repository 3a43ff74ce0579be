"""dsv32-publish: a report to a tracker. The real trackers are tried by ci/engines (trackers_test).

ctest: `golden.publish`.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import textwrap
import unittest
from pathlib import Path
from unittest import mock

import dsv32_publish as publish
from program import ARTEFACT, ENVIRONMENT, OK, PARITY, PROGRAM, USAGE, clean_up, run, scratch

tearDownModule = clean_up
SCRIPT = Path(publish.__file__)


class FakeWandb:
    """The parts of wandb that are used, and what they were told."""

    def __init__(self) -> None:
        self.logged, self.axes, self.files = [], {}, []
        self.summary, self.config = {}, {}
        self.Settings = lambda **words: words

    def init(self, **words: object) -> FakeWandb:
        self.words = words
        return self

    def define_metric(self, name: str, step_metric: str = "") -> None:
        self.axes[name] = step_metric

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def Artifact(self, name: str, type: str) -> FakeWandb:  # noqa: N802
        return self

    def add_file(self, path: str) -> None:
        self.files.append(Path(path).name)

    def log_artifact(self, artifact: object) -> None:
        self.files.append("logged")

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class PublishTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = scratch / "report"
        done = run("--case", "tiny-wide", "--suite", "forward,loss_descent", "--impl", "reference",
                   "--dtype", "float32", "--out", cls.folder)  # fmt: skip
        assert done.returncode == OK, done.stderr
        cls.file = cls.folder / "report.json"
        cls.report = json.loads(cls.file.read_text())

    def say(self, code: int, *words: object) -> tuple[str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                got = publish.main(list(map(str, words)))
            except SystemExit as end:
                got = end.code
        self.assertEqual(got, code, err.getvalue())
        return out.getvalue(), err.getvalue()

    def told(self, *words: object, code: int = OK) -> FakeWandb:
        """What wandb heard."""
        fake = FakeWandb()
        with mock.patch.dict(sys.modules, {"wandb": fake}):
            self.say(code, *words)
        return fake

    def test_layers_and_steps_are_axes(self) -> None:
        out, _ = self.say(OK, self.file, "--to", "jsonl")
        points = [p for p in map(json.loads, out.splitlines()) if "name" in p]
        by_name: dict[str, list] = {}
        for point in points:
            by_name.setdefault(point["name"], []).append((point["axis"], point["index"]))
        hidden = by_name["tiny-wide/golden/forced/hidden/of limit"]
        self.assertEqual(hidden, [("layer", 0), ("layer", 1)])
        loss = by_name["tiny-wide/loss_descent/reference float32/free/curve.loss/values"]
        self.assertEqual(loss, [("step", n) for n in range(50)])
        self.assertIn(("", 0), by_name["verdict/pass"])
        self.assertIn(("", 0), by_name["cost/tiny-wide/loss_descent/peak_gib"])

    def test_the_numbers_are_those_of_the_report(self) -> None:
        points = {(p.name, p.index): p.value for p in publish.points_of(self.report)}
        for verdict in self.report["verdicts"]:
            if verdict["tap"] == "layers.1.attn.ctx" and verdict["mode"] == "forced":
                label = verdict["subject"]["label"]
                share = max(m["measured"] / m["limit"] for m in verdict["measures"])
                name = f"tiny-wide/{label}/forced/attn.ctx"
                self.assertEqual(points[f"{name}/of limit", 1], share)
                self.assertEqual(points[f"{name}/relative", 1], verdict["plain"]["relative"])
        self.assertEqual(points["verdict/pass", 0], self.report["counts"]["pass"])

    def test_a_broken_rule_and_a_nan_are_no_quotients(self) -> None:
        def measures(*pairs: tuple) -> dict:
            return {"measures": [{"measured": a, "limit": b} for a, b in pairs]}

        self.assertEqual(publish.used(measures((3, 0), (1, 2))), 3)
        self.assertTrue(math.isnan(publish.used(measures((1, 2), ("nan", 2)))))
        self.assertEqual(publish.used(measures(("inf", 2))), math.inf)
        self.assertIsNone(publish.used(measures()))

    def test_wandb_gets_axes_artefact_and_verdict(self) -> None:
        fake = self.told(self.file, "--to", "wandb", "--offline", "--project", "p", "--name", "n")
        self.assertEqual((fake.words["project"], fake.words["name"]), ("p", "n"))
        self.assertEqual(fake.words["mode"], "offline")
        name = "tiny-wide/golden/forced/hidden/of limit"
        self.assertEqual(fake.axes[name], "axis/layer")
        self.assertEqual([row["axis/layer"] for row in fake.logged if name in row], [0, 1])
        self.assertEqual(fake.files, ["report.json", "report.html", "report.md", "junit.xml",
                                      "logged"])  # fmt: skip
        self.assertIn("golden", fake.summary["headlines"])
        self.assertEqual(fake.config["command"], self.report["command"])
        self.assertEqual(fake.exit_code, 0)

    def test_a_command_is_followed(self) -> None:
        """A program that takes its time, with a streamed run's heartbeat, and a red report."""
        out = scratch / "slow"
        out.mkdir()
        text = f"""
            import json, pathlib, sys, time
            out, beat = pathlib.Path({str(out)!r}), {{"segments_done": 3, "case": "full"}}
            (out / "heartbeat.json").write_text(json.dumps(beat))
            time.sleep(1)
            report = json.loads(pathlib.Path({str(self.file)!r}).read_text())
            (out / "report.json").write_text(json.dumps(report | {{"exit_code": 1}}))
            sys.exit(1)
        """
        command = [sys.executable, "-c", textwrap.dedent(text), "--out", out]
        fake = self.told("--to", "wandb", "--every", "0.2", "--", *command, code=PARITY)
        beats = [row for row in fake.logged if "run/seconds" in row]
        self.assertGreaterEqual(len(beats), 2)
        self.assertEqual(beats[-1]["run/segments_done"], 3)
        self.assertEqual(fake.summary["verdict/exit code"], 1)
        self.assertEqual(fake.exit_code, 1)

    def test_the_program_itself_is_followed(self) -> None:
        words = ["--case", "tiny", "--impl", "reference", "--out", scratch / "followed"]
        fake = self.told("--to", "wandb", "--", PROGRAM, *words)
        self.assertIn("tiny/golden/forced/hidden/of limit", fake.axes)

    def test_an_old_report_is_not_taken_for_a_new_one(self) -> None:
        words = ["--", sys.executable, "-c", "raise SystemExit(6)", "--out", self.folder]
        out, err = self.say(ENVIRONMENT, "--to", "jsonl", *words)
        self.assertIn("expected one of this run, got exit 6", err)
        self.assertEqual(out, "")

    def test_a_missing_package_is_named(self) -> None:
        with mock.patch.dict(sys.modules, {"wandb": None}):
            _, err = self.say(ENVIRONMENT, self.file, "--to", "wandb")
        self.assertIn("--to wandb: package wandb: expected it to import, got ", err)
        self.assertIn("pip install wandb", err)

    def test_what_is_no_report_is_refused(self) -> None:
        other = scratch / "other.json"
        for text in ("{", "[]", '{"format": "x"}', json.dumps(self.report | {"schema_version": 3})):
            other.write_text(text)
            _, err = self.say(ARTEFACT, other, "--to", "jsonl")
            self.assertRegex(err, r"error: .+: expected .+, got .+")
        self.say(ARTEFACT, scratch / "none.json", "--to", "jsonl")
        self.say(USAGE, self.file, "--to", "tensorboard")
        self.say(USAGE, "--to", "jsonl")
        self.say(USAGE, self.file, "--to", "jsonl", "--every", "0")
        self.say(USAGE, self.file, "--to", "jsonl", "--", "true")
        self.say(USAGE, "--to", "jsonl", "--", "true")

    def test_nothing_else_is_imported(self) -> None:
        command = [sys.executable, "-X", "importtime", SCRIPT, self.file, "--to", "jsonl"]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
        self.assertEqual(done.returncode, OK, done.stderr[-2000:])
        for name in ("torch", "numpy", "wandb", "safetensors"):
            self.assertNotRegex(done.stderr, rf"(?m)\| +{name}$")


if __name__ == "__main__":
    unittest.main(verbosity=2)
