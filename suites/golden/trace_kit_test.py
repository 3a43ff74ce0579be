"""The trace kit, as the owner of an engine uses it: data, layouts, checks, and engines judged.

The words of its checks are those of the judge: each wrong tensor is given to both.

ctest: `golden.trace_kit`, in .venv-golden.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path

import dsv32_trace as kit
import numpy as np
import synthetic
import torch
from agreement import limit
from program import OK, PARITY, ROOT, checkpoint, clean_up, run
from program import scratch as folder
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

ENGINES = ROOT / "integrations" / "engines"
sys.path.insert(0, str(ENGINES))

import numpy_engine  # noqa: E402
import serving_engine  # noqa: E402

tearDownModule = clean_up


def engine(name: str, case: str, *words: str) -> Path:
    """The trace of one of the engines of integrations/engines."""
    out = folder / f"{name}-{case}.safetensors"
    command = [sys.executable, ENGINES / f"{name}.py", checkpoint(case), out, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def judged(trace: Path) -> tuple[int, dict]:
    done = run("--candidate", trace, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def of_candidate(report: dict, what: str) -> list[dict]:
    return [entry for entry in report[what] if entry["subject"]["party"] == "candidate"]


class Data(unittest.TestCase):
    def test_weights_are_those_of_the_checkpoint(self) -> None:
        for name in ("tiny-wide", "tiny-bias", "tiny-theta", "tiny-outlier"):
            case = kit.open_case(checkpoint(name))
            stored = load_torch(checkpoint(name) / "model-00001-of-00001.safetensors")
            self.assertEqual(set(stored), set(case.weight_shapes))
            for weight, value in case.weights():
                self.assertTrue(np.array_equal(stored[weight].float().numpy(), value), weight)

    def test_a_case_by_name_json_and_folder_is_the_same(self) -> None:
        by_name = kit.open_case("tiny-bias")
        text = kit.canonical_json({key: by_name.fields[key] for key in kit.CASE_KEYS})
        for other in (kit.open_case(text), kit.open_case(checkpoint("tiny-bias"))):
            self.assertEqual(other.batch.keys(), by_name.batch.keys())
            for key, value in by_name.batch.items():
                self.assertTrue(np.array_equal(other.batch[key], value), key)
            weight = "model.layers.1.mlp.gate.e_score_correction_bias"
            self.assertTrue(np.array_equal(other.weight(weight), by_name.weight(weight)))

    def test_a_config_of_transformers_5_is_read_as_the_release_writes_it(self) -> None:
        by_name, by_folder = kit.open_case("tiny-theta"), kit.open_case(checkpoint("tiny-theta"))
        for key in ("rope_theta", "first_k_dense_replace"):
            self.assertEqual(by_folder.config[key], by_name.config[key])
        stored = json.loads((checkpoint("tiny-theta") / "config.json").read_text())
        self.assertNotIn("rope_theta", stored)

    def test_padding_at_the_right_and_far_positions(self) -> None:
        right, far = kit.open_case("tiny-rightpad"), kit.open_case("tiny-far")
        self.assertEqual(right.attention_mask[1].tolist(), [1] * 28 + [0] * 5)
        self.assertEqual(far.position_ids[0, :3].tolist(), [100000, 100001, 100002])
        self.assertEqual(kit.Trace(right).metadata["case"], "tiny-rightpad")

    def test_a_case_without_a_mask_gives_none(self) -> None:
        self.assertIsNone(kit.open_case("tiny-nopad").attention_mask)
        self.assertEqual(kit.Trace(kit.open_case("tiny-nopad")).metadata["mask"], "none")

    def test_a_wrong_name_lists_the_cases(self) -> None:
        with self.assertRaisesRegex(kit.DumpError, "one of tiny, tiny-yarn.*, got 'tinny'"):
            kit.open_case("tinny")


class Judged(unittest.TestCase):
    def expect_pass(self, trace: Path, least: int) -> None:
        code, report = judged(trace)
        self.assertEqual(code, OK, json.dumps(of_candidate(report, "findings"), indent=1))
        passed = [v for v in of_candidate(report, "verdicts") if v["trust"] == "pass"]
        self.assertGreater(len(passed), least)

    def test_a_forward_in_numpy_passes(self) -> None:
        for case in ("tiny-wide", "tiny-bias", "tiny-nopad", "tiny-square", "tiny-short8"):
            self.expect_pass(engine("numpy_engine", case), 60)

    def test_a_foreign_torch_model_passes_with_its_gradients(self) -> None:
        for case in ("tiny-wide", "tiny-nopad"):
            self.expect_pass(engine("torch_engine", case, "--backward"), 130)

    def decoded(self, case: kit.CaseData, **decoding: int | None) -> kit.Trace:
        """Greedy steps of the numpy engine, the whole history at each of them."""
        trace = kit.Trace(case, mode="generate", engine="numpy", decoding=decoding or None)
        decoding = trace.metadata["decoding"]
        steps, eos = decoding["steps"], decoding["eos"]
        weights, made = dict(case.weights()), {}
        ids, positions = case.input_ids, case.position_ids
        mask, logits, ended = case.batch["attention_mask"], [], np.zeros(len(ids), bool)
        for _ in range(steps):
            values = numpy_engine.forward(
                weights, case.config, ids, positions, mask, made.__setitem__
            )[:, -1]
            token = np.where(ended, 0 if eos is None else eos, values.argmax(-1))
            logits.append(values)
            ended |= token == eos
            ids = np.concatenate((ids, token[:, None]), -1)
            positions = np.concatenate((positions, positions[:, -1:] + 1), -1)
            mask = np.concatenate((mask, mask[:, -1:]), -1)
        trace.put("gen.tokens", ids[:, -steps:])
        trace.put("gen.logits", np.stack(logits), axes="t b v")
        for name, value in made.items():
            if name.endswith((".topk", ".router.experts")):
                trace.put(name, value)
        return trace

    def test_a_decoding_passes(self) -> None:
        case = kit.open_case("tiny-wide")
        trace = self.decoded(case)
        self.assertEqual(trace.missing(), [])
        self.expect_pass(trace.write(folder / "decoded.safetensors"), 4)
        short = self.decoded(case, steps=3, eos=None)
        self.assertEqual(short.taps["gen.tokens"].shape, (2, 3))
        self.expect_pass(short.write(folder / "short.safetensors"), 4)

    def test_a_decoding_with_a_wrong_step_fails_there(self) -> None:
        trace = self.decoded(kit.open_case("tiny-wide"))
        trace.taps["gen.logits"][1, 5] *= 1.01
        code, report = judged(trace.write(folder / "wrong-step.safetensors"))
        self.assertEqual(code, PARITY)
        self.assertIn("gen.logits", json.dumps(of_candidate(report, "findings")[0]))

    def test_a_defect_of_the_engine_is_named(self) -> None:
        case = kit.open_case("tiny-wide")
        weights = dict(case.weights())
        for name in weights:
            if name.endswith("indexer.k_norm.bias"):
                weights[name] = weights[name] * 0
        trace = kit.Trace(case)
        forward = numpy_engine.forward
        mask = case.batch["attention_mask"]
        put = trace.put
        put("logits", forward(weights, case.config, case.input_ids, case.position_ids, mask, put))
        code, report = judged(trace.write(folder / "defect.safetensors"))
        self.assertEqual(code, PARITY)
        first = of_candidate(report, "findings")[0]
        self.assertIn("layers.0.ix.k", json.dumps(first))

    def test_weights_that_were_not_loaded_come_first(self) -> None:
        case = kit.open_case("tiny-wide")
        weights = dict(case.weights())
        weights["model.norm.weight"] = weights["model.norm.weight"] + 1
        del weights["model.layers.0.self_attn.o_proj.weight"]
        trace = kit.Trace(case)
        trace.put("logits", np.zeros((2, 33, 100), np.float32))
        found = trace.compare_weights(weights)
        self.assertEqual(found["different"], ["model.norm.weight"])
        self.assertEqual(found["missing"], ["model.layers.0.self_attn.o_proj.weight"])
        code, report = judged(trace.write(folder / "weights.safetensors"))
        self.assertEqual(code, PARITY)
        self.assertIn("weights", json.dumps(of_candidate(report, "findings")[0]))

    def test_a_crash_is_a_finding(self) -> None:
        trace = kit.Trace(kit.open_case("tiny-wide"))
        trace.failed("layers.0.attn", "RuntimeError: no kernel", [[2, 33, 64]])
        code, report = judged(trace.write(folder / "crash.safetensors"))
        self.assertEqual(code, PARITY)
        self.assertIn("run.finished", json.dumps(of_candidate(report, "findings")))
        self.assertIn("no kernel", json.dumps(report["verdicts"]))


class Pages(unittest.TestCase):
    def test_the_example_of_the_page_runs_as_it_stands(self) -> None:
        """The Python of docs/trace-kit.md, in one go, with the engine that it imports."""
        page = (ROOT / "docs" / "trace-kit.md").read_text()
        blocks = re.findall(r"```python\n(.*?)```", page, re.S)
        self.assertGreaterEqual(len(blocks), 3)
        here = folder / "page"
        here.mkdir()
        (here / "ckpt").symlink_to(checkpoint("tiny-wide"))
        with contextlib.chdir(here), contextlib.redirect_stdout(io.StringIO()):
            space: dict = {}
            for block in blocks:
                exec(compile(block, "docs/trace-kit.md", "exec"), space)
        code, report = judged(here / "mine.safetensors")
        self.assertEqual(code, OK, json.dumps(of_candidate(report, "findings"), indent=1))

    def test_the_judging_part_is_short(self) -> None:
        source = (ENGINES / "numpy_engine.py").read_text()
        main = source[source.index("def main") : source.index("if __name__")]
        self.assertLessEqual(len(main.strip().splitlines()), 30)


class Layouts(unittest.TestCase):
    """The same tap, handed over in other layouts."""

    def setUp(self) -> None:
        self.case = kit.open_case("tiny-wide")
        self.trace = kit.Trace(self.case, "backward")
        self.random = np.random.default_rng(7)

    def values(self, name: str) -> np.ndarray:
        shape = kit.tap_shape(self.case, name)
        return self.random.standard_normal(shape).astype(np.float32)

    def kept(self, name: str, given: np.ndarray, **how: str) -> np.ndarray:
        self.trace.put(name, given, **how)
        return self.trace.taps[name]

    def test_axes_are_put_in_order(self) -> None:
        x = self.values("layers.0.q_nope")
        B, S, H, d = x.shape
        name = "layers.0.q_nope"
        for axes, given in {
            "b h s d": x.transpose(0, 2, 1, 3),
            "s b h d": x.transpose(1, 0, 2, 3),
            "b s (h d)": x.reshape(B, S, H * d),
            "(b s) h d": x.reshape(B * S, H, d),
            "(b s) (h d)": x.reshape(B * S, H * d),
            "h (b s) d": x.transpose(2, 0, 1, 3).reshape(H, B * S, d),
            "b 1 s h d": x[:, None],
        }.items():
            self.assertTrue(np.array_equal(self.kept(name, given, axes=axes), x), axes)

    def test_deinterleaved_lanes_are_put_back(self) -> None:
        for name in ("layers.0.q_rope", "layers.1.k_rope", "layers.0.ix.q", "layers.1.ix.k"):
            x = self.values(name)
            rope = self.case.config["qk_rope_head_dim"]
            lanes = [*range(0, rope, 2), *range(1, rope, 2), *range(rope, x.shape[-1])]
            kept = self.kept(name, x[..., lanes], lanes="deinterleaved")
            self.assertTrue(np.array_equal(kept, x), name)

    def test_a_mask_of_keys_becomes_picks(self) -> None:
        mask = np.zeros((2, 33, 33), bool)
        mask[:, :, :3] = True
        picks = self.kept("layers.0.topk", mask)
        self.assertEqual(picks.shape, (2, 33, 8))
        self.assertEqual(picks[1, 4].tolist(), [0, 1, 2, -1, -1, -1, -1, -1])

    def test_huge_negative_scores_are_minus_infinity(self) -> None:
        scores = self.values("layers.0.ix.scores")
        scores[0, 0, 1:] = np.finfo(np.float32).min
        self.assertTrue(np.isneginf(self.kept("layers.0.ix.scores", scores)[0, 0, 1:]).all())

    def test_experts_are_sorted_with_their_weights(self) -> None:
        experts = np.tile(np.array([9, 2, 11, 0]), (2, 33, 1))
        weights = np.tile(np.array([0.9, 0.2, 1.1, 0.0], np.float32), (2, 33, 1))
        self.trace.put("layers.1.router.experts", experts)
        self.trace.put("layers.1.router.weights", weights)
        taps = load_file(self.trace.write(folder / "experts.safetensors"))
        self.assertEqual(taps["layers.1.router.experts"][0, 0].tolist(), [0, 2, 9, 11])
        got = taps["layers.1.router.weights"][1, 5]
        self.assertTrue(np.array_equal(got, np.array([0.0, 0.2, 0.9, 1.1], np.float32)))

    def test_every_library_s_tensors_are_taken(self) -> None:
        x = self.values("embed")
        half = torch.from_numpy(x).bfloat16()
        for given in (torch.from_numpy(x).requires_grad_(), x.astype(">f4"), x.tolist()):
            kept = self.kept("embed", np.asarray(given, "f4") if isinstance(given, list) else given)
            self.assertTrue(np.array_equal(kept, x))
        self.assertTrue(np.array_equal(self.kept("embed", half), half.float().numpy()))

    def test_the_loss_of_the_logits_is_that_of_torch(self) -> None:
        logits = self.values("logits")
        self.trace.put("logits", logits)
        labels = torch.from_numpy(self.case.labels)[:, 1:].flatten()
        rows = torch.from_numpy(logits[:, :-1]).double().flatten(0, 1)
        want = torch.nn.functional.cross_entropy(rows, labels).item()
        off = abs(self.trace.derive_loss() - want) / want
        self.assertLessEqual(off, limit("identity"))
        self.assertEqual(self.trace.metadata["derived_taps"], ["loss.lm"])

    def test_rows_of_logits_are_kept_with_their_places(self) -> None:
        def logits_of(where: str, prompts: list[list[int]]) -> list[np.ndarray]:
            case = kit.open_case(where)
            weights, out = dict(case.weights()), []
            for tokens in prompts:
                ids = np.array([tokens])
                places, mask = np.arange(len(tokens))[None], np.ones_like(ids)
                ignore: Callable = lambda *_: None  # noqa: E731
                out.append(
                    numpy_engine.forward(weights, case.config, ids, places, mask, ignore)[0, -1]
                )
            return out

        made = serving_engine.trace_of(self.case, str(checkpoint("tiny-wide")), logits_of)
        taps = load_file(made.write(folder / "rows.safetensors"))
        self.assertEqual(taps["logits#row_index"].tolist(), [15, 23, 32, 51, 58, 65])
        whole = load_file(engine("numpy_engine", "tiny-wide"))["logits"].reshape(66, -1)
        far = np.abs(taps["logits#rows"] - whole[taps["logits#row_index"]]).max()
        self.assertLess(far, 64 * np.finfo(np.float32).eps * np.abs(whole).max())


class Gradients(unittest.TestCase):
    def setUp(self) -> None:
        self.case = kit.open_case("tiny-wide")
        self.trace = kit.Trace(self.case, "backward")
        self.at = "model.layers.1.mlp."
        self.random = np.random.default_rng(11)
        names = [n for n in self.case.weight_shapes if ".experts." in n]
        self.want = {n: self.random.standard_normal(self.case.weight_shapes[n]) for n in names}

    def stacked(self, part: str) -> np.ndarray:
        names = [f"{self.at}experts.{e}.{part}_proj.weight" for e in range(16)]
        return np.stack([self.want[name] for name in names])

    def expect(self) -> None:
        kept = {n.removeprefix("grad."): v for n, v in self.trace.taps.items()}
        self.assertEqual(kept.keys(), self.want.keys())
        for name, value in self.want.items():
            self.assertTrue(np.array_equal(kept[name], value), name)

    def test_fused_experts_of_transformers(self) -> None:
        both = np.concatenate((self.stacked("gate"), self.stacked("up")), axis=1)
        self.trace.put_gradient(self.at + "experts.gate_up_proj", both)
        self.trace.put_gradient(self.at + "experts.down_proj", self.stacked("down"))
        self.expect()

    def test_up_first_and_in_by_out(self) -> None:
        both = np.concatenate((self.stacked("up"), self.stacked("gate")), axis=1)
        name = self.at + "experts.gate_up_proj"
        self.trace.put_gradient(name, both.swapaxes(1, 2), axes="e i o", halves="up gate")
        down = self.stacked("down").swapaxes(1, 2)
        self.trace.put_gradient(self.at + "experts.down_proj", down, axes="e i o")
        self.expect()

    def test_experts_of_mlx_and_of_the_demo(self) -> None:
        for part in ("gate", "up"):
            self.trace.put_gradient(f"{self.at}switch_mlp.{part}_proj.weight", self.stacked(part))
        for expert, value in enumerate(self.stacked("down")):
            self.trace.put_gradient(f"layers.1.mlp.experts.{expert}.w2.weight", value)
        self.expect()

    def test_an_expert_without_tokens_is_zero(self) -> None:
        name = self.at + "experts.3.up_proj.weight"
        self.trace.put_gradient(name, None)
        self.assertEqual(self.trace.taps["grad." + name].shape, (32, 64))
        self.assertFalse(self.trace.taps["grad." + name].any())
        with self.assertRaisesRegex(kit.DumpError, "leave out the gradient of a frozen weight"):
            self.trace.put_gradient("model.norm.weight", None)

    def test_kv_b_of_two_tensors(self) -> None:
        whole = self.random.standard_normal((4 * 32, 16))
        heads = whole.reshape(4, 32, 16)
        self.assertTrue(np.array_equal(kit.joined_kv_b(heads[:, :16], heads[:, 16:]), whole))


class Words(unittest.TestCase):
    """What is wrong with a tensor is said in the words of the judge."""

    def expect_same(self, name: str, value: np.ndarray, **how: str) -> None:
        case = kit.open_case("tiny-wide")
        with self.assertRaises(kit.DumpError) as caught:
            kit.Trace(case).put(name, value)
        self.assertEqual(caught.exception.code, 4)
        trace = kit.Trace(case)
        trace.taps[name] = value
        done = run("--candidate", trace.write(folder / "wrong.safetensors"))
        self.assertEqual(done.returncode, 4, done.stdout)
        own = str(caught.exception).partition("; hint")[0].removeprefix("trace: ")
        self.assertIn(own.replace("'", ""), done.stderr.replace('"', "").replace("'", ""))

    def test_shape(self) -> None:
        self.expect_same("layers.0.attn_norm", np.zeros((33, 2, 64), np.float32))
        self.expect_same("grad.model.norm.weight", np.zeros(63, np.float32))

    def test_dtype(self) -> None:
        self.expect_same("layers.0.attn_norm", np.zeros((2, 33, 64), np.int32))
        self.expect_same("layers.0.topk", np.zeros((2, 33, 8), np.float32))

    def test_names(self) -> None:
        self.expect_same("layers.0.attention.out", np.zeros((2, 33, 64), np.float32))

    def test_mode_generate(self) -> None:
        case = kit.open_case("tiny-wide")
        for name, value in (
            ("gen.tokens", np.zeros((2, 24), np.float32)),
            ("gen.tokens", np.zeros((2, 23), np.int32)),
            ("gen.logits", np.zeros((2, 24, 99), np.float32)),
            ("layers.0.topk", np.zeros((2, 33, 8), np.int32)),
            ("layers.0.attn_norm", np.zeros((2, 56, 64), np.float32)),
        ):
            with self.subTest(name=name):
                trace = kit.Trace(case, mode="generate")
                with self.assertRaises(kit.DumpError) as caught:
                    trace.put(name, value)
                trace.taps[name] = value
                done = run("--candidate", trace.write(folder / "wrong.safetensors"))
                self.assertEqual(done.returncode, 4, done.stdout)
                own = str(caught.exception).partition("; hint")[0].removeprefix("trace: ")
                self.assertIn(own.replace("'", ""), done.stderr)
        with self.assertRaisesRegex(kit.DumpError, "#rows: expected a whole tensor"):
            kit.Trace(case, mode="generate").put_rows("gen.logits", [np.zeros(100)], [0])
        for decoding in ({"steps": 0}, {"steps": None}, {"eos": 100}, {"eos": -1}):
            with self.assertRaisesRegex(kit.DumpError, r"metadata.decoding: \w+: expected \d+\.\."):
                kit.Trace(case, mode="generate", decoding=decoding)

    def test_what_the_case_does_not_have(self) -> None:
        self.expect_same("layers.2.attn_norm", np.zeros((2, 33, 64), np.float32))
        self.expect_same("layers.0.router.logits", np.zeros((2, 33, 16), np.float32))
        self.expect_same("grad.model.layers.0.mlp.gate.weight", np.zeros((16, 64), np.float32))

    def test_required_metadata(self) -> None:
        case = kit.open_case("tiny-wide")
        for key, value in (("mode", "fordward"), ("dtype", "float8")):
            with self.assertRaises(kit.DumpError) as caught:
                kit.Trace(case, **{key: value})
            trace = kit.Trace(case, **{"attn_implementation": "eager"})
            trace.put("loss.lm", np.float32(1))
            trace.metadata[key] = value
            done = run("--candidate", trace.write(folder / "wrong.safetensors"))
            self.assertIn(str(caught.exception).removeprefix("trace: "), done.stderr)

    def test_a_name_that_is_nearly_right_gets_those_that_are(self) -> None:
        trace = kit.Trace(kit.open_case("tiny-wide"))
        with self.assertRaisesRegex(kit.DumpError, "hint: taps: .*router.logits, router.experts"):
            trace.put("layers.1.router.probs", np.zeros((2, 33, 16), np.float32))

    def test_nan_in_a_row_that_counts(self) -> None:
        case = kit.open_case("tiny-wide")  # row 1 begins with five padded places
        value = np.zeros(kit.tap_shape(case, "layers.0.attn.probs"), np.float32)
        value[1, :, :5] = np.nan
        trace = kit.Trace(case)
        trace.put("layers.0.attn.probs", value)
        value[1, 2, 5, 0] = np.nan
        with self.assertRaisesRegex(kit.DumpError, "numbers in rows that count, got 1 NaN"):
            trace.put("layers.0.attn.probs", value)
        trace.put("layers.0.attn.probs", value, allow_nan=True)

    def test_axes_that_do_not_fit(self) -> None:
        trace = kit.Trace(kit.open_case("tiny-wide"))
        want = "axes: expected those of 'b s h d', got 'b s d"
        with self.assertRaisesRegex(kit.DumpError, want):
            trace.put("layers.0.q_nope", np.zeros((2, 33, 64), np.float32), axes="b s d")
        want = r"shape: expected \[2,4,33,16\] for axes 'b h s d', got \[2,33,4,16\]"
        with self.assertRaisesRegex(kit.DumpError, want):
            trace.put("layers.0.q_nope", np.zeros((2, 33, 4, 16), np.float32), axes="b h s d")

    def test_a_file_is_written_whole_or_not_at_all(self) -> None:
        trace = kit.Trace(kit.open_case("tiny-wide"))
        with self.assertRaisesRegex(kit.DumpError, "at least one tap"):
            trace.write(folder / "empty.safetensors")
        trace.put("loss.lm", np.float32(1))
        with self.assertRaises(kit.DumpError) as caught:
            trace.write(folder / "nowhere" / "x.safetensors")
        self.assertEqual(caught.exception.code, 6)
        self.assertEqual(list(folder.rglob("*.part")), [])

    def test_metadata_is_what_the_format_asks_for(self) -> None:
        trace = kit.Trace(kit.open_case("tiny-wide"), engine="mine 1", layers="0")
        trace.put("loss.lm", np.float32(1))
        with safe_open(trace.write(folder / "meta.safetensors"), framework="numpy") as file:
            metadata = file.metadata()
        self.assertEqual(metadata["case"], "tiny-wide")
        self.assertEqual(json.loads(metadata["producer"])["engine"], "mine 1")
        self.assertEqual(metadata["layers"], "0")
        self.assertEqual(len(json.loads(metadata["missing_taps"])), 44)


class OneSource(unittest.TestCase):
    def test_the_makers_of_goldens_use_the_same_weights(self) -> None:
        self.assertIs(synthetic.weight_specs, kit.weight_specs)


if __name__ == "__main__":
    unittest.main()
