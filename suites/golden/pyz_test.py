"""golden/dump as one zipped file: the same bytes each time, and the same trace as the folder's.

ctest: `golden.pyz`, in .venv-golden.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
import zipfile
from pathlib import Path

from synthetic import ROOT, load_cases, write_checkpoint

PACKAGE = ROOT / "golden" / "dump" / "dsv32_dump"
NEEDED = {"torch", "numpy", "safetensors"}  # what a fork's environment has beside its transformers
OPTIONAL = {"peft"}  # for the suite that is about it


def built(file: Path) -> Path:
    subprocess.run([ROOT / "ci" / "pyz", file], check=True, capture_output=True)
    return file


def imports(file: Path) -> set[str]:
    """The packages that a file names in its imports, in functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


def parts(trace: Path) -> tuple[dict, bytes]:
    """Header and data; safetensors writes the metadata of a header in an order of chance."""
    data = trace.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


class Pyz(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def dump(self, program: Path, out: str) -> Path:
        """Runs in a folder of its own and without PYTHONPATH, as a fork's owner does."""
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = ["--checkpoint", "checkpoint", "--case", "tiny", "--mode", "backward", "--out", out]
        command = [sys.executable, program, *words]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.folder / out

    def test_two_builds_are_the_same_bytes(self) -> None:
        first = built(self.folder / "a.pyz").read_bytes()
        time.sleep(2)  # the resolution of dates in a zip file
        self.assertEqual(built(self.folder / "b.pyz").read_bytes(), first)

    def test_the_zip_makes_the_trace_of_the_folder(self) -> None:
        write_checkpoint(load_cases()["tiny"], self.folder / "checkpoint")
        zipped = self.dump(built(self.folder / "dump.pyz"), "zip.safetensors")
        folder = self.dump(ROOT / "golden" / "dump", "folder.safetensors")
        self.assertEqual(parts(zipped), parts(folder))

    def test_the_zip_holds_the_sources_and_the_cases(self) -> None:
        with zipfile.ZipFile(built(self.folder / "dump.pyz")) as file:
            names = set(file.namelist())
        sources = {f"dsv32_dump/{path.name}" for path in PACKAGE.glob("*.py")}
        tools = {f"dsv32_{name}.py" for name in ("trace", "batch", "publish")}
        others = {"__main__.py", "dsv32_dump/cases.json"} | tools
        self.assertEqual(names, sources | others)

    def test_nothing_else_is_imported(self) -> None:
        allowed = sys.stdlib_module_names | NEEDED | OPTIONAL | {"dsv32_trace"}
        for file in PACKAGE.glob("*.py"):
            own = {"transformers"} if file.name == "own_callback.py" else set()  # when asked for
            self.assertEqual(imports(file) - allowed, own, file.name)

    def test_the_trace_kit_needs_numpy_alone(self) -> None:
        kit = PACKAGE.parent / "dsv32_trace.py"
        self.assertEqual(imports(kit) - sys.stdlib_module_names, {"numpy"})


if __name__ == "__main__":
    unittest.main()
