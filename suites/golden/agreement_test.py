"""The table of Python's limits is used whole, and nothing judges by a limit of a library's own.

That no number stands beside a comparison is a rule of ci/lint. ctest: `self_agreement`.
"""

from __future__ import annotations

import re
import unittest
from pathlib import Path

from agreement import LIMITS, limit, table
from program import ROOT

TABLE = ROOT / "golden" / "make" / "agreement.py"
DEFAULTS = re.compile(r"\b(assertAlmostEqual|assertNotAlmostEqual|assert_close|allclose|isclose)\(")


def python_files() -> list[Path]:
    folders = (ROOT / name for name in ("ci", "golden", "measure", "suites"))
    return [file for folder in folders for file in folder.rglob("*.py") if file != TABLE]


class Agreement(unittest.TestCase):
    def test_every_row_is_used(self) -> None:
        text = "\n".join(file.read_text() for file in python_files())
        unused = [row.check for row in LIMITS if f'limit("{row.check}")' not in text]
        self.assertEqual(unused, [])

    def test_no_default_of_a_library_judges(self) -> None:
        found = [str(file) for file in python_files() if DEFAULTS.search(file.read_text())]
        self.assertEqual(found, [])

    def test_names_are_unique_and_unknown_ones_are_refused(self) -> None:
        self.assertEqual(len({row.check for row in LIMITS}), len(LIMITS))
        with self.assertRaises(KeyError):
            limit("golden.valeu")

    def test_every_row_has_a_basis(self) -> None:
        self.assertEqual(len(table().split("\n")), len(LIMITS))
        self.assertTrue(all(len(row.basis) > 20 and row.metric for row in LIMITS))


if __name__ == "__main__":
    unittest.main()
