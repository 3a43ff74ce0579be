"""KL and training traces of real transformers as candidates, as the owner of a fork runs them."""

from __future__ import annotations

import fnmatch
import functools
import json
import os
import subprocess
import unittest
from collections.abc import Callable
from pathlib import Path

import numpy as np
from candidates_test import PRODUCER, RELEASES, candidate_findings, dump, judge
from program import OK, PARITY, ROOT, checkpoint, clean_up, scratch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

tearDownModule = clean_up

CASE = "tiny-wide"
PYTHON = ROOT / ".venv-golden" / "bin" / "python"


@functools.cache
def dump_kl(release: str, mode: str) -> Path:
    return dump(release, CASE, "--attn", "eager", "--mode", mode)


@functools.cache
def dump_training(suite: str) -> Path:
    return dump(PRODUCER, CASE, "--attn", "eager", "--mode", "train", "--suite", suite)


def changed(trace: Path, change: Callable[[dict], None], own: bool = False) -> Path:
    """A copy of the trace with other tensors. own: nothing in it was computed by the dump."""
    with safe_open(trace, "np") as file:
        metadata = file.metadata()
    if own:
        metadata["derived_taps"] = "[]"
    tensors = load_file(trace)
    change(tensors)
    out = scratch / f"changed-{trace.name}"
    save_file(tensors, out, metadata=metadata)
    return out


class Candidates(unittest.TestCase):
    def expect_pass(self, trace: Path, least: int) -> None:
        code, report = judge(trace)
        self.assertEqual(code, OK, json.dumps(candidate_findings(report), indent=1))
        judged = [v for v in report["verdicts"] if v["subject"]["party"] == "candidate"]
        self.assertGreaterEqual(sum(v["trust"] == "pass" for v in judged), least)

    def expect_failure(self, trace: Path, tap: str) -> None:
        code, report = judge(trace)
        self.assertEqual(code, PARITY)
        failed = [
            v["tap"]
            for v in report["verdicts"]
            if v["subject"]["party"] == "candidate" and v["trust"] == "fail"
        ]
        self.assertTrue(any(tap in name for name in failed), failed)


class Kl(Candidates):
    def test_the_warm_up_passes(self) -> None:
        self.expect_pass(dump_kl(PRODUCER, "kl-warmup"), 60)

    def test_every_release_passes(self) -> None:
        for release in RELEASES:
            with self.subTest(release):
                self.expect_pass(dump_kl(release, "kl-sparse"), 60)

    def test_a_leak_out_of_the_indexer_is_named(self) -> None:
        def leak(tensors: dict) -> None:
            tensors["grad.lm_head.weight"] = tensors["logits"][0, :1].T.repeat(64, 1) * 1e-6

        self.expect_failure(changed(dump_kl(PRODUCER, "kl-sparse"), leak), "grad.lm_head.weight")

    def test_a_target_that_is_not_normalised_is_named(self) -> None:
        def scale(tensors: dict) -> None:
            tensors["layers.1.kl.target"] *= 4

        trace = dump_kl(PRODUCER, "kl-sparse")
        self.expect_failure(changed(trace, scale, own=True), "layers.1.kl.target")

    def test_what_the_dump_computed_is_no_evidence(self) -> None:
        def scale(tensors: dict) -> None:
            tensors["layers.1.kl.target"] *= 4

        _, report = judge(changed(dump_kl(PRODUCER, "kl-sparse"), scale))
        rows = [v for v in report["verdicts"] if v["tap"] == "layers.1.kl.target"]
        mine = [v for v in rows if v["subject"]["party"] == "candidate"]
        self.assertEqual({v["trust"] for v in mine}, {"skipped"})
        self.assertIn("computed by the dump", mine[0]["note"])


