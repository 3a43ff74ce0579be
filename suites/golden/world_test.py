"""Sharded candidates: the files of several ranks, written by the trace kit, judged as one.

ctest: `golden.world`, in .venv-golden.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import unittest
from collections.abc import Callable
from pathlib import Path

import dsv32_trace as kit
import numpy as np
from program import ARTEFACT, OK, PARITY, ROOT, clean_up, run
from program import scratch as folder
from safetensors.numpy import load_file

sys.path.insert(0, str(ROOT / "integrations" / "engines"))

import numpy_engine  # noqa: E402

CASE = kit.open_case("tiny-wide")
RANKS = 2
tearDownModule = clean_up

Taps = dict[str, np.ndarray]
Change = Callable[[int, Taps], None]
Placement = "str | tuple[str | int, int]"


@functools.cache
def whole() -> Taps:
    """The taps of a run that is right."""
    trace = kit.Trace(CASE)
    logits = numpy_engine.forward(
        dict(CASE.weights()), CASE.config, CASE.input_ids, CASE.position_ids, CASE.attention_mask,
        put=trace.put,
    )  # fmt: skip
    trace.put("logits", logits)
    trace.derive_loss()
    return trace.taps


def placement(rank: int, tap: str, value: np.ndarray) -> Placement:
    """Heads and vocabulary are split, outputs of heads and experts are summands, all else is on
    every rank."""
    name = tap.split(".", 2)[-1]
    if name in ("q_nope", "q_rope", "attn.ctx"):
        return ("h", rank * value.shape[2] // RANKS)
    if name in ("moe.routed", "attn.out"):
        return "partial"
    return ("d", rank * value.shape[2] // RANKS) if tap == "logits" else "replicated"


def head_share(tap: str, rank: int) -> np.ndarray:
    """What the heads of one rank, half of them, add to a layer's attn.out: together all of it."""
    if rank > 0:
        return whole()[tap] - head_share(tap, 0)
    layer = tap.split(".")[1]
    ctx = np.array_split(whole()[f"layers.{layer}.attn.ctx"], RANKS, axis=2)[0]
    matrix = dict(CASE.weights())[f"model.layers.{layer}.self_attn.o_proj.weight"]
    columns = np.array_split(matrix, RANKS, axis=1)[0]
    return ctx.reshape(*ctx.shape[:2], -1) @ columns.T


@functools.cache
def backward() -> Taps:
    """The taps and gradients of our own reference."""
    out = folder / "backward.safetensors"
    made = run(
        "dump", "--impl", "reference", "--mode", "backward", "--case", CASE.name, "--out", out
    )
    assert made.returncode == OK, made.stderr
    return load_file(out)


def expert_share(tap: str, rank: int) -> np.ndarray:
    """What the experts of one rank, half of them, add to a layer's moe.routed."""
    layer = tap.split(".")[1]
    taps, weights = whole(), dict(CASE.weights())
    x, chosen = taps[f"layers.{layer}.ffn_norm"], taps[f"layers.{layer}.router.experts"]
    half = CASE.config["n_routed_experts"] // RANKS
    out = np.zeros_like(taps[tap])
    for expert in range(rank * half, (rank + 1) * half):
        b, s, k = np.nonzero(chosen == expert)
        at = f"model.layers.{layer}.mlp.experts.{expert}."
        scale = taps[f"layers.{layer}.router.weights"][b, s, k, None]
        out[b, s] += numpy_engine.swiglu(weights, at, x[b, s]) * scale
    return out


def write_backward(name: str, change: Change) -> Path:
    """As write, of gradients: each is the sum of two that have nothing in common."""
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    random = np.random.default_rng(1)
    masks = {
        n: random.random(v.shape) < 0.5 for n, v in backward().items() if n.startswith("grad.")
    }
    for rank in range(RANKS):
        trace = kit.Trace(CASE, mode="backward", rank=rank, world=RANKS, engine="world test")
        taps = {
            n: np.where(masks[n] == (rank == 0), v, np.float32(0)) if n in masks else v.copy()
            for n, v in backward().items()
        }
        change(rank, taps)
        for tap, value in taps.items():
            trace.put(tap, value, placement="partial" if tap in masks else "replicated")
        trace.write(out / f"rank{rank}.safetensors")
    return out


