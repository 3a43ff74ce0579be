"""`dsv32-verify selfcheck`: what it plants is caught, and what is not clean is not planted into."""

from __future__ import annotations

import re
import unittest

from program import ARTEFACT, OK, PARITY, USAGE, clean_up, run, scratch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

tearDownModule = clean_up


def dump(name: str, *words: str) -> str:
    out = scratch / name
    done = run("dump", "--case", "tiny-wide", "--out", out, *words)
    assert done.returncode == OK, done.stderr
    return str(out)


class SelfCheck(unittest.TestCase):
    def expect_all_caught(self, *words: str) -> str:
        done = run("selfcheck", *words)
        self.assertEqual(done.returncode, OK, done.stdout + done.stderr)
        *lines, last = done.stdout.splitlines()
        self.assertGreaterEqual(len(lines), 14)
        for line in lines:
            self.assertRegex(line, r"^(named|caught)  +\S.* -> \S+ \((staged|forced|free)\)")
        self.assertRegex(last, rf"^PASS \| {len(lines)} of {len(lines)} planted faults caught")
        named, of = map(int, re.search(r"(\d+) of (\d+) bugs", last).groups())
        self.assertGreaterEqual(named, of - 3, done.stdout)
        return done.stdout

    def test_our_own_trace(self) -> None:
        self.expect_all_caught()

    def test_the_trace_of_another_model(self) -> None:
        said = self.expect_all_caught(dump("optimized.safetensors", "--impl", "optimized"))
        self.assertIn("optimized.safetensors, case tiny-wide", said)

    def test_nothing_is_planted_into_a_wrong_trace(self) -> None:
        path = dump("wrong.safetensors")
        with safe_open(path, "np") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        tensors["layers.0.attn.out"] *= 2
        save_file(tensors, path, metadata=metadata)
        done = run("selfcheck", path)
        self.assertEqual(done.returncode, PARITY)
        self.assertIn("is not clean, so nothing was planted: layers.0.attn.out", done.stdout)

    def test_what_it_cannot_take(self) -> None:
        for words, code, said in (
            ((scratch / "none.safetensors",), ARTEFACT, "none.safetensors"),
            ((dump("kl.safetensors", "--mode", "kl-sparse"),), ARTEFACT, "forward or backward"),
            ((dump("rows.safetensors", "--sketch"),), ARTEFACT, "whole taps"),
            (("a", "b"), USAGE, "selfcheck"),
        ):
            with self.subTest(words):
                done = run("selfcheck", *words)
                self.assertEqual(done.returncode, code, done.stderr)
                self.assertIn(said, done.stderr)


class TapGradients(unittest.TestCase):
    def test_only_a_backward_pass_has_them(self) -> None:
        out = scratch / "none.safetensors"
        for words in (("--mode", "forward"), ("--mode", "backward", "--sketch")):
            done = run("dump", "--case", "tiny", "--out", out, "--tap-gradients", *words)
            self.assertEqual(done.returncode, USAGE, done.stderr)
            self.assertIn("--tap-gradients", done.stderr)

    def test_both_models_write_them_and_pass(self) -> None:
        for impl in ("reference", "optimized"):
            path = dump(f"{impl}.safetensors", "--mode", "backward", "--tap-gradients",
                        "--impl", impl)  # fmt: skip
            names = [name for name in load_file(path) if name.startswith("dtap.")]
            self.assertGreaterEqual(len(names), 28, impl)
            done = run("--candidate", path)
            self.assertEqual(done.returncode, OK, done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
