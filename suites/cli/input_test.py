"""Files that dsv32-verify must refuse, or judge as they deserve. ctest: `self_cli_input`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import unittest
from pathlib import Path

import numpy as np
from program import (
    ARTEFACT,
    ESCAPE,
    NOTHING,
    OK,
    PARITY,
    PROGRAM,
    ROOT,
    USAGE,
    CliTest,
    clean_up,
    environment,
    good,
    make_good,
    raw,
    run,
    scratch,
    variant,
)
from safetensors.numpy import load_file, save_file

PADDED = 5  # tokens of an own batch

setUpModule = make_good
tearDownModule = clean_up


class HostileSafetensors(CliTest):
    """Files that lie about themselves. All exit 4; none may crash."""

    def refused_file(self, path: Path, *words: str) -> None:
        self.refused(run("--candidate", path), ARTEFACT, path.name, *words)

    def test_missing_file(self) -> None:
        self.refused_file(scratch / "nobody.safetensors")

    def test_no_regular_file(self) -> None:
        self.refused(run("--candidate", "/dev/zero"), ARTEFACT, "/dev/zero")
        self.refused(run("--candidate", scratch), ARTEFACT)

    def test_cut_at_every_kind_of_place(self) -> None:
        whole = good.read_bytes()
        for size in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
            with self.subTest(size=size):
                path = scratch / "cut.safetensors"
                path.write_bytes(whole[:size])
                self.refused_file(path)

    def test_longer_than_its_header_says(self) -> None:
        path = scratch / "long.safetensors"
        path.write_bytes(good.read_bytes() + b"\0")
        self.refused_file(path)

    def test_header_length(self) -> None:
        for length in (0, 1, 1 << 31, 1 << 62, (1 << 64) - 1):
            with self.subTest(length=length):
                self.refused_file(raw("length", "{}", length=length))

    def test_header_text(self) -> None:
        entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
        texts = {
            "no JSON": b"not json",
            "no object": b"[]",
            "not UTF-8": b'{"\xff\xfe":' + entry.encode() + b"}",
            "twice the same name": f'{{"logits":{entry},"logits":{entry}}}'.encode(),
            "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "metadata that is no text": b'{"__metadata__":{"format":1}}',
        }
        for name, text in texts.items():
            with self.subTest(name):
                self.refused_file(raw("text", text, bytes(4)))

    def test_entries(self) -> None:
        def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
            return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

        headers = {
            "hole": {"embed": entry("F32", [1], 0, 4), "logits": entry("F32", [1], 8, 12)},
            "overlap": {"embed": entry("F32", [2], 0, 8), "logits": entry("F32", [2], 4, 12)},
            "beyond the end": {"logits": entry("F32", [1 << 40], 0, 1 << 42)},
            "backwards": {"logits": entry("F32", [1], 4, 0)},
            "shape and length": {"logits": entry("F32", [2], 0, 12)},
            "overflow": {"logits": entry("F32", [1 << 62, 1 << 62], 0, 12)},
            "negative": {"logits": entry("F32", [-3, -1], 0, 12)},
            "unknown type": {"logits": entry("F33", [3], 0, 12)},
            "fraction": {"logits": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 12]}},
            "no offsets": {"logits": {"dtype": "F32", "shape": [3]}},
        }
        for name, header in headers.items():
            with self.subTest(name):
                self.refused_file(raw("entry", header, bytes(12)))

    def test_takes_no_memory_by_the_file_s_word(self) -> None:
        header = {"logits": {"dtype": "F64", "shape": [1 << 45], "data_offsets": [0, 1 << 48]}}
        path = raw("huge", header, bytes(12))
        child = subprocess.Popen(
            [PROGRAM, "--candidate", str(path)], env=environment(), stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        self.assertEqual(child.returncode, ARTEFACT)
        room = 2 * 1024 * 1024  # KiB; torch itself takes a quarter of it
        self.assertLess(usage.ru_maxrss, room)

    def test_names_cannot_steer_the_terminal(self) -> None:
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        done = run("--candidate", raw("steer", {f"{ESCAPE}[2Jlogits": entry}, bytes(4)))
        self.assertEqual(done.returncode, ARTEFACT)
        self.assertNotIn(ESCAPE, done.stderr)


class Candidates(CliTest):
    def test_good_one_passes(self) -> None:
        self.ended(run("--candidate", good), OK)

    def test_wrong_dtype(self) -> None:
        tensors = load_file(good)
        tensors["logits"] = tensors["logits"].astype(np.int64)
        self.refused(run("--candidate", variant("dtype", tensors)), ARTEFACT, "logits")

    def test_wrong_shape(self) -> None:
        tensors = load_file(good)
        tensors["logits"] = tensors["logits"][:, :-1].copy()
        done = run("--candidate", variant("shape", tensors))
        self.refused(done, ARTEFACT, "logits", "[2,32,100]")

    def test_unknown_tap(self) -> None:
        tensors = load_file(good)
        tensors["logitz"] = tensors["logits"]
        self.refused(run("--candidate", variant("tap", tensors)), ARTEFACT, "logitz")

    def test_wrong_version_and_format(self) -> None:
        self.refused(run("--candidate", variant("v", version="2")), ARTEFACT, "version")
        self.refused(run("--candidate", variant("f", format="pt")), ARTEFACT, "format")

    def test_missing_metadata(self) -> None:
        for key in ("format", "version", "case", "mode", "dtype"):
            with self.subTest(key):
                self.refused(run("--candidate", variant("less", **{key: None})), ARTEFACT, key)

    def test_another_case_than_its_tensors(self) -> None:
        self.refused(run("--candidate", variant("other", case="small")), ARTEFACT, "expected")

    def test_unknown_case(self) -> None:
        self.refused(run("--candidate", variant("c", case="tinny")), ARTEFACT, "tiny")

    def test_another_seed_than_its_weights(self) -> None:
        case = json.dumps({"config": "tiny", "overrides": {}, "seed": 2, "B": 2, "S": 32, "pad": 5,
                           "bias_offset": 0, "chunks": []})
        self.refused(run("--candidate", variant("s", case=case)), ARTEFACT, "synthetic:1")

    def test_contradictions_with_the_command_line(self) -> None:
        for option, value in (("--case", "tiny-wide"), ("--config", "small"), ("--seed", "2")):
            with self.subTest(option):
                done = run("--candidate", good, option, value)
                self.refused(done, ARTEFACT, option, "contradicts")

    def test_agreement_with_the_command_line(self) -> None:
        self.ended(run("--candidate", good, "--case", "tiny", "--config", "tiny", "--seed", 1), OK)

    def test_nan_fails(self) -> None:
        tensors = {name: np.full_like(value, np.nan) if value.dtype.kind == "f" else value
                   for name, value in load_file(good).items()}
        self.ended(run("--candidate", variant("nan", tensors)), PARITY)

    def test_logits_alone_are_judged(self) -> None:
        path = variant("logits", {"logits": load_file(good)["logits"]}, mode="forward")
        done = run("--candidate", path)
        self.ended(done, OK)
        self.assertIn(path.name, done.stdout)

    def test_wrong_logits_alone_fail(self) -> None:
        path = variant("shifted", {"logits": np.roll(load_file(good)["logits"], 1, axis=1)},
                       mode="forward")
        self.ended(run("--candidate", path), PARITY)

    def test_empty_is_never_green(self) -> None:
        self.ended(run("--candidate", variant("empty", {})), NOTHING)

    def test_crash_of_the_implementation_fails(self) -> None:
        failure = json.dumps({"where": "model.layers.0", "message": "boom", "shapes": "[2,32]"})
        done = run("--candidate", variant("crash", {}, failure=failure))
        self.ended(done, PARITY)
        self.assertIn("boom", done.stdout)

    def test_unloaded_weights_are_named(self) -> None:
        loaded = json.dumps({"identical": 50, "different": ["lm_head.weight"], "missing": [],
                             "unexpected": []})
        done = run("--candidate", variant("loaded", weights_loaded=loaded))
        self.ended(done, PARITY)
        self.assertIn("lm_head.weight", done.stdout)

    def test_one_bad_file_among_good_ones(self) -> None:
        self.refused(run("--candidate", good, "--candidate", scratch / "none"), ARTEFACT, "none")


class Goldens(CliTest):
    """A copy of the project's files with one golden damaged."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.home = scratch / "home"
        shutil.copytree(ROOT / "configs", cls.home / "configs")
        shutil.copytree(ROOT / "golden" / "data", cls.home / "golden" / "data")
        cls.file = next((cls.home / "golden" / "data").glob("tiny.*"))
        damaged = bytearray(cls.file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        cls.file.write_bytes(damaged)

    def at_home(self, *words: object) -> subprocess.CompletedProcess[str]:
        return run(*words, env=environment(DSV32_DATA=str(self.home)))

    def test_verify_and_show_accept_the_shipped_ones(self) -> None:
        self.ended(run("golden", "verify"), OK)
        self.ended(run("golden", "show", "tiny"), OK)

    def test_wrong_hash_is_refused(self) -> None:
        self.refused(self.at_home("--case", "tiny"), ARTEFACT, self.file.name)
        self.refused(self.at_home("golden", "show", "tiny"), ARTEFACT, self.file.name)

    def test_verify_finds_it(self) -> None:
        done = self.at_home("golden", "verify")
        self.ended(done, ARTEFACT)
        self.assertIn(self.file.name, done.stdout + done.stderr)

    def test_diff(self) -> None:
        shipped, copy = ROOT / "golden" / "data", self.home / "golden" / "data"
        self.ended(run("golden", "diff", shipped, shipped), OK)
        self.refused(run("golden", "diff", shipped, copy), ARTEFACT, self.file.name)

    def test_no_manifest(self) -> None:
        bare = scratch / "bare"
        shutil.copytree(ROOT / "configs", bare / "configs")
        done = run("golden", "verify", env=environment(DSV32_DATA=str(bare)))
        self.ended(done, ARTEFACT)

    def test_unknown_case(self) -> None:
        self.refused(run("golden", "show", "tinny"), USAGE, "did you mean tiny?")


class Batches(CliTest):
    def batch(self, **tensors: np.ndarray) -> Path:
        path = scratch / "batch.safetensors"
        save_file(tensors, path)
        return path

    def ids(self) -> np.ndarray:
        return np.arange(66, dtype=np.int64).reshape(2, 33) % 100

    def refused_batch(self, path: Path, *words: str) -> None:
        self.refused(run("--case", "tiny-wide", "--batch", path), ARTEFACT, path.name, *words)

    def test_own_data_is_judged(self) -> None:
        done = run("--case", "tiny-wide", "--batch", self.batch(input_ids=self.ids()))
        self.ended(done, OK)

    def test_token_outside_the_vocabulary(self) -> None:
        for token in (100, -1, 1 << 40):
            with self.subTest(token):
                ids = self.ids()
                ids[1, 7] = token
                self.refused_batch(self.batch(input_ids=ids), str(token))

    def test_mask(self) -> None:
        ids = self.ids()
        for name, mask in {"shape": np.ones((2, 32), np.int64), "row": np.ones(33, np.int64),
                           "two": np.full((2, 33), 2, np.int64),
                           "negative": np.full((2, 33), -1, np.int64)}.items():
            with self.subTest(name):
                self.refused_batch(self.batch(input_ids=ids, attention_mask=mask), "mask")

    def test_labels(self) -> None:
        ids = self.ids()
        for name, labels in {"shape": ids[:, :-1].copy(), "range": ids + 100}.items():
            with self.subTest(name):
                self.refused_batch(self.batch(input_ids=ids, labels=labels), "labels")

    def test_wrong_type_and_no_ids(self) -> None:
        self.refused_batch(self.batch(input_ids=self.ids().astype(np.float32)), "input_ids")
        self.refused_batch(self.batch(tokens=self.ids()), "input_ids")

    def of_own_batch(self, name: str, batch: Path, padded_by: float) -> Path:
        """The good trace as if made with this batch; its padding is `padded_by` times as large."""
        listed = json.loads((ROOT / "configs" / "cases.json").read_text())["cases"]
        tiny = next(case for case in listed if case["name"] == "tiny")
        keys = "config overrides seed B S pad bias_offset chunks".split()
        case = {key: tiny[key] for key in keys}
        case["batch"] = hashlib.sha256(batch.read_bytes()).hexdigest()
        tensors = load_file(good)
        tensors["logits"][0, :PADDED] *= np.float32(padded_by)
        return variant(name, tensors, case=json.dumps(case))

    def test_compare_reads_the_batch_that_the_case_names(self) -> None:
        mask = np.ones((2, 32), np.int64)
        mask[0, :PADDED] = 0  # the synthetic batch of the case has its padding in row 1
        path = self.batch(input_ids=np.ones((2, 32), np.int64), attention_mask=mask)
        a, b = self.of_own_batch("own-a", path, 1), self.of_own_batch("own-b", path, 2)
        self.refused(run("compare", a, b), ARTEFACT, "--batch FILE", a.name)
        self.ended(run("compare", a, b, "--batch", path), OK)
        self.refused(run("compare", good, good, "--batch", path), ARTEFACT, "batch")
        self.refused(run("--candidate", a), ARTEFACT, "--batch FILE")
        path = self.batch(input_ids=np.ones((2, 32), np.int64))
        self.refused(run("compare", a, b, "--batch", path), ARTEFACT, "sha256", path.name)
        self.refused(run("--candidate", a, "--batch", path), ARTEFACT, "sha256", path.name)


class WeakEvidence(CliTest):
    """A file that holds little: green only where nothing can have gone wrong unseen."""

    def part(self, name: str, *taps: str, **scaled: float) -> Path:
        """The good trace with these taps alone, some of them times a factor."""
        kept = {tap: value for tap, value in load_file(good).items() if tap in taps}
        for tap, factor in scaled.items():
            kept[tap.replace("_", ".")] *= np.float32(factor)
        return variant(name, kept)

    def test_a_loss_alone_is_never_green(self) -> None:
        path = self.part("loss-alone", "loss.lm")
        self.ended(run("--candidate", path), NOTHING)
        self.ended(run("--candidate", path, "--accept-weak"), NOTHING)
        self.ended(run("--candidate", self.part("loss-off", "loss.lm", loss_lm=1.01)), NOTHING)
        self.ended(run("--candidate", self.part("loss-far", "loss.lm", loss_lm=1.5)), PARITY)

    def test_right_logits_pass_without_the_decisions(self) -> None:
        self.ended(run("--candidate", self.part("logits-right", "logits", "loss.lm")), OK)

    def test_wrong_logits_fail_without_the_decisions(self) -> None:
        path = self.part("logits-off", "logits", logits=1.001)
        self.ended(run("--candidate", path), PARITY)
        self.ended(run("--candidate", path, "--accept-weak"), PARITY)

    def test_a_file_none_of_whose_checks_ran_is_not_green(self) -> None:
        done = run("--candidate", self.part("forward", "logits"), "--suite", "backward")
        self.ended(done, NOTHING)
        self.assertIn("no check of this candidate ran", done.stdout)

    def test_a_batch_that_the_file_was_not_made_with(self) -> None:
        path = scratch / "own.safetensors"
        save_file({"input_ids": np.ones((2, 32), np.int64)}, path)
        self.refused(run("--candidate", good, "--batch", path), ARTEFACT, "batch", good.name)

    def test_two_files_of_one_name_are_two_subjects(self) -> None:
        folder = scratch / "second"
        folder.mkdir(exist_ok=True)
        shutil.copy(self.part("other", "logits", logits=1.001), folder / good.name)
        done = run("--candidate", good, "--candidate", folder / good.name, "--json")
        labels = {v["subject"]["label"] for v in json.loads(done.stdout)["verdicts"]}
        self.assertIn(f"candidate {good}", labels)
        self.assertIn(f"candidate {folder / good.name}", labels)

    def test_a_row_of_one_token_predicts_nothing(self) -> None:
        path = scratch / "one.safetensors"
        save_file({"input_ids": np.ones((2, 1), np.int64)}, path)
        self.refused(run("--case", "tiny", "--batch", path), ARTEFACT, "two tokens")


class Configs(CliTest):
    def config(self, remove: str = "", **changes: object) -> Path:
        fields = json.loads((ROOT / "configs" / "tiny" / "config.json").read_text()) | changes
        fields.pop(remove, None)
        path = scratch / "config.json"
        path.write_text(json.dumps(fields))
        return path

    def refused_config(self, path: Path, *words: str) -> None:
        for more in ((), ("--show-config",)):
            self.refused(run("--config", path, *more), ARTEFACT, path.name, *words)

    def test_missing_field(self) -> None:
        for field in ("vocab_size", "kv_lora_rank", "index_topk"):
            with self.subTest(field):
                self.refused_config(self.config(remove=field), field)

    def test_impossible_values(self) -> None:
        rows: list[tuple[str, object]] = [
            ("hidden_size", "64"), ("hidden_size", 64.5), ("hidden_size", -64),
            ("hidden_size", None), ("hidden_size", 1 << 62), ("num_experts_per_tok", 5),
            ("n_group", 3), ("topk_group", 3), ("qk_rope_head_dim", 15), ("index_topk", 0),
            ("rms_norm_eps", -1), ("rope_scaling", "yarn"),
            ("rope_scaling", {"type": "linear", "factor": 2}),
        ]
        for field, value in rows:
            with self.subTest(field=field, value=value):
                self.refused_config(self.config(**{field: value}), field)

    def test_broken_files(self) -> None:
        path = scratch / "broken.json"
        for text in ("", "{", "[]", '{"a":1,"a":2}', "[" * 100_000):
            with self.subTest(text[:9]):
                path.write_text(text)
                self.refused_config(path)
        self.refused(run("--config", scratch / "nobody.json"), ARTEFACT, "nobody.json")

    def test_unknown_field_is_a_warning(self) -> None:
        done = run("--config", self.config(hidden_sise=3), "--show-config")
        self.ended(done, OK)
        self.assertIn("hidden_sise", done.stderr)

    def test_a_path_is_judged(self) -> None:
        done = run("--config", self.config(), "--suite", "forward")
        self.ended(done, OK)

    def test_derived_numbers_of_the_released_config(self) -> None:
        done = run("--config", "full", "--show-config")
        self.ended(done, OK)
        shown = json.loads(done.stdout)
        derived = shown["derived"]
        self.assertEqual(f"{derived['mscale']:.10f}", "1.3688879454")
        self.assertEqual(f"{derived['softmax_scale']:.10f}", "0.1352337789")
        self.assertEqual(derived["yarn_correction_range"], [10, 23])
        self.assertEqual(derived["rope_pairs"], 32)
        self.assertEqual(derived["parameters"], 671877944064)
        self.assertEqual(shown["config"]["n_routed_experts"], 256)


if __name__ == "__main__":
    unittest.main(verbosity=2)
