"""What ci/bench writes about what it measured, and what it refuses.

ctest: `measure.bench`, in .venv-golden.
"""

from __future__ import annotations

import importlib.util
import sys
import unittest
from typing import Any
from unittest import mock

import bench_page as page
from bench_transformers import Times
from synthetic import ROOT, load_cases

SPEC = importlib.util.spec_from_file_location("kernels", ROOT / "ci" / "kernels.py")
kernels = importlib.util.module_from_spec(SPEC)
sys.modules["kernels"] = kernels
SPEC.loader.exec_module(kernels)

CASE = load_cases()["small"]
PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN5dsv321a11rope_kernelIfEEvNS0_6ParamsIT_EE' for 'sm_90a'
ptxas info    : Function properties for _ZN5dsv321a11rope_kernelIfEEvNS0_6ParamsIT_EE
    8 bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 16 bytes smem, 400 bytes cmem[0]
"""  # noqa: E501


def op_run(**changes: Any) -> page.Run:
    run = {"name": "ops rope half-split float32/iterations:5/manual_time", "label": "2x3x4"}
    run |= {"op": 0.002, "aten": 0.005, "flops": 4e9, "bytes": 0, "machine": 4e12, "matmul": 2e12}
    return run | {"difference": 1e-7} | changes


def growth_run(name: str, length: int, seconds: float, flops: float) -> page.Run:
    return {"name": f"growth {name} {length}/iterations:5", "op": seconds, "flops": flops}


def kernel(spills: int) -> dict[str, Any]:
    names = {"file": "a.cu", "kernel": "a_kernel<float>"}
    return names | {"registers": 40, "shared": 0, "stack": spills, "spills": spills}


class Page(unittest.TestCase):
    def test_an_op_is_a_quotient_and_a_part_of_the_machines_rate(self) -> None:
        text = page.ops(CASE, [op_run()])
        row = "| rope half-split | float32 | 2x3x4 | 2 | 5 | 2.50x | 2000 GFLOP/s | 50% | 1e-07 |"
        self.assertIn(row, text)
        self.assertIn("4000 GFLOP/s in float32 (matmul 2000)", text)

    def test_bytes_count_where_there_are_no_flops(self) -> None:
        row = page.op_row(op_run(flops=0, bytes=1e8, machine=1e11, difference=-1))
        self.assertEqual(row[-3:], ["50 GB/s", "50%", "-"])

    def test_an_op_that_computes_something_else_is_refused(self) -> None:
        for difference in (0.06, float("nan")):
            with self.subTest(difference), self.assertRaisesRegex(SystemExit, "rope half-split"):
                page.ops(CASE, [op_run(difference=difference)])

    def test_growth_is_per_token_and_per_flop(self) -> None:
        runs = [growth_run("a", 1000, 1e-3, 1e9), growth_run("a", 4000, 8e-3, 8e9)]
        runs += [growth_run("b", 1000, 2e-3, 0), growth_run("b", 4000, 8e-3, 0)]
        text = page.growth(CASE, runs)
        self.assertIn("| op | S 1000 | S 4000 | per token | per useful FLOP |", text)
        self.assertIn("| a | 1.0 | 2.0 | 2.00x | 1.00x |", text)
        self.assertIn("| b | 2.0 | 2.0 | 1.00x | - |", text)

    def test_growth_has_the_sums_of_a_layer(self) -> None:
        runs = [growth_run(op, 1000, 1e-3, 1) for op in ("index_scores", "select_topk")]
        runs += [growth_run(op, 1000, 2e-3, 1) for op in ("sparse_mla", "sparse_mla_backward")]
        runs += [growth_run(run["name"].split(" ")[1], 2000, 0.03, 1) for run in runs]
        text = page.growth(CASE, runs)
        self.assertIn("| forward | 4.0 | 45.0 | 11.25x | - |", text)
        self.assertIn("| forward and backward | 6.0 | 60.0 | 10.00x | - |", text)

    def test_kept_gradients_do_not_count_as_memory_of_the_pass(self) -> None:
        ours = {"weights": 2**20, "before": 2**20, "peak": 3 * 2**20}
        theirs = ours | {"peak": 8 * 2**20, "gradients": 2**20}
        text = page.memory(CASE, {"optimized": ours, "transformers": theirs})
        self.assertIn("| optimized | 1 | 1 | 3 | 0 | 2 | 1.00x |", text)
        self.assertIn("| transformers | 1 | 1 | 8 | 1 | 6 | 3.00x |", text)

    def test_models_stand_beside_transformers_of_their_dtype_and_pass(self) -> None:
        found = {
            ("optimized", "float32", "forward"): Times([1.0, 3.0, 2.0], [2.0, 2.0, 2.0], 9.5),
            ("transformers", "float32", "forward"): Times([4.0], [3.0], 9.25),
        }
        text = page.models(CASE, found)
        head, losses = "| optimized | float32 | forward", "9.500000, 9.250000"
        self.assertIn(f"{head} | clock | 2.00 | 4.00 | 2.00x | 3 | {losses} |", text)
        self.assertIn(f"{head} | work | 2.00 | 3.00 | 1.50x | 3 | {losses} |", text)

    def test_spilling_kernels_are_counted(self) -> None:
        self.assertIn("2 kernels, spilling: none", page.kernels([kernel(0), kernel(0)]))
        self.assertIn("2 kernels, spilling: 1", page.kernels([kernel(0), kernel(4)]))


class Kernels(unittest.TestCase):
    def test_reads_what_ptxas_writes(self) -> None:
        [found] = kernels.parse("rope.cu", PTXAS.format(stores=0, loads=0))
        self.assertEqual(found, kernels.Kernel("rope.cu", "rope_kernel<float>", 32, 16, 8, 0))

    def test_a_name_keeps_its_template_arguments_alone(self) -> None:
        name = "void a::(anonymous namespace)::tile<a::b::Sum<float>, (bool)1>(a::P<float>)"
        self.assertEqual(kernels.short(name), "tile<Sum<float>, (bool)1>")

    def test_a_spill_ends_in_an_error(self) -> None:
        for stores, code in ((0, 0), (4, 1)):
            found = kernels.parse("rope.cu", PTXAS.format(stores=stores, loads=2 * stores))
            with self.subTest(stores), mock.patch.object(kernels, "compiled", lambda _, k=found: k):
                with mock.patch("builtins.print"):
                    self.assertEqual(kernels.main(["rope.cu"]), code)


if __name__ == "__main__":
    unittest.main()
