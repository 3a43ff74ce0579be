"""--layers and --dry-run: a few layers of any size. ctest: `self_cli_layers`."""

from __future__ import annotations

import json
import re
import subprocess
import time
import unittest
from pathlib import Path

from program import (
    ARTEFACT,
    ENVIRONMENT,
    OK,
    PROGRAM,
    USAGE,
    CliTest,
    clean_up,
    environment,
    run,
    scratch,
)

tearDownModule = clean_up


def without_timing(folder: Path) -> dict:
    report = json.loads((folder / "report.json").read_text())
    del report["timing"]
    return report


def blocked_case() -> str:
    """Rows of attention in blocks, taps on disk: as at full size, in seconds."""
    heads, tokens = 64, 1024
    overrides = {"num_attention_heads": heads, "num_key_value_heads": heads, "v_head_dim": 64,
                 "max_position_embeddings": tokens}
    return json.dumps({"config": "tiny", "overrides": overrides, "seed": 1, "B": 1, "S": tokens,
                       "pad": 0, "bias_offset": 0, "chunks": []})


class Layers(CliTest):
    def report_of(self, *words: object) -> dict:
        done = run(*words, "--device", "cpu", "--json")
        self.ended(done, OK)
        return json.loads(done.stdout)

    def test_words_that_make_no_sense(self) -> None:
        rows = {"": "empty value", ",": "empty word", "0,": "empty word", "0,0": "repeated word",
                "embed,embed": "repeated word", "61": "layer out of range", "-1": "--layers",
                "all": "word", "0-3": "word", "1e1": "word"}
        for words, said in rows.items():
            for more in ((), ("--dry-run",)):
                with self.subTest(words=words, more=more):
                    given = (f"--layers={words}",) if words else ("--layers", "")
                    done = run("--case", "full", *given, *more)
                    self.refused(done, USAGE, said)
        self.refused(run("--case", "tiny", "--layers", "2"), USAGE, "0 to 1")
        self.refused(run("--case", "nope", "--layers", "0"), USAGE, "nope")
        self.refused(run("--case", "tiny-wide", "--layers", "0", "--suite", "loss_descent"), USAGE,
                     "not in this version")

    def test_what_cannot_go_back_is_refused(self) -> None:
        back = ("--suite", "backward")
        for words in ("embed", "0,head"):
            self.refused(run("--case", "tiny", "--layers", words, *back), USAGE,
                         "expected layers alone, as in 3")
        self.refused(run("--case", "tiny", "--layers", "7", *back), USAGE, "0 to 1")
        self.refused(run("--case", "full", *back, "--dry-run"), USAGE, "no --layers")
        self.refused(run("--case", "tiny-fp8", "--layers", "0", "--dtype", "fp8", *back), USAGE,
                     "nothing trains in fp8 mode")

    def test_layers_go_back(self) -> None:
        report = self.report_of("--case", "tiny-wide", "--layers", "0,1", "--suite", "backward")
        self.assertEqual({v["trust"] for v in report["verdicts"]}, {"pass"})
        names = [v["tap"] for v in report["verdicts"]]
        for name in ("grad.model.layers.1.mlp.experts.15.up_proj.weight", "dtap.embed",
                     "grad.model.layers.0.mlp.down_proj.weight",
                     "step.0.update.model.layers.0.self_attn.kv_b_proj.weight"):
            self.assertEqual(names.count(name), 4, name)
        self.assertFalse([n for n in names if "indexer" in n or n == "layers.0.hidden"])
        both = self.report_of("--case", "tiny", "--layers", "1", "--suite", "forward,backward",
                              "--dtype", "float32")
        self.assertEqual({v["trust"] for v in both["verdicts"]}, {"pass", "skipped"})
        self.assertTrue({"layers.1.hidden", "dtap.layers.0.hidden"}
                        <= {v["tap"] for v in both["verdicts"]})

    def test_a_dry_run_of_the_way_back_says_what_it_takes(self) -> None:
        done = run("--config", "full", "--layers", "3", "--suite", "backward", "--dry-run")
        self.ended(done, OK)
        self.assertRegex(done.stdout, r"layer 3 mlp backward +1\.1\de\+10 ")
        self.assertRegex(done.stdout, r"layer 3 attention backward ")
        peak = float(re.search(r"up to ([\d.]+) GiB", done.stdout).group(1))
        self.assertLess(peak, 11)

    def test_layers_of_a_small_case(self) -> None:
        report = self.report_of("--case", "tiny-wide", "--layers", "1,head")
        self.assertEqual({v["trust"] for v in report["verdicts"]}, {"pass", "skipped"})
        names = {v["tap"] for v in report["verdicts"]}
        self.assertIn("layers.1.moe.routed", names)
        self.assertIn("loss.lm", names)
        self.assertFalse([n for n in names if n.startswith("layers.0.") or n == "embed"])
        self.assertTrue(any("layer 1, head" in line for line in report["not_tested"]))

    def test_equal_runs_give_equal_reports(self) -> None:
        def text(*more: object) -> dict:
            words = ("--case", "small-train", "--layers", "3", "--dtype", "float32")
            report = self.report_of(*words, *more)
            del report["timing"]
            return report

        self.assertEqual(text(), text())

    def test_a_dry_run_says_what_it_takes(self) -> None:
        done = run("--config", "full", "--dry-run")
        self.ended(done, OK)
        self.assertRegex(done.stdout, r"layer 60 mlp +1\.1\de\+10 ")
        self.assertRegex(done.stdout, r"about [\d.]+ (min|h|days) on \d+ cores")
        few = run("--config", "full", "--layers", "0,3,60", "--dry-run")
        self.ended(few, OK)
        self.assertEqual(few.stdout.count("attention"), 3)
        self.assertNotIn("embed", few.stdout)
        self.ended(run("--case", "tiny", "--dry-run"), OK)

    def test_the_peak_is_as_the_dry_run_says(self) -> None:
        words = ("--case", blocked_case(), "--layers", "1", "--dtype", "float32")
        dry = run(*words, "--dry-run")
        self.ended(dry, OK)
        said = float(re.search(r"up to ([\d.]+) GiB", dry.stdout).group(1))
        report = self.report_of(*words, "--no-cache")
        self.assertEqual({v["trust"] for v in report["verdicts"]}, {"pass", "skipped"})
        peak = max(c["peak_gib"] for c in report["timing"]["costs"])
        self.assertLess(abs(said / peak - 1), 0.25, f"said {said} GiB, took {peak} GiB")

    def test_a_full_disk_is_said(self) -> None:
        done = run("--case", blocked_case(), "--layers", "1", "--dtype", "float32",
                   env=environment(TMPDIR="/proc"))
        self.refused(done, ENVIRONMENT, "/proc: disk: expected")

        folder = scratch / "layer-1"
        self.ended(run("weights", "make", "--config", "tiny", "--layers", "1", "--out", folder), OK)
        one = ("--case", "tiny", "--weights", folder, "--layers")
        self.ended(run(*one, "1"), OK)
        for words in ("0,1", "1,head"):
            self.refused(run(*one, words), ARTEFACT, "it has these whole: 1 (--layers 1)")
        self.refused(run("--case", "tiny", "--weights", folder), ARTEFACT, "these whole: 1")
        self.refused(run("weights", "make", "--case", "tiny", "--layers", "2", "--out", folder),
                     USAGE, "layer out of range")
        self.refused(run("weights", "make", "--out", folder), USAGE, "--case NAME")

    def expect_resumed(self, job: tuple[str, ...], whole: Path, killed: Path) -> None:
        """Killed once it has a journal, the job goes on to the report of a run without a stop."""
        self.ended(run(*job, "--out", whole), OK)
        child = subprocess.Popen([PROGRAM, *job, "--out", killed], env=environment(),
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list(killed.glob("*.journal")) and child.poll() is None:
            time.sleep(0.02)
        child.kill()
        self.assertNotEqual(child.wait(), OK, "it ended before it could be killed")
        self.ended(run(*job, "--out", killed, "--resume"), OK)
        first, second = without_timing(whole), without_timing(killed)
        for report in (first, second):
            report["command"] = ""
        self.assertEqual(first, second)

    def test_a_killed_run_goes_on(self) -> None:
        job = ("--case", "small-train", "--layers", "0,1,2,3", "--dtype", "float32",
               "--device", "cpu")
        whole, killed = scratch / "whole", scratch / "killed"
        self.expect_resumed(job, whole, killed)
        beat = json.loads((killed / "heartbeat.json").read_text())
        self.assertEqual(beat["segments_done"], beat["segments"])
        # A finished run prints its report again, and does nothing else.
        before = time.monotonic()
        self.ended(run(*job, "--out", killed, "--resume"), OK)
        self.assertLess(time.monotonic() - before, 30)
        self.refused(run(*job[:-4], "--device", "cpu", "--out", killed, "--resume"), USAGE,
                     "made by another job: its command")

    def test_a_run_that_goes_back_goes_on_behind_a_layer(self) -> None:
        overrides = {"index_topk": 16, "hidden_size": 512, "moe_intermediate_size": 128}
        case = json.dumps({"config": "small", "overrides": overrides, "seed": 1, "B": 1, "S": 64,
                           "pad": 0, "bias_offset": 0, "chunks": []})
        job = ("--case", case, "--layers", "0,3", "--suite", "backward", "--dtype", "float32",
               "--impl", "optimized", "--device", "cpu")
        whole, killed = scratch / "back", scratch / "back-killed"
        self.expect_resumed(job, whole, killed)

    def test_resume_needs_a_journal(self) -> None:
        self.refused(run("--case", "tiny", "--resume"), USAGE, "--layers")
        self.refused(run("--case", "tiny", "--layers", "0", "--resume"), USAGE, "no --out")
        self.refused(run("--case", "tiny", "--layers", "0", "--out", scratch / "none", "--resume"),
                     USAGE, "nothing to go on from")

    def test_what_does_not_fit_is_refused(self) -> None:
        for words in ("--case full", "--case full --layers 3"):
            done = subprocess.run(["bash", "-c", f'ulimit -v 6000000; exec "$0" {words}', PROGRAM],
                                  env=environment(), capture_output=True, text=True, timeout=60,
                                  check=False)
            self.refused(done, ENVIRONMENT, "case full: memory")
            self.assertIn("one segment is held at a time", done.stderr)


if __name__ == "__main__":
    unittest.main()
