"""dsv32-publish with the real trackers, offline. Run by ci/engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path

from program import OK, ROOT, run

PUBLISH = ROOT / "golden" / "dump" / "dsv32_publish.py"


def log_records(content: bytes) -> Iterator[bytes]:
    """Records of a log in blocks of 32 KiB (wandb's own file): checksum, length, kind, data."""
    at, parts = 7, b""  # behind its name and version
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no room for a header
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


class Trackers(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.scratch = tempfile.TemporaryDirectory()
        cls.folder = Path(cls.scratch.name)
        done = run("--case", "tiny-wide", "--suite", "forward", "--out", cls.folder / "report")
        assert done.returncode == OK, done.stderr
        cls.report = cls.folder / "report" / "report.json"
        lines = cls.publish("jsonl").stdout.splitlines()
        cls.points = [p for p in map(json.loads, lines) if "name" in p]

    @classmethod
    def tearDownClass(cls) -> None:
        cls.scratch.cleanup()

    @classmethod
    def publish(cls, to: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, PUBLISH, cls.report, "--to", to, *words]
        env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, env=env, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    def test_an_offline_run_of_wandb_holds_every_number_and_the_report(self) -> None:
        from wandb.proto import wandb_internal_pb2

        self.publish("wandb", "--offline", "--out", self.folder / "wandb", "--name", "judged")
        (file,) = (self.folder / "wandb").rglob("run-*.wandb")
        names, artifacts, layers = set(), [], set()
        for data in log_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            for item in (*record.history.item, *record.summary.update):
                key = item.key or "/".join(item.nested_key)
                names.add(key)
                if key == "axis/layer":
                    layers.add(json.loads(item.value_json))
            if record.artifact.name or record.request.log_artifact.artifact.name:
                artifacts.append(record.artifact or record.request.log_artifact.artifact)
        self.assertEqual({p["name"] for p in self.points} - names, set())
        self.assertEqual(layers, {0, 1})
        (artifact,) = artifacts
        held = {entry.path for entry in artifact.manifest.contents}
        self.assertEqual(held, {"report.json", "report.html", "report.md", "junit.xml"})

    def test_event_files_hold_every_number(self) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.publish("tensorboard", "--out", self.folder / "events")
        (file,) = (self.folder / "events").glob("events.*")
        content, seen, at = file.read_bytes(), [], 0
        while at < len(content):  # length, its checksum, the record, its checksum
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event()
            event.ParseFromString(content[at + 12 : at + 12 + length])
            seen += [(v.tag, event.step) for v in event.summary.value]
            at += 16 + length
        self.assertGreaterEqual(len([s for s in seen if s[1] == 1]), 10)
        self.assertGreaterEqual(len(seen), len(self.points))


if __name__ == "__main__":
    unittest.main(verbosity=2)
