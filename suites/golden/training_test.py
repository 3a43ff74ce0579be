"""Tests of the training goldens: the tiny ones come out again, and the tools that make them.

Runs in .venv-golden (real transformers).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import tempfile
import unittest
from pathlib import Path

import command
import h5file
import manifest
import numpy as np
import synthetic
import torch
from agreement import limit
from command import DATA
from dsv32_trace import philox_lanes
from real import GoldenError
from training.h5 import Content
from training.recipe import Group, Recipe

from training import compare as compare_training
from training import h5, indexer_kl, kl, lm, run

CASE = synthetic.load_cases()["tiny-wide"]
STEPS = 3  # of each golden that are made again
TOTAL_LIMIT = 8_000_000  # bytes of all training goldens together


def committed(name: str) -> Content:
    return h5.read(DATA / f"{name}.h5")


def expect_identity(got: object, want: object) -> None:
    """Two float64 evaluations of one formula."""
    exact = limit("identity")
    np.testing.assert_allclose(got, want, rtol=exact, atol=exact)


def golden_of(job: run.Job) -> command.Golden:
    form = command.Format(h5.write, h5.read, compare_training.differences)
    return command.Golden(job.name, form, lambda: job.make(CASE))


class TestGoldens(unittest.TestCase):
    """The first steps of every tiny golden, with real transformers."""

    def check(self, module: object, suite: str) -> None:
        golden = committed(f"{suite}.tiny-wide")
        fresh = module.first_steps(suite, CASE, STEPS)
        self.assertEqual(golden.parameters, fresh.parameters)
        for step in range(STEPS):
            self.assertEqual(compare_training.compare_step(golden, fresh, step), [], f"step {step}")
        for name, value in fresh.tensors.items():  # of step 0
            kept = golden.tensors[name]
            error = np.linalg.norm(value - kept)
            self.assertLessEqual(error, limit("golden.value") * np.linalg.norm(kept), name)

    def test_lm_training_comes_out_again(self) -> None:
        for suite in lm.RECIPES:
            with self.subTest(suite):
                self.check(lm, suite)

    def test_indexer_training_comes_out_again(self) -> None:
        for suite in kl.RECIPES:
            with self.subTest(suite):
                self.check(kl, suite)

    def test_training_starts_where_the_case_golden_is(self) -> None:
        start = h5file.read(DATA / "tiny-wide.h5")
        for suite in lm.RECIPES:
            golden = committed(f"{suite}.tiny-wide")
            self.assertEqual(golden.series["loss"][0], float(start.taps["loss.lm"]))
            for name, value in golden.decisions[0].items():
                np.testing.assert_array_equal(value, start.taps[name], name)

    def test_losses_fall(self) -> None:
        for name, series in (
            ("loss_descent.tiny-wide", "loss"),
            ("loss_descent.small-train", "loss"),
            ("loss_descent_memorised.tiny-wide", "loss"),
            ("indexer_kl_warmup.tiny-wide", "kl"),
            ("indexer_kl_sparse.tiny-wide", "kl"),
        ):
            values = committed(name).series[series]
            fall = values[-4:].mean() / values[:4].mean()
            self.assertLessEqual(fall, limit("golden.descent"), name)

    def test_band_holds_the_golden_and_its_spread(self) -> None:
        golden = committed("loss_descent.tiny-wide")
        band = golden.band
        self.assertEqual(band.runs, lm.RUNS)
        distance = np.abs(golden.series["loss"] - band.mean)
        self.assertLessEqual((distance / band.deviation).max(), limit("golden.band"))
        product = band.components @ band.components.T
        apart = np.abs(product - np.eye(h5.COMPONENTS)).max()
        self.assertLessEqual(apart, limit("band.orthonormal"))
        self.assertTrue((np.diff(band.variances) <= 0).all())

    def test_all_of_them_are_there_and_small(self) -> None:
        listed = json.loads((DATA / "manifest.json").read_text())["files"]
        entries = [entry for entry in listed if entry["kind"] == "train"]
        self.assertEqual({entry["case"] for entry in entries}, set(command.goldens_of_training()))
        for entry in entries:
            file = DATA / entry["file"]
            self.assertEqual(entry["sha256"], manifest.sha256(file), entry["case"])
            self.assertEqual(entry["size"], file.stat().st_size, entry["case"])
        self.assertLess(sum(entry["size"] for entry in entries), TOTAL_LIMIT)


class TestDifferences(unittest.TestCase):
    """What --check says of a run that is not the golden's."""

    def setUp(self) -> None:
        self.golden = committed("sft_frozen_indexer.tiny-wide")
        self.other = copy.deepcopy(self.golden)

    def expect(self, part: str) -> None:
        found = compare_training.differences(self.golden, self.other)
        self.assertEqual(len(found), 1, found)
        self.assertIn(part, found[0])

    def test_nothing_between_equals(self) -> None:
        self.assertEqual(compare_training.differences(self.golden, self.other), [])

    def test_a_loss(self) -> None:
        self.other.series["loss"][1] *= 1 + 2e-5
        self.expect("step 1: loss")

    def test_a_decision(self) -> None:
        experts = self.other.decisions[2]["layers.1.router.experts"]
        experts[0, 3] = (experts[0, 3] + 1) % 16
        self.expect("step 2: layers.1.router.experts: 1 rows chose otherwise")

    def test_a_parameter(self) -> None:
        self.other.norms[0, 5] *= 1 + 1e-4
        self.expect(f"step 0: {self.golden.parameters[5]}: moved by 0.0001")

    def test_a_recipe(self) -> None:
        self.other.attributes["recipe"] = Recipe(19).json
        self.expect("attribute recipe")

    def test_a_higher_learning_rate(self) -> None:
        case, recipe = CASE, lm.RECIPES["loss_descent"]["tiny-wide"]
        group = dataclasses.replace(recipe.groups[0], lr=1.05e-3)
        wrong = dataclasses.replace(recipe, steps=1, groups=(group,))
        fresh = lm.golden("loss_descent", case, wrong, None)
        golden = committed("loss_descent.tiny-wide")
        self.assertNotEqual(compare_training.compare_step(golden, fresh, 0), [])


