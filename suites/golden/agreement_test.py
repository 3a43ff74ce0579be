"""The table of Python's limits is used whole, and no other Python file holds a limit.

ctest: `self_agreement`.
"""

from __future__ import annotations

import re
import unittest
from pathlib import Path

from agreement import LIMITS, limit, table
from program import ROOT

TABLE = ROOT / "golden" / "make" / "agreement.py"
SMALL = r"\d(?:\.\d+)?e-\d"
LITERALS = (
    rf"assert(?:Less|Greater)(?:Equal)?\(.*{SMALL}",
    r"assertAlmostEqual|assert_close|isclose",
    r"\b(?:rtol|atol|places|delta)=[\d.]",
    rf"[<>]=? *{SMALL}",
    rf"^[A-Z_]*(?:LIMIT|TOLERANCE|AGREEMENT|ALIKE|NORM|SERIES|PARAMETERS) = {SMALL}",
)


def python_files() -> list[Path]:
    folders = (ROOT / name for name in ("ci", "golden", "measure", "suites"))
    return [file for folder in folders for file in folder.rglob("*.py") if file != TABLE]


def literals(text: str) -> list[str]:
    """The lines that judge by a number of their own."""
    lines = text.split("\n")
    return [line.strip() for line in lines if any(re.search(r, line) for r in LITERALS)]


class Agreement(unittest.TestCase):
    def test_every_row_is_used(self) -> None:
        text = "\n".join(file.read_text() for file in python_files())
        unused = [row.check for row in LIMITS if f'limit("{row.check}")' not in text]
        self.assertEqual(unused, [])

    def test_no_limit_stands_anywhere_else(self) -> None:
        found = {str(file): literals(file.read_text()) for file in python_files()}
        found.pop(str(Path(__file__).resolve()))
        self.assertEqual({name: lines for name, lines in found.items() if lines}, {})

    def test_a_limit_elsewhere_would_be_seen(self) -> None:
        for line in (
            "self.assertLess(error, 1e-6)",
            "self.assertAlmostEqual(a, b, places=12)",
            "np.testing.assert_allclose(a, b, rtol=1e-12)",
            "if not error <= 2.5e-3 * norm:",
            "AGREEMENT = 8e-6",
        ):
            self.assertEqual(literals(f"x = 1\n    {line}" if line[0] != "A" else line), [line])

    def test_names_are_unique_and_unknown_ones_are_refused(self) -> None:
        self.assertEqual(len({row.check for row in LIMITS}), len(LIMITS))
        with self.assertRaises(KeyError):
            limit("golden.valeu")

    def test_every_row_has_a_basis(self) -> None:
        self.assertEqual(len(table().split("\n")), len(LIMITS))
        self.assertTrue(all(len(row.basis) > 20 and row.metric for row in LIMITS))


if __name__ == "__main__":
    unittest.main()