def write(
    name: str,
    change: Change = lambda rank, taps: None,
    ranks: int = RANKS,
    allow_nan: bool = False,
) -> Path:
    """One file for each rank, in a folder. change: of what a rank holds."""
    out = folder / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for rank in range(ranks):
        trace = kit.Trace(CASE, rank=rank, world=RANKS, engine="world test")
        trace.metadata["derived_taps"] = ["loss.lm"]
        taps, places = {}, {}
        for tap, value in whole().items():
            place = placement(rank, tap, value)
            if place == "partial":
                share = expert_share if tap.endswith("moe.routed") else head_share
                value = share(tap, rank)
            elif place != "replicated":
                value = np.array_split(value, RANKS, axis=2)[rank]
            taps[tap], places[tap] = value.copy(), place
        change(rank, taps)
        for tap, value in taps.items():
            trace.put(tap, value, placement=places[tap], allow_nan=allow_nan)
        trace.write(out / f"rank{rank}.safetensors")
    return out


def judge(*paths: Path) -> tuple[int, list[dict], str]:
    """Exit code, failing verdicts of the candidate, what was said."""
    words = [word for path in paths for word in ("--candidate", path)]
    done = run(*words, "--json")
    if not done.stdout:
        return done.returncode, [], done.stderr
    verdicts = json.loads(done.stdout)["verdicts"]
    mine = [v for v in verdicts if v["subject"]["party"] == "candidate"]
    return done.returncode, [v for v in mine if v["trust"] == "fail"], done.stdout


class Worlds(unittest.TestCase):
    def test_pieces_summands_and_replicas_are_one_trace(self) -> None:
        out = write("right")
        for paths in ([out], sorted(out.iterdir())):
            code, failing, said = judge(*paths)
            self.assertEqual(code, OK, said if not failing else failing)
            self.assertIn("right (2 ranks)", said)

    def test_a_fault_in_a_piece_names_its_rank(self) -> None:
        def halve(rank: int, taps: Taps) -> None:
            if rank == 1:
                taps["layers.1.attn.ctx"] *= np.float32(0.5)

        code, failing, _ = judge(write("halved", halve))
        self.assertEqual(code, PARITY)
        self.assertEqual(failing[0]["tap"], "layers.1.attn.ctx")
        self.assertIn("rank 1 (axis 2, 2 to 3) holds nearly all", failing[0]["structure"])

    def test_replicas_that_differ_name_rank_and_row(self) -> None:
        def choose(rank: int, taps: Taps) -> None:
            if rank == 1:
                picks = taps["layers.0.topk"]
                picks[0, 20, 0] = next(k for k in range(21) if k not in picks[0, 20])

        code, failing, _ = judge(write("picks", choose))
        self.assertEqual(code, PARITY)
        self.assertEqual(failing[0]["tap"], "world.rank.1")
        for words in ("layers.0.topk of rank 1", "1 of 61 rows", "b 0, s 20", "rank 0's"):
            self.assertIn(words, failing[0]["note"])

    def test_a_wrong_summand_names_its_rank_and_its_experts(self) -> None:
        routed = "layers.1.moe.routed"

        def replaced(value: Callable[[np.ndarray], np.ndarray]) -> Change:
            def change(rank: int, taps: Taps) -> None:
                if rank == 1:
                    taps[routed] = value(taps[routed])

            return change

        for name, value, *words in (
            ("twice", lambda v: v * 2, "rank 1 is 2 x the right one: it enters twice", "8 to 15",
             "its summand is 2 x"),
            ("third", lambda v: v / 3, "rank 1 is 0.333 x the right one"),
            ("nothing", np.zeros_like, "rank 1 is exactly zero", "8 to 15: its summand is exactly"),
            ("other", lambda v: expert_share(routed, 0), "ranks hand in the same summand",
             "rank 1's experts 8 to 15: its summand is that of experts 0 to 7"),
            ("nan", lambda v: v * np.float32("nan"), "rank 1 holds NaN"),
            ("noise", lambda v: v + v[:, ::-1] / 2, "rank 1's experts 8 to 15: its summand is"),
        ):  # fmt: skip
            with self.subTest(name):
                code, failing, _ = judge(write(name, replaced(value), allow_nan=name == "nan"))
                self.assertEqual(code, PARITY)
                self.assertEqual(failing[0]["tap"], routed)
                for text in words:
                    self.assertIn(text, failing[0]["structure"])
                self.assertNotIn("rank 0", failing[0]["structure"].replace("experts 0", ""))

    def test_a_wrong_summand_names_its_rank_and_its_heads(self) -> None:
        def scale(rank: int, taps: Taps) -> None:
            if rank == 0:
                taps["layers.0.attn.out"] *= np.float32(0.5)

        code, failing, _ = judge(write("heads", scale))
        self.assertEqual(code, PARITY)
        self.assertEqual(failing[0]["tap"], "layers.0.attn.out")
        words = "rank 0's heads 0 to 1: its summand is 0.5 x the right one"
        self.assertIn(words, failing[0]["structure"])

    def test_what_all_ranks_have_in_common_is_no_fault_of_one(self) -> None:
        def scale(rank: int, taps: Taps) -> None:
            taps["layers.1.moe.routed"] *= np.float32(2)

        _, failing, _ = judge(write("all", scale))
        self.assertIn("gain 2", failing[0]["structure"])
        self.assertNotIn("rank", failing[0]["structure"])

    def test_a_gradient_that_one_rank_does_not_add_names_it(self) -> None:
        def lose(rank: int, taps: Taps) -> None:
            for name in taps if rank == 1 else ():
                if name.startswith("grad.") and ".layers.1." in name:
                    taps[name] *= 0

        code, failing, said = judge(write_backward("lost", lose))
        self.assertEqual(code, PARITY)
        self.assertGreater(len(failing), 50)
        for verdict in failing:
            self.assertIn("the summand of rank 1 is exactly zero", verdict["structure"])
        causes = json.dumps(json.loads(said)["findings"])
        self.assertIn("the summand of rank 1 is exactly zero", causes)

    def test_gradients_of_two_ranks_are_one(self) -> None:
        code, failing, _ = judge(write_backward("summed", lambda rank, taps: None))
        self.assertEqual(code, OK, failing)

    def test_rounding_between_replicas_is_none(self) -> None:
        def round_off(rank: int, taps: Taps) -> None:
            if rank == 1:
                taps["layers.0.hidden"] *= np.float32(1 + 2**-23)

        code, failing, said = judge(write("rounded", round_off))
        self.assertEqual(code, OK, said if not failing else failing)


