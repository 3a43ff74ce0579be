"""Beside a large candidate nothing is judged that depends on the program alone.

ctest: `self_cli_large_candidate`. The case is the smallest that counts as large: one layer of the
config small.
"""

from __future__ import annotations

import json
import unittest

from program import OK, CliTest, clean_up, run, scratch

CASE = json.dumps({"config": "small", "seed": 1, "B": 1, "S": 544,
                   "overrides": {"num_hidden_layers": 1, "first_k_dense_replace": 0},
                   "pad": 0, "bias_offset": 0, "chunks": []})
FILE = scratch / "large.safetensors"
LAYERS = 1
KNOWN = "golden and own models"

tearDownModule = clean_up


def setUpModule() -> None:
    made = run("dump", "--impl", "optimized", "--case", CASE, "--mode", "forward", "--out", FILE)
    assert made.returncode == OK, made.stderr


def known(report: dict) -> list[str]:
    """What the report says of an earlier run's verdicts."""
    return [text for name, text in report["environment"].items() if name.startswith(KNOWN)]


class LargeCandidate(CliTest):
    def report(self, *words: object) -> dict:
        done = run("--candidate", FILE, *words, "--json")
        self.ended(done, OK)
        return json.loads(done.stdout)

    def parties(self, report: dict) -> set[str]:
        return {v["subject"]["party"] for v in report["verdicts"]}

    def test_alone_then_with_all_then_with_what_was_found(self) -> None:
        alone = self.report()
        self.assertEqual(self.parties(alone), {"candidate"})
        self.assertTrue([t for t in alone["not_tested"] if KNOWN in t])
        self.assertEqual(known(alone), [])
        passes = alone["timing"]["passes"]
        oracle = [p["layers"] for p in passes if p["what"] in ("oracle", "staged oracle")]
        self.assertEqual(oracle, [LAYERS, LAYERS])
        self.assertEqual(sum(p["layers"] for p in passes), 8 * LAYERS)

        both = self.report("--all", "--dtype", "float32")
        self.assertEqual(self.parties(both), {"reference", "candidate"})
        self.assertFalse([t for t in both["not_tested"] if KNOWN in t])

        after = self.report()
        self.assertEqual(self.parties(after), {"candidate"})
        self.assertEqual(len(known(after)), 1)
        self.assertIn("reference float32: PASS", known(after)[0])
        self.assertEqual(known(self.report("--no-cache")), [])


if __name__ == "__main__":
    unittest.main()