class TestFiles(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)

    def test_written_files_read_back(self) -> None:
        golden = committed("indexer_kl_joint.tiny-wide")
        golden.band = committed("loss_descent.tiny-wide").band
        h5.write(self.folder / "a.h5", golden)
        back = h5.read(self.folder / "a.h5")
        self.assertEqual(back.attributes, golden.attributes)
        self.assertEqual(back.parameters, golden.parameters)
        for name, value in golden.series.items():
            np.testing.assert_array_equal(back.series[name], value)
        for name, value in golden.tensors.items():
            np.testing.assert_array_equal(back.tensors[name], value)
            self.assertEqual(back.tensors[name].shape, value.shape)
        for step, taps in enumerate(golden.decisions):
            for name, value in taps.items():
                np.testing.assert_array_equal(back.decisions[step][name], value)
        np.testing.assert_array_equal(back.projections, golden.projections)
        np.testing.assert_array_equal(back.band.components, golden.band.components)

    def test_same_content_is_the_same_bytes(self) -> None:
        golden = committed("loss_descent.tiny-wide")
        for name in ("a", "b"):
            h5.write(self.folder / name, golden)
        committed_bytes = (DATA / "loss_descent.tiny-wide.h5").read_bytes()
        self.assertEqual((self.folder / "a").read_bytes(), committed_bytes)
        self.assertEqual((self.folder / "b").read_bytes(), committed_bytes)

    def test_manifest_lists_both_kinds(self) -> None:
        for name in ("tiny-short7.h5", "sft_frozen_indexer.tiny-wide.h5"):
            shutil.copy(DATA / name, self.folder)
        (self.folder / "stray.h5").write_text("not a golden of any case")
        manifest.update(self.folder)
        listed = json.loads((self.folder / "manifest.json").read_text())["files"]
        found = [(entry["case"], entry["kind"]) for entry in listed]
        expected = [("tiny-short7", "full"), ("sft_frozen_indexer.tiny-wide", "train")]
        self.assertEqual(found, expected)


