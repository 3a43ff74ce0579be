"""Training suites on the command line. ctest: `self_cli_training`."""

from __future__ import annotations

import json
import shutil
import unittest
from pathlib import Path

from cli_program import (
    ARTEFACT,
    NOTHING,
    OK,
    ROOT,
    USAGE,
    CliTest,
    clean_up,
    environment,
    run,
    scratch,
)

tearDownModule = clean_up


class Training(CliTest):
    suite = ("--suite", "sft_frozen_indexer")

    def home(self, name: str) -> Path:
        """A copy of the project's own files, to be damaged."""
        home = scratch / name
        shutil.copytree(ROOT / "configs", home / "configs")
        (home / "golden" / "data").mkdir(parents=True)
        return home

    def test_a_training_suite_alone(self) -> None:
        texts = []
        for _ in range(2):
            done = run(*self.suite, "--config", "tiny", "--json")
            self.ended(done, OK)
            report = json.loads(done.stdout)
            timing = report.pop("timing")
            texts.append(json.dumps(report))
            key = "tiny-wide sft_frozen_indexer"
            for name in (key, f"{key} tokens per second", f"{key} peak memory GiB"):
                self.assertGreater(timing[name], 0)
        self.assertEqual(*texts)
        self.assertEqual(report["cases"], ["tiny-wide"])
        self.assertEqual({v["suite"] for v in report["verdicts"]}, {"sft_frozen_indexer"})
        subjects = {v["subject"] for v in report["verdicts"]}
        self.assertEqual(subjects, {"golden", "reference float32"})
        self.assertIn("loss of the last cycle", {f["name"] for f in report["figures"]})

    def test_one_check_of_a_suite(self) -> None:
        done = run(*self.suite, "-k", "sft_frozen_indexer/golden/step 7 loss", "--json")
        self.ended(done, OK)
        self.assertEqual([v["tap"] for v in json.loads(done.stdout)["verdicts"]], ["step 7 loss"])

    def test_a_suite_beside_the_model(self) -> None:
        done = run("--suite", "forward,sft_frozen_indexer", "--case", "tiny-wide", "--json")
        self.ended(done, OK)
        suites = {v["suite"] for v in json.loads(done.stdout)["verdicts"]}
        self.assertEqual(suites, {"", "sft_frozen_indexer"})

    def test_a_case_that_the_suite_does_not_have(self) -> None:
        self.refused(run(*self.suite, "--case", "tiny"), USAGE, "tiny-wide")
        self.refused(run(*self.suite, "--config", "medium"), USAGE, "small-train")

    def test_a_missing_golden_is_not_green(self) -> None:
        home = self.home("no-golden")
        (home / "golden" / "data" / "manifest.json").write_bytes(
            (ROOT / "golden" / "data" / "manifest.json").read_bytes())
        done = run(*self.suite, env=environment(DSV32_HOME=str(home)))
        self.ended(done, NOTHING)
        self.assertIn("MISSING", done.stdout)
        self.assertIn("golden file sft_frozen_indexer.tiny-wide", done.stdout)

    def test_a_damaged_golden_is_refused(self) -> None:
        home = self.home("damaged-golden")
        for path in (ROOT / "golden" / "data").glob("*"):
            shutil.copy(path, home / "golden" / "data")
        path = home / "golden" / "data" / "sft_frozen_indexer.tiny-wide.h5"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        done = run(*self.suite, env=environment(DSV32_HOME=str(home)))
        self.refused(done, ARTEFACT, "sft_frozen_indexer.tiny-wide")


if __name__ == "__main__":
    unittest.main(verbosity=2)
