"""Cases of one's own, dialects as sums, sketches and single ops. ctest: `self_cli_cases`."""

from __future__ import annotations

import json
import unittest

import numpy as np
from program import (
    ARTEFACT,
    NOTHING,
    OK,
    PARITY,
    ROOT,
    USAGE,
    CliTest,
    clean_up,
    good,
    make_good,
    metadata_of,
    names_in,
    run,
    scratch,
    variant,
)
from safetensors.numpy import load_file, save_file

setUpModule = make_good
tearDownModule = clean_up

FIVE = ("format", "version", "case", "mode", "dtype")


def only_five(**changes: str) -> dict[str, str | None]:
    """Metadata changes that leave the five required keys and `changes`."""
    others: dict[str, str | None] = {key: None for key in metadata_of(good) if key not in FIVE}
    return others | changes


def taps(*names: str) -> dict[str, np.ndarray]:
    return {name: load_file(good)[name] for name in names}


class Metadata(CliTest):
    def test_five_keys_are_enough(self) -> None:
        self.ended(run("--candidate", variant("five", **only_five())), OK)

    def test_deinterleaved_lanes_of_the_indexer(self) -> None:
        tensors = load_file(good)
        order = np.r_[np.arange(0, 16, 2), np.arange(1, 16, 2), np.arange(16, 32)]
        for name in [name for name in tensors if name.endswith((".ix.q", ".ix.k"))]:
            tensors[name] = np.ascontiguousarray(tensors[name][..., order])
        self.ended(run("--candidate", variant("lanes", tensors, index_layout="deinterleaved")), OK)
        self.ended(run("--candidate", variant("lanes", tensors)), PARITY)

    def test_a_dtype_that_the_values_contradict(self) -> None:
        done = run("--candidate", variant("narrow", dtype="bfloat16"))
        self.ended(done, PARITY)
        self.assertIn("load.dtype", done.stdout)
        self.assertIn("hold values that bfloat16 cannot", done.stdout)
        self.assertNotIn("load.dtype", run("--candidate", good).stdout)

    def test_float32_in_words_alone(self) -> None:
        tensors = load_file(good)
        for name, value in tensors.items():
            if value.dtype == np.float32:
                narrow = np.atleast_1d(value).view(np.uint32) & np.uint32(0xFFFF0000)
                tensors[name] = narrow.view(np.float32).reshape(value.shape)
        done = run("--candidate", variant("half", tensors))
        self.ended(done, PARITY)
        self.assertIn("are exact in bfloat16", done.stdout)


class Dialects(CliTest):
    def test_a_sum_is_run_and_declared(self) -> None:
        path = scratch / "sum.safetensors"
        sum_of_two = "spec-1+k-norm-eps+bias-in-weights"
        self.ended(run("dump", "--case", "tiny-wide", "--dialect", sum_of_two, "--out", path), OK)
        self.ended(run("--candidate", path, "--dialect", sum_of_two), OK)
        self.ended(run("--candidate", path, "--dialect", "bias-in-weights+k-norm-eps"), OK)
        for less in ("spec-1", "k-norm-eps", "bias-in-weights+hf"):
            self.ended(run("--candidate", path, "--dialect", less), PARITY)

    def test_an_unknown_part_is_named_with_the_nearest(self) -> None:
        done = run("--candidate", good, "--dialect", "spec-1+k-norm-esp")
        self.refused(done, USAGE, "did you mean k-norm-eps?")
        self.refused(run("--candidate", good, "--dialect", "hf+"), USAGE, "unknown dialect")

    def test_the_list_has_toggles(self) -> None:
        text = run("list", "dialects").stdout
        for word in ("automodel", "kl-sum-over-layers", "hf+k-norm-eps"):
            self.assertIn(word, text)


