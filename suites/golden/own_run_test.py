"""dump inside somebody's own training: real Trainer, a plain loop, real peft; judged step by step.

ctest: `golden.own_run`, in .venv-golden.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
import transformers
from agreement import limit
from dsv32_dump import DumpError, ParityCallback, follow, judge, own_step
from dsv32_dump.adapters import target_findings
from dsv32_dump.lora import LORA_TARGETS, plain_lora_targets
from program import OK, PARITY, PROGRAM, checkpoint, clean_up, scratch
from safetensors import safe_open
from torch import Tensor, nn

tearDownModule = clean_up
CASE = "tiny-wide"


@functools.cache
def loaded() -> nn.Module:
    transformers.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint(CASE), dtype=torch.float32)


def opened() -> nn.Module:
    return copy.deepcopy(loaded())


def examples(count: int = 16, padding: bool = True) -> list[dict[str, Tensor]]:
    """Rows of 36 tokens, prompts of other lengths, some padded on the right."""
    make, rows = torch.Generator().manual_seed(0), []
    for row in range(count):
        ids = torch.randint(0, 100, (36,), generator=make)
        mask, labels = torch.ones_like(ids), ids.clone()
        labels[: 5 + row % 4] = -100
        if padding and row % 3:
            mask[-(row % 3) :], labels[-(row % 3) :] = 0, -100
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return rows


def batches(rows: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{key: torch.stack((a[key], b[key])) for key in a}
            for a, b in zip(rows[::2], rows[1::2], strict=True)]  # fmt: skip


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, accumulation: int = 1,
          rows: list[dict[str, Tensor]] | None = None) -> list[float]:  # fmt: skip
    """A loop as people write it; losses of all micro-batches."""
    data, losses = batches(rows or examples()), []
    model.train()
    for step in range(steps):
        for micro in range(accumulation):
            loss = model(**data[(step * accumulation + micro) % len(data)]).loss
            (loss / accumulation).backward()
            losses.append(float(loss.detach()))
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def adam(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)


class OwnRunTest(unittest.TestCase):
    def folder(self) -> Path:
        return scratch / self.id().rpartition(".")[2]

    def quiet(self, act: Callable[[], Any]) -> tuple[Any, str]:
        """What it returns, and what was said."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            return act(), said.getvalue()

    def followed(self, model: nn.Module, work: Callable[..., Any], **words: Any) -> dict[str, Any]:
        """summary.json of a followed training."""
        optimizer = adam(model)

        def act() -> None:
            with follow(model, optimizer, self.folder(), **words):
                work(model, optimizer)

        _, self.said = self.quiet(act)
        return json.loads((self.folder() / "summary.json").read_text())

    def judged(self, code: int, gradients: bool = True) -> list[dict[str, Any]]:
        got, reports = judge(self.folder(), PROGRAM)
        told = [(f["headline"], f["first_tap"]) for r in reports for f in r["findings"]]
        self.assertEqual(got, code, told)
        for report in reports:
            checks = [v for v in report["verdicts"] if v["subject"]["party"] == "candidate"]
            passed = [v["tap"] for v in checks if v["trust"] == "pass"]
            self.assertIn("logits", passed)
            self.assertEqual(any(tap.startswith("grad.") for tap in passed), gradients)
        return reports

    def test_the_trainer_of_transformers(self) -> None:
        """Accumulation, a loss over the tokens of a whole step, clipping, padding."""
        callback = ParityCallback(self.folder(), checkpoint=checkpoint(CASE))
        arguments = transformers.TrainingArguments(
            output_dir=str(scratch / "trainer"), per_device_train_batch_size=2, max_steps=2,
            gradient_accumulation_steps=2, learning_rate=1e-3, max_grad_norm=0.5, use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(
            opened(), arguments, train_dataset=examples(), callbacks=[callback]
        )
        self.quiet(trainer.train)
        summary = json.loads((self.folder() / "summary.json").read_text())
        self.assertEqual(summary["findings"], [])
        self.assertEqual([step["step"] for step in summary["steps"]], [0, 1])
        self.assertEqual(summary["steps"][0]["weights"], str(checkpoint(CASE)))
        code, reports = callback.judge(PROGRAM)
        self.assertEqual(code, OK, [r["findings"] for r in reports])
        self.assertEqual(len(reports), 2)
        self.assertTrue(all(report["counts"]["pass"] > 400 for report in reports))

    def test_a_loop_is_not_changed_by_being_followed(self) -> None:
        alone, watched = opened(), opened()
        losses = train(alone, adam(alone), 3, 2)
        seen: list[float] = []
        summary = self.followed(
            watched,
            lambda m, o: seen.extend(train(m, o, 3, 2)),
            steps=(2,),
            checkpoint=checkpoint(CASE),
        )
        self.assertEqual(seen, losses)
        for (name, a), b in zip(alone.named_parameters(), watched.parameters(), strict=True):
            self.assertTrue(torch.equal(a, b), name)
        self.assertFalse(watched._forward_hooks or watched._forward_pre_hooks)
        self.assertEqual(summary["findings"], [])
        self.judged(OK)

    def test_updates_and_norms_are_those_of_the_step(self) -> None:
        model = opened()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        seen = {}

        def work(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            model.train()
            model(**batches(examples())[0]).loss.backward()
            seen["norm"] = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()

        self.followed(model, work, steps=(0,), checkpoint=checkpoint(CASE))
        with safe_open(self.folder() / "step-0.safetensors", "pt") as file:
            name = "model.layers.0.self_attn.o_proj.weight"
            moved = model.get_parameter(name).detach() - before[name]
            self.assertTrue(torch.equal(file.get_tensor(f"step.0.update.{name}"), moved))
            told = file.get_tensor("step.0.grad_norm").double()
            self.assertLess(float((told / seen["norm"] - 1).abs()), limit("golden.sharded_norm"))
            self.assertTrue(bool(moved.any()))

    def test_a_wrong_gradient_is_found_in_the_run_itself(self) -> None:
        """A hook that doubles the gradient of the output projection of layer 1."""
        model = opened()
        weight = model.get_parameter("model.layers.1.self_attn.o_proj.weight")
        weight.register_hook(lambda gradient: 2 * gradient)
        self.followed(model, lambda m, o: train(m, o, 1), steps=(0,), checkpoint=checkpoint(CASE))
        (report,) = self.judged(PARITY)
        (finding,) = [f for f in report["findings"] if f["fault"] != "none"]
        self.assertEqual(finding["first_tap"], f"grad.{'model.layers.1.self_attn.o_proj.weight'}")
        self.assertIn("2", finding["headline"])

    def test_weights_that_were_not_the_checkpoints_are_named(self) -> None:
        model = opened()
        with torch.no_grad():
            model.get_parameter("model.norm.weight").add_(1)
        summary = self.followed(
            model, lambda m, o: train(m, o, 1), steps=(0,), checkpoint=checkpoint(CASE)
        )
        (step,) = summary["steps"]
        self.assertIn("1 different", " ".join(step["notes"]))
        self.assertTrue(step["weights"].endswith("step-0.weights"))
        self.judged(OK)  # the model itself is right, with the weights that it has

    def test_lora_with_names_that_match(self) -> None:
        wrapped = self.adapted([*LORA_TARGETS["lm"].split()])
        summary = self.followed(
            wrapped, lambda m, o: train(m, o, 2), steps=(0, 1), checkpoint=checkpoint(CASE)
        )
        self.assertEqual(summary["findings"], [])
        first, second = summary["steps"]
        self.assertEqual(first["weights"], str(checkpoint(CASE)))  # B is zero: the base alone
        self.assertTrue(second["weights"].endswith("step-1.weights"))  # the merged weights
        self.judged(OK, gradients=False)

    def adapted(self, targets: list[str], **more: Any) -> nn.Module:
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, **more)
        with plain_lora_targets():
            return peft.get_peft_model(opened(), config)

    def test_lora_names_that_match_nothing_are_findings(self) -> None:
        wrapped = self.adapted(["indexer.q_b_proj", "indexer.weight_proj", "o_proj"])
        found = target_findings(wrapped)
        self.assertEqual(len(found), 2)
        self.assertIn("target indexer.q_b_proj: 0 modules matched", found[0])
        self.assertIn("did you mean indexer.wq_b?", found[0])
        self.assertIn("indexer.weight_proj: 0 modules matched", found[1])
        self.assertIn("did you mean indexer.weights_proj?", found[1])
        summary = self.followed(
            wrapped, lambda m, o: train(m, o, 1), steps=(0,), checkpoint=checkpoint(CASE)
        )
        self.assertEqual(summary["findings"], found)
        self.judged(PARITY, gradients=False)
        self.assertIn("finding: adapter default: target indexer.q_b_proj", self.said)

    def test_dropout_is_said(self) -> None:
        wrapped = self.adapted(["o_proj"], lora_dropout=0.05)
        summary = self.followed(
            wrapped, lambda m, o: train(m, o, 1), steps=(0,), checkpoint=checkpoint(CASE)
        )
        self.assertIn("lora_dropout 0.05", " ".join(summary["steps"][0]["notes"]))

    def test_left_padding_without_positions_is_said_and_found(self) -> None:
        rows = examples(padding=False)
        for row in rows[1::2]:
            row["attention_mask"][:7], row["labels"][:7] = 0, -100
        summary = self.followed(
            opened(), lambda m, o: train(m, o, 1, rows=rows), steps=(0,),
            checkpoint=checkpoint(CASE),
        )  # fmt: skip
        self.assertIn("position_ids: batch row 1", " ".join(summary["steps"][0]["notes"]))
        (report,) = self.judged(PARITY)
        words = [f["headline"] + d["words"] for f in report["findings"] for d in f["defects"]]
        self.assertIn("position", " ".join(words))

    def test_a_large_step_is_sketched(self) -> None:
        with mock.patch.object(own_step, "SKETCH_BYTES", 1):
            self.followed(
                opened(), lambda m, o: train(m, o, 1), steps=(0,), checkpoint=checkpoint(CASE)
            )
        with safe_open(self.folder() / "step-0.safetensors", "pt") as file:
            self.assertNotIn("logits", file.keys())
        with safe_open(self.folder() / "step-0.update.safetensors", "pt") as file:
            self.assertIn("step.0.update.lm_head.weight#projections", file.keys())
        self.judged(OK)

    def test_adapters_on_routed_experts(self) -> None:
        """Targets by path are merged like any other; those that peft moves there are findings."""
        targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        wrapped = self.adapted(["o_proj"], target_parameters=targets)
        summary = self.followed(
            wrapped, lambda m, o: train(m, o, 2), steps=(1,), checkpoint=checkpoint(CASE)
        )
        self.assertEqual(summary["findings"], [])
        self.judged(OK, gradients=False)
        config = peft.LoraConfig(r=4, target_modules=["gate_proj", "up_proj", "down_proj"])
        (found,) = target_findings(peft.get_peft_model(opened(), config))
        self.assertIn("peft put them on the routed experts", found)

    def test_autocast_is_what_it_computes_in(self) -> None:
        def work(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                train(model, optimizer, 1)

        self.followed(opened(), work, steps=(0,), checkpoint=checkpoint(CASE))
        with safe_open(self.folder() / "step-0.safetensors", "pt") as file:
            self.assertEqual(file.metadata()["dtype"], "bfloat16")

    def test_what_goes_wrong_ends_the_watching_alone(self) -> None:
        model, losses = opened(), []

        def work(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            model.train()
            for batch in batches(examples()):
                embedded = model.get_input_embeddings()(batch.pop("input_ids"))
                loss = model(inputs_embeds=embedded, **batch).loss
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))

        summary = self.followed(model, work, steps=(0,))
        self.assertEqual(len(losses), 8)
        self.assertIn("step 0: not taken: DumpError: forward: arguments", summary["findings"][0])
        self.assertEqual(judge(self.folder(), PROGRAM), (PARITY, []))

    def test_steps_that_never_came_are_findings(self) -> None:
        summary = self.followed(opened(), lambda m, o: train(m, o, 1), steps=(0, 7))
        self.assertEqual(summary["findings"], ["steps [7]: the training ended before them"])

    def test_a_folder_that_cannot_be_written_stops_it_before_the_first_step(self) -> None:
        model = opened()
        with self.assertRaisesRegex(DumpError, "output: expected a writable folder"):
            with follow(model, adam(model), "/proc/parity"):
                self.fail("the training began")
        with self.assertRaisesRegex(DumpError, "expected a folder with summary.json"):
            judge(scratch, PROGRAM)


if __name__ == "__main__":
    unittest.main(verbosity=2)