class Training(Candidates):
    def test_curves_and_parameters_pass(self) -> None:
        for suite in ("sft_frozen_indexer", "indexer_kl_sparse", "dual_lora"):
            with self.subTest(suite):
                self.expect_pass(dump_training(suite), 40)

    def test_steps_of_lora_are_judged_by_factor(self) -> None:
        _, report = judge(dump_training("dual_lora"))
        taps = {v["tap"]: v["trust"] for v in report["verdicts"]}
        factors = [t for t in taps if t.startswith("step.1.update.") and "lora_A" in t]
        self.assertGreater(len(factors), 20)
        self.assertEqual({taps[t] for t in factors}, {"pass"})

    def test_lora_factors_that_differ_by_rank_are_named(self) -> None:
        """Two ranks that split q_b by rows: B in pieces, A on both, and one A is another."""
        tensors = load_file(dump_training("dual_lora"))
        with safe_open(dump_training("dual_lora"), "np") as file:
            metadata = file.metadata()
        split = "step.*.self_attn.q_b_proj.lora_B.weight"
        whole = {n: v for n, v in tensors.items() if fnmatch.fnmatch(n, split)}
        for fault in (False, True):
            out = scratch / f"ranks-{fault}"
            out.mkdir()
            for rank in range(2):
                own = dict(tensors)
                for name, value in whole.items():
                    own[name] = np.ascontiguousarray(np.split(value, 2)[rank])
                if fault and rank == 1:
                    own["step.1.update.model.layers.1.self_attn.q_b_proj.lora_A.weight"] *= 2
                place = {split: {"dim": 0, "offset": rank * len(next(iter(whole.values()))) // 2}}
                ranks = {"rank": str(rank), "world": "2", "placement": json.dumps(place)}
                save_file(own, out / f"{rank}.safetensors", metadata=metadata | ranks)
            code, report = judge(out)
            self.assertEqual(code, PARITY if fault else OK)
        (wrong,) = (v for v in report["verdicts"] if v["trust"] == "fail")
        self.assertEqual(wrong["tap"], "world.rank.1")
        self.assertIn("layers.1.self_attn.q_b_proj.lora_A.weight of rank 1", wrong["note"])

    def test_a_moved_indexer_is_named(self) -> None:
        name = "model.layers.0.self_attn.indexer.wk.weight"

        def move(tensors: dict) -> None:
            tensors[f"param.{name}"][3, 3] += 1e-3

        self.expect_failure(changed(dump_training("sft_frozen_indexer"), move), name)

    def test_another_curve_is_noticed_at_its_step(self) -> None:
        def bend(tensors: dict) -> None:
            tensors["train.loss"][7:] *= 1.2

        self.expect_failure(changed(dump_training("sft_frozen_indexer"), bend), "step.7.loss")

    def test_a_fault_of_the_step_is_named(self) -> None:
        here = Path(__file__).parent
        for suite, fault, name, words in (
            ("loss_descent", "weight-decay-in-gradient", "", "L2"),
            ("loss_descent", "clip-missing", "", "not clipped"),
            ("loss_descent", "learning-rate-of-group", "",
             "updates x 10: the routed experts (all 48)"),
            ("dual_lora", "one-rate", "learning-rate-of-group",
             "updates x 0.1: the A factors of the indexer (all 6)"),
            ("dual_lora", "without-b", "weights-not-updated", "the B factors of the attention"),
        ):  # fmt: skip
            with self.subTest(fault):
                out = scratch / f"{fault}.safetensors"
                done = subprocess.run(
                    [PYTHON, here / "plant_in_training.py", checkpoint(CASE), out, suite, fault],
                    env=os.environ | {"PYTHONPATH": str(ROOT / "golden" / "dump")},
                    capture_output=True,
                    text=True,
                    timeout=300,
                    check=False,
                )
                self.assertEqual(done.returncode, 0, done.stderr)
                code, report = judge(out)
                self.assertEqual(code, PARITY)
                (defect,) = candidate_findings(report)[0]["defects"]
                self.assertEqual(defect["name"], name or fault)
                self.assertIn(words, defect["words"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