class OwnCases(CliTest):
    CASE = {"config": "tiny", "overrides": {"vocab_size": 77}, "seed": 3, "B": 2, "S": 40, "pad": 3,
            "bias_offset": 0, "chunks": [], "pad_side": "right"}

    def test_a_case_as_json(self) -> None:
        case = json.dumps(self.CASE)
        path = scratch / "own.safetensors"
        self.ended(run("dump", "--case", case, "--out", path), OK)
        done = run("--candidate", path)
        self.ended(done, OK)
        self.assertIn("B 2, S 40, pad 3, seed 3", done.stderr)
        self.ended(run("--case", case, "--impl", "reference"), OK)
        self.refused(run("--case", '{"config":"tiny"}'), ARTEFACT, "case.B")

    def test_weights_of_a_config(self) -> None:
        config = ROOT / "configs" / "tiny" / "config.json"
        for number, words in enumerate((config, config.read_text())):
            folder = scratch / f"made{number}"
            done = run("weights", "make", "--config", words, "--seed", 5, "--dtype", "float32",
                       "--config-style", 5, "--out", folder)
            self.ended(done, OK)
            self.assertIn("B 2, S 48, pad 5, seed 5", done.stderr)
            made = json.loads((folder / "config.json").read_text())
            self.assertIn("rope_parameters", made)
            self.assertEqual(made["dtype"], "float32")
            weights = load_file(folder / "model-00001-of-00001.safetensors")
            self.assertEqual({w.dtype for w in weights.values()}, {np.dtype("float32")})
            self.ended(run("weights", "check", folder, "--full"), OK)
            self.assertEqual(json.loads((folder / "dsv32_case.json").read_text())["seed"], 5)

    def test_weights_want_one_source(self) -> None:
        out = ("--out", scratch / "none")
        self.refused(run("weights", "make", *out), USAGE, "neither")
        both = ("--case", "tiny", "--config", "tiny")
        self.refused(run("weights", "make", *both, *out), USAGE, "both")

    def test_a_topk_that_never_selects_is_not_green(self) -> None:
        case = json.dumps(self.CASE | {"overrides": {"index_topk": 1000}})
        done = run("--case", case, "--impl", "reference")
        self.ended(done, NOTHING)
        self.assertIn("no query row sees more than index_topk keys", done.stdout)

    def test_numbers_that_float32_cannot_hold_are_refused(self) -> None:
        for key, value in (("rms_norm_eps", 1e308), ("routed_scaling_factor", 1e308)):
            case = json.dumps(self.CASE | {"overrides": {key: value}})
            self.refused(run("--case", case), ARTEFACT, key)
        far = json.dumps(self.CASE | {"bias_offset": 1e300})
        self.refused(run("--case", far), ARTEFACT, "2^20")


class Ops(CliTest):
    """Mode `ops`: what has its inputs in the file is judged, and nothing else is asked for."""

    NAMES = ("layers.0.attn.out", "layers.0.ffn_norm", "layers.0.mlp.out", "embed")

    def test_ops_alone_are_green(self) -> None:
        done = run("--candidate", variant("ops", taps(*self.NAMES), mode="ops"))
        self.ended(done, OK)
        self.assertIn("3 taps", done.stdout)

    def test_a_wrong_op_fails(self) -> None:
        tensors = taps(*self.NAMES)
        tensors["layers.0.mlp.out"] = tensors["layers.0.mlp.out"] * np.float32(1.001)
        done = run("--candidate", variant("op", tensors, mode="ops"))
        self.ended(done, PARITY)
        self.assertIn("layers.0.mlp.out", done.stdout)

    def test_inputs_of_ones_own(self) -> None:
        """The inputs need not come from the model: no op is asked to have made them."""
        tensors = taps("layers.0.attn_norm", "layers.0.q_latent")
        tensors["layers.0.attn_norm"] = tensors["layers.0.attn_norm"][::-1].copy()
        self.ended(run("--candidate", variant("swap", tensors, mode="ops")), PARITY)
        alone = taps("layers.0.attn_norm")
        done = run("--candidate", variant("input", alone, mode="ops"))
        self.ended(done, NOTHING)
        self.assertIn("no op is there together with its inputs", done.stdout)


