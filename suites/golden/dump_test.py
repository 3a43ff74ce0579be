"""golden/dump on real transformers, on a model that nobody has seen before, and on broken ones.

ctest: `golden.dump`, in .venv-golden.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import sys
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import dsv32_dump as dump
import numpy as np
import plain_model as plain
import torch
import transformers
from agreement import limit
from dsv32_dump import Capture, DumpError, ModelCrash, Options, capture
from dsv32_dump.environment import git_commit
from dsv32_dump.load import expert_count, import_transformers
from dsv32_dump.packages import (
    HADAMARD,
    hadamard_in_use,
    hadamard_transform,
    stand_ins,
    with_stand_in,
)
from dsv32_dump.parts import find_parts
from dsv32_dump.taps import Taps
from dsv32_dump.tensors import deinterleave, in_place_layout
from dsv32_dump.weights import Checkpoint, compare_weights, weights_identity, without_codes
from dsv32_trace import (
    CASE_FILE,
    CASE_KEYS,
    canonical_json,
    case_metadata,
    listed_cases,
    make_batch,
)
from safetensors.torch import load_file, safe_open, save_file
from synthetic import Case, is_trainable, load_cases, weight, weight_specs, write_checkpoint
from torch import Tensor, nn

REQUIRED = (
    "format version case mode dtype rope_layout producer weights forced attn_implementation mask"
).split()

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(2)


class Folder:
    """Checkpoints of the cases, made once."""

    root = Path()

    @classmethod
    @functools.cache
    def checkpoint(cls, name: str) -> Path:
        path = cls.root / name
        write_checkpoint(load_cases()[name], path)
        return path


def setUpModule() -> None:
    folder = tempfile.TemporaryDirectory()
    Folder.root = Path(folder.name)
    unittest.addModuleCleanup(folder.cleanup)


def fields(case: Case) -> dict[str, Any]:
    """A case as dsv32_dump takes it."""
    return copy.deepcopy(listed_cases()[case.name])


def real_model(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    path = str(Folder.checkpoint(name))
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.eval()


def plain_copy(name: str) -> nn.Module:
    """float64, with the case's synthetic weights."""
    case = load_cases()[name]
    model = plain.PlainModel(case.config).double()
    specs = weight_specs(case.config).items()
    state = {n: torch.from_numpy(weight(case.seed, n, s, case.bias_offset)) for n, s in specs}
    model.load_state_dict(state)
    return model


@functools.cache
def real_run(name: str, attn: str | None = "eager", backward: bool = True) -> Capture:
    options = Options(backward=backward, attn_implementation=attn)
    return capture(real_model(name), fields(load_cases()[name]), options)


@functools.cache
def plain_run(name: str) -> Capture:
    """The plain model with the decisions of real code replayed."""
    taps = real_run(name).taps.items()
    forced = {n: v for n, v in taps if n.endswith(("topk", "router.experts"))}
    options = Options(backward=True, forced=forced)
    return capture(plain_copy(name), fields(load_cases()[name]), options)


