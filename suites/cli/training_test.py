"""Training suites on the command line. ctest: `self_cli_training`."""

from __future__ import annotations

import json
import shutil
import unittest
from pathlib import Path

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
    environment,
    metadata_of,
    run,
    scratch,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

tearDownModule = clean_up


class Training(CliTest):
    suite = ("--suite", "sft_frozen_indexer")

    def home(self, name: str) -> Path:
        """A copy of the project's own files, to be damaged."""
        home = scratch / name
        shutil.copytree(ROOT / "configs", home / "configs")
        (home / "golden" / "data").mkdir(parents=True)
        return home

    def test_a_training_suite_alone(self) -> None:
        texts = []
        for _ in range(2):
            done = run(*self.suite, "--config", "tiny", "--json")
            self.ended(done, OK)
            report = json.loads(done.stdout)
            timing = report.pop("timing")
            texts.append(json.dumps(report))
            suite, case = timing["costs"]
            self.assertEqual((suite["case"], suite["suite"]), ("tiny-wide", self.suite[1]))
            self.assertEqual((case["case"], case["suite"]), ("tiny-wide", ""))
            for key in ("seconds", "tokens_per_second", "peak_gib"):
                self.assertGreater(suite[key], 0)
            self.assertGreater(timing["seconds"], case["seconds"])
        self.assertEqual(*texts)
        self.assertEqual(report["cases"], ["tiny-wide"])
        self.assertEqual({v["suite"] for v in report["verdicts"]}, {"sft_frozen_indexer"})
        subjects = {v["subject"]["label"] for v in report["verdicts"]}
        self.assertEqual(subjects, {"golden", "reference float32", "optimized float32"})
        figures = {f["name"] for f in report["figures"]}
        for name in ("loss of the last cycle", "loss of the last cycle, optimized"):
            self.assertIn(name, figures)

    def test_one_check_of_a_suite(self) -> None:
        done = run(*self.suite, "-k", "sft_frozen_indexer/golden/step.7.loss", "--json")
        self.ended(done, OK)
        self.assertEqual([v["tap"] for v in json.loads(done.stdout)["verdicts"]], ["step.7.loss"])

    def test_a_suite_beside_the_model(self) -> None:
        done = run("--suite", "forward,sft_frozen_indexer", "--case", "tiny-wide", "--json")
        self.ended(done, OK)
        suites = {v["suite"] for v in json.loads(done.stdout)["verdicts"]}
        self.assertEqual(suites, {"", "sft_frozen_indexer"})

    def test_a_case_that_the_suite_does_not_have(self) -> None:
        self.refused(run(*self.suite, "--case", "tiny"), USAGE, "tiny-wide")
        self.refused(run(*self.suite, "--config", "medium"), USAGE, "small-train")

    def test_a_missing_golden_is_not_green(self) -> None:
        home = self.home("no-golden")
        manifest = json.loads((ROOT / "golden" / "data" / "manifest.json").read_text())
        manifest["files"] = [f for f in manifest["files"] if "sft" not in f["case"]]
        (home / "golden" / "data" / "manifest.json").write_text(json.dumps(manifest))
        done = run(*self.suite, env=environment(DSV32_DATA=str(home)))
        self.ended(done, NOTHING)
        self.assertIn("MISSING", done.stdout)
        self.assertIn("golden.file.sft_frozen_indexer", done.stdout)

    def test_every_deleted_golden_is_missing(self) -> None:
        """Whether its line went from the manifest as well, or its file alone."""
        data = ROOT / "golden" / "data"
        golden = "dual_lora_experts.tiny-wide"
        for line_goes in (False, True):
            with self.subTest(line_goes=line_goes):
                home = self.home(f"deleted-golden-{line_goes}")
                for path in data.glob("dual_lora*.h5"):
                    if path.stem != golden:
                        shutil.copy(path, home / "golden" / "data")
                manifest = json.loads((data / "manifest.json").read_text())
                if line_goes:
                    manifest["files"] = [f for f in manifest["files"] if f["case"] != golden]
                (home / "golden" / "data" / "manifest.json").write_text(json.dumps(manifest))
                done = run("--suite", "dual_lora", env=environment(DSV32_DATA=str(home)))
                self.ended(done, NOTHING)
                self.assertIn("MISSING", done.stdout)
                self.assertIn("golden.file.dual_lora_experts", done.stdout)

    def test_a_damaged_golden_is_refused(self) -> None:
        home = self.home("damaged-golden")
        shutil.copytree(ROOT / "golden" / "data", home / "golden" / "data", dirs_exist_ok=True)
        path = home / "golden" / "data" / "sft_frozen_indexer.tiny-wide.h5"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        done = run(*self.suite, env=environment(DSV32_DATA=str(home)))
        self.refused(done, ARTEFACT, "sft_frozen_indexer.tiny-wide")