class Sketches(CliTest):
    def test_our_own_sketch_is_green(self) -> None:
        for mode in ("forward", "backward"):
            path = scratch / f"sketch-{mode}.safetensors"
            words = ("dump", "--case", "tiny-wide", "--mode", mode, "--sketch", "--out", path)
            self.ended(run(*words), OK)
            self.assertIn("layers.0.hidden#projections", names_in(path))
            self.assertNotIn("layers.0.hidden", names_in(path))
            done = run("--candidate", path, "-v")
            self.ended(done, OK)
            self.assertIn("staged  layers.1.router.logits", done.stdout)

    def changed(self, part: str, factor: float) -> str:
        path = scratch / "sketch.safetensors"
        self.ended(run("dump", "--case", "tiny-wide", "--sketch", "--out", path), OK)
        tensors = load_file(path)
        tensors[part] = (tensors[part] * factor).astype(tensors[part].dtype)
        save_file(tensors, path, metadata_of(path))
        done = run("--candidate", path)
        self.ended(done, PARITY)
        return done.stdout

    def test_a_wrong_part_fails(self) -> None:
        for part in ("rows", "row_norms", "projections"):
            self.assertIn("layers.1.ffn_norm", self.changed(f"layers.1.ffn_norm#{part}", 1.001))

    def test_a_wrong_row_is_an_origin(self) -> None:
        self.assertIn("layers.1.ffn_norm (staged)", self.changed("layers.1.ffn_norm#rows", 1.001))

    def serving(self, factor: float = 1.0) -> dict[str, np.ndarray]:
        logits = load_file(good)["logits"]  # [2, 32, 100]
        rows = np.array([31, 63])
        parts = {"logits#rows": logits.reshape(-1, 100)[rows] * np.float32(factor),
                 "logits#row_index": rows}
        decisions = [name for name in load_file(good) if name.endswith((".topk", ".experts"))]
        return parts | taps(*decisions)

    def test_rows_of_a_serving_engine(self) -> None:
        path = variant("rows", self.serving(), **only_five(mode="forward"))
        done = run("--candidate", path)
        self.ended(done, OK)
        self.assertIn("4 taps", done.stdout)  # logits and the decisions
        path = variant("rows", self.serving(1.001), **only_five(mode="forward"))
        self.ended(run("--candidate", path), PARITY)


class Noise(CliTest):
    """A clean run of the engine widens the floor of its machine, and nothing else."""

    def noisy(self, name: str, size: float) -> str:
        """Logits with errors of `size` float32 roundings each."""
        tensors = load_file(good)
        signs = np.random.default_rng(1).choice([-1.0, 1.0], tensors["logits"].shape)
        scale = np.abs(tensors["logits"]).mean()
        tensors["logits"] = (tensors["logits"] + signs * size * 6e-8 * scale).astype("float32")
        return str(variant(name, tensors))

    def test_noise_of_the_engine_is_no_failure(self) -> None:
        clean, later = self.noisy("clean", 60), self.noisy("later", 50)
        self.ended(run("--candidate", later), PARITY)
        done = run("--candidate", later, "--noise", clean)
        self.ended(done, OK)
        self.assertIn("noise of clean.safetensors: at most", done.stdout)
        self.ended(run("--candidate", self.noisy("worse", 600), "--noise", clean), PARITY)
        self.ended(run("--candidate", later, "--noise", good), PARITY)

    def test_noise_of_another_case_is_refused(self) -> None:
        other = scratch / "other.safetensors"
        self.ended(run("dump", "--case", "tiny-wide", "--out", other), OK)
        self.refused(run("--candidate", good, "--noise", other), ARTEFACT, "its case, mode")
        self.refused(run("--noise", good), USAGE, "no candidate")


if __name__ == "__main__":
    unittest.main()
