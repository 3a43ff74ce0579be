"""Every command of docs/coming-from-scripts.md, as it stands there.

ctest: `golden.pages`, in .venv-golden.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from program import OK, PROGRAM, ROOT

PAGE = (ROOT / "docs" / "coming-from-scripts.md").read_text()


def commands() -> list[str]:
    blocks = re.findall(r"^```\n(.*?)^```", PAGE, re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


class Pages(unittest.TestCase):
    def test_every_command_ends_well(self) -> None:
        self.assertEqual(len(commands()), 16)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "golden").symlink_to(ROOT / "golden")
            place = f"{Path(PROGRAM).parent}:{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
            env = os.environ | {"PATH": place}
            for command in commands():
                with self.subTest(command):
                    done = subprocess.run(
                        command, shell=True, cwd=folder, env=env, capture_output=True, text=True
                    )
                    self.assertEqual(done.returncode, OK, done.stdout[-3000:] + done.stderr[-2000:])

    def test_it_has_the_seven_checks_with_what_they_miss(self) -> None:
        self.assertEqual(re.findall(r"^## (\d)\.", PAGE, re.M), list("1234567"))
        self.assertEqual(PAGE.count("| passes although wrong |"), 7)


if __name__ == "__main__":
    unittest.main()
