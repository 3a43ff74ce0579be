"""--layers and --dry-run: a few layers of any size, and what they would take. ctest: `self_cli_layers`."""

from __future__ import annotations

import json
import subprocess
import unittest

from program import ENVIRONMENT, OK, PROGRAM, USAGE, CliTest, environment, run


class Layers(CliTest):
    def report_of(self, *words: object) -> dict:
        done = run(*words, "--device", "cpu", "--json")
        self.ended(done, OK)
        return json.loads(done.stdout)

    def test_words_that_make_no_sense(self) -> None:
        rows = {"": "empty value", ",": "empty word", "0,": "empty word", "0,0": "repeated word",
                "embed,embed": "repeated word", "61": "layer out of range", "-1": "--layers",
                "all": "word", "0-3": "word", "1e1": "word"}
        for words, said in rows.items():
            for more in ((), ("--dry-run",)):
                with self.subTest(words=words, more=more):
                    done = run("--case", "full", f"--layers={words}", *more)
                    self.refused(done, USAGE, said)
        self.refused(run("--case", "tiny", "--layers", "2"), USAGE, "0 to 1")
        self.refused(run("--case", "nope", "--layers", "0"), USAGE, "nope")
        self.refused(run("--case", "tiny", "--layers", "0", "--suite", "backward"), USAGE,
                     "not in this version")

    def test_layers_of_a_small_case(self) -> None:
        report = self.report_of("--case", "tiny-wide", "--layers", "1,head")
        self.assertEqual({v["trust"] for v in report["verdicts"]}, {"pass", "skipped"})
        names = {v["tap"] for v in report["verdicts"]}
        self.assertIn("layers.1.moe.routed", names)
        self.assertIn("loss.lm", names)
        self.assertFalse([n for n in names if n.startswith("layers.0.") or n == "embed"])
        self.assertTrue(any("layer 1, head" in line for line in report["not_tested"]))

    def test_equal_runs_give_equal_reports(self) -> None:
        def text(*more: object) -> dict:
            report = self.report_of("--case", "small", "--layers", "3", "--dtype", "float32", *more)
            del report["timing"]
            return report

        self.assertEqual(text(), text())

    def test_a_dry_run_says_what_it_takes(self) -> None:
        done = run("--config", "full", "--dry-run")
        self.ended(done, OK)
        self.assertRegex(done.stdout, r"layer 60 mlp +1\.1\de\+10 ")
        self.assertRegex(done.stdout, r"about [\d.]+ (min|h|days) on \d+ cores")
        few = run("--config", "full", "--layers", "0,3,60", "--dry-run")
        self.ended(few, OK)
        self.assertEqual(few.stdout.count("attention"), 3)
        self.assertNotIn("embed", few.stdout)
        self.ended(run("--case", "tiny", "--dry-run"), OK)

    def test_what_does_not_fit_is_refused(self) -> None:
        for words in ("--case full", "--case full --layers 3"):
            done = subprocess.run(["bash", "-c", f'ulimit -v 4000000; exec "$0" {words}', PROGRAM],
                                  env=environment(), capture_output=True, text=True, timeout=60,
                                  check=False)
            self.refused(done, ENVIRONMENT, "case full: memory")
            self.assertIn("one segment is held at a time", done.stderr)


if __name__ == "__main__":
    unittest.main()
