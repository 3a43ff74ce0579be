"""dtap.NAME, the gradient of the objective with respect to each tap, as golden/dump takes it.

Real transformers against the plain model of these tests in float64, the chain rule between taps and
gradients there, and models in which a gradient is wrong or stops.

ctest: `golden.slopes`, in .venv-golden.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dsv32_trace as kit
import torch
from agreement import limit
from dsv32_dump import Capture, Options, capture
from dsv32_dump.slope_taps import DECISIONS
from plain_model import PlainModel
from real import open_model
from safetensors import safe_open
from synthetic import ROOT, load_cases, write_checkpoint
from torch import Tensor, nn

CASE = kit.open_case("tiny-wide")
VALID = torch.from_numpy(CASE.batch["attention_mask"]).bool()


@functools.cache
def loaded() -> nn.Module:
    return open_model(load_cases()["tiny-wide"], 2).model


def real_model() -> nn.Module:
    """Float32: its softmax is in float32 whatever the weights are."""
    return copy.deepcopy(loaded())


def plain_model() -> nn.Module:
    """Float64, with the same weights."""
    model = PlainModel(CASE.config).double()
    model.load_state_dict({n: torch.from_numpy(v).double() for n, v in CASE.weights()})
    return model


def decisions(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: v for name, v in taps.items() if name.split(".", 2)[-1] in DECISIONS}


def run(model: nn.Module, **options: Any) -> Capture:
    return capture(model, CASE.fields, Options(**{"backward": True, "slopes": True} | options))


def far(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@contextlib.contextmanager
def output(model: nn.Module, name: str, change: Any) -> Iterator[None]:
    """The module of this name hands out its first tensor changed."""

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    # Before the recorder's own hook, as if the model's code did it.
    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


class Values(unittest.TestCase):
    def test_two_models_agree_in_every_gradient(self) -> None:
        real = run(real_model())
        other = run(plain_model(), forced=decisions(real.taps))
        names = [name for name in real.taps if name.startswith("dtap.")]
        self.assertEqual(len(names), 33)
        self.assertEqual(names, [n for n in other.taps if n.startswith("dtap.")])
        for name in names:
            self.assertEqual(real.taps[name].shape, real.taps[name.removeprefix("dtap.")].shape)
            got, want = real.taps[name], other.taps[name]
            if ".attn.probs" in name:  # of a key that takes no part it depends on the code
                support = other.taps[name.removeprefix("dtap.")] > 0
                got, want = got * support, want * support
            self.assertLessEqual(far(got, want), limit("dump.value"), name)
        self.assertEqual(json.loads(real.metadata["slopes_none"]), [])

    def test_gradients_of_weights_follow_from_them(self) -> None:
        """grad.W of a linear layer is the gradient of its output times its input."""
        taps = run(plain_model()).taps
        at = "layers.1."
        for weight, out, inner in (
            ("lm_head", "logits", "final_norm"),
            ("model.layers.1.self_attn.o_proj", at + "attn.out", at + "attn.ctx"),
            ("model.layers.1.mlp.gate", at + "router.logits", at + "ffn_norm"),
        ):
            slope, value = taps[f"dtap.{out}"].flatten(0, 1), taps[inner].flatten(0, 1).flatten(1)
            want = taps[f"grad.{weight}.weight"]
            self.assertLessEqual(far(slope.T @ value, want), limit("identity"), weight)

    def test_a_shift_of_a_tap_moves_the_loss_by_its_gradient(self) -> None:
        model = plain_model()
        taps = run(model).taps
        torch.manual_seed(3)
        for module, tap in (("model.layers.0.mlp", "layers.0.mlp.out"),
                            ("model.layers.1.self_attn.q_a_layernorm", "layers.1.q_latent")):
            step = torch.randn_like(taps[tap]) * 2**-20
            losses = []
            for sign in (1, -1):
                with output(model, module, lambda x, s=sign * step: x + s):
                    moved = run(model, forced=decisions(taps), backward=False)
                losses.append(moved.taps["loss.lm"])
            expected = 2 * (step * taps[f"dtap.{tap}"]).sum()
            self.assertLessEqual(far(losses[0] - losses[1], expected), limit("dump.slope"), tap)

    def test_the_indexer_s_own_objective(self) -> None:
        """loss.kl is a mean over layers and queries; kl.dscores is of the plain sum of a layer."""
        taps = run(plain_model(), backward=False, kl="sparse").taps
        for layer in (0, 1):
            slope, sums = taps[f"dtap.layers.{layer}.ix.scores"], taps[f"layers.{layer}.kl.dscores"]
            self.assertLessEqual(far(slope * 2 * VALID.sum(), sums), limit("identity"))
        names = {name.split(".", 3)[-1] for name in taps if name.startswith("dtap.")}
        self.assertEqual(names, {"ix.q", "ix.k", "ix.weights", "ix.scores"})

    def test_a_forward_run_has_none(self) -> None:
        taps = run(real_model(), backward=False).taps
        self.assertEqual([name for name in taps if name.startswith("dtap.")], [])


class Faults(unittest.TestCase):
    def stopped(self, model: nn.Module) -> list[str]:
        return json.loads(run(model).metadata["slopes_none"])

    def test_a_detached_output_is_where_it_stops(self) -> None:
        model = real_model()
        with output(model, "model.layers.1.self_attn", lambda x: x.detach()):
            stopped = self.stopped(model)
        self.assertEqual(stopped[0], "layers.1.attn.out")
        self.assertIn("layers.1.q_latent", stopped)
        self.assertNotIn("layers.1.ffn_norm", stopped)
        self.assertNotIn("layers.0.attn.out", stopped)  # the residual stream goes round it

    def test_a_gradient_of_zeros_has_stopped_too(self) -> None:
        model = real_model()
        with output(model, "model.layers.0.mlp", lambda x: x.detach() + 0 * x):
            stopped = self.stopped(model)
        self.assertEqual(stopped, ["layers.0.ffn_norm"])

    def test_the_router_alone(self) -> None:
        model = real_model()
        gate = model.model.layers[1].mlp.gate
        forward = gate.forward

        def cut(*args: Any) -> Any:
            return tuple(x.detach() for x in forward(*args))

        gate.forward = cut
        self.assertEqual(self.stopped(model), ["layers.1.router.weights", "layers.1.router.logits"])

    def test_a_wrong_backward_shows_upstream_and_not_downstream(self) -> None:
        """A custom backward that doubles the gradient of one norm's input."""

        class Twice(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x.clone()

            @staticmethod
            def backward(ctx: Any, g: Tensor) -> Tensor:
                return 2 * g

        model = real_model()
        right = run(model).taps
        norm = model.model.layers[1].self_attn.kv_a_layernorm
        forward = norm.forward
        norm.forward = lambda x: forward(Twice.apply(x))
        wrong = run(model).taps
        moved = [n for n in right if n.startswith("dtap.") and not torch.equal(right[n], wrong[n])]
        self.assertNotIn("dtap.layers.1.kv_latent", moved)
        self.assertIn("dtap.layers.1.attn_norm", moved)


class File(unittest.TestCase):
    def test_the_command_writes_them_when_asked(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_checkpoint(load_cases()["tiny"], folder / "ckpt")
            for words, count in (([], 0), (["--tap-gradients"], 33)):
                out = folder / "out.safetensors"
                command = [sys.executable, ROOT / "golden" / "dump", "--checkpoint",
                           folder / "ckpt", "--case", "tiny", "--mode", "backward", "--attn",
                           "eager", "--out", out, *words]  # fmt: skip
                subprocess.run(list(map(str, command)), check=True, capture_output=True)
                with safe_open(out, framework="numpy") as file:
                    names = [n for n in file.keys() if n.startswith("dtap.")]
                self.assertEqual(len(names), count)


if __name__ == "__main__":
    unittest.main()
