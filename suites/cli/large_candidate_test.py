"""Beside a large candidate nothing is judged that depends on the program alone.

ctest: `self_cli_large_candidate`. The case is the smallest that counts as large: one layer of the
config small.
"""

from __future__ import annotations

import json
import unittest

from program import OK, CliTest, clean_up, environment, run, scratch

CASE = json.dumps({"config": "small", "seed": 1, "B": 1, "S": 544,
                   "overrides": {"num_hidden_layers": 1, "first_k_dense_replace": 0,
                                 "vocab_size": 512},
                   "pad": 0, "bias_offset": 0, "chunks": []})
FILE = scratch / "large.safetensors"
LAYERS = 1
KNOWN = "golden and own models of "

tearDownModule = clean_up


def setUpModule() -> None:
    made = run("dump", "--impl", "optimized", "--case", CASE, "--mode", "forward", "--out", FILE)
    assert made.returncode == OK, made.stderr


def known(report: dict) -> list[str]:
    """What the report says of an earlier run's verdicts."""
    return [text for name, text in report["environment"].items() if name.startswith(KNOWN)]


class LargeCandidate(CliTest):
    def report(self, *words: object, cache: str = "cache") -> dict:
        done = run(*words, "--json", env=environment(DSV32_CACHE=str(scratch / cache)))
        self.ended(done, OK)
        return json.loads(done.stdout)

    def parties(self, report: dict) -> set[str]:
        return {v["subject"]["party"] for v in report["verdicts"]}

    def test_it_is_judged_alone_in_so_many_passes(self) -> None:
        report = self.report("--candidate", FILE, cache="empty")
        self.assertEqual(self.parties(report), {"candidate"})
        self.assertTrue([t for t in report["not_tested"] if "golden and own models" in t])
        passes = report["timing"]["passes"]
        oracle = [p["layers"] for p in passes if p["what"] in ("oracle", "staged oracle")]
        self.assertEqual(oracle, [LAYERS, LAYERS])
        self.assertEqual(sum(p["layers"] for p in passes), 8 * LAYERS)

    def test_all_judges_the_others_too(self) -> None:
        report = self.report("--candidate", FILE, "--all", "--dtype", "float32")
        self.assertEqual(self.parties(report), {"reference", "candidate"})
        self.assertFalse([t for t in report["not_tested"] if "golden and own models" in t])

    def test_what_an_earlier_run_found_is_said(self) -> None:
        own = ("--case", CASE, "--suite", "forward", "--impl", "reference", "--dtype", "float32")
        self.report(*own, "--no-cache", cache="kept")
        self.assertEqual(known(self.report("--candidate", FILE, cache="kept")), [])
        self.report(*own, cache="kept")
        said = known(self.report("--candidate", FILE, cache="kept"))
        self.assertEqual(len(said), 1)
        self.assertIn("reference float32: PASS", said[0])
        self.assertEqual(known(self.report("--candidate", FILE, "--no-cache", cache="kept")), [])


if __name__ == "__main__":
    unittest.main()
