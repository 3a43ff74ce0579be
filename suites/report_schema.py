"""Validates reports against docs/report.schema.json and shows that the schema refuses damaged ones."""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jsonschema


def write_samples(suite: Path, directory: Path) -> None:
    """The reports of self_report: passing, failing, odd numbers, hostile text, empty."""
    environment = os.environ | {"DSV32_REPORT_DIR": str(directory)}
    command = [str(suite), "--gtest_filter=SelfReportFiles.WritesEveryFile"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def damaged(report: dict) -> list[dict]:
    """Reports that the schema must refuse."""
    changes = []
    for key in report:
        changes.append({k: v for k, v in report.items() if k != key})
    changes.append(report | {"surprise": 1})
    changes.append(report | {"schema_version": 2})
    changes.append(report | {"exit_code": 3})
    for key in report["verdicts"][0] if report["verdicts"] else []:
        broken = copy.deepcopy(report)
        broken["verdicts"][0][key] = {"not": "this"}
        changes.append(broken)
    return changes


def check(validator: jsonschema.Draft202012Validator, directory: Path) -> int:
    report = json.loads((directory / "report.json").read_text())
    errors = [f"{directory.name}: {e.json_path}: {e.message}" for e in validator.iter_errors(report)]
    errors += [
        f"{directory.name}: damage {number} was accepted"
        for number, broken in enumerate(damaged(report))
        if validator.is_valid(broken)
    ]
    ElementTree.parse(directory / "junit.xml")
    print(f"{directory.name}: {len(report['verdicts'])} verdicts, {len(errors)} errors")
    for error in errors[:10]:
        print(error, file=sys.stderr)
    return len(errors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schema", type=Path, required=True)
    parser.add_argument("--suite", type=Path, help="the self_report program: makes the sample reports")
    parser.add_argument("--tool", type=Path, help="dsv32-verify: makes a real report")
    arguments = parser.parse_args()
    schema = json.loads(arguments.schema.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.suite:
            write_samples(arguments.suite, Path(folder))
        if arguments.tool:
            out = Path(folder) / "real"
            command = [str(arguments.tool), "--case", "tiny-short7", "--out", str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        reports = sorted(p for p in Path(folder).iterdir() if (p / "report.json").exists())
        if not reports:
            print("no report was made", file=sys.stderr)
            return 1
        return 1 if sum(check(validator, report) for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
