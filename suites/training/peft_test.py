"""Real peft on real transformers: it loads our adapter files, and we load its own."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
import unittest
import warnings
from pathlib import Path
from unittest import mock

import peft
import synthetic
import torch
from agreement import limit
from peft.utils import transformers_weight_conversion as conversion
from program import ARTEFACT, OK, PARITY, ROOT, USAGE, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

TOOL = os.environ["DSV32_ADAPTER_TOOL"]
CASE = "tiny-wide"
ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
INDEXER = ["wq_b", "wk", "weights_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

scratch = tempfile.TemporaryDirectory(prefix="dsv32-peft-")
folder = Path(scratch.name)
warnings.simplefilter("ignore")


def tool(*words: object, expected: int = OK) -> str:
    done = subprocess.run(
        [TOOL, *map(str, words)], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.returncode == expected, done.stderr
    return done.stderr


def base_model() -> torch.nn.Module:
    path = folder / "checkpoint"
    if not path.exists():
        made = run("weights", "make", "--case", CASE, "--out", path)
        assert made.returncode == OK, made.stderr
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


@functools.cache
def inputs() -> dict[str, torch.Tensor]:
    batch = synthetic.make_batch(synthetic.load_cases()[CASE])
    names = ("input_ids", "attention_mask", "position_ids")
    return {name: torch.from_numpy(batch[name]) for name in names}


def peft_logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(), use_cache=False).logits


def our_logits(*adapters: Path) -> torch.Tensor:
    out = folder / "logits.safetensors"
    tool("logits", CASE, out, *adapters)
    return load_file(out)["logits"]


@contextlib.contextmanager
def targets_as_named():
    """Without peft's move of gate, up and down to the routed experts (docs/formats.md 11)."""
    with mock.patch.dict(conversion._MODEL_TO_CONVERSION_PATTERN) as patterns:
        patterns.pop("deepseek_v32")
        yield


