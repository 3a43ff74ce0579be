"""Command lines, streams, reports and signals of dsv32-verify. ctest: `self_cli`."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import unittest

import numpy as np
from program import (
    ARTEFACT,
    ENVIRONMENT,
    ESCAPE,
    INTERRUPTED,
    OK,
    PARITY,
    PROGRAM,
    ROOT,
    TERMINATED,
    USAGE,
    CliTest,
    clean_up,
    environment,
    good,
    make_good,
    names_in,
    run,
    run_on_terminal,
    scratch,
    variant,
)
from safetensors.numpy import load_file

setUpModule = make_good
tearDownModule = clean_up


class Usage(CliTest):
    def test_unknown_names_get_the_nearest_one(self) -> None:
        rows = {
            ("--suite", "forwad"): "did you mean forward?",
            ("-t", "forward,backwards"): "did you mean backward?",
            ("--suite", "sft_frozen_indexr"): "did you mean sft_frozen_indexer?",
            ("--suite", "al"): "did you mean all?",
            ("--case", "tiny-wode"): "did you mean tiny-wide?",
            ("--config", "smal"): "did you mean small?",
            ("--config", "tiny-wide"): "--case tiny-wide",
            ("--dialect", "hff"): "did you mean hf?",
            ("--sute", "forward"): "did you mean --suite?",
            ("--candidates=x",): "did you mean --candidate?",
            ("--impl", "refrence"): "did you mean reference?",
            ("--device", "cpus"): "did you mean cpu?",
            ("--dtype", "bfloat"): "did you mean bfloat16?",
            ("--color", "allways"): "did you mean always?",
            ("compar", "a", "b"): "did you mean compare?",
            ("small",): "did you mean --config small?",
            ("list", "case"): "did you mean cases?",
            ("weights", "mak"): "did you mean make?",
            ("golden", "verfy"): "did you mean verify?",
            ("dump", "--cases", "tiny"): "did you mean --case?",
        }
        for words, hint in rows.items():
            with self.subTest(words):
                self.refused(run(*words), USAGE, hint)

    def test_words_cannot_steer_the_terminal(self) -> None:
        done = run(f"{ESCAPE}[2J")
        self.ended(done, USAGE)
        self.assertNotIn(ESCAPE, done.stderr)

    def test_wrong_command_lines(self) -> None:
        rows = [
            ("--seed", "-1"), ("--seed", "1.5"), ("--seed", str(1 << 64)), ("--timeout", "0"),
            ("--timeout", "soon"), ("--weights", "synthetic:x"),
            ("--case", "tiny", "--config", "small"),
            ("dump", "--impl", "oracle", "--case", "tiny", "--out", "f", "--dtype", "float32"),
            ("--case", "tiny", "dump", "--case", "tiny", "--out", "f"),
        ]
        for words in rows:
            with self.subTest(words):
                self.refused(run(*words), USAGE)

    def test_incomplete_command_lines(self) -> None:
        rows = [
            ("--case",), ("--case", "tiny", "--case", "small"), ("--case", ""), ("compare", "a"),
            ("compare", "a", "b", "c"), ("dump",), ("dump", "--case", "tiny"), ("weights",),
            ("weights", "check"), ("golden", "diff", "a"), ("--json=3",), ("-v", "-q"), ("-x",),
        ]
        for words in rows:
            with self.subTest(words):
                done = run(*words)
                self.ended(done, USAGE)
                self.assertIn("dsv32-verify: error: ", done.stderr)
                self.assertEqual(done.stdout, "")

    def test_what_a_later_version_will_have(self) -> None:
        rows = {
            ("bench",): "bench",
            ("diagnose", "x"): "diagnose",
            ("--suite", "ops"): "--suite ops",
        }
        for words, name in rows.items():
            with self.subTest(words):
                done = run(*words)
                self.ended(done, USAGE)
                self.assertIn(f"{name}: not in this version", done.stderr)

    def report_of(self, *words: object) -> dict:
        done = run(*words, "--json")
        self.ended(done, OK)
        return json.loads(done.stdout)

    def subjects_of(self, *words: object) -> set[str]:
        return {v["subject"]["label"] for v in self.report_of(*words)["verdicts"]}

    def test_implementations_side_by_side(self) -> None:
        types = ("float32", "bfloat16")
        by_default = {f"{i} {t}" for i in ("reference", "optimized") for t in types}
        self.assertEqual(self.subjects_of("--case", "tiny"), {"golden"} | by_default)
        every = ("--case", "tiny", "--impl", "reference,optimized,optimized-simt")
        simt = {f"optimized-simt {t}" for t in types}
        self.assertEqual(self.subjects_of(*every), {"golden"} | by_default | simt)
        self.refused(run("--impl", "fast"), USAGE, "optimized-simt")

    def test_what_an_implementation_cannot_run_is_named(self) -> None:
        both = ("float32", "float64")
        report = self.report_of("--case", "tiny", "--dtype", ",".join(both))
        ours = {f"reference {t}" for t in both} | {"optimized float32"}
        self.assertEqual({v["subject"]["label"] for v in report["verdicts"]}, {"golden"} | ours)
        reason = "tiny: optimized: float64: expected float32, bfloat16 or fp8"
        self.assertEqual(report["not_tested"], [reason])
        alone = run("--case", "tiny", "--impl", "optimized", "--dtype", "float64")
        self.refused(alone, USAGE, "expected float32, bfloat16 or fp8")

    def test_a_config_that_the_kernels_do_not_take(self) -> None:
        config = json.loads((ROOT / "configs" / "tiny" / "config.json").read_text())
        path = scratch / "wide.json"
        path.write_text(json.dumps(config | {"index_head_dim": 256}))
        report = self.report_of("--config", path, "--dtype", "float32")
        self.assertEqual({v["subject"]["label"] for v in report["verdicts"]}, {"reference float32"})
        self.assertIn("index_head_dim: expected at most 128, got 256", str(report["not_tested"]))

    def test_ops_that_do_not_promise_their_bits_are_named(self) -> None:
        words = ("--case", "tiny-short7", "--suite", "forward")
        name = "other bits on another run: sparse_mla_backward"
        self.assertIn("deterministic", self.report_of(*words)["environment"][name])
        self.assertIn(name, run(*words, "-v").stdout)
        self.assertNotIn(name, run(*words).stdout)
        alone = self.report_of(*words, "--impl", "reference")["environment"]
        self.assertNotIn(name, alone)

    def test_an_optimized_trace_is_a_good_candidate(self) -> None:
        trace = scratch / "optimized.safetensors"
        words = ("--impl", "optimized", "--case", "tiny", "--mode", "backward", "--out", trace)
        self.ended(run("dump", *words), OK)
        self.ended(run("--candidate", trace), OK)
        twice = run("dump", "--impl", "reference,optimized", "--case", "tiny", "--out", trace)
        self.refused(twice, USAGE, "expected one, got 2")

    def test_help_is_complete_and_narrow(self) -> None:
        done = run("--help")
        self.ended(done, OK)
        options = "config case candidate dialect weights batch seed suite device dtype impl timeout"
        more = "out json junit md html annotations color list show-config version verbose quiet"
        streamed = "layers dry-run resume help"
        for name in (options + " " + more + " " + streamed).split():
            self.assertIn("--" + name, done.stdout)
        for word in ("-t", "-k", "-v", "-q", "dump", "compare", "weights", "golden", "Examples:"):
            self.assertIn(word, done.stdout)
        for words in ([], ["dump"], ["compare"], ["weights", "make"], ["weights", "check"],
                      ["weights", "copy"], ["golden", "show"], ["list"]):
            text = run(*words, "--help").stdout
            self.assertIn("Usage: " + " ".join(["dsv32-verify", *words]), text)
            self.assertLessEqual(max(map(len, text.splitlines())), 100)
            self.assertEqual(run("help", *words).stdout, text)

    def test_version(self) -> None:
        done = run("--version")
        self.ended(done, OK)
        self.assertEqual(run("-V").stdout, done.stdout)
        for word in ("dsv32-verify", "torch", "CUDA", "HDF5", "report schema"):
            self.assertRegex(done.stdout, rf"(?m)^{word} \S+")

    def test_lists(self) -> None:
        expected = {"suites": "backward", "cases": "tiny-yarn", "taps": "layers.N.ix.q",
                    "dialects": "spec-1", "limits": "", "configs": "medium"}
        for group, word in expected.items():
            done = run("list", group)
            self.ended(done, OK)
            self.assertIn(word, done.stdout)
            self.assertGreater(len(done.stdout), 20)
        everything = run("list")
        self.assertEqual(everything.stdout, run("--list").stdout)
        for group in expected:
            self.assertIn(f"{group}:", everything.stdout)

    def test_limits_are_listed_as_text_and_as_data(self) -> None:
        text, data = run("list", "limits"), run("list", "limits", "--json")
        self.ended(data, OK)
        tables = json.loads(data.stdout)
        self.assertEqual(list(tables), ["taps", "checks", "ops"])
        rows = [row for table in tables.values() for row in table]
        lines = [line for line in text.stdout.splitlines() if line]
        self.assertEqual(len(lines), len(rows) + len(tables))  # a line of headers each
        for row in rows:
            self.assertTrue(any(line.endswith(" " + row["basis"]) for line in lines), row)

    def test_every_list_is_there_as_data(self) -> None:
        everything = json.loads(run("list", "--json").stdout)
        groups = ["suites", "cases", "taps", "dialects", "bugs", "configs"]
        self.assertEqual(list(everything), groups)
        for group, entries in everything.items():
            one = run("list", group, "--json")
            self.ended(one, OK)
            self.assertEqual(json.loads(one.stdout), {group: entries})
            lines = [line.split()[0] for line in run("list", group).stdout.splitlines()
                     if not line.endswith(":")]
            self.assertEqual([entry["name"] for entry in entries], lines)
        kinds = {entry.get("kind", "") for entry in everything["dialects"]}
        self.assertEqual(len(kinds), 3, kinds)


class Streams(CliTest):
    def test_json_is_alone_on_stdout(self) -> None:
        done = run("--candidate", good, "--json", "-v", env=environment(FORCE_COLOR="1"))
        self.ended(done, OK)
        report = json.loads(done.stdout)
        self.assertEqual(report["exit_code"], OK)
        self.assertIn("--candidate", report["command"])

    def test_colour(self) -> None:
        words = ("--candidate", good, "--suite", "forward")
        self.assertNotIn(ESCAPE, run(*words).stdout)
        forced = environment(FORCE_COLOR="1")
        self.assertIn(ESCAPE, run(*words, env=forced).stdout)
        self.assertIn(ESCAPE, run(*words, env=environment(CLICOLOR_FORCE="1")).stdout)
        self.assertIn(ESCAPE, run(*words, "--color", "always").stdout)
        self.assertNotIn(ESCAPE, run(*words, "--color", "never", env=forced).stdout)
        both = environment(NO_COLOR="1", FORCE_COLOR="1")
        self.assertNotIn(ESCAPE, run(*words, env=both).stdout)
        self.assertIn(ESCAPE, run(*words, "--color=always", env=both).stdout)

    def test_terminal(self) -> None:
        code, seen = run_on_terminal("--candidate", good, "--case", "tiny")
        self.assertEqual(code, OK)
        self.assertIn(f"{ESCAPE}[", seen)
        code, seen = run_on_terminal("--candidate", good, "--case", "tiny", TERM="dumb")
        self.assertEqual(code, OK)
        self.assertNotIn(ESCAPE, seen)

    def test_progress_line_on_a_terminal_is_wiped(self) -> None:
        code, seen = run_on_terminal("--config", "tiny", "--suite", "forward")
        self.assertIn(code, (OK, PARITY))
        self.assertIn(f"\r{ESCAPE}[2K[0:0", seen)

    def test_quiet_says_nothing_but_the_verdict(self) -> None:
        done = run("--candidate", good, "-q")
        self.ended(done, OK)
        self.assertEqual(done.stderr, "")
        self.assertNotEqual(done.stdout, "")

    def test_full_disk_on_stdout_is_noticed(self) -> None:
        with open("/dev/full", "w") as full:
            done = subprocess.run([PROGRAM, "list"], stdout=full, stderr=subprocess.PIPE, text=True,
                                  env=environment(), check=False)
        self.assertEqual(done.returncode, ENVIRONMENT)
        self.assertIn("standard output", done.stderr)


class Outputs(CliTest):
    def test_three_files_that_repeat_byte_for_byte(self) -> None:
        texts = []
        for name in ("first", "second"):
            folder = scratch / name / "deep"
            self.ended(run("--candidate", good, "--out", folder), OK)
            self.assertEqual(sorted(p.name for p in folder.iterdir()),
                             ["junit.xml", "report.html", "report.json", "report.md"])
            report = json.loads((folder / "report.json").read_text())
            report.pop("timing")
            texts.append(json.dumps(report))
        self.assertEqual(*texts)

    def test_single_files(self) -> None:
        junit, markdown = scratch / "j.xml", scratch / "m.md"
        self.ended(run("--candidate", good, "--junit", junit, "--md", markdown), OK)
        self.assertIn("<testsuite", junit.read_text())
        self.assertNotEqual(markdown.read_text(), "")

    def test_the_repro_command_gives_the_same_verdict(self) -> None:
        folder = scratch / "repro"
        run("--candidate", good, "-t", "forward", "-k", "ix.q", "--out", folder)
        command = json.loads((folder / "report.json").read_text())["command"]
        words = command.split()
        self.assertEqual(words[0], "dsv32-verify")
        again = json.loads(run(*words[1:], "--json").stdout)
        self.assertEqual(again["command"], command)
        self.assertTrue(all("ix.q" in v["tap"] for v in again["verdicts"] if v["tap"][0] == "l"))

    def test_unwritable_places_are_found_before_the_run(self) -> None:
        places = [("--out", good / "report"), ("--out", good), ("--out", "/proc/dsv32-report"),
                  ("--junit", good / "junit.xml"), ("--junit", scratch),
                  ("--md", "/proc/x/report.md")]
        for option, place in places:
            with self.subTest(place):
                start = time.monotonic()
                done = run("--config", "small", option, place)
                self.refused(done, ENVIRONMENT, option, str(place))
                self.assertLess(time.monotonic() - start, 10, "small takes minutes")
        for words in (("dump", "--case", "tiny"), ("weights", "make", "--case", "tiny")):
            self.refused(run(*words, "--out", good / "x"), ENVIRONMENT, "--out")


class Stopping(CliTest):
    """`small` takes minutes, so a signal after a few seconds lands in the middle."""

    def stopped_by(self, number: int, *words: object) -> tuple[int, str, float]:
        child = subprocess.Popen([PROGRAM, *map(str, words)], env=environment(),
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(4)
        self.assertIsNone(child.poll(), "ended before it could be stopped")
        start = time.monotonic()
        child.send_signal(number)
        _, talk = child.communicate(timeout=60)
        return child.returncode, talk, time.monotonic() - start

    def test_signals_leave_no_report(self) -> None:
        for number, code in ((signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)):
            with self.subTest(number):
                folder = scratch / f"stopped-{code}"
                got, talk, seconds = self.stopped_by(number, "--config", "small", "--out", folder)
                self.assertEqual(got, code, talk)
                self.assertIn("no report was written", talk)
                self.assertEqual(list(folder.iterdir()), [])
                self.assertLess(seconds, 10)

    def test_stopped_dump_leaves_no_file(self) -> None:
        folder = scratch / "stopped-dump"
        folder.mkdir()
        words = ("dump", "--impl", "oracle", "--mode", "backward", "--case", "small")
        got, talk, _ = self.stopped_by(signal.SIGINT, *words, "--out", folder / "x.safetensors")
        self.assertEqual(got, INTERRUPTED, talk)
        self.assertEqual(list(folder.iterdir()), [])

    def test_time_limit(self) -> None:
        folder = scratch / "late"
        done = run("--config", "small", "--timeout", 2, "--out", folder)
        self.refused(done, ENVIRONMENT, "--timeout", "2 s")
        self.assertEqual(list(folder.iterdir()), [])


class OtherCommands(CliTest):
    def test_compare(self) -> None:
        self.ended(run("compare", good, good), OK)
        tensors = load_file(good)
        tensors["logits"] = tensors["logits"] * np.float32(1.01)
        other = variant("scaled", tensors)
        done = run("compare", good, other)
        self.ended(done, PARITY)
        self.assertIn("logits", done.stdout)
        self.refused(run("compare", good, scratch / "nobody"), ARTEFACT, "nobody")

    def test_dump_of_every_kind_passes_as_a_candidate(self) -> None:
        path = scratch / "dumped.safetensors"
        for words in (("--impl", "oracle"), ("--dtype", "bfloat16"), ("--dtype", "float64")):
            with self.subTest(words):
                self.ended(run("dump", "--case", "tiny-wide", "--out", path, *words), OK)
                self.assertIn("embed", names_in(path))
                self.ended(run("--candidate", path, "--suite", "forward"), OK)

    def test_the_indexers_kl_as_a_candidate(self) -> None:
        for mode in ("kl-warmup", "kl-sparse"):
            path = scratch / f"{mode}.safetensors"
            with self.subTest(mode):
                self.ended(run("dump", "--case", "tiny-wide", "--mode", mode, "--out", path), OK)
                self.assertIn("layers.1.kl.dscores", names_in(path))
                self.ended(run("--candidate", path), OK)
                tensors = load_file(path)
                target, leak = "layers.1.kl.target", "grad.model.layers.0.self_attn.q_a_proj.weight"
                self.assertNotIn(leak, tensors)
                rows = {
                    target: tensors[target] * np.float32(4),  # one for every head
                    leak: np.full((32, 64), 1e-30, np.float32),
                }
                for name, values in rows.items():
                    changed = tensors | {name: values}
                    done = run("--candidate", variant("kl", changed, mode=mode, case="tiny-wide"))
                    self.ended(done, PARITY)
                    self.assertIn(name, done.stdout)

    def test_dump_of_another_dialect_is_found_out(self) -> None:
        path = scratch / "hf.safetensors"
        words = ("dump", "--case", "tiny-yarn", "--dialect", "hf", "--out", path)
        self.ended(run(*words), OK)
        self.ended(run("--candidate", path, "--dialect", "hf"), OK)
        done = run("--candidate", path)
        self.ended(done, PARITY)
        self.assertIn("hf", done.stdout)

    def test_weights(self) -> None:
        folder = scratch / "checkpoint"
        self.ended(run("weights", "make", "--case", "tiny", "--out", folder), OK)
        done = run("weights", "check", folder)
        self.ended(done, OK)
        self.assertIn("51", done.stdout)
        for path in folder.glob("*.safetensors"):
            path.write_bytes(path.read_bytes()[:-2])
        self.refused(run("weights", "check", folder), ARTEFACT, "safetensors")

    def test_weights_with_a_nan(self) -> None:
        folder = scratch / "nan"
        self.ended(run("weights", "make", "--case", "tiny", "--out", folder), OK)
        path = next(folder.glob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-2] + b"\xc0\x7f")  # the last bfloat16
        self.ended(run("weights", "check", folder), OK)
        done = run("weights", "check", folder, "--full")
        self.ended(done, ARTEFACT)
        self.assertRegex(done.stdout.lower(), "nan|finite")

    def test_weights_of_a_wrong_config(self) -> None:
        folder = scratch / "wrong"
        self.ended(run("weights", "make", "--case", "tiny", "--out", folder), OK)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 101}))
        self.refused(run("weights", "check", folder), ARTEFACT, "lm_head.weight", "embed_tokens")


if __name__ == "__main__":
    unittest.main(verbosity=2)