class Refusals(unittest.TestCase):
    def refused(self, paths: list[Path], *words: str) -> None:
        code, _, said = judge(*paths)
        self.assertEqual(code, ARTEFACT, said)
        for word in words:
            self.assertIn(word, said)

    def test_a_rank_that_is_not_there(self) -> None:
        self.refused([write("alone", ranks=1)], "all 2 ranks", "none of rank 1")

    def test_a_rank_that_is_there_twice(self) -> None:
        out = write("double")
        shutil.copy(out / "rank1.safetensors", out / "rank2.safetensors")
        self.refused([out], "rank 1 a second time")

    def test_pieces_with_a_gap(self) -> None:
        def narrow(rank: int, taps: Taps) -> None:
            if rank == 0:
                taps["layers.0.attn.ctx"] = taps["layers.0.attn.ctx"][:, :, :1]

        self.refused([write("gap", narrow)], "layers.0.attn.ctx", "a piece from 1 on")

    def test_a_folder_without_traces(self) -> None:
        empty = folder / "empty"
        empty.mkdir(exist_ok=True)
        self.refused([empty], "*.safetensors")

    def test_other_metadata(self) -> None:
        out = write("other")
        trace = kit.Trace(CASE, mode="backward", rank=1, world=2)
        trace.put("logits", whole()["logits"])
        trace.write(out / "rank1.safetensors")
        self.refused([out], "metadata.mode", "as rank 0 has it")

    def test_the_kit_refuses_what_the_judge_would(self) -> None:
        trace = kit.Trace(CASE, rank=1, world=2)
        ctx = whole()["layers.0.attn.ctx"]
        for place, words in (
            (("h", 3), "a piece within 4"),
            (("x", 0), "an axis of"),
            ("sharded", "'replicated', 'partial'"),
        ):
            with self.subTest(place), self.assertRaisesRegex(kit.DumpError, words):
                trace.put("layers.0.attn.ctx", ctx[:, :, :2], placement=place)
        with self.assertRaisesRegex(kit.DumpError, "a rank below world"):
            kit.Trace(CASE, rank=2, world=2)

    def test_one_file_of_a_world_is_no_noise(self) -> None:
        out = write("noise")
        done = run("--candidate", out, "--noise", out / "rank0.safetensors")
        self.assertEqual(done.returncode, ARTEFACT, done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