class Peft(unittest.TestCase):
    def expect_equal(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        rows = inputs()["attention_mask"].bool()
        gap = (ours[rows] - theirs[rows]).norm() / theirs[rows].norm()
        self.assertLessEqual(float(gap), limit("peft.logits"))
        plain = our_logits()[rows]  # without an adapter
        moved = (ours[rows] - plain).norm() / plain.norm()
        self.assertGreater(float(moved), 100 * limit("peft.logits"), "the adapter changes nothing")

    def expect_loaded(self, path: Path) -> None:
        self.expect_equal(
            our_logits(path), peft_logits(peft.PeftModel.from_pretrained(base_model(), path))
        )

    def test_loads_our_attention_and_indexer_adapter(self) -> None:
        tool("make", CASE, folder / "combined", "attention", "kl")
        self.expect_loaded(folder / "combined")

    def test_loads_our_adapter_of_the_routed_experts(self) -> None:
        tool("make", CASE, folder / "experts", "attention", "experts")
        self.expect_loaded(folder / "experts")

    def test_loads_our_adapter_of_every_module(self) -> None:
        tool("make", CASE, folder / "all", "attention", "mlp", "kl", "experts")
        with targets_as_named():
            self.expect_loaded(folder / "all")

    def test_loads_our_two_adapters_side_by_side(self) -> None:
        tool("make", CASE, folder / "lm", "attention")
        tool("make", CASE, folder / "kl", "kl")
        model = peft.PeftModel.from_pretrained(base_model(), folder / "lm", adapter_name="lm")
        model.load_adapter(folder / "kl", adapter_name="kl")
        model.base_model.set_adapter(["lm", "kl"])
        self.expect_equal(our_logits(folder / "lm", folder / "kl"), peft_logits(model))

    def saved(self, name: str, **settings: object) -> tuple[Path, peft.PeftModel]:
        """An adapter of random values, saved by peft."""
        torch.manual_seed(1)
        config = peft.LoraConfig(
            r=4, lora_alpha=12, init_lora_weights=False, task_type="CAUSAL_LM", **settings
        )
        model = peft.get_peft_model(base_model(), config).eval()
        model.save_pretrained(folder / name)
        return folder / name, model

    def test_we_read_what_peft_saved(self) -> None:
        path, model = self.saved("saved", target_modules=ATTENTION + INDEXER)
        self.expect_equal(our_logits(path), peft_logits(model))

    def test_we_read_what_peft_makes_of_gate_up_and_down(self) -> None:
        path, model = self.saved("moved", target_modules=ATTENTION + MLP)
        names = load_file(path / "adapter_model.safetensors")
        self.assertTrue(any("mlp.experts.base_layer.lora_A" in name for name in names))
        self.expect_equal(our_logits(path), peft_logits(model))

    def test_we_read_targets_as_they_were_named(self) -> None:
        with targets_as_named():
            path, model = self.saved("named", target_modules=ATTENTION + MLP)
            self.expect_equal(our_logits(path), peft_logits(model))

    def test_we_read_one_fused_tensor_alone(self) -> None:
        path, model = self.saved("down", target_modules=[], target_parameters=EXPERTS[1:])
        self.expect_equal(our_logits(path), peft_logits(model))

    def check(self, expected: int, path: Path, *words: str) -> str:
        done = run("adapter", "check", path, "--case", CASE, *words)
        self.assertEqual(done.returncode, expected, done.stderr)
        return done.stdout + done.stderr

    def test_the_command_that_checks_an_adapter(self) -> None:
        path, _ = self.saved("checked", target_modules=ATTENTION + INDEXER)
        said = self.check(OK, path, "--rank", "4", "--scale", "3")
        self.assertEqual(said, "lm  10 modules, rank 4, scale 3\nkl  6 modules, rank 4, scale 3\n")
        self.assertIn("expected 8, got 4", self.check(ARTEFACT, path, "--rank", "8"))
        self.assertIn("expected 12, got 3", self.check(ARTEFACT, path, "--scale", "12"))
        for flag, value in (("--rank", "0"), ("--scale", "-1"), ("--config", "huge")):
            self.assertEqual(run("adapter", "check", path, flag, value).returncode, USAGE)
        base = run("adapter", "check", path, "--config", "small")
        self.assertEqual(base.returncode, ARTEFACT)  # layers that this adapter lacks

    def test_the_check_names_adapters_that_do_nothing(self) -> None:
        path, model = self.saved("idle", target_modules=ATTENTION)
        for name, value in model.named_parameters():
            if "layers.0.self_attn.o_proj.lora_B" in name:
                torch.nn.init.zeros_(value)
        model.save_pretrained(path)
        self.assertIn("B is zero in 1 of 10 modules", self.check(OK, path))

    def merged(self, adapter: Path, name: str, dtype: torch.dtype) -> Path:
        """The base with the adapter merged by peft, as transformers saves it."""
        model = peft.PeftModel.from_pretrained(base_model().to(dtype), adapter)
        model.merge_and_unload().save_pretrained(folder / name)
        return folder / name

    def test_what_peft_merged_is_the_merge(self) -> None:
        path, _ = self.saved("to-merge", target_modules=ATTENTION + INDEXER)
        for dtype in (torch.float32, torch.bfloat16):
            out = self.merged(path, f"merged-{dtype}".replace("torch.", ""), dtype)
            done = run("adapter", "merged", path, folder / "checkpoint", out)
            self.assertEqual(done.returncode, OK, done.stdout + done.stderr)
            self.assertIn("merged  16 of 16 tensors", done.stdout)

    def test_another_base_or_no_merge_is_named(self) -> None:
        path, _ = self.saved("unmerged", target_modules=ATTENTION)
        base = folder / "checkpoint"
        done = run("adapter", "merged", path, base, base)
        self.assertEqual(done.returncode, PARITY, done.stderr)
        self.assertIn("q_a_proj.weight: not-merged: it is the base's", done.stdout)
        self.assertEqual(run("adapter", "merged", path, base).returncode, USAGE)

    def test_an_adapter_added_to_fp8_codes_is_named(self) -> None:
        base, merged, path = folder / "fp8", folder / "fp8-merged", folder / "fp8-adapter"
        made = run("weights", "make", "--case", "tiny-fp8", "--out", base)
        self.assertEqual(made.returncode, OK, made.stderr)
        tool("make", "tiny-fp8", path, "attention")
        factors = load_file(path / "adapter_model.safetensors")
        factors = {n: 16 * v if ".lora_B." in n else v for n, v in factors.items()}
        save_file(factors, path / "adapter_model.safetensors")
        shutil.copytree(base, merged)
        name = "model.layers.0.self_attn.q_a_proj"
        a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        for shard in merged.glob("*.safetensors"):
            tensors = load_file(shard)
            if f"{name}.weight" in tensors:
                codes = tensors[f"{name}.weight"].float() + 2 * b @ a  # alpha / rank
                tensors[f"{name}.weight"] = codes.to(torch.float8_e4m3fn)
            save_file(tensors, shard)
        done = run("adapter", "merged", path, base, merged)
        self.assertEqual(done.returncode, PARITY, done.stderr)
        self.assertIn(f"wrong   {name}.weight: merge-on-codes: the adapter is added", done.stdout)

    def test_another_function_is_refused(self) -> None:
        path, _ = self.saved("rslora", target_modules=ATTENTION, use_rslora=True)
        said = tool("logits", CASE, folder / "none.safetensors", path, expected=4)
        self.assertIn("use_rslora", said)

    def test_dropout_is_a_warning(self) -> None:
        path, model = self.saved("dropout", target_modules=ATTENTION, lora_dropout=0.1)
        said = tool("logits", CASE, folder / "logits.safetensors", path)
        self.assertIn("lora_dropout", said)
        self.expect_equal(our_logits(path), peft_logits(model))


if __name__ == "__main__":
    unittest.main()