def command(*words: object) -> tuple[int, str]:
    """Exit code and what went to stderr."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            code = dump.main([str(word) for word in words])
        except SystemExit as error:
            code = int(error.code or 0)
    return code, err.getvalue()


def judged(name: str, value: Tensor, run: Capture, case: Case) -> Tensor:
    """What is judged: no rows of padded queries, no unseen keys, attended keys of logits."""
    valid = torch.ones(case.B, case.S, dtype=torch.bool)
    valid[case.B - 1, : case.pad] = False
    if name.startswith("grad.") or value.dim() == 0:
        return value
    prefix = name.removesuffix("attn.logits").removesuffix("attn.probs").removesuffix("ix.scores")
    if name.endswith(("attn.logits", "attn.probs")):
        support = run.taps[prefix + "attn.probs"] > 0
        keep = support if name.endswith("logits") else torch.ones_like(support)
        return value[keep & valid[:, None, :, None]]
    if name.endswith("ix.scores"):
        return value[run.taps[name].isfinite() & valid[:, :, None]]
    return value[valid]


def distance(a: Tensor, b: Tensor) -> float:
    """Relative, or absolute where the right value is exactly zero."""
    a, b = a.double(), b.double()
    scale = float(b.norm())
    return float((a - b).norm()) / (scale if scale > 0 else 1.0)


class Agreement(unittest.TestCase):
    """Every value that is taken from real code is the value of docs/spec.md (dialect hf)."""

    def check(self, name: str) -> None:
        case, real, plain = load_cases()[name], real_run(name), plain_run(name)
        self.assertEqual(real.missing, [])
        self.assertEqual(plain.missing, [])
        self.assertEqual(real.taps.keys(), plain.taps.keys())
        for tap, value in real.taps.items():
            want = plain.taps[tap]
            self.assertEqual(value.shape, want.shape, tap)
            got, want = judged(tap, value, plain, case), judged(tap, want, plain, case)
            if not value.is_floating_point():
                self.assertTrue(torch.equal(got, want), tap)
            self.assertLessEqual(distance(got, want), limit("dump.value"), tap)

    def test_tiny(self) -> None:
        self.check("tiny")

    def test_tiny_yarn(self) -> None:
        self.check("tiny-yarn")

    def test_tiny_wide(self) -> None:
        self.check("tiny-wide")

    def test_tiny_bias(self) -> None:
        self.check("tiny-bias")

    def test_tiny_nopad_without_a_mask(self) -> None:
        self.check("tiny-nopad")
        self.assertEqual(real_run("tiny-nopad").metadata["mask"], "none")

    def test_tiny_square_does_not_mix_axes(self) -> None:
        self.check("tiny-square")

    def test_tiny_dense(self) -> None:
        self.check("tiny-dense")
        self.assertFalse([n for n in real_run("tiny-dense").taps if n.endswith("topk")])

    def test_fewer_keys_than_topk(self) -> None:
        self.check("tiny-short7")
        topk = real_run("tiny-short7").taps["layers.0.topk"]
        self.assertEqual(topk[0, 0].tolist(), [0] + [-1] * 7)
        self.assertTrue((topk[1, 0] == -1).all())  # a padded query sees no key

    def test_index_scores_follow_from_the_taps_they_are_made_of(self) -> None:
        """The scales are in the weights: only the scores can tell that they fit."""
        taps, plain = real_run("tiny-wide").taps, plain_run("tiny-wide")
        for layer in ("layers.0.", "layers.1."):
            q, k, weights = (taps[layer + n].double() for n in ("ix.q", "ix.k", "ix.weights"))
            match = torch.einsum("bshd,btd->bsht", q, k).relu()
            want = torch.einsum("bsh,bsht->bst", weights, match)
            name, case = layer + "ix.scores", load_cases()["tiny-wide"]
            got, want = (judged(name, v, plain, case) for v in (taps[name], want))
            self.assertLessEqual(distance(got, want), limit("dump.value"))

    def test_default_backend_agrees_with_eager(self) -> None:
        case, eager = load_cases()["tiny-wide"], real_run("tiny-wide")
        other = real_run("tiny-wide", None)
        self.assertEqual(other.metadata["attn_implementation"], "sdpa")
        self.assertIn("layers.1.attn.probs", json.loads(other.metadata["derived_taps"]))
        self.assertEqual(other.taps.keys(), eager.taps.keys())
        for tap, value in other.taps.items():
            got, want = (judged(tap, v, eager, case) for v in (value, eager.taps[tap]))
            self.assertLessEqual(distance(got, want), limit("dump.two_runs"), tap)

    def test_chunks_agree_with_one_pass(self) -> None:
        case, whole = load_cases()["tiny-chunk"], real_run("tiny-wide")
        chunks = real_run("tiny-chunk", backward=False)
        self.assertEqual(chunks.missing, [])
        for tap, value in chunks.taps.items():
            got, want = (judged(tap, v, whole, case) for v in (value, whole.taps[tap]))
            self.assertLessEqual(distance(got, want), limit("dump.two_runs"), tap)
        scores = chunks.taps["layers.0.ix.scores"]
        later = torch.ones(case.S, case.S).triu(1).bool()
        self.assertTrue((scores[0][later] == -torch.inf).all())
        self.assertTrue((chunks.taps["layers.0.attn.probs"][0, :, later] == 0).all())


class Format(unittest.TestCase):
    """Names, shapes, types and metadata of docs/formats.md 4."""

    def test_shapes_and_types(self) -> None:
        taps, B, S = real_run("tiny").taps, 2, 32
        want = {
            "embed": (B, S, 64), "layers.1.q_latent": (B, S, 32), "layers.0.kv_latent": (B, S, 16),
            "layers.0.q_nope": (B, S, 4, 16), "layers.0.q_rope": (B, S, 4, 16),
            "layers.0.k_rope": (B, S, 16), "layers.0.ix.q": (B, S, 4, 32),
            "layers.0.ix.k": (B, S, 32), "layers.0.ix.weights": (B, S, 4),
            "layers.0.ix.scores": (B, S, S), "layers.0.topk": (B, S, 8),
            "layers.0.attn.logits": (B, 4, S, S), "layers.0.attn.ctx": (B, S, 4, 16),
            "layers.1.router.logits": (B, S, 4), "layers.1.router.experts": (B, S, 2),
            "layers.1.router.weights": (B, S, 2), "logits": (B, S, 100), "loss.lm": (),
        }  # fmt: skip
        self.assertEqual({n: tuple(taps[n].shape) for n in want}, want)
        decisions = {n for n, v in taps.items() if v.dtype == torch.int32}
        self.assertEqual(decisions, {"layers.0.topk", "layers.1.topk", "layers.1.router.experts"})
        self.assertEqual({v.dtype for n, v in taps.items() if n not in decisions}, {torch.float32})

    def test_gradients_have_checkpoint_names(self) -> None:
        specs = weight_specs(load_cases()["tiny"].config)
        want = {f"grad.{n}": s for n, s in specs.items() if is_trainable(n)}
        taps = real_run("tiny").taps
        self.assertEqual(
            {n: tuple(v.shape) for n, v in taps.items() if n.startswith("grad.")}, want
        )

    def test_padding_is_masked(self) -> None:
        """The five padded keys of the last row take no part, in the first pass and with a cache."""
        for name in ("tiny", "tiny-chunk"):
            taps = real_run(name, backward=name == "tiny").taps
            self.assertTrue((taps["layers.0.ix.scores"][1, 5:, :5] == -torch.inf).all())
            self.assertTrue((taps["layers.0.attn.probs"][1, :, 5:, :5] == 0).all())
            self.assertGreaterEqual(int(taps["layers.0.topk"][1, 5:, 0].min()), 5)

    def test_decisions_are_ordered(self) -> None:
        taps = real_run("tiny-wide").taps
        experts = taps["layers.1.router.experts"]
        self.assertTrue((experts[..., 1:] > experts[..., :-1]).all())
        topk = taps["layers.0.topk"]
        past_end = (topk[..., :-1] == -1) & (topk[..., 1:] != -1)
        self.assertFalse(past_end.any())

    def test_metadata_is_complete(self) -> None:
        out = Folder.root / "trace.safetensors"
        code, err = command(
            "--checkpoint", Folder.checkpoint("tiny"), "--case", "tiny", "--out", out
        )
        self.assertEqual(code, 0, err)
        with safe_open(out, "pt") as file:
            metadata = file.metadata()
        self.assertLessEqual(set(REQUIRED), metadata.keys())
        self.assertEqual(metadata["format"], "dsv32-verify.trace")
        self.assertEqual(metadata["case"], "tiny")
        self.assertEqual(metadata["weights"], "synthetic:1")
        loaded = json.loads(metadata["weights_loaded"])
        self.assertEqual(
            loaded, {"identical": 51, "different": [], "missing": [], "unexpected": []}
        )
        producer = json.loads(metadata["producer"])
        self.assertEqual(producer["transformers"], transformers.__version__)
        self.assertEqual(
            producer["transformers_path"], str(Path(transformers.__file__).resolve().parent)
        )
        self.assertEqual(len(producer["modeling_sha256"]), 64)
        (Folder.root / "plain").touch()
        self.assertEqual(out.stat().st_mode, (Folder.root / "plain").stat().st_mode)

    def test_an_unlisted_case_is_written_in_full(self) -> None:
        case = fields(load_cases()["tiny"]) | {"S": 12, "bias_offset": -2.0}
        text = case_metadata(case)
        self.assertEqual(
            text,
            '{"B":2,"S":12,"bias_offset":-2,"chunks":[],"config":"tiny","overrides":{},"pad":5,"seed":1}',
        )

    def test_optional_keys_are_told_where_they_say_more(self) -> None:
        case = fields(load_cases()["tiny"]) | {"pad_side": "right", "position_offset": 7}
        self.assertIn('"pad_side":"right","position_offset":7', case_metadata(case))
        self.assertEqual(case_metadata(fields(load_cases()["tiny-hot"])), "tiny-hot")

    def test_numbers_print_as_rfc_8785_wants(self) -> None:
        want = {
            0.0: "0", 1.0: "1", -2.0: "-2", 0.5: "0.5", 1e-6: "0.000001", 1e-7: "1e-7",
            1.5e-9: "1.5e-9", 1e21: "1e+21", 1e20: "1" + "0" * 20, 123456.789: "123456.789",
            5e-324: "5e-324", 0.1: "0.1", 4.5e15: "4500000000000000", 1.25e30: "1.25e+30",
        }  # fmt: skip
        self.assertEqual({k: canonical_json(k) for k in want}, want)
        self.assertEqual(canonical_json(-0.0), "0")

    def test_bfloat16_taps_stay_bfloat16(self) -> None:
        model = real_model("tiny-wide", torch.bfloat16)
        run = capture(model, fields(load_cases()["tiny-wide"]))
        self.assertEqual(run.missing, [])
        self.assertEqual(run.metadata["dtype"], "bfloat16")
        for name in ("layers.0.q_rope", "layers.0.hidden", "logits"):
            self.assertEqual(run.taps[name].dtype, torch.bfloat16, name)
        self.assertEqual(run.taps["layers.0.ix.scores"].dtype, torch.float32)

    def test_only_wanted_taps_are_kept(self) -> None:
        case = fields(load_cases()["tiny"])
        run = capture(real_model("tiny"), case, Options(taps=("logits", "topk")))
        self.assertEqual(set(run.taps), {"layers.0.topk", "layers.1.topk", "logits"})
        self.assertEqual(run.missing, [])


class Decisions(unittest.TestCase):
    def test_forced_decisions_are_followed(self) -> None:
        case = load_cases()["tiny-wide"]
        own = real_run("tiny-wide").taps
        topk = own["layers.0.topk"].clone()
        topk[0, 20] = torch.tensor([0, 1, 2, 3, 4, 5, 6, 20])
        experts = own["layers.1.router.experts"].clone()
        experts[0, 3] = torch.tensor([0, 1, 2, 3])
        forced = {"layers.0.topk": topk, "layers.1.router.experts": experts}
        run = capture(real_model("tiny-wide"), fields(case), Options(forced=forced))
        self.assertEqual(run.metadata["forced"], "true")
        self.assertTrue(torch.equal(run.taps["layers.0.topk"], topk))
        self.assertTrue(torch.equal(run.taps["layers.1.router.experts"], experts))
        used = run.taps["layers.0.attn.probs"][0, :, 20] > 0
        self.assertEqual(used.any(0).nonzero().flatten().tolist(), topk[0, 20].tolist())

    def picks(self, scores: Tensor, picked: Tensor) -> Tensor:
        """visible_picks of one query that sees keys 0 and 1 of 4."""
        taps = Taps.__new__(Taps)
        taps.r = types.SimpleNamespace(T=4)
        taps.visible = torch.tensor([[[True, True, False, False]]])
        out = taps.visible_picks(picked, scores, 4)
        assert out is not None
        return out[0, 0].tolist()

    def test_filling_of_masked_keys_is_no_pick(self) -> None:
        inf = float("inf")
        picked = torch.tensor([[[1, 0, 3, 2]]])
        self.assertEqual(self.picks(torch.tensor([[[1, 2, -inf, -inf]]]), picked), [0, 1, -1, -1])
        lowest = torch.finfo(torch.float32).min
        self.assertEqual(
            self.picks(torch.tensor([[[1, 2, lowest, lowest]]]), picked), [0, 1, -1, -1]
        )

    def test_a_pick_of_an_unmasked_future_key_stays(self) -> None:
        """It is an error of the model: the judge must see it."""
        picked = torch.tensor([[[3, 1, 0]]])
        scores = torch.tensor([[[1.0, 2.0, -9.0, 5.0]]])
        self.assertEqual(self.picks(scores, picked), [0, 1, 3, -1])


class Layouts(unittest.TestCase):
    """in_place_layout tells how a rotation wrote its result."""

    def setUp(self) -> None:
        self.x = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(1))
        angle = torch.arange(5.0)[:, None, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
        self.cos, self.sin = 0.9 * angle.cos(), 0.9 * angle.sin()

    def turn(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a * self.cos - b * self.sin, b * self.cos + a * self.sin

    def test_pairs(self) -> None:
        pairs = torch.stack(self.turn(self.x[..., 0::2], self.x[..., 1::2]), dim=-1).flatten(-2)
        for written, name in ((pairs, "pairs"), (deinterleave(pairs), "deinterleaved")):
            value, layout = in_place_layout(self.x, written)
            self.assertEqual(layout, name)
            self.assertTrue(torch.equal(value, pairs))

    def test_halves_stay(self) -> None:
        halves = torch.cat(self.turn(*self.x.chunk(2, dim=-1)), dim=-1)
        value, layout = in_place_layout(self.x, halves)
        self.assertEqual(layout, "halves")
        self.assertTrue(torch.equal(value, halves))


class Weights(unittest.TestCase):
    """What a model did not load is named, tensor by tensor."""

    def compare(self, change: Any) -> dict[str, Any]:
        model = real_model("tiny")
        with torch.no_grad():
            change(model)
        return compare_weights(model, Checkpoint(Folder.checkpoint("tiny")))

    def test_a_tensor_initialised_again(self) -> None:
        loaded = self.compare(lambda m: m.model.layers[1].self_attn.o_proj.weight.normal_())
        self.assertEqual(loaded["different"], ["model.layers.1.self_attn.o_proj.weight"])
        self.assertEqual(loaded["identical"], 50)

    def test_a_transposed_tensor(self) -> None:
        def transpose(model: nn.Module) -> None:
            linear = model.model.layers[0].self_attn.o_proj
            linear.weight = nn.Parameter(linear.weight.T.contiguous())

        loaded = self.compare(transpose)
        self.assertEqual(loaded["different"], ["model.layers.0.self_attn.o_proj.weight"])

    def test_a_dropped_and_an_added_tensor(self) -> None:
        def rename(model: nn.Module) -> None:
            indexer = model.model.layers[0].self_attn.indexer
            indexer.key = indexer.wk
            del indexer.wk

        loaded = self.compare(rename)
        self.assertEqual(loaded["missing"], ["model.layers.0.self_attn.indexer.wk.weight"])
        self.assertEqual(loaded["unexpected"], ["model.layers.0.self_attn.indexer.key.weight"])

    def test_one_expert_of_a_fused_tensor(self) -> None:
        def swap(model: nn.Module) -> None:
            fused = model.model.layers[1].mlp.experts.gate_up_proj
            fused[2] = fused[2].roll(fused.shape[1] // 2, dims=0)  # up before gate

        names = [f"model.layers.1.mlp.experts.2.{kind}_proj.weight" for kind in ("gate", "up")]
        self.assertEqual(self.compare(swap)["different"], names)

    def test_one_bit(self) -> None:
        def flip(model: nn.Module) -> None:
            model.model.norm.weight.view(torch.int32)[3] ^= 1

        self.assertEqual(self.compare(flip)["different"], ["model.norm.weight"])

    def test_a_buffer(self) -> None:
        name = "model.layers.1.mlp.gate.e_score_correction_bias"
        loaded = self.compare(lambda m: m.model.layers[1].mlp.gate.e_score_correction_bias.zero_())
        self.assertEqual(loaded["different"], [name])

    def test_other_weights_are_not_called_synthetic(self) -> None:
        case = fields(load_cases()["tiny"])
        tensors = dict(Checkpoint(Folder.checkpoint("tiny")).tensors())
        self.assertEqual(weights_identity(lambda: iter(tensors.items()), case), "synthetic:1")
        tensors["lm_head.weight"] = tensors["lm_head.weight"] * 2
        digest = weights_identity(lambda: iter(tensors.items()), case)
        self.assertRegex(digest, "^sha256:[0-9a-f]{64}$")

    def test_synthetic_fp8_weights_have_their_name(self) -> None:
        case = fields(load_cases()["tiny-fp8"])
        files = Checkpoint(Folder.checkpoint("tiny-fp8"))  # dequantised, in float32
        self.assertEqual(weights_identity(files.tensors, case), "synthetic-fp8:1")

    def test_fp8_tensors_are_their_values(self) -> None:
        codes = torch.arange(20).view(4, 5).to(torch.float8_e4m3fn)
        stored = {"a.weight": codes, "a.weight_scale_inv": torch.tensor([[0.5, 3], [0.1, 1]]),
                  "norm.weight": torch.ones(2)}  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            save_file(stored, Path(folder) / "model.safetensors")
            config = {"quantization_config": {"weight_block_size": [3, 4]}}
            (Path(folder) / "config.json").write_text(json.dumps(config))
            files = Checkpoint(Path(folder))
            values = dict(files.tensors())
        scale = torch.tensor([[0.5] * 4 + [3]] * 3 + [[0.1] * 4 + [1]])
        self.assertEqual(sorted(values), ["a.weight", "norm.weight"])
        self.assertTrue(torch.equal(values["a.weight"], codes.float() * scale))
        loaded = without_codes(stored, files.block)
        self.assertTrue(torch.equal(loaded["a.weight"], values["a.weight"]))
        self.assertEqual(sorted(loaded), sorted(values))

    def test_the_digest_is_that_of_formats(self) -> None:
        case = fields(load_cases()["tiny"]) | {"seed": 2}  # so that seed 1 is not synthetic for it
        tensors = dict(Checkpoint(Folder.checkpoint("tiny")).tensors())
        digest = weights_identity(lambda: iter(tensors.items()), case)
        self.assertTrue(digest.startswith("sha256:3f3230e85acf3f9b"), digest)


class Boom(RuntimeError):
    pass


class Crashes(unittest.TestCase):
    """The account of a crash is a trace file."""

    def dump(self, model: nn.Module, **options: Any) -> tuple[Capture, dict[str, str], Path]:
        out = Folder.root / "crash.safetensors"
        run = dump.dump(model, fields(load_cases()["tiny"]), out, Options(**options))
        with safe_open(out, "pt") as file:
            return run, file.metadata(), out

    def test_forward(self) -> None:
        model = real_model("tiny")
        module = model.model.layers[1].mlp.shared_experts
        with mock.patch.object(module, "forward", side_effect=Boom("no kernel for this shape")):
            run, metadata, out = self.dump(model)
        failure = json.loads(metadata["failure"])
        self.assertEqual(failure["where"], "model.layers.1.mlp.shared_experts")
        self.assertEqual(failure["phase"], "forward")
        self.assertEqual(failure["message"], "Boom: no kernel for this shape")
        self.assertEqual(failure["shapes"], [[2, 32, 64]])
        taps = load_file(out)
        self.assertIn("layers.0.hidden", taps)
        self.assertIn("layers.1.moe.routed", taps)
        self.assertNotIn("logits", taps)
        self.assertLessEqual(set(REQUIRED), metadata.keys())

    def test_capture_raises_and_keeps_the_cause(self) -> None:
        model = real_model("tiny")
        with mock.patch.object(model.lm_head, "forward", side_effect=Boom("x")):
            with self.assertRaises(ModelCrash) as caught:
                capture(model, fields(load_cases()["tiny"]))
        self.assertIsInstance(caught.exception.__cause__, Boom)
        self.assertIn("final_norm", caught.exception.capture.taps)

    def test_backward(self) -> None:
        class Thrower(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> Any:
                raise Boom("no backward")

        model = real_model("tiny")
        model.model.norm.register_forward_hook(lambda *_: Thrower.apply(_[2]))
        run, metadata, _ = self.dump(model, backward=True)
        failure = json.loads(metadata["failure"])
        self.assertEqual((failure["phase"], failure["where"]), ("backward", "backward"))
        self.assertIn("no backward", failure["message"])
        self.assertIn("loss.lm", run.taps)

    def test_the_model_is_left_as_it_was(self) -> None:
        model = real_model("tiny")
        before = capture(model, fields(load_cases()["tiny"])).taps["logits"]
        with mock.patch.object(model.lm_head, "forward", side_effect=Boom("x")):
            with self.assertRaises(ModelCrash):
                capture(model, fields(load_cases()["tiny"]), Options(backward=True))
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
        self.assertEqual(hooks, 0)
        self.assertFalse(model.training)
        self.assertEqual(model.config._attn_implementation, "sdpa")
        after = capture(model, fields(load_cases()["tiny"])).taps["logits"]
        self.assertTrue(torch.equal(before, after))

    def test_load(self) -> None:
        out = Folder.root / "load.safetensors"
        target = transformers.AutoModelForCausalLM
        with mock.patch.object(target, "from_pretrained", side_effect=Boom("bad config")):
            code, err = command(
                "--checkpoint", Folder.checkpoint("tiny"), "--case", "tiny", "--out", out
            )
        self.assertEqual(code, 1)
        self.assertIn("bad config", err)
        with safe_open(out, "pt") as file:
            metadata = file.metadata()
            self.assertEqual(list(file.keys()), [])
        self.assertEqual(json.loads(metadata["failure"])["phase"], "load")
        self.assertLessEqual(set(REQUIRED), metadata.keys())


class Unseen(unittest.TestCase):
    """Models of other classes, with other habits."""

    def test_every_tap_of_the_plain_model_is_found(self) -> None:
        run = plain_run("tiny-wide")
        self.assertEqual(run.missing, [])
        layouts = json.loads(run.metadata["producer"])["attention_layouts"]
        self.assertEqual(layouts, {"main": "pairs", "indexer": "halves"})

    def test_other_class_names(self) -> None:
        model = real_model("tiny")
        for number, module in enumerate(model.modules()):
            if type(module).__module__.startswith("transformers"):
                module.__class__ = type(f"Thing{number}", (type(module),), {})
        run = capture(model, fields(load_cases()["tiny"]))
        self.assertEqual(run.missing, [])
        want = real_run("tiny").taps
        self.assertTrue(all(torch.equal(value, want[name]) for name, value in run.taps.items()))

    def test_an_expert_module_without_tokens_has_a_zero_gradient(self) -> None:
        case, model = load_cases()["tiny-wide"], plain_copy("tiny-wide")
        experts = torch.zeros(case.B, case.S, 4, dtype=torch.int32) + torch.arange(4)
        forced = {"layers.1.router.experts": experts}
        run = capture(model, fields(case), Options(backward=True, forced=forced))
        name = "grad.model.layers.1.mlp.experts.{}.down_proj.weight"
        self.assertEqual(float(run.taps[name.format(9)].abs().max()), 0)
        self.assertGreater(float(run.taps[name.format(2)].abs().max()), 0)
        self.assertIn("experts.9.down_proj", run.metadata["gradients_none"])

    def test_what_is_not_there_is_listed(self) -> None:
        model = plain_copy("tiny-wide")
        with mock.patch.object(torch, "topk", _sorted_topk):  # an ordering that nobody watches
            run = capture(model, fields(load_cases()["tiny-wide"]))
        self.assertEqual(run.missing, ["layers.0.ix.scores", "layers.1.ix.scores"])
        self.assertEqual(json.loads(run.metadata["missing_taps"]), run.missing)
        self.assertIn("layers.1.topk", run.taps)  # the indexer's own output

    def test_keys_that_a_model_forgets_to_mask_are_shown(self) -> None:
        model = plain_copy("tiny-wide")
        for block in model.model.layers:
            picker = block.self_attn.indexer
            picker.forward = functools.partial(_blind, picker.forward)
        taps = capture(model, fields(load_cases()["tiny-wide"])).taps
        self.assertTrue(taps["layers.0.ix.scores"].isfinite().all())
        future = taps["layers.0.topk"] > torch.arange(33)[None, :, None]
        self.assertTrue(future[:, 5].any())

    def test_a_tap_is_a_copy(self) -> None:
        """A model may go on writing into a tensor after the hook saw it."""

        def forward(block: Any, x: Tensor, turn: Any, seen: Tensor) -> Tensor:
            y = block.self_attn(block.input_layernorm(x), turn, seen)
            y += x
            return y + block.mlp(block.post_attention_layernorm(y))

        case = fields(load_cases()["tiny-wide"])
        want = capture(plain_copy("tiny-wide"), case).taps
        with mock.patch.object(plain.Block, "forward", forward):
            got = capture(plain_copy("tiny-wide"), case).taps
        self.assertTrue(all(torch.equal(got[name], want[name]) for name in want))

    def test_layers_beyond_the_config_are_not_layers(self) -> None:
        model = plain_copy("tiny-wide")
        model.model.layers.append(copy.deepcopy(model.model.layers[1]))  # as an MTP block
        parts = find_parts(model)
        self.assertEqual(max(part.layer for part in parts.values()), 1)

    def test_public_training_outputs(self) -> None:
        class Trainable(plain.PlainModel):
            def forward(self, *args: Any, **kwargs: Any) -> Any:
                raise NotImplementedError

        def forward(
            self: Any, labels: Tensor, output_indexer_scores: bool = False, **kwargs: Any
        ) -> Any:
            out = plain.PlainModel.forward(self, labels=labels, **kwargs)
            out.lm_loss, out.loss = out.loss, out.loss + 1  # a loss of more terms
            if output_indexer_scores:
                target = torch.full((2, 33, 33), 1 / 33)
                out.indexer_scores, out.indexer_kl_targets = (target,) * 2, (target, target)
                out.indexer_kl_loss = torch.tensor(0.25)
            return out

        Trainable.forward = forward
        model = plain_copy("tiny-wide")
        model.__class__ = Trainable
        run = capture(model, fields(load_cases()["tiny-wide"]))
        self.assertEqual(float(run.taps["loss.kl"]), 0.25)
        self.assertEqual(tuple(run.taps["layers.1.kl.target"].shape), (2, 33, 33))
        own = capture(plain_copy("tiny-wide"), fields(load_cases()["tiny-wide"])).taps
        self.assertTrue(torch.equal(run.taps["loss.lm"], own["loss.lm"]))
        self.assertTrue(torch.equal(run.taps["layers.0.ix.scores"], own["layers.0.ix.scores"]))


def _blind(forward: Any, x: Tensor, latent: Tensor, turn: Any, seen: Tensor) -> Tensor:
    """An indexer that sees the future and the padding."""
    return forward(x, latent, turn, torch.ones_like(seen))


def _sorted_topk(scores: Tensor, k: int, dim: int = -1) -> Any:
    order = np.argsort(-scores.detach().numpy(), axis=dim, kind="stable")
    indices = torch.from_numpy(order)[..., :k]
    return types.SimpleNamespace(values=scores.gather(dim, indices), indices=indices)


class Imports(unittest.TestCase):
    """Which transformers ran is checked, not believed."""

    def tree(self, *parts: str) -> Path:
        root = Path(tempfile.mkdtemp(dir=Folder.root))
        package = root.joinpath(*parts, "transformers")
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("__version__ = '0.0.0'\n")
        return root

    def setUp(self) -> None:
        path = list(sys.path)
        self.addCleanup(lambda: sys.path.__setitem__(slice(None), path))

    def test_another_transformers_is_refused(self) -> None:
        for parts in ((), ("src",)):
            root = self.tree(*parts)
            out = Folder.root / "refused.safetensors"
            words = ["--checkpoint", Folder.checkpoint("tiny"), "--case", "tiny", "--out", out]
            code, err = command(*words, "--transformers", root)
            self.assertEqual(code, 4)
            self.assertIn(f"expected one under {root}", err)
            self.assertFalse(out.exists())

    def test_the_right_one_is_taken(self) -> None:
        package = Path(transformers.__file__).parent
        for path in (package, package.parent):
            self.assertEqual(Path(import_transformers(path).__file__).parent, package)

    def test_a_folder_without_transformers_is_refused(self) -> None:
        with self.assertRaises(DumpError) as caught:
            import_transformers(Folder.root)
        self.assertEqual(caught.exception.code, 4)

    def test_the_commit_is_read_without_git(self) -> None:
        root = self.tree()
        self.assertIsNone(git_commit(root / "transformers"))
        git = root / ".git"
        (git / "refs" / "heads").mkdir(parents=True)
        (git / "HEAD").write_text("ref: refs/heads/main\n")
        (git / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
        self.assertEqual(git_commit(root / "transformers"), "a" * 40)
        (git / "refs" / "heads" / "main").unlink()
        (git / "packed-refs").write_text(f"# pack\n{'b' * 40} refs/heads/main\n")
        self.assertEqual(git_commit(root / "transformers"), "b" * 40)
        (git / "HEAD").write_text("c" * 40 + "\n")
        self.assertEqual(git_commit(root / "transformers"), "c" * 40)

    def test_hadamard_stand_in_is_the_transform(self) -> None:
        x = torch.eye(8, dtype=torch.float64)
        h = hadamard_transform(x, scale=8**-0.5)
        self.assertTrue(torch.equal(h * 8**0.5, h.T * 8**0.5))
        self.assertLessEqual(float((h @ h.T - x).abs().max()), limit("dump.hadamard"))
        self.assertTrue(
            torch.equal(hadamard_transform(x)[3], torch.tensor([1, -1, -1, 1] * 2))
        )

    def test_the_stand_in_comes_after_the_own_fallback(self) -> None:
        def with_fallback() -> str:
            with contextlib.suppress(ImportError):
                from fast_hadamard_transform import hadamard_transform  # noqa: F401

                return "package"
            return "own"

        def without() -> bool:
            from fast_hadamard_transform import hadamard_transform

            return hadamard_transform is hadamard_transform

        self.addCleanup(sys.modules.pop, HADAMARD, None)
        self.addCleanup(stand_ins.clear)
        with contextlib.redirect_stderr(io.StringIO()) as err:
            self.assertEqual(with_stand_in(with_fallback), "own")
            self.assertEqual(err.getvalue(), "")
            self.assertTrue(with_stand_in(without))
            self.assertIn("stand-in", err.getvalue())
        self.assertEqual(hadamard_in_use(b""), "stand-in")

    def test_an_absent_package_is_the_environments_fault(self) -> None:
        def load(*_: Any, **__: Any) -> Any:
            import a_package_that_is_not_there  # noqa: F401

        out = Folder.root / "absent.safetensors"
        with mock.patch.object(transformers.AutoModelForCausalLM, "from_pretrained", load):
            code, err = command(
                "--checkpoint", Folder.checkpoint("tiny"), "--case", "tiny", "--out", out
            )
        self.assertEqual(code, 6)
        self.assertIn("a_package_that_is_not_there", err)
        self.assertFalse(out.exists())

    def test_expert_count_of_a_release_follows_the_checkpoint(self) -> None:
        config = types.SimpleNamespace(n_routed_experts=4, num_experts=256)
        auto = types.SimpleNamespace(from_pretrained=lambda _: config)
        arguments = types.SimpleNamespace(checkpoint=Path("x"), trust_remote_code=False)
        with contextlib.redirect_stderr(io.StringIO()):
            library = types.SimpleNamespace(AutoConfig=auto)
            self.assertEqual(expert_count(library, arguments), (config, {"num_experts": 4}))
        self.assertEqual(config.num_experts, 4)


class Input(unittest.TestCase):
    """Wrong input: one line that helps, the right exit code, no file."""

    def refused(self, code: int, text: str, *words: object, checkpoint: str = "tiny") -> None:
        out = Folder.root / "input.safetensors"
        got, err = command("--checkpoint", Folder.checkpoint(checkpoint), "--out", out, *words)
        self.assertEqual(got, code, err)
        self.assertIn(text, err)
        self.assertFalse(out.exists())

    def case(self, **changes: Any) -> str:
        plain = {k: v for k, v in fields(load_cases()["tiny"]).items() if k in CASE_KEYS}
        return json.dumps({k: v for k, v in (plain | changes).items() if v is not None})

    def test_cases(self) -> None:
        self.refused(2, "no case given")
        self.refused(2, "expected one of tiny, tiny-yarn", "--case", "tine")
        self.refused(4, "case.S: expected a value, got a missing key", "--case", self.case(S=None))
        self.refused(4, "case.B: expected an integer >= 1", "--case", self.case(B=0))
        self.refused(4, "case.pad: expected less than S = 32", "--case", self.case(pad=32))
        self.refused(4, "a sum of 5", "--case", self.case(chunks=[2, 3]))
        self.refused(4, "case: expected JSON", "--case", "{not json")
        self.refused(4, "case.edits", "--case", self.case(edits=[{"name": "x"}]))
        self.refused(4, "left or right", "--case", self.case(pad_side="top"))

    def test_modes(self) -> None:
        self.refused(2, "a case of one pass", "--case", "tiny-chunk", "--mode", "backward",
                     checkpoint="tiny-chunk")  # fmt: skip
        self.refused(4, "without padding", "--case", "tiny", "--mask", "none")
        self.refused(2, "a class of transformers", "--case", "tiny", "--class", "NoSuchModel")

    def test_another_case_than_the_checkpoints(self) -> None:
        self.refused(4, "index_n_heads: expected 16, got 4", "--case", "tiny-wide")
        path = Folder.checkpoint("tiny-short8")
        (path / CASE_FILE).write_text(self.case(S=8, pad=1))
        self.refused(4, "case.seed", "--case", self.case(seed=9), checkpoint="tiny-short8")

    def test_checkpoints(self) -> None:
        out = Folder.root / "input.safetensors"
        empty = Path(tempfile.mkdtemp(dir=Folder.root))
        code, err = command("--checkpoint", empty, "--case", "tiny", "--out", out)
        self.assertEqual((code, "config.json" in err), (4, True))
        broken = Path(tempfile.mkdtemp(dir=Folder.root))
        (broken / "config.json").write_text((Folder.checkpoint("tiny") / "config.json").read_text())
        (broken / "model.safetensors").write_bytes(b"\x08")
        with self.assertRaises(DumpError) as caught:
            Checkpoint(broken)
        self.assertEqual(caught.exception.code, 4)

    def test_output(self) -> None:
        out = Folder.root / "no such folder" / "x.safetensors"
        code, err = command(
            "--checkpoint", Folder.checkpoint("tiny"), "--case", "tiny", "--out", out
        )
        self.assertEqual(code, 6)
        self.assertIn("a file in a writable folder", err)

    def test_own_data(self) -> None:
        path = Folder.root / "batch.safetensors"
        ids = torch.arange(64).reshape(2, 32)
        wrong = {
            "tokens in [0, 100)": {"input_ids": ids + 50},
            "[2, 32] int64": {"input_ids": ids, "labels": ids[:, :8].contiguous()},
            "[B, S] int64": {"input_ids": ids[0]},
            "0 and 1 only": {"input_ids": ids, "attention_mask": ids + 0},
            "input_ids, attention_mask, labels": {"tokens": ids},
        }
        for text, tensors in wrong.items():
            save_file(tensors, path)
            self.refused(4, text, "--case", "tiny", "--batch", path)
        path.write_bytes(b"not a tensor")
        self.refused(4, "a safetensors file", "--case", "tiny", "--batch", path)

    def test_own_data_becomes_part_of_the_case(self) -> None:
        path, out = Folder.root / "own.safetensors", Folder.root / "own-trace.safetensors"
        save_file({"input_ids": torch.arange(64).reshape(2, 32)}, path)
        words = ["--checkpoint", Folder.checkpoint("tiny"), "--out", out, "--batch", path]
        code, err = command(*words, "--case", "tiny")
        self.assertEqual(code, 0, err)
        with safe_open(out, "pt") as file:
            case = json.loads(file.metadata()["case"])
        self.assertRegex(case["batch"], "^[0-9a-f]{64}$")

    def test_own_data_has_its_own_size(self) -> None:
        path, out = Folder.root / "wide.safetensors", Folder.root / "wide-trace.safetensors"
        save_file({"input_ids": torch.arange(60).reshape(3, 20)}, path)
        words = ["--checkpoint", Folder.checkpoint("tiny"), "--out", out, "--batch", path]
        code, err = command(*words, "--case", "tiny")
        self.assertEqual(code, 0, err)
        with safe_open(out, "pt") as file:
            case = json.loads(file.metadata()["case"])
            self.assertEqual(file.get_slice("logits").get_shape()[:2], [3, 20])
        self.assertEqual((case["B"], case["S"], case["pad"]), (3, 20, 0))

    def test_the_checkpoints_own_case_is_the_default(self) -> None:
        path, out = Folder.checkpoint("tiny-short9"), Folder.root / "own-case.safetensors"
        case = {k: v for k, v in fields(load_cases()["tiny-short9"]).items() if k in CASE_KEYS}
        (path / CASE_FILE).write_text(json.dumps(case))
        code, err = command("--checkpoint", path, "--out", out)
        self.assertEqual(code, 0, err)
        with safe_open(out, "pt") as file:
            self.assertEqual(file.metadata()["case"], "tiny-short9")


class Settings(unittest.TestCase):
    def test_gradient_checkpointing_changes_nothing(self) -> None:
        case = fields(load_cases()["tiny"])
        model = real_model("tiny")
        run = capture(model, case, Options(backward=True, gradient_checkpointing=True))
        want = real_run("tiny").taps
        self.assertEqual(run.taps.keys(), want.keys())
        for name, value in run.taps.items():
            self.assertTrue(torch.equal(value, want[name]), name)

    def test_without_a_cache(self) -> None:
        run = capture(
            real_model("tiny"), fields(load_cases()["tiny"]), Options(use_cache=False)
        )
        self.assertEqual(json.loads(run.metadata["producer"])["use_cache"], False)
        self.assertTrue(torch.equal(run.taps["logits"], real_run("tiny").taps["logits"]))

    def test_a_sketch_has_parts_in_place_of_taps(self) -> None:
        path, out = Folder.checkpoint("tiny-short9"), Folder.root / "sketch.safetensors"
        words = ("--checkpoint", path, "--out", out, "--case", "tiny-short9")
        code, err = command(*words, "--mode", "backward", "--sketch")
        self.assertEqual(code, 0, err)
        with safe_open(out, "np") as file:
            self.assertEqual(file.metadata()["sketch"], "1")
            names = set(file.keys())
            rows, index = (file.get_tensor(f"logits#{p}") for p in ("rows", "row_index"))
            norms = file.get_tensor("logits#row_norms")
        self.assertNotIn("logits", names)
        self.assertLessEqual({"layers.0.topk", "loss.lm", "grad.lm_head.weight#projections"}, names)
        self.assertEqual(index.tolist(), [8, 13, 17])
        want = np.linalg.norm(rows.astype(np.float64), axis=1)
        off = np.linalg.norm(norms[index] - want) / np.linalg.norm(want)
        self.assertLessEqual(off, limit("dump.value"))

    def test_the_batch_is_that_of_formats(self) -> None:
        batch = make_batch(fields(load_cases()["tiny"]), 100)
        self.assertEqual(batch["input_ids"][0, :6].tolist(), [57, 27, 34, 33, 82, 98])
        small = make_batch(fields(load_cases()["small"]), 10000)
        self.assertEqual(small["input_ids"][0, :3].tolist(), [5748, 2710, 3415])
        self.assertEqual(small["input_ids"][1, -3:].tolist(), [8645, 9871, 138])
        self.assertEqual(batch["position_ids"][1, :8].tolist(), [0, 0, 0, 0, 0, 0, 1, 2])
        labels = make_batch(fields(load_cases()["tiny"]) | {"pad": 20}, 100)["labels"]
        self.assertEqual((labels[1] == -100).sum(), 21)  # the padding and the first token after it
        self.assertEqual((labels[0] == -100).sum(), 8)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    unittest.main()
