"""KL and training modes of golden/dump: real code, an unseen model, a fork with its own KL.

ctest: `golden.dump_training`, in .venv-golden.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import dump_test as base
import numpy as np
import plain_model as plain
import synthetic
import torch
from agreement import limit
from command import DATA
from dsv32_dump import Capture, DumpError, ModelCrash, Options, capture, lora, train
from dsv32_dump.kl import KL_STAGES
from dsv32_dump.training import SUITES
from dsv32_trace import make_batch
from safetensors.torch import load_file, safe_open
from torch import Tensor

from training import h5

CASE = "tiny-wide"


def setUpModule() -> None:
    folder = tempfile.TemporaryDirectory()
    base.Folder.root = Path(folder.name)
    unittest.addModuleCleanup(folder.cleanup)


def fields() -> dict[str, Any]:
    return base.fields(synthetic.load_cases()[CASE])


@functools.cache
def real_kl(stage: str) -> Capture:
    return capture(base.real_model(CASE), fields(), Options(kl=stage))


def start() -> dict[str, Tensor]:
    """The case's weights."""
    case = synthetic.load_cases()[CASE]
    specs = synthetic.weight_specs(case.config).items()
    return {n: torch.from_numpy(synthetic.weight(case.seed, n, s)) for n, s in specs}


class Kl(unittest.TestCase):
    def test_real_code_agrees_with_an_unseen_model_in_float64(self) -> None:
        for stage in KL_STAGES:
            real = real_kl(stage)
            forced = {n: v for n, v in real.taps.items() if n.endswith(("topk", "router.experts"))}
            plain = capture(base.plain_copy(CASE), fields(), Options(kl=stage, forced=forced))
            self.assertEqual(real.missing + plain.missing, [])
            self.assertEqual(real.taps.keys(), plain.taps.keys())
            judged = [n for n in real.taps if "kl" in n or n.startswith("grad.")]
            self.assertEqual(len(judged), 2 * 5 + 1 + 2 * 5)
            for name in judged:
                far = base.distance(real.taps[name], plain.taps[name])
                self.assertLessEqual(far, limit("dump.value"), name)

    def expect_close(self, a: Tensor, b: Tensor) -> None:
        self.assertLessEqual(float((a - b).abs().max()), limit("dump.probability"))

    def test_distributions_and_their_support(self) -> None:
        mask = torch.from_numpy(make_batch(fields(), 100)["attention_mask"]).bool()
        for stage, most in (("warmup", 33), ("sparse", 8)):
            taps = real_kl(stage).taps
            for layer in ("layers.0.", "layers.1."):
                target, student = taps[layer + "kl.target"], taps[layer + "kl.student"]
                for value in (target, student):
                    self.expect_close(value.sum(-1)[mask], torch.ones(int(mask.sum())))
                    self.assertTrue((value[~mask] == 0).all())
                self.assertEqual(int((student[mask] > 0).sum(-1).max()), most)
                slope = taps[layer + "kl.dscores"]
                self.expect_close(slope[mask], (student - target)[mask])
                self.assertTrue((slope[mask][student[mask] == 0] == 0).all())

    def test_only_the_indexer_has_a_gradient(self) -> None:
        for stage in KL_STAGES:
            gradients = [n for n in real_kl(stage).taps if n.startswith("grad.")]
            self.assertTrue(all(".indexer." in name for name in gradients), gradients)

    def test_the_model_is_left_as_it_was(self) -> None:
        model = base.real_model(CASE)
        model.model.layers[0].self_attn.indexer.requires_grad_(False)
        capture(model, fields(), Options(kl="sparse"))
        self.assertFalse(model.model.layers[0].self_attn.indexer.wk.weight.requires_grad)
        self.assertTrue(model.lm_head.weight.requires_grad)
        self.assertFalse(model.training)
        self.assertEqual(model.config.index_topk, 8)

    def test_a_fork_with_a_kl_of_its_own_is_taken_at_its_word(self) -> None:
        """Its gradients are those of its loss, and a leak out of the indexer is shown."""
        run = capture(leaking_fork(), fields(), Options(kl="sparse"))
        self.assertEqual(run.metadata["kl_source"], "own")
        self.assertEqual(float(run.taps["loss.kl"]), 0.25)
        self.assertIn("grad.model.norm.weight", run.taps)
        self.assertNotIn("grad.lm_head.weight", run.taps)
        wk = run.taps["grad.model.layers.0.self_attn.indexer.wk.weight"]
        self.assertTrue((wk == 1).all())
        self.assertIn("layers.1.kl.student", json.loads(run.metadata["derived_taps"]))

    def test_a_kl_without_a_graph_is_refused(self) -> None:
        with self.assertRaisesRegex(DumpError, "a KL with a graph"):
            capture(leaking_fork(torch.no_grad()), fields(), Options(kl="sparse"))

    def test_a_trace_by_command(self) -> None:
        out = base.Folder.root / "kl.safetensors"
        words = ["--checkpoint", base.Folder.checkpoint(CASE), "--case", CASE, "--out", out]
        code, err = base.command(*words, "--mode", "kl-sparse", "--attn", "eager")
        self.assertEqual(code, 0, err)
        with safe_open(out, "pt") as file:
            self.assertEqual(file.metadata()["mode"], "kl-sparse")
        self.assertTrue(torch.equal(load_file(out)["loss.kl"], real_kl("sparse").taps["loss.kl"]))


