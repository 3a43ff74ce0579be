"""The official demo as a second witness, without its file: the stand-ins for its kernels against
values made by hand, the committed traces against the specification op by op and before the judge.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
import torch
from agreement import limit
from demo import checks, kernels
from demo.command import DATA, SKETCHED, WHOLE, main, parse_name
from demo.model import SHA256, check_case, demo_name
from demo.rules import Rules
from program import OK, PARITY, clean_up, run
from real import GoldenError
from safetensors.torch import load_file
from synthetic import weight_specs
from torch import Tensor

tearDownModule = clean_up
GREEN = (
    "tiny-wide.float32 o128.bf16 o128.fp8 o128.fp8.decode o128-lanes.fp8-plain o128-two.fp8-plain"
).split()


def codes(*values: float) -> list[float]:
    """Values as one run under the scale that they ask for."""
    return kernels.quantise(torch.tensor([values]), ue8m0=True)[0].float()[0].tolist()


class StandIns(unittest.TestCase):
    def test_scale_is_the_next_power_of_two(self) -> None:
        for largest, scale in ((448.0, 1.0), (449.0, 2.0), (224.0, 0.5), (1.75, 2.0**-8)):
            _, got = kernels.quantise(torch.tensor([[largest, 0.0]]), ue8m0=True)
            self.assertEqual(got.tolist(), [[scale]], largest)

    def test_plain_scale_is_a_float32_product(self) -> None:
        largest = torch.linspace(0.01, 9, 2000).to(torch.bfloat16)
        _, got = kernels.quantise(largest[:, None], ue8m0=False)
        product = largest.float().numpy() * np.float32(1 / 448)
        self.assertTrue(np.array_equal(got[:, 0].numpy(), product))
        quotient = largest.float().numpy() / np.float32(448)
        self.assertFalse(np.array_equal(product, quotient))  # or the sentence above says nothing

    def test_default_dtype_plays_no_part(self) -> None:
        x = torch.linspace(-3, 5, 256).reshape(2, 128)
        before = kernels.quantise(x, ue8m0=False), kernels.quantise_weight(x, False)
        torch.set_default_dtype(torch.bfloat16)
        try:
            after = kernels.quantise(x, ue8m0=False), kernels.quantise_weight(x, False)
        finally:
            torch.set_default_dtype(torch.float32)
        for old, new in zip(before, after, strict=True):
            for a, b in zip(old, new, strict=True):
                self.assertEqual(a.dtype, b.dtype)
                self.assertTrue(torch.equal(a.float(), b.float()))

    def test_zeros_take_the_floor(self) -> None:
        got, scale = kernels.quantise(torch.zeros(1, 5), ue8m0=True)
        self.assertEqual(scale.item(), 2.0**-22)  # 1e-4 / 448 = 2.23e-7
        self.assertEqual(got.float().tolist(), [[0.0] * 5])
        _, scale = kernels.quantise(torch.zeros(1, 5), ue8m0=False)
        self.assertEqual(scale.item(), float(np.float32(1e-4) * np.float32(1 / 448)))

    def test_codes_round_to_nearest_even(self) -> None:
        # Under scale 1: steps of 2 above 16, of 1 above 8, of 2^-9 at the bottom.
        got = codes(448, 17, 19, 9.5, 10.5, -17, 2**-10, 3 * 2**-10)
        self.assertEqual(got, [448, 16, 20, 10, 10, -16, 0, 2**-8])

    def test_runs_of_128_and_a_short_rest(self) -> None:
        x = torch.ones(3, 144)
        x[:, 128:] = 900
        got, scale = kernels.quantise(x, ue8m0=True)
        self.assertEqual(scale.tolist(), [[2.0**-8, 4.0]] * 3)  # 900 / 448 = 2.009
        self.assertTrue(torch.equal(kernels.restore(got, scale)[:, :128], x[:, :128]))
        self.assertEqual(kernels.restore(got, scale)[0, 128].item(), 896)  # 225 is between codes

    def test_product_adds_scaled_blocks(self) -> None:
        make = torch.Generator().manual_seed(1)
        a, b = (torch.randn(n, 200, generator=make) for n in (5, 130))
        qa, sa = kernels.quantise(a, ue8m0=True)
        qb, sb, values = kernels.quantise_weight(b, True)
        self.assertEqual((sa.shape, sb.shape), ((5, 2), (2, 2)))
        want = kernels.restore(qa, sa).double() @ values.double().T
        got = kernels.product(qa, sa, qb, sb, torch.float32).double()
        self.assertLess(float((got - want).norm() / want.norm()), limit("demo.product"))

    def test_neighbouring_weight_blocks_have_other_scales(self) -> None:
        _, scales, _ = kernels.quantise_weight(torch.ones(256, 384), True)
        base = 2.0**-8  # of a block of ones
        want = [[base * 2.0 ** ((3 * r + 2 * c) % 5 - 3) for c in range(3)] for r in range(2)]
        self.assertEqual(scales.tolist(), want)

    def test_hadamard_is_the_sylvester_matrix(self) -> None:
        matrix = torch.tensor([[1.0]])
        for _ in range(7):
            matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
        got = kernels.hadamard(torch.eye(128), 128**-0.5)
        self.assertTrue(torch.equal(got, matrix * 128**-0.5))
        with self.assertRaisesRegex(ValueError, "power of two, got 96"):
            kernels.hadamard(torch.zeros(1, 96), 1.0)

    def test_index_scores_by_hand(self) -> None:
        q = torch.tensor([[[[2.0, -1.0], [1.0, 1.0]]]])  # B 1, S 1, two heads
        k = torch.tensor([[[1.0, 3.0], [4.0, 2.0]]])  # two keys
        weights, scale = torch.tensor([[[10.0, -3.0]]]), torch.tensor([[0.5, 2.0]])
        # Key 0: relu(-1), relu(4): -12, x 0.5. Key 1: 6, 6: 60 - 18, x 2.
        self.assertEqual(kernels.index_scores(q, weights, k, scale).tolist(), [[[-6.0, 84.0]]])


class Committed(unittest.TestCase):
    def test_manifest_names_every_file(self) -> None:
        manifest = json.loads((DATA / "manifest.json").read_text())
        self.assertEqual(
            [row["file"] for row in manifest["files"]],
            sorted(f"{name}.safetensors" for name in WHOLE + SKETCHED),
        )
        for row in manifest["files"]:
            content = (DATA / row["file"]).read_bytes()
            self.assertEqual(len(content), row["size"], row["file"])
            self.assertEqual(hashlib.sha256(content).hexdigest(), row["sha256"], row["file"])

    def found(self, name: str) -> tuple[float, float]:
        """Share of other bits and largest error of the golden against the specification."""
        wanted, taps = parse_name(name), load_file(DATA / f"{name}.safetensors")
        mode = wanted.mode
        if mode.dtype == "float32":
            return 0.0, checks.whole_model(wanted.case, mode, taps, wanted.expanded).value
        bits, wide = checks.op_by_op(wanted.case, mode, taps, wanted.expanded)
        return bits.value, wide.value

    def test_whole_traces_follow_the_specification(self) -> None:
        for name in WHOLE:
            with self.subTest(name):
                bits, wide = self.found(name)
                self.assertLessEqual(bits, limit("demo.bits"))
                whole = name.endswith("float32")
                self.assertLessEqual(wide, limit("demo.whole") if whole else limit("demo.wide"))

    def test_other_readings_are_seen(self) -> None:
        """What must not agree: the checks can fail."""

        def expect(name: str, tap: str, least: float, reading: type[Rules]) -> None:
            wanted, taps = parse_name(name), load_file(DATA / f"{name}.safetensors")
            got = reading(wanted.case, wanted.mode, False, wanted.expanded).evaluate(taps)
            with self.subTest(f"{reading.__name__} {name}"):
                other = checks.other_bits(wanted.case, tap, got[tap], taps)
                self.assertGreater(other, least)

        class NoActivationCodes(Rules):
            def linear(self, x: Tensor, name: str) -> Tensor:
                return self.round(x @ self.weights[name + ".weight"].T)

        class BlocksOf64(Rules):
            def linear(self, x: Tensor, name: str) -> Tensor:
                if name + ".weight" not in self.codes:
                    return super().linear(x, name)
                x = kernels.restore(*kernels.quantise(x, self.mode.ue8m0, 64), 64)
                return self.round(x @ self.weights[name + ".weight"].T)

        class NormOfTheRoundedSum(Rules):
            def joined(self, stream: Tensor, added: Tensor | None) -> Tensor:
                return self.round(super().joined(stream, added))

        expect("o128.fp8", "layers.0.q_nope", 0.5, NoActivationCodes)
        expect("o128-lanes.fp8", "layers.0.q_nope", 0.5, BlocksOf64)
        expect("o128.fp8-plain", "layers.0.q_nope", 0.3, BlocksOf64)
        expect("o128.bf16", "layers.1.attn_norm", 0.1, NormOfTheRoundedSum)

    def test_selection_without_hadamard_is_seen(self) -> None:
        wanted = parse_name("o128.bf16-shipped")
        taps = load_file(DATA / f"{wanted.name}.safetensors")

        class NoHadamard(Rules):
            def rotated_codes(self, states: Tensor) -> tuple[Tensor, Tensor]:
                return kernels.quantise(states, self.mode.ue8m0)

        got = NoHadamard(wanted.case, wanted.mode, False, wanted.expanded).evaluate(taps)
        far = checks.relative(wanted.case, {n: got[n] for n in ("layers.0.ix.scores",)}, taps)
        self.assertGreater(far["layers.0.ix.scores"], 100 * limit("demo.wide"))


class Judged(unittest.TestCase):
    """The traces as candidates, as anybody who has the demo would hand them in."""

    def judge(self, name: str, code: int, *words: str) -> dict:
        done = run("--candidate", DATA / f"{name}.safetensors", "--json", *words)
        self.assertEqual(done.returncode, code, done.stdout[-3000:] + done.stderr)
        return json.loads(done.stdout)

    def test_green_undeclared(self) -> None:
        """Without quantisation, and in fp8 mode, which says what is quantised."""
        for name in GREEN:
            with self.subTest(name):
                report = self.judge(name, OK)
                own = [v for v in report["verdicts"] if v["subject"]["party"] == "candidate"]
                self.assertGreater(sum(v["trust"] == "pass" for v in own), 40)

    def test_the_release_in_bf16_is_named(self) -> None:
        report = self.judge("o128.bf16-shipped", PARITY)
        (finding,) = [f for f in report["findings"] if f["subject"]["party"] == "candidate"]
        self.assertEqual(finding["first_tap"], "layers.0.kv_latent")
        self.assertEqual({d["name"] for d in finding["defects"]}, {"latent-fp8", "indexer-fp8"})
        for name in ("o128.bf16-shipped", "o128-lanes.bf16-shipped"):
            self.judge(name, OK, "--dialect", "off-v32")


class Command(unittest.TestCase):
    def refused(self, *words: str) -> str:
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            self.assertEqual(main(list(words)), 4)
        return said.getvalue()

    def test_another_file_is_refused_by_its_hash(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            other = Path(folder) / "model.py"
            other.write_text("raise SystemExit('was run')\n")
            words = ["--model", str(other), "--golden", "o128.bf16", "--out", folder]
            self.assertIn(f"expected {SHA256}, got ", self.refused(*words))

    def test_unknown_names_are_refused(self) -> None:
        names = "o128 o128.int8 nothing.bf16 o128.fp8.twice tiny-wide.bf16.decode".split()
        for name in names:
            said = self.refused("--model", "model.py", "--golden", name)
            self.assertIn(f"--golden {name}: expected ", said)

    def test_cases_that_the_demo_cannot_run(self) -> None:
        for name in ("tiny-wide.fp8", "tiny-dense.bf16", "tiny-far.float32", "tiny-chunk.bf16"):
            wanted = parse_name(name)
            with self.assertRaisesRegex(GoldenError, "expected a case that the demo can run"):
                check_case(wanted.case, wanted.mode)

    def test_every_weight_has_a_name_of_its_own(self) -> None:
        names = [demo_name(n) for n in weight_specs(parse_name("o128.bf16").case.config)]
        self.assertEqual(len(set(names)), len(names))
        self.assertIn("layers.1.ffn.experts.3.w2.weight", names)
        self.assertFalse([n for n in names if "proj" in n and "weights_proj" not in n])


if __name__ == "__main__":
    unittest.main(verbosity=2)
