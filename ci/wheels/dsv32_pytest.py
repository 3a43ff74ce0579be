"""A fixture for the tests of a fork: `dsv32.assert_parity(model, "tiny-wide")`.

pytest finds this in the wheel dsv32_dump. Nothing heavy is imported until a test uses it.

    def test_parity(dsv32):
        path = dsv32.checkpoint("tiny-wide")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        dsv32.assert_parity(model, "tiny-wide", checkpoint=path)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: Any) -> None:
    about = "the program dsv32-verify; default: $DSV32_VERIFY, else the one on PATH"
    parser.getgroup("dsv32").addoption("--dsv32-verify", metavar="FILE", help=about)


class Judge:
    """What a test asks for; checkpoints are made once a session."""

    def __init__(self, program: str | None, folder: Path) -> None:
        self.program, self.folder, self.judged = program, folder, 0

    def checkpoint(self, case: str) -> Path:
        """The folder of the case's synthetic checkpoint, for from_pretrained."""
        from dsv32_dump.parity import make_checkpoint

        path = self.folder / case
        return path if path.is_dir() else make_checkpoint(case, path, self.program)

    def assert_parity(self, model: Any, case: Any, options: Any = None, **how: Any) -> dict:
        """dsv32_dump.assert_parity with the program that pytest was given.

        Trace and reports are in a folder of pytest's, which keeps those of its last runs.
        """
        from dsv32_dump import assert_parity

        self.judged += 1
        ours = {"program": self.program, "out": self.folder / f"report-{self.judged}"}
        return assert_parity(model, case, options, **(ours | how))


@pytest.fixture(scope="session")
def dsv32(request: Any, tmp_path_factory: Any) -> Judge:
    """The judge of a model under test."""
    program = request.config.getoption("--dsv32-verify")
    return Judge(program, tmp_path_factory.mktemp("dsv32"))
