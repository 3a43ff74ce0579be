"""Tests of the golden generator: published vectors, sketches, files, the committed goldens again.

Runs in .venv-golden (real transformers); TestReleases starts the environments of other releases.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import cases
import command
import h5file
import h5py
import numpy as np
import provenance
import synthetic
from command import DATA
from compare import differences
from dsv32_dump import Capture, DumpError, sketch
from dsv32_dump.weights import Checkpoint
from dsv32_trace import fnv1a64
from manifest import sha256
from real import GoldenError, check_loaded
from synthetic import ROOT

COMMITTED_LIMIT = 64_000_000  # bytes of all goldens together
OTHER_RELEASES = ("5.24", "5.12")  # the newest and the oldest
# tensor, shape, first four values, last value, first 16 digits of the sha256: docs/formats.md
VECTORS = (
    (
        "model.embed_tokens.weight",
        (100, 64),
        (0.4375, 0, 0.75, -0.3125),
        -0.8125,
        "a13a30262b771547",
    ),
    (
        "model.layers.0.self_attn.q_b_proj.weight",
        (128, 32),
        (0.9375, 0.75, 0.5625, -0.375),
        -0.25,
        "9560f16a19e05162",
    ),
    (
        "model.layers.1.self_attn.indexer.k_norm.bias",
        (32,),
        (0.046875, -0.234375, -0.046875, -0.015625),
        -0.359375,
        "dd5785172a32118e",
    ),
    (
        "model.layers.1.mlp.gate.e_score_correction_bias",
        (4,),
        (0.125, 0.140625, 0.078125, 0),
        0,
        "b49d93fc4377f3e5",
    ),
    (
        "model.norm.weight",
        (64,),
        (1.046875, 0.921875, 0.796875, 1.234375),
        1.140625,
        "45150c08ba4bb1cc",
    ),
    (
        "model.layers.60.mlp.experts.255.down_proj.weight",
        (7168, 2048),
        (0.013671875, 0.005859375, 0.021484375, 0.013671875),
        0.00390625,
        "fa1aaf5d8e2b16c9",
    ),
    (
        "model.layers.3.self_attn.indexer.wk.weight",
        (128, 7168),
        (0.0001220703125, 0.00006103515625, 0.0001220703125, 0.00018310546875),
        -0.0001220703125,
        "085fa5b9c35bdf4a",
    ),
)
CASES = {name: case for name, case in synthetic.load_cases().items() if case.golden != "none"}
TINY = [name for name, case in CASES.items() if case.config_name == "tiny"]


class TestSynthetic(unittest.TestCase):
    def test_weights_have_the_published_values(self) -> None:
        for name, shape, first, last, digest in VECTORS:
            value = synthetic.weight(1, name, shape)
            with self.subTest(name):
                self.assertEqual(tuple(value.flat[:4]), first)
                self.assertEqual(value.flat[-1], last)
                self.assertEqual(hashlib.sha256(value).hexdigest()[:16], digest)

    def test_whole_models_have_the_published_digests(self) -> None:
        for config, tensors, digest in (
            ("tiny", 51, "3f3230e85acf3f9b"),
            ("small", 439, "74eca0841d481c77"),
        ):
            loaded = synthetic.load_config(config)
            self.assertEqual(len(synthetic.weight_specs(loaded)), tensors)
            self.assertEqual(synthetic.model_digest(loaded, 1)[:16], digest)

    def test_full_config_has_the_published_size(self) -> None:
        shapes = synthetic.weight_specs(synthetic.load_config("full")).values()
        self.assertEqual(sum(int(np.prod(shape)) for shape in shapes), 671877944064)

    def test_bias_offset_moves_the_correction_bias_only(self) -> None:
        bias = "model.layers.1.mlp.gate.e_score_correction_bias"
        moved = synthetic.weight(1, bias, (4,), -2)
        self.assertEqual(moved[0], 0.125 - 2)
        same = synthetic.weight(1, "model.norm.weight", (64,), -2)
        self.assertEqual(same[0], 1.046875)

    def test_edits_change_a_row_or_a_column(self) -> None:
        case = CASES["o128-lanes"]
        name, shape = "model.layers.1.self_attn.kv_b_proj.weight", (256, 128)
        plain = synthetic.weight(1, name, shape)
        edited = synthetic.case_weight(case, name, shape)
        self.assertTrue(np.array_equal(edited[:, 9], plain[:, 9] / 65536))
        self.assertTrue(np.array_equal(np.delete(edited, 9, 1), np.delete(plain, 9, 1)))
        norm = synthetic.case_weight(case, "model.layers.0.self_attn.q_a_layernorm.weight", (128,))
        self.assertGreater(norm[5], 10000)
        tokens = synthetic.case_weight(case, "model.embed_tokens.weight", (100, 128))
        self.assertFalse(tokens[34].any())
        self.assertIn(34, synthetic.make_batch(case)["input_ids"])

    def test_an_edit_that_cannot_be_is_refused(self) -> None:
        name = "model.norm.weight"
        for edit in ({"row": 64, "scale": 2}, {"row": 0, "scale": 1.1}, {"column": 0, "add": 1e-9}):
            case = dataclasses.replace(CASES["tiny"], edits=({"name": name, **edit},))
            with self.assertRaises(DumpError):
                synthetic.case_weight(case, name, (64,))

    def test_idle_experts_are_out_of_reach(self) -> None:
        name = "model.layers.1.mlp.gate.e_score_correction_bias"
        bias = synthetic.case_weight(CASES["tiny-idle"], name, (16,))
        self.assertTrue((bias[[5, 11]] < -1.5).all())  # a score is below 1
        self.assertTrue((np.delete(bias, [5, 11]) > -1).all())

    def test_config_in_the_style_of_transformers_5(self) -> None:
        config = synthetic.styled_config(CASES["tiny-theta"])
        self.assertEqual(config["rope_parameters"], {"rope_type": "default", "rope_theta": 1000000})
        self.assertEqual(config["mlp_layer_types"], ["dense", "sparse"])
        self.assertEqual(config["head_dim"], 48)
        self.assertNotIn("rope_theta", config)

    def test_padding_at_the_right_and_far_positions(self) -> None:
        right = synthetic.make_batch(CASES["tiny-rightpad"])
        self.assertEqual(right["attention_mask"][1].tolist(), [1] * 28 + [0] * 5)
        self.assertEqual(right["position_ids"][1, -6:].tolist(), [27] * 6)
        self.assertEqual(right["labels"][1, -5:].tolist(), [-100] * 5)
        far = synthetic.make_batch(CASES["tiny-far"])["position_ids"]
        self.assertEqual(far[0, :3].tolist(), [100000, 100001, 100002])

    def test_batches_have_the_published_values(self) -> None:
        tiny, small = (synthetic.make_batch(CASES[name]) for name in ("tiny", "small"))
        self.assertEqual(list(tiny["input_ids"][0, :6]), [57, 27, 34, 33, 82, 98])
        self.assertEqual(list(small["input_ids"][0, :6]), [5748, 2710, 3415, 3331, 8245, 9848])
        self.assertEqual(list(small["input_ids"][1, -3:]), [8645, 9871, 138])

    def test_padding_shifts_positions_and_hides_labels(self) -> None:
        batch = synthetic.make_batch(CASES["tiny-short9"])
        self.assertEqual(list(batch["position_ids"][1]), [0, 0, 1, 2, 3, 4, 5, 6, 7])
        self.assertEqual(list(batch["labels"][1, :3]), [-100, -100, batch["input_ids"][1, 2]])

    def test_checkpoint_is_read_back_bit_for_bit(self) -> None:
        case = CASES["tiny-bias"]
        with tempfile.TemporaryDirectory() as folder:
            synthetic.write_checkpoint(case, Path(folder))
            read = {name: value.numpy() for name, value in Checkpoint(Path(folder)).tensors()}
        specs = synthetic.weight_specs(case.config)
        self.assertEqual(set(read), set(specs))
        for name, shape in specs.items():
            expected = synthetic.weight(case.seed, name, shape, case.bias_offset)
            self.assertEqual(read[name].tobytes(), expected.tobytes(), name)


class TestSketch(unittest.TestCase):
    def test_signs_are_the_bytes_of_the_philox_stream(self) -> None:
        key = np.array([0, fnv1a64("sketch.embed")], dtype=np.uint64)
        words = np.random.Philox(key=key).random_raw(8)
        signs = sketch.signs("embed", 50)
        for i in (0, 7, 8, 31, 32, 49):
            self.assertEqual(int(signs[i]), int(words[i // 8]) >> (8 * (i % 8)) & 0xFF)

    def test_projections_are_signed_sums(self) -> None:
        rows = np.random.default_rng(1).standard_normal((3, 70)).astype(np.float32)
        bits = sketch.signs("embed", 70)
        norms, projections = sketch.measure(rows, bits)
        for r in range(3):
            self.assertEqual(norms[r], np.float32(np.sqrt((rows[r].astype(np.float64) ** 2).sum())))
            for p in range(8):
                total = sum(
                    float(x) * (1 if b >> p & 1 else -1)
                    for x, b in zip(rows[r], bits.tolist(), strict=True)
                )
                self.assertEqual(projections[r, p], np.float32(total))

    def test_attention_rows_are_query_rows_over_heads_then_keys(self) -> None:
        value = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
        rows = sketch.tap_rows("layers.0.attn.probs", value)
        self.assertEqual(rows.shape, (8, 12))
        self.assertEqual(list(rows[4 + 2]), list(value[1, :, 2, :].ravel()))

    def test_minus_infinity_counts_as_zero(self) -> None:
        value = np.array([[[1, -np.inf], [2, 3]]], dtype=np.float32)
        self.assertEqual(sketch.tap_rows("layers.0.ix.scores", value).tolist(), [[1, 0], [2, 3]])

    def test_chosen_rows_are_valid_and_see_more_than_topk(self) -> None:
        for case in (case for case in CASES.values() if case.pad_side == "left"):
            rows = sketch.chosen_rows(case.B, case.S, case.config["index_topk"])
            mask = synthetic.make_batch(case)["attention_mask"].reshape(-1)
            self.assertTrue(mask[rows].all(), case.name)
        self.assertEqual(list(sketch.chosen_rows(2, 544, 256)), [256, 543, 816, 1087])

    def test_gradient_keeps_one_row_and_vectors_whole(self) -> None:
        matrix = np.arange(12, dtype=np.float32).reshape(4, 3)
        kept = sketch.sketch_gradient("grad.x", matrix, 2)
        self.assertEqual((kept.rows.tolist(), kept.row_index.tolist()), ([[6, 7, 8]], [2]))
        self.assertEqual(kept.projections.shape, (1, 8))
        vector = sketch.sketch_gradient("grad.x", matrix[0], 0)
        self.assertEqual(vector.rows.tolist(), [[0, 1, 2]])

    def test_topk_survives_packing(self) -> None:
        topk = np.array([[[3, 0, -1], [9, 2, 8]]], dtype=np.int32)
        bits = sketch.pack_topk(topk, 10)
        self.assertEqual(bits.tolist(), [[[9, 0], [4, 3]]])
        self.assertEqual(sketch.unpack_topk(bits, 3, 10).tolist(), [[[0, 3, -1], [2, 8, 9]]])


def small_content(kind: str) -> h5file.Content:
    """A golden of few taps with made-up values."""
    case = dataclasses.replace(CASES["tiny"], golden=kind)
    B, S, H, K = case.B, case.S, 4, case.config["index_topk"]
    random = np.random.default_rng(1)
    taps = {
        "embed": random.standard_normal((B, S, 64)).astype(np.float32),
        "layers.0.topk": np.tile(np.arange(K, dtype=np.int32)[::-1], (B, S, 1)),
        "layers.0.attn.logits": random.standard_normal((B, H, S, S)).astype(np.float32),
        "layers.0.attn.probs": random.random((B, H, S, S)).round().astype(np.float32),
        "layers.1.router.experts": np.tile(np.array([0, 3], dtype=np.int32), (B, S, 1)),
        "loss.lm": np.float32(5.5).reshape(()),
        "grad.model.norm.weight": random.standard_normal(64).astype(np.float32),
        "grad.model.embed_tokens.weight": random.standard_normal((100, 64)).astype(np.float32),
    }
    attributes = {"kind": kind, "version": 1, "seed": 1}
    attributes |= {name: "x" for name in generate_attributes() if name not in attributes}
    return h5file.build(case, attributes, taps)


def generate_attributes() -> list[str]:
    from compare import SAME_ATTRIBUTES

    return [name for name in SAME_ATTRIBUTES if name != "taps"]


class TestFile(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_both_kinds_are_read_back(self) -> None:
        for kind in ("full", "sketch"):
            content = small_content(kind)
            h5file.write(self.folder / kind, content)
            read = h5file.read(self.folder / kind)
            self.assertEqual(differences(content, read), [])
            self.assertEqual(read.attributes["taps"], content.attributes["taps"])
            self.assertEqual(list(read.taps), list(content.taps))

    def test_same_content_is_the_same_bytes(self) -> None:
        for name in ("a", "b"):
            h5file.write(self.folder / name, small_content("sketch"))
        self.assertEqual((self.folder / "a").read_bytes(), (self.folder / "b").read_bytes())

    def test_strings_are_fixed_length_and_filters_are_plain(self) -> None:
        h5file.write(self.folder / "a", small_content("sketch"))
        self.assertEqual((self.folder / "a").read_bytes()[8], 3)  # superblock of HDF5 1.10
        with h5py.File(self.folder / "a") as h5:
            for name in h5.attrs:
                self.assertFalse(h5.attrs.get_id(name).get_type().get_class() == h5py.h5t.VLEN)
                self.assertIsNone(h5py.check_vlen_dtype(h5.attrs.get_id(name).dtype), name)
            embed = h5["taps/embed/projections"]
            self.assertEqual((embed.shape, embed.dtype.str), ((64, 8), "<f4"))
            self.assertEqual(
                (h5["taps/layers.0.topk"].dtype.str, h5["taps/layers.0.topk"].chunks), ("|u1", None)
            )

    def test_logits_off_the_support_and_hidden_keys_are_zero(self) -> None:
        taps = small_content("full").taps
        logits, probs = taps["layers.0.attn.logits"], taps["layers.0.attn.probs"]
        self.assertEqual(np.count_nonzero(logits[probs == 0]), 0)
        self.assertEqual(np.count_nonzero(np.triu(probs, 1)), 0)
        self.assertEqual(np.count_nonzero(probs[1, :, :, :5]), 0)
        self.assertGreater(np.count_nonzero(logits), 0)


class TestCompare(unittest.TestCase):
    """A golden that differs is seen to differ."""

    def changed(self, kind: str, change: object) -> list[str]:
        a, b = small_content(kind), small_content(kind)
        change(b)
        return differences(a, b)

    def test_equal_contents_agree(self) -> None:
        self.assertEqual(self.changed("full", lambda c: None), [])

    def test_one_other_key_is_seen(self) -> None:
        def change(content: h5file.Content) -> None:
            content.taps["layers.0.topk"][0, 20, 7] = 9

        self.assertEqual(
            self.changed("sketch", change), ["layers.0.topk: 1 of 59 rows chose otherwise"]
        )

    def test_padded_rows_do_not_count(self) -> None:
        def change(content: h5file.Content) -> None:
            content.taps["embed"][1, 0] = np.nan

        self.assertEqual(self.changed("full", change), [])

    def test_values_beyond_float32_noise_are_seen(self) -> None:
        def change(content: h5file.Content) -> None:
            content.taps["grad.model.norm.weight"] *= np.float32(1 + 1e-4)

        self.assertEqual(len(self.changed("full", change)), 1)

    def test_a_nan_is_seen(self) -> None:
        def change(content: h5file.Content) -> None:
            content.taps["embed"][0, 0, 0] = np.nan

        self.assertEqual(len(self.changed("full", change)), 1)

    def test_another_projection_is_seen(self) -> None:
        def change(content: h5file.Content) -> None:
            content.sketches["embed"].projections[3] += 1

        self.assertEqual(len(self.changed("sketch", change)), 1)

    def test_another_config_is_seen(self) -> None:
        def change(content: h5file.Content) -> None:
            content.attributes["config"] = "y"

        self.assertEqual(len(self.changed("full", change)), 1)


class TestRefusals(unittest.TestCase):
    """A run that lacks something does not become a golden."""

    def test_a_missing_tap_is_refused(self) -> None:
        capture = Capture(taps={}, missing=["layers.0.topk"])
        with self.assertRaisesRegex(GoldenError, "layers.0.topk"):
            cases.ordered_taps(CASES["tiny-chunk"], capture)

    def test_a_weight_that_was_not_loaded_is_refused(self) -> None:
        loaded = {"identical": 50, "different": ["lm_head.weight"], "missing": [], "unexpected": []}
        with self.assertRaisesRegex(GoldenError, "lm_head.weight"):
            check_loaded(CASES["tiny"], loaded)


class TestProvenance(unittest.TestCase):
    def test_sources_are_what_the_maker_imports(self) -> None:
        of_cases, of_lm = provenance.sources("cases"), provenance.sources("training.lm")
        self.assertLessEqual({"cases.py", "synthetic.py", "dsv32_dump"}, of_cases.keys())
        self.assertLessEqual({"training/lm.py", "training/run.py", "real.py"}, of_lm.keys())
        others = {"training/lora.py", "agreement.py", "compare.py", "command.py", "cases.py"}
        self.assertEqual(others & of_lm.keys(), set())
        text = (ROOT / "golden" / "make" / "synthetic.py").read_bytes()
        self.assertEqual(of_cases["synthetic.py"], hashlib.sha256(text).hexdigest())


class TestCommitted(unittest.TestCase):
    def test_manifest_matches_the_files(self) -> None:
        manifest = json.loads((DATA / "manifest.json").read_text())
        cases = [
            entry["case"] for entry in manifest["files"] if entry["kind"] in ("full", "sketch")
        ]
        self.assertEqual(cases, list(CASES))
        for entry in manifest["files"]:
            file = DATA / entry["file"]
            self.assertEqual(sha256(file), entry["sha256"], entry["case"])
            self.assertEqual(file.stat().st_size, entry["size"])
        self.assertLess(sum(entry["size"] for entry in manifest["files"]), COMMITTED_LIMIT)

    def test_provenance_names_the_pinned_release_and_no_place(self) -> None:
        for name in CASES:
            attributes = h5file.read(DATA / f"{name}.h5").attributes
            producer = json.loads(attributes["producer"])
            self.assertEqual(producer["transformers"], command.PINNED)
            self.assertNotIn(str(synthetic.ROOT), attributes["producer"])

    def test_decodings_come_out_again(self) -> None:
        for name, golden in command.goldens_of_decoding().items():
            with self.subTest(name):
                self.assertEqual(command.check(golden, DATA / f"{name}.h5"), [])

    def test_tiny_cases_come_out_again(self) -> None:
        goldens = command.goldens_of_cases()
        for name in TINY:
            with self.subTest(name):
                found = command.check(goldens[name], DATA / f"{name}.h5")
                self.assertEqual(found, [])


class TestReleases(unittest.TestCase):
    def test_other_releases_agree_on_the_tiny_cases(self) -> None:
        for release in OTHER_RELEASES:
            words = [sys.executable, ROOT / "golden" / "make", "--check", "--golden", *TINY]
            words += ["--transformers", release]
            result = subprocess.run(words, capture_output=True, text=True)
            with self.subTest(release):
                self.assertEqual(result.returncode, 0, result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main()
