"""The goldens of real peft and real DeepSpeed: they come out again, and their checks can fail.

ctest: `golden.training_libraries`, in .venv-golden.
"""

from __future__ import annotations

import dataclasses
import unittest
import warnings
from unittest import mock

import command
import numpy as np
import synthetic
import torch
from agreement import limit
from command import DATA
from real import GoldenError

from training import h5, indexer_kl, lora, run, sharded

warnings.simplefilter("ignore")


def committed(name: str) -> h5.Content:
    return h5.read(DATA / f"{name}.h5")


class Again(unittest.TestCase):
    def check(self, name: str) -> None:
        golden = command.goldens_of_training()[name]
        self.assertEqual(command.check(golden, DATA / f"{name}.h5"), [])

    def test_dual_lora(self) -> None:
        self.check("dual_lora.tiny-wide")

    def test_dual_lora_experts(self) -> None:
        self.check("dual_lora_experts.tiny-wide")

    def test_sharded(self) -> None:
        self.check("sharded.tiny-shard")


class Lora(unittest.TestCase):
    def start(self, experts: bool = False) -> lora.DualLora:
        case = synthetic.load_cases()["tiny-wide"]
        model = run.load(case).model
        return lora.DualLora(model, case, lora.recipe_of(1), experts)

    def test_adapters_sit_on_dense_and_shared_mlps(self) -> None:
        names = set(self.start().adapters)
        self.assertEqual(len(names), 2 * 2 * (5 + 3 + 3))
        for module in ("layers.0.mlp.gate_proj", "layers.1.mlp.shared_experts.down_proj"):
            self.assertIn(f"model.{module}.lora_A.weight", names)
        self.assertFalse([name for name in names if ".experts." in name])

    def test_experts_have_the_shapes_of_peft(self) -> None:
        found, at = self.start(experts=True).adapters, "model.layers.1.mlp.experts."
        shapes = {n.removeprefix(at): tuple(a.tensor.shape) for n, a in found.items() if at in n}
        want = {
            "gate_up_proj.lora_A.weight": (16 * 8, 64),
            "gate_up_proj.lora_B.weight": (64, 8 * 16),
            "down_proj.lora_A.weight": (16 * 8, 32),
            "down_proj.lora_B.weight": (64, 8 * 16),
        }
        self.assertEqual(shapes, want)

    def test_zero_b_changes_nothing(self) -> None:
        case = synthetic.load_cases()["tiny-wide"]
        batch = run.tensors_of(synthetic.make_batch(case, 0))
        with torch.no_grad():
            bare = run.load(case).model(**batch).logits
            self.assertTrue(torch.equal(self.start(experts=True).model(**batch).logits, bare))

    def test_merging_is_the_adapter_path(self) -> None:
        for name in ("dual_lora.tiny-wide", "dual_lora_experts.tiny-wide", "dual_lora.small-train"):
            tensors = committed(name).tensors
            a, b = tensors["logits.adapter"], tensors["logits.merged"]
            apart = np.linalg.norm(a - b) / np.linalg.norm(a)
            self.assertLessEqual(apart, limit("golden.merged_lora"), name)

    def test_a_kl_that_leaks_is_refused(self) -> None:
        with mock.patch.object(indexer_kl, "_detached", lambda value: value):
            with self.assertRaisesRegex(GoldenError, "the KL reached an LM adapter"):
                self.start().step(0)

    def test_a_base_weight_that_moves_is_noticed(self) -> None:
        model = self.start().model
        before = lora.base_digest(model)
        model.model.norm.weight.data[3] += 1e-6
        self.assertNotEqual(lora.base_digest(model), before)


class Sharded(unittest.TestCase):
    def test_deepspeed_agrees_with_one_process(self) -> None:
        for name in ("sharded.tiny-shard", "sharded.small-train", "sharded_accum3.tiny-shard"):
            series = committed(name).series
            loss, norm = limit("golden.sharded_loss"), limit("golden.sharded_norm")
            for key, most in (("loss", loss), ("grad_norm", norm)):
                a, b = series[key], series[f"unsharded.{key}"]
                apart = np.abs(a - b).max() / np.abs(b).max()
                self.assertLessEqual(apart, most, (name, key))

    def test_rows_are_dealt_out_once_and_in_order(self) -> None:
        case = synthetic.load_cases()["tiny-shard"]
        recipe = sharded.RECIPES["sharded_accum3", "tiny-shard"]
        world = sharded.World(case, recipe, DATA)
        parts = [b["input_ids"] for rank in range(2) for b in world.micro_batches(rank, 1)]
        self.assertEqual([len(part) for part in parts], [4] * 6)
        whole = synthetic.make_batch(case, 1)["input_ids"]
        self.assertTrue(np.array_equal(torch.cat(parts).numpy(), whole))

    def test_the_other_rule_would_show(self) -> None:
        """Mean over all counted tokens is another number: counted tokens differ per row."""
        case = synthetic.load_cases()["tiny-shard"]
        recipe = dataclasses.replace(sharded.RECIPES["sharded", "tiny-shard"], world=1)
        world = sharded.World(case, recipe, DATA)
        (batch,) = world.micro_batches(0, 0)
        with torch.no_grad():
            other = float(run.load(case).model(**batch).loss)
        ours = committed("sharded.tiny-shard").series["loss"][0]
        self.assertGreater(abs(other - ours), 2 * limit("golden.sharded_loss") * ours)


if __name__ == "__main__":
    unittest.main()
