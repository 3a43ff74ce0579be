"""The oracle with float64 products by torch and by OpenBLAS: the same values but for rounding, the
same verdicts. ctest: `self_float64_products`."""

from __future__ import annotations

import json
import unittest

import numpy as np
from program import OK, USAGE, CliTest, clean_up, environment, run, scratch
from safetensors.numpy import load_file

VARIABLE = "DSV32_FLOAT64_BLAS"
LIBRARIES = ("torch", "openblas")
ROUNDING = 2.0**-43  # 1000 units in the last place of a tensor's norm

tearDownModule = clean_up


def with_library(name: str, **changes: str) -> dict[str, str]:
    return environment(**{VARIABLE: name}, **changes)


class Float64Products(CliTest):
    def oracle(self, case: str, library: str) -> dict[str, np.ndarray]:
        path = scratch / f"{case}-{library}.safetensors"
        words = ("dump", "--impl", "oracle", "--case", case, "--mode", "backward", "--out", path)
        self.ended(run(*words, env=with_library(library)), OK)
        return load_file(path)

    def report(self, *words: str, env: dict[str, str]) -> dict:
        done = run(*words, "--json", env=env)
        self.ended(done, OK)
        return json.loads(done.stdout)

    def assert_same_oracle(self, case: str) -> None:
        torch, openblas = (self.oracle(case, library) for library in LIBRARIES)
        self.assertEqual(torch.keys(), openblas.keys())
        for name, expected in torch.items():
            got = openblas[name]
            if expected.dtype != np.float64:
                np.testing.assert_array_equal(got, expected, name)
                continue
            finite = np.isfinite(expected)
            np.testing.assert_array_equal(got[~finite], expected[~finite], name)
            distance = np.linalg.norm(got[finite] - expected[finite])
            self.assertLessEqual(distance, ROUNDING * np.linalg.norm(expected[finite]), name)
        same = [np.array_equal(torch[name], openblas[name]) for name in torch]
        self.assertFalse(all(same), "nothing went to the other library")

    def assert_same_verdicts(self, *words: str) -> None:
        found = [self.report(*words, env=with_library(library)) for library in LIBRARIES]
        used = [report["environment"]["float64 products"] for report in found]
        self.assertEqual(used[0], "torch")
        self.assertRegex(used[1], r"^OpenBLAS [0-9.]+, \w+$")
        keys = ("case", "subject", "tap", "mode", "trust", "checked")
        first, second = ([[v[key] for key in keys] for v in r["verdicts"]] for r in found)
        self.assertGreater(len(first), 100)
        self.assertEqual(first, second)

    def test_oracle_of_tiny(self) -> None:
        self.assert_same_oracle("tiny")

    def test_oracle_of_small_train(self) -> None:
        self.assert_same_oracle("small-train")

    def test_verdicts_of_tiny(self) -> None:
        self.assert_same_verdicts("--config", "tiny")

    def test_verdicts_of_small_train(self) -> None:
        self.assert_same_verdicts("--case", "small-train", "--suite", "forward,backward")

    def test_an_old_core_in_the_environment_is_not_taken(self) -> None:
        plain, old = (
            self.report("--case", "tiny", env=with_library("openblas", **changes))["environment"]
            for changes in ({}, {"OPENBLAS_CORETYPE": "Prescott"})
        )
        self.assertEqual(plain["float64 products"], old["float64 products"])
        self.assertNotIn("Prescott", old["float64 products"])

    def test_small_products_stay_with_torch(self) -> None:
        found = self.report("--case", "tiny", env=environment())
        self.assertEqual(found["environment"]["float64 products"], "torch")

    def test_another_word_is_refused(self) -> None:
        self.refused(
            run("--case", "tiny", env=with_library("mkl")), USAGE, VARIABLE, "torch or openblas"
        )


if __name__ == "__main__":
    unittest.main()