class TestParts(unittest.TestCase):
    def test_recipe_is_canonical_json(self) -> None:
        recipe = Recipe(50, (Group(lr=1e-4),), clip=None)
        expected = (
            '{"accumulation":1,"batches":"cycle4","clip":null,"groups":[{"betas":[0.9,0.95],'
            '"eps":1e-8,"lr":0.0001,"name":"all","weight_decay":0.01}],"kl":"none","kl_weight":1,'
            '"lm":true,"steps":50,"world":1}'
        )
        self.assertEqual(recipe.json, expected)
        self.assertEqual([recipe.batch_index(step) for step in (0, 3, 4, 9)], [0, 3, 0, 1])

    def test_parameter_sketch_is_the_plain_sum(self) -> None:
        name, value = "lm_head.weight", np.random.default_rng(1).normal(size=(7, 5))
        norm, projections = run.measure(name, value.astype(np.float32))
        flat = value.astype(np.float32).reshape(-1).astype(np.float64)
        expect_identity(norm, np.linalg.norm(flat))
        stream = philox_lanes(0, "sketch.param." + name, 72, "u1")
        for p in range(h5.PROJECTIONS):
            bits = stream[2 * np.arange(35) + p // 8] >> (p % 8) & 1
            expect_identity(projections[p], float(flat @ (bits * 2.0 - 1)))

    def test_a_perturbed_start_moves_by_one_or_two_ulps(self) -> None:
        weight = torch.from_numpy(synthetic.weight(1, "lm_head.weight", (100, 64)))
        moved = {"lm_head.weight": weight.clone()}
        lm.perturb(moved, {"lm_head.weight": weight}, 3)
        steps = (moved["lm_head.weight"] - weight).numpy() / np.spacing(np.abs(weight.numpy()))
        sizes = np.unique(np.abs(steps[weight.numpy() != 0]))
        self.assertTrue(set(sizes) <= {1.0, 2.0}, sizes)
        share = float((steps > 0).mean())
        self.assertLessEqual(abs(share - 0.5), limit("start.balance"))

    def test_band_finds_the_direction_that_was_put_in(self) -> None:
        random = np.random.default_rng(2)
        direction = np.sin(np.arange(20.0))
        direction /= np.linalg.norm(direction)
        curves = 5 + random.normal(size=(40, 1)) * direction + 1e-3 * random.normal(size=(40, 20))
        band = lm.band_of(curves)
        cosine = abs(float(band.components[0] @ direction))
        self.assertLessEqual(1 - cosine, limit("band.direction"))
        self.assertGreater(band.components[0][np.abs(band.components[0]).argmax()], 0)
        expect_identity(band.deviation, curves.std(axis=0, ddof=1))
        spread = float(((curves - curves.mean(axis=0)) @ band.components[0]).var(ddof=1))
        expect_identity(float(band.variances[0]), spread)

    def test_kl_is_that_of_the_definition(self) -> None:
        torch.manual_seed(3)
        probs = torch.rand(1, 2, 4, 4, dtype=torch.float64)
        scores = torch.randn(1, 4, 4, dtype=torch.float64)
        support = torch.ones(4, 4).tril().bool()[None].clone()
        support[0, 3, 1] = False
        valid = torch.tensor([[0, 1, 1, 1]])
        kl = indexer_kl.layer_kl(probs, scores, support, valid)
        rows = []
        for s in range(1, 4):
            keys = support[0, s]
            p = probs[0, :, s, keys].sum(dim=0)
            p = p / p.sum()
            q = torch.softmax(scores[0, s, keys], dim=-1)
            rows.append(float((p * (p / q).log()).sum()))
        expect_identity(kl.rows[0, 1:].numpy(), rows)
        expect_identity(float(kl.loss), float(np.mean(rows)))
        self.assertEqual(float(kl.rows[0, 0]), 0)
        self.assertEqual(float(kl.target[0, 3, 1]), 0)

    def test_kl_gradient_is_student_minus_target(self) -> None:
        torch.manual_seed(4)
        probs = torch.rand(1, 2, 3, 3, dtype=torch.float64)
        scores = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
        support = torch.ones(3, 3).tril().bool()[None]
        kl = indexer_kl.layer_kl(probs, scores, support, torch.tensor([[0, 1, 1]]))
        kl.rows.sum().backward()
        expect_identity(scores.grad.numpy(), (kl.student - kl.target).numpy())
        self.assertEqual(float(scores.grad[0, 0].abs().sum()), 0)

    def test_tensors_of_a_model_are_views(self) -> None:
        model = run.load(CASE).model
        tensors = run.checkpoint_tensors(model)
        tensors["model.layers.1.mlp.experts.3.up_proj.weight"].fill_(7.0)
        again = run.checkpoint_tensors(model)
        self.assertTrue((again["model.layers.1.mlp.experts.3.up_proj.weight"] == 7).all())
        self.assertFalse((again["model.layers.1.mlp.experts.3.gate_proj.weight"] == 7).any())

    def test_warm_up_is_dense_and_puts_the_setting_back(self) -> None:
        model = run.load(CASE).model
        batch = run.tensors_of(synthetic.make_batch(CASE))
        step = run.forward(model, batch, kl.RECIPES["indexer_kl_warmup"]["tiny-wide"])
        self.assertEqual(step.seen.picks[0].shape[-1], CASE.S)
        self.assertEqual(model.config.index_topk, CASE.config["index_topk"])
        self.assertNotIn("layers.0.topk", step.decisions)
        self.assertGreater(int((step.kl_layers[0].target[0, -1] > 0).sum()), 8)

    def test_provenance_names_no_place(self) -> None:
        for job in command.goldens_of_training().values():
            text = json.dumps(committed(job.name).attributes)
            self.assertNotIn(str(synthetic.ROOT), text, job.name)
            self.assertIn(
                "5.23.0", json.loads(committed(job.name).attributes["producer"])["transformers"]
            )


class TestRefusals(unittest.TestCase):
    def test_a_kl_that_leaks_is_refused(self) -> None:
        model = run.load(CASE).model
        batch = run.tensors_of(synthetic.make_batch(CASE))
        recipe = kl.RECIPES["indexer_kl_joint"]["tiny-wide"]
        step = run.forward(model, batch, recipe)
        step.kl = step.kl + 1e-3 * step.lm
        with self.assertRaisesRegex(GoldenError, "the KL has a gradient of"):
            kl.backward(model, step, recipe)

    def test_an_unknown_golden_is_a_usage_error(self) -> None:
        with self.assertRaises(SystemExit) as stopped:
            command.main(["--golden", "no.such"])
        self.assertEqual(stopped.exception.code, 2)

    def test_a_golden_that_is_not_there_is_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--check", "--golden", "sft_frozen_indexer.tiny-wide", "--out", folder]
            self.assertEqual(command.main(words), 4)

    def test_two_runs_that_differ_are_refused(self) -> None:
        golden, runs = committed("sft_frozen_indexer.tiny-wide"), []

        def make(case: synthetic.Case) -> Content:
            runs.append(case.name)
            other = copy.deepcopy(golden)
            other.series["loss"][0] += len(runs)
            return other

        job = run.Job("sft_frozen_indexer", "tiny-wide", make)
        with (
            tempfile.TemporaryDirectory() as folder,
            self.assertRaisesRegex(GoldenError, "two runs gave different bytes"),
        ):
            command.make(golden_of(job), Path(folder))


if __name__ == "__main__":
    unittest.main()
