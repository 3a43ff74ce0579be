"""A small file cannot ask dsv32-verify for a large amount of work. ctest: `self_cli_work`."""

from __future__ import annotations

import json
import time
import unittest
from pathlib import Path

from program import (
    ARTEFACT,
    ENVIRONMENT,
    OK,
    ROOT,
    CliTest,
    clean_up,
    good,
    make_good,
    metadata_of,
    raw,
    run,
    run_on_terminal,
    run_within,
    scratch,
)

setUpModule = make_good
tearDownModule = clean_up

SCALAR = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}


def loss_only(name: str, case: object) -> Path:
    """The least that a candidate can be: a loss, and a case that claims what it likes."""
    text = case if isinstance(case, str) else json.dumps(case)
    metadata = metadata_of(good) | {"case": text, "mode": "forward"}
    return raw(name, {"__metadata__": metadata, "loss.lm": SCALAR}, b"\0\0\0\0")


def case_of(config: object, B: int = 2, S: int = 32, **overrides: object) -> dict:  # noqa: N803
    return {"config": config, "overrides": overrides, "seed": 1, "B": B, "S": S, "pad": 0,
            "bias_offset": 0, "chunks": []}


class Work(CliTest):
    def refused_soon(self, code: int, *words: object) -> str:
        start = time.monotonic()
        done = run(*words)
        self.refused(done, code)
        self.assertLess(time.monotonic() - start, 30, "it began to work")
        return done.stderr

    def test_a_file_alone_asks_for_no_more_than_a_few_times_small(self) -> None:
        heads = 1 << 20
        rows = {
            "heads": case_of("tiny", num_attention_heads=heads, num_key_value_heads=heads),
            "hidden": case_of("tiny", hidden_size=1 << 20),
            "indexer": case_of("tiny", S=1024, index_n_heads=1 << 20),
            "vocabulary": case_of("tiny", vocab_size=1 << 30),
            "experts": case_of("tiny", n_routed_experts=1 << 17, hidden_size=1 << 12),
            "tokens": case_of("tiny", S=1 << 15, max_position_embeddings=1 << 15),
            "everything": case_of("tiny", hidden_size=1 << 30, intermediate_size=1 << 30,
                                  vocab_size=1 << 30, kv_lora_rank=1 << 30),
            "medium": "medium",
            "full": "full",
        }
        for name, case in rows.items():
            with self.subTest(name):
                said = self.refused_soon(ARTEFACT, "--candidate", loss_only(name, case))
                self.assertIn("4 times that of small", said)
                self.assertIn("weights", said)

    def test_a_limit_of_address_space_changes_nothing(self) -> None:
        file = loss_only("limited", case_of("tiny", num_attention_heads=1 << 20,
                                            num_key_value_heads=1 << 20))
        self.refused(run_within(13, "--candidate", file), ARTEFACT, "4 times that of small")

    def test_the_config_must_be_named(self) -> None:
        file = loss_only("named", "full")
        self.assertIn("--config full", self.refused_soon(ARTEFACT, "--candidate", file))
        # Now it is the machine that refuses; with its overrides a config is another one.
        said = self.refused_soon(ENVIRONMENT, "--candidate", file, "--config", "full")
        self.assertRegex(said, r"memory: expected [\d.]+ TiB available, got [\d.]+ GiB")
        heads = loss_only("heads-of-tiny", case_of("tiny", num_attention_heads=1 << 20,
                                                   num_key_value_heads=1 << 20))
        self.refused_soon(ARTEFACT, "--candidate", heads, "--config", "tiny")

    def test_an_own_config_in_a_file_is_named_by_its_path(self) -> None:
        config = json.loads((ROOT / "configs" / "tiny" / "config.json").read_text())
        config["vocab_size"] = 1 << 25
        path = scratch / "wide.json"
        path.write_text(json.dumps(config))
        file = loss_only("own-config", case_of(config))
        self.assertIn("--config PATH", self.refused_soon(ARTEFACT, "--candidate", file))
        self.assertIn("memory", self.refused_soon(ENVIRONMENT, "--candidate", file, "--config",
                                                  path))

    def test_small_needs_no_name(self) -> None:
        done = run("--candidate", loss_only("small", "small"), "--timeout", 1)
        self.refused(done, ENVIRONMENT, "--timeout")

    def test_what_does_not_fit_is_refused_with_numbers(self) -> None:
        said = self.refused_soon(ENVIRONMENT, "dump", "--case", "full", "--mode", "backward",
                                 "--out", scratch / "f")
        self.assertRegex(said, r"case full: memory: expected [\d.]+ TiB available")
        self.assertRegex(said, r"672 billion weights, \d+ billion values in its taps")

    def test_address_space_is_memory(self) -> None:
        done = run_within(5, "--case", "small", "--device", "cpu")
        self.refused(done, ENVIRONMENT, "case small: memory")

    def test_the_expected_time_is_said_at_the_start(self) -> None:
        words = ("--case", "medium", "--device", "cpu", "--timeout", 1)
        self.assertRegex(run(*words).stderr,
                         r"estimate: about [\d.]+ (s|min|h|days) on \d+ cores")
        self.assertNotIn("estimate", run(*words, "-q").stderr)
        short = run("--case", "tiny")
        self.ended(short, OK)
        self.assertNotIn("estimate", short.stderr)

    def test_a_dump_counts_layers(self) -> None:
        code, talk = run_on_terminal("dump", "--case", "small", "--device", "cpu", "--out",
                                     "/dev/null")
        self.assertEqual(code, OK, talk)
        self.assertRegex(talk, r"small: reference: forward layer \d/8")


if __name__ == "__main__":
    unittest.main()