class TrainCandidates(CliTest):
    """Candidates of mode `train`: one clean file, and what is almost right."""

    def setUp(self) -> None:
        self.clean = scratch / "train.safetensors"
        if not self.clean.exists():
            words = ("dump", "--case", "tiny-wide", "--mode", "train", "--out", self.clean)
            self.ended(run(*words), OK)
        self.tensors = load_file(self.clean)

    def changed(self, name: str, values: np.ndarray, **metadata: str) -> Path:
        path = scratch / "changed.safetensors"
        save_file(self.tensors | {name: values}, path, metadata_of(self.clean) | metadata)
        return path

    def test_a_clean_one_passes(self) -> None:
        done = run("--candidate", self.clean, "--json")
        self.ended(done, OK)
        report = json.loads(done.stdout)
        self.assertEqual({v["suite"] for v in report["verdicts"]}, {"loss_descent"})
        taps = {v["tap"] for v in report["verdicts"]}
        self.assertLessEqual({"step.0.loss", "step.49.grad_norm", "curve.loss.band"}, taps)

    def test_the_first_wrong_step_is_named(self) -> None:
        loss = self.tensors["train.loss"].copy()
        loss[7] *= 1.02
        done = run("--candidate", self.changed("train.loss", loss))
        self.ended(done, PARITY)
        self.assertIn("first divergence step.7.loss", done.stdout)
        self.assertIn("at fault  candidate", done.stdout)

    def test_a_curve_outside_the_band_is_said(self) -> None:
        loss = self.tensors["train.loss"].copy()
        loss[7] *= 1.001
        done = run("--candidate", self.changed("train.loss", loss))
        self.ended(done, OK)
        self.assertIn("outside it at step 7", done.stdout)

    def test_a_frozen_parameter_that_moved_is_named(self) -> None:
        name = "param.model.layers.1.self_attn.indexer.wk.weight"
        value = self.tensors[name].copy()
        value.flat[5] = np.nextafter(value.flat[5], np.float32(1))
        done = run("--candidate", self.changed(name, value))
        self.ended(done, PARITY)
        self.assertIn(f"first divergence end.{name}", done.stdout)

    def test_a_parameter_that_was_never_updated_is_named(self) -> None:
        name = "param.model.layers.0.self_attn.o_proj.weight"
        self.ended(run("weights", "make", "--case", "tiny-wide", "--out", scratch / "ckpt"), OK)
        shard = next((scratch / "ckpt").glob("*.safetensors"))
        with safe_open(shard, framework="pt") as file:
            value = file.get_tensor(name.removeprefix("param.")).float().numpy()
        done = run("--candidate", self.changed(name, value))
        self.ended(done, PARITY)
        self.assertIn(f"first divergence end.{name}", done.stdout)

    def test_a_nan_fails(self) -> None:
        loss = self.tensors["train.loss"].copy()
        loss[3] = np.nan
        self.ended(run("--candidate", self.changed("train.loss", loss)), PARITY)

    def test_files_of_another_training_are_refused(self) -> None:
        loss = self.tensors["train.loss"]
        self.refused(run("--candidate", self.changed("train.loss", loss[:-1])), ARTEFACT,
                     "49", "50 steps")
        recipe = metadata_of(self.clean)["recipe"].replace("0.001", "0.002")
        done = run("--candidate", self.changed("train.loss", loss, recipe=recipe))
        self.refused(done, ARTEFACT, "metadata recipe", "loss_descent")
        done = run("--candidate", self.changed("train.loss", loss, weights="synthetic:2"))
        self.refused(done, ARTEFACT, "metadata weights")


if __name__ == "__main__":
    unittest.main(verbosity=2)
