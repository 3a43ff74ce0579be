"""Layers of the released sizes. ctest: `self_full`; minutes, 10 GiB."""

from __future__ import annotations

import json
import subprocess
import unittest

from program import OK, PROGRAM, CliTest, environment

MOST_GIB = 10


class Full(CliTest):
    def test_an_expert_layer(self) -> None:
        words = ("--case", "full-short", "--layers", "3", "--dtype", "float32", "--device", "cpu")
        done = subprocess.run([PROGRAM, *words, "--json"], env=environment(), capture_output=True,
                              text=True, timeout=1700, check=False)
        self.ended(done, OK)
        report = json.loads(done.stdout)
        self.assertEqual({v["trust"] for v in report["verdicts"]}, {"pass", "skipped"})
        names = {v["tap"] for v in report["verdicts"]}
        self.assertIn("layers.3.moe.routed", names)
        self.assertIn("layers.3.router.experts", names)
        costs = [c for c in report["timing"]["costs"] if c["suite"]]
        self.assertEqual(len(costs), 2)
        for cost in costs:
            self.assertLess(cost["peak_gib"], MOST_GIB, cost["suite"])


if __name__ == "__main__":
    unittest.main()