def leaking_fork(grad: Any = None) -> torch.nn.Module:
    """An implementation that hands out a KL loss, which also reaches the final norm."""

    class Fork(plain.PlainModel):
        pass

    def forward(
        self: Any,
        input_ids: Tensor,
        position_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        output_indexer_scores: bool = False,
    ) -> types.SimpleNamespace:
        out = plain.PlainModel.forward(self, input_ids, position_ids, labels, attention_mask)
        if output_indexer_scores:
            with grad or torch.enable_grad():
                wk = self.model.layers[0].self_attn.indexer.wk.weight.sum()
                leak = 3 * self.model.norm.weight.sum()
                none = 0 * self.lm_head.weight.sum()
                total = wk + leak + none
                out.indexer_kl_loss = total - total.detach() + 0.25
        return out

    Fork.forward = forward
    model = base.plain_copy(CASE)
    model.__class__ = Fork
    return model


class Training(unittest.TestCase):
    def trained(self, suite: str, steps: int = 2, **options: Any) -> Capture:
        return train(base.real_model(CASE), fields(), Options(suite=suite, steps=steps, **options))

    def moved(self, run: Capture) -> set[str]:
        return {n for n, v in start().items() if not torch.equal(run.taps.get(f"param.{n}", v), v)}

    def test_who_moves(self) -> None:
        indexer = {n for n in start() if ".indexer." in n}
        rest = {n for n in start() if synthetic.is_trainable(n)}
        want = {
            "loss_descent": rest,
            "sft_frozen_indexer": rest,
            "indexer_kl_warmup": indexer,
            "indexer_kl_sparse": indexer,
            "indexer_kl_joint": rest | indexer,
        }
        for suite, names in want.items():
            run = self.trained(suite)
            self.assertEqual(self.moved(run), names, suite)
            self.assertEqual(tuple(run.taps["train.loss"].shape), (2,))
            self.assertEqual("train.kl" in run.taps, suite.startswith("indexer_kl"), suite)

    def test_lora_moves_what_has_an_adapter(self) -> None:
        run = self.trained("dual_lora")
        moved = self.moved(run)
        leaves = {n.split(".")[-2] for n in moved}
        want = " ".join(lora.LORA_TARGETS.values()).split()
        self.assertEqual(leaves, set(want))
        self.assertFalse([n for n in moved if ".experts." in n])
        self.assertFalse([n for n in run.taps if "lora" in n and not n.startswith("step.")])

    def test_steps_of_lora_hold_the_factors_as_the_golden_names_them(self) -> None:
        taps = self.trained("dual_lora").taps
        want = set(h5.read(DATA / f"dual_lora.{CASE}.h5").parameters)
        for step in (0, 1):
            prefix = f"step.{step}.update."
            self.assertEqual({n.removeprefix(prefix) for n in taps if n.startswith(prefix)}, want)
        a = "model.layers.0.self_attn.q_a_proj.lora_A.weight"
        start = synthetic.weight(fields()["seed"], a, tuple(taps[f"step.0.update.{a}"].shape))
        decay = -1e-4 * 0.01 * start  # with B = 0 there is no gradient
        moved = taps[f"step.0.update.{a}"].numpy()
        rounding = np.spacing(np.abs(start).max())
        self.assertTrue((np.abs(moved - decay) <= rounding).all())

    def test_lora_of_real_peft_without_help_misses_the_dense_mlp(self) -> None:
        """Why plain_lora_targets is there; when this fails peft has changed."""
        with mock.patch.object(lora, "plain_lora_targets", contextlib.nullcontext):
            model = base.real_model(CASE)
            lora.attach_lora(model, 1)
        names = {n.replace(".base_layer", "") for n, _ in model.named_parameters() if "lora_" in n}
        self.assertFalse([n for n in names if ".layers.0.mlp." in n or ".shared_experts." in n])
        self.assertTrue([n for n in names if ".mlp.experts." in n])

    def test_the_curve_is_that_of_torch(self) -> None:
        """Step 0 is the model's own loss; the LM loss falls on a memorised batch."""
        loss = self.trained("loss_descent_memorised", steps=6).taps["train.loss"]
        own = capture(base.real_model(CASE), fields(), Options(backward=True)).taps["loss.lm"]
        self.assertEqual(float(loss[0]), float(own))
        self.assertTrue((loss[1:] < loss[:-1]).all())

    def test_metadata(self) -> None:
        metadata = self.trained("sft_frozen_indexer", steps=1).metadata
        self.assertEqual((metadata["mode"], metadata["suite"]), ("train", "sft_frozen_indexer"))
        self.assertEqual(metadata["recipe"], SUITES["sft_frozen_indexer"].recipe(1))

    def test_recipes_are_those_of_the_goldens(self) -> None:
        """The judge finds the golden of a training trace by it."""
        wrong = []
        for suite, recipe in SUITES.items():
            for case, steps in zip(("tiny-wide", "small-train"), recipe.steps, strict=True):
                name = f"{suite}.{case}.h5"
                if (DATA / name).is_file():
                    golden = h5.read(DATA / name).attributes["recipe"]
                    wrong += [name] if golden != recipe.recipe(steps) else []
        self.assertEqual(wrong, [])

    def test_a_crash_keeps_the_curve_until_then(self) -> None:
        model, calls = base.real_model(CASE), []

        def boom(*args: Any) -> None:
            calls.append(1)
            if len(calls) == 3:
                raise base.Boom("third step")

        model.lm_head.register_forward_pre_hook(boom)
        with self.assertRaises(ModelCrash) as caught:
            train(model, fields(), Options(suite="loss_descent", steps=5))
        run = caught.exception.capture
        self.assertEqual(run.failure["where"], "training step 2")
        self.assertEqual(len(run.taps["train.loss"]), 2)

    def test_words_that_do_not_fit(self) -> None:
        words = ["--checkpoint", base.Folder.checkpoint(CASE), "--case", CASE, "--out", "x"]
        for more in (
            ["--mode", "train"],
            ["--suite", "loss_descent"],
            ["--mode", "train", "--suite", "loss_descent", "--steps", "0"],
            ["--steps", "3"],
            ["--mode", "train", "--suite", "loss_descent", "--mask", "none"],
        ):
            code, err = base.command(*words, *more)
            self.assertEqual(code, 2, more)
            self.assertIn("expected", err)

    def test_a_trace_by_command(self) -> None:
        out = base.Folder.root / "train.safetensors"
        words = ["--checkpoint", base.Folder.checkpoint(CASE), "--case", CASE, "--out", out]
        words += ["--mode", "train", "--suite", "sft_frozen_indexer", "--steps", "1"]
        code, err = base.command(*words, "--attn", "eager", "--experts", "eager")
        self.assertEqual(code, 0, err)
        taps = load_file(out)
        want = self.trained("sft_frozen_indexer", 1, attn_implementation="eager").taps
        self.assertEqual(taps.keys(), want.keys())
        self.assertTrue(torch.equal(taps["train.loss"], want["train.loss"]))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    unittest.main()
