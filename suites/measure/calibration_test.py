"""A sample of what ci/calibrate runs, and that it sees what it is to see.

ctest: `measure.calibration`, in .venv-golden.
"""

from __future__ import annotations

import dataclasses
import tempfile
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import calibrate
import torch
from agreement import limit
from calibration import judging, mutants, page
from calibration.plan import Chunk, sources
from calibration.sums import ORDERS, SumOrder
from synthetic import ROOT

HERE = ROOT / ".venv-golden" / "bin" / "python"  # the other releases have their own suite
RUNS = 60


def kept(folder: str) -> Any:
    return mock.patch.object(calibrate, "KEPT", Path(folder))


class Sample(unittest.TestCase):
    def test_sixty_clean_runs_raise_no_alarm(self) -> None:
        found = [dataclasses.replace(source, simt=False)  # the kernels have their own suites
                 for source in sources(None) if source.python == HERE]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder, kept(folder):
            results = calibrate.measure(found, RUNS, float("inf"), 2)
        runs = page.runs_of(results)
        self.assertEqual(page.alarms_of(results), [])
        self.assertGreaterEqual(sum(runs.values()), RUNS)
        self.assertGreaterEqual(len(runs), len(found) + 2)  # both dtypes of our optimized model
        text = page.markdown(results, [], [])
        self.assertIn(f"- {sum(runs.values())} runs of {len(runs)} sources", text)

    def test_wrong_code_is_an_alarm_and_its_file_is_kept(self) -> None:
        chunk = Chunk(sources(None)[0], "tiny-wide", (1,))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            report = mutants.report_of("k-norm-eps", "tiny-wide", "forward", folder)
            (folder / "mutant.safetensors").rename(folder / "1.safetensors")
            for verdict in report["verdicts"]:
                if verdict["subject"]["party"] == "candidate":
                    verdict["subject"]["label"] = "candidate 1.safetensors"
            result = judging.distil(chunk, report)
            judging.keep_alarms(chunk, result["alarms"], folder, folder / "alarms")
            self.assertEqual(len(list((folder / "alarms").iterdir())), 1)
        self.assertTrue(result["alarms"])
        self.assertIn("layers.0.ix.k", result["alarms"][0]["text"])
        self.assertGreater(max(row[5] for row in result["largest"]), 1)
        margin = mutants.margin(report, "ix.k")
        self.assertGreater(margin["first"], page.ENOUGH)


class Sums(unittest.TestCase):
    def test_every_order_is_another_one_and_right(self) -> None:
        torch.manual_seed(1)
        a = torch.randn(9, 67, requires_grad=True)
        b = torch.randn(67, 33, requires_grad=True)
        exact = a.detach().double() @ b.detach().double()
        results = [(a @ b).detach()]
        for name in ORDERS:
            with SumOrder(name) as order:
                product = a @ b
                product.sum().backward()
            self.assertEqual(order.seen, 3, name)  # and both gradients
            off = float((product.detach() - exact).norm() / exact.norm())
            self.assertLess(off, limit("golden.value"), name)
            for other in results:
                self.assertFalse(torch.equal(product, other), name)
            results.append(product.detach())

    def test_means_of_the_last_axis_and_narrow_products(self) -> None:
        x = torch.randn(4, 50)
        with SumOrder("from the last") as order:
            mean, narrow = x.mean(-1, keepdim=True), x.bfloat16() @ x.bfloat16().t()
            x.mean(0)
        self.assertEqual(order.seen, 2)
        self.assertEqual(mean.shape, (4, 1))
        exact = x.double().mean(-1, keepdim=True)
        self.assertLess(float((mean - exact).norm() / exact.norm()), limit("golden.value"))
        self.assertEqual(narrow.dtype, torch.bfloat16)

    def test_an_unknown_order_is_refused(self) -> None:
        with self.assertRaises(KeyError):
            SumOrder("none")


class Mutants(unittest.TestCase):
    def test_the_list_is_the_programs(self) -> None:
        found = mutants.listed()
        self.assertEqual(found["k-norm-eps"], "ix.k")
        self.assertGreater(len(found), 100)

    def test_what_is_below_twice_its_limit_is_an_exception(self) -> None:
        base = {"name": "a", "case": "tiny", "exact": False, "first": 1.0}
        weak, strong = base | {"ratio": 1.9}, base | {"ratio": 2.1}
        rule, unseen = base | {"ratio": -1.0, "exact": True}, {"name": "b", "case": ""}
        self.assertEqual(page.exceptions([weak, strong, rule, unseen]), [weak, unseen])


if __name__ == "__main__":
    unittest.main()
