"""Validates reports against docs/report.schema.json and shows that the schema refuses damaged ones.

Needs dsv32-verify on PATH and, beside it, suites/self_report.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"


def tool() -> Path:
    found = shutil.which("dsv32-verify")
    if found is None:
        raise FileNotFoundError("dsv32-verify is not on PATH")
    return Path(found)


def damaged(report: dict) -> list[dict]:
    """Reports that the schema must refuse."""
    changes = [{k: v for k, v in report.items() if k != key} for key in report]
    changes += [report | {"surprise": 1}, report | {"schema_version": 3}, report | {"exit_code": 3}]
    for key in report["verdicts"][0] if report["verdicts"] else []:
        broken = copy.deepcopy(report)
        broken["verdicts"][0][key] = {"not": "this"}
        changes.append(broken)
    return changes


class ReportSchema(unittest.TestCase):
    def setUp(self) -> None:
        schema = json.loads(SCHEMA.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        self.validator = jsonschema.Draft202012Validator(schema)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def check(self, directory: Path) -> dict:
        report = json.loads((directory / "report.json").read_text())
        errors = [f"{e.json_path}: {e.message}" for e in self.validator.iter_errors(report)]
        self.assertEqual(errors, [])
        for broken in damaged(report):
            self.assertFalse(self.validator.is_valid(broken))
        ElementTree.parse(directory / "junit.xml")
        return report

    def test_sample_reports_fit(self) -> None:
        """The reports of self_report: passing, failing, odd numbers, hostile text, empty."""
        environment = os.environ | {"DSV32_REPORT_DIR": str(self.folder)}
        suite = tool().parent / "suites" / "self_report"
        command = [str(suite), "--gtest_filter=SelfReportFiles.WritesEveryFile"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        names = sorted(path.name for path in self.folder.iterdir())
        self.assertEqual(names, ["empty", "fail", "hostile", "odd", "pass", "training"])
        for name in names:
            with self.subTest(report=name):
                self.check(self.folder / name)

    def test_report_of_the_tool_fits(self) -> None:
        command = [str(tool()), "--case", "tiny-short7", "--out", str(self.folder / "real")]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        report = self.check(self.folder / "real")
        self.assertEqual(report["exit_code"], done.returncode)
        self.assertGreater(report["counts"]["pass"], 0)


if __name__ == "__main__":
    unittest.main()
