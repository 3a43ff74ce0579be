"""Checkpoints on slow, faltering and lost volumes: real mounts by FUSE.

ctest: `self_cli_slow_volumes`, where this machine can mount (suites/cli/CMakeLists.txt).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import unittest
from pathlib import Path

from program import (
    ENVIRONMENT,
    OK,
    PROGRAM,
    ROOT,
    CliTest,
    checkpoint,
    clean_up,
    environment,
    run,
    scratch,
)
from weights_test import files_in, large, wide_case

SYSTEM_PYTHON = "/usr/bin/python3"  # has python3-fusepy
RATE_MIB = 20


def one_layer() -> tuple[str, ...]:
    return ("--case", wide_case(), "--layers", "1", "--dtype", "float32")


class Mount:
    """A folder, seen through a slow volume while this lives."""

    count = 0

    def __init__(self, *command: object) -> None:
        Mount.count += 1
        self.path = scratch / f"mount-{Mount.count}"
        self.path.mkdir()
        self.server = subprocess.Popen(
            [str(word) for word in (*command, self.path)], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while not os.path.ismount(self.path):
            assert self.server.poll() is None and time.monotonic() < deadline, "no mount"
            time.sleep(0.02)

    def kill(self) -> None:
        self.server.kill()
        self.server.wait()

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(
            ["fusermount", "-u", "-z", self.path], check=False, stderr=subprocess.DEVNULL
        )
        self.kill()


class Slow(Mount):
    def __init__(self, source: Path, *words: object) -> None:
        self.log = scratch / f"reads-{Mount.count}"
        super().__init__(
            SYSTEM_PYTHON, ROOT / "suites/kit/slow_mount.py", "--log", self.log, *words, source
        )

    def reads(self) -> list[tuple[str, int, int, int]]:
        """Name, offset, bytes, reads in work."""
        rows = [line.split() for line in self.log.read_text().splitlines()]
        return [(name, int(at), int(size), int(others)) for name, at, size, others in rows]

    def __exit__(self, *_: object) -> None:
        super().__exit__()


def shard_of(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)


class Latency(CliTest):
    def test_reads_go_in_parallel(self) -> None:
        source = large()
        with Slow(source, "--latency", 0.01) as slow:
            done = run("weights", "copy", slow.path, scratch / "from-slow")
            self.ended(done, OK)
            self.assertEqual(files_in(scratch / "from-slow"), files_in(source))
            self.assertGreaterEqual(max(others for *_, others in slow.reads()), 6)
        with Slow(source, "--latency", 0.01) as slow:
            self.ended(run(*one_layer(), "--impl", "reference", "--weights", slow.path), OK)
            self.assertGreaterEqual(max(others for *_, others in slow.reads()), 6)

    def test_every_byte_of_a_layer_is_read_once(self) -> None:
        source = large()
        with Slow(source, "--direct") as slow:
            self.ended(run(*one_layer(), "--weights", slow.path), OK)
            seen = {(name, at) for name, at, *_ in slow.reads()}
            self.assertLess(len(slow.reads()), 1.2 * len(seen))


class Bandwidth(CliTest):
    def test_a_copy_takes_what_the_volume_gives(self) -> None:
        source = large()
        with Mount("bindfs", "-f", f"--read-rate={RATE_MIB}M", source) as slow:
            done = run("weights", "copy", slow.path, scratch / "from-thin")
            self.ended(done, OK)
        self.assertEqual(files_in(scratch / "from-thin"), files_in(source))
        rate = float(re.search(r"([\d.]+) MiB/s", done.stdout).group(1))
        self.assertGreater(rate, 0.9 * RATE_MIB)
        self.assertLess(rate, 1.3 * RATE_MIB)


class Faults(CliTest):
    words = ("--case", "tiny", "--layers", "0,1", "--dtype", "float32", "--json", "--device", "cpu")

    def verdicts(self, folder: Path) -> list:
        done = run(*self.words, "--weights", folder)
        self.ended(done, OK)
        return json.loads(done.stdout)["verdicts"]

    def test_a_read_that_fails_twice(self) -> None:
        source = checkpoint("tiny")
        shard = shard_of(source)
        fault = f"{shard.name}:{shard.stat().st_size // 2}:1"
        with Slow(source, "--direct", "--fail", fault[:-1] + "2", "--errno", "ESTALE") as slow:
            self.ended(run("weights", "check", slow.path, "--full"), OK)
        with Slow(source, "--direct", "--fail", fault) as slow:
            self.assertEqual(self.verdicts(slow.path), self.verdicts(source))
        with Slow(source, "--direct", "--fail", fault) as slow:
            self.ended(run("weights", "copy", slow.path, scratch / "from-shaky"), OK)
        self.assertEqual(files_in(scratch / "from-shaky"), files_in(source))

    def test_a_read_that_always_fails(self) -> None:
        source = checkpoint("tiny")
        shard = shard_of(source)
        bad = shard.stat().st_size // 2
        with Slow(source, "--fail", f"{shard.name}:{bad}:1000") as slow:
            done = run("weights", "copy", slow.path, scratch / "from-bad")
            self.refused(
                done, ENVIRONMENT, shard.name, "read at byte ", "Input/output error, 4 times"
            )
            self.assertEqual(files_in(scratch / "from-bad"), {})

    def test_a_volume_that_is_lost(self) -> None:
        """In the middle of a copy, and of a run over layers."""
        source = large()
        for words in (
            ("weights", "copy", "{}", scratch / "from-lost"),
            ("--case", wide_case(), "--layers", "0,1", "--weights", "{}"),
        ):
            with Slow(source, "--latency", 0.05) as slow:
                command = [PROGRAM, *(str(word).replace("{}", str(slow.path)) for word in words)]
                child = subprocess.Popen(
                    command,
                    env=environment(),
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                while len(slow.reads()) < 60 and child.poll() is None:
                    time.sleep(0.02)
                slow.kill()
                out, err = child.communicate(timeout=60)
                self.assertEqual(child.returncode, ENVIRONMENT, err)
                self.assertRegex(
                    err, r"\.safetensors: (read at byte \d+|status): expected .+, got "
                )
                self.assertEqual(out, "")
                done = run("weights", "check", slow.path)
                self.refused(done, ENVIRONMENT, str(slow.path))
        self.assertEqual(files_in(scratch / "from-lost"), {})
        self.ended(run("weights", "copy", source, scratch / "again"), OK)


class Time(CliTest):
    def test_a_slow_volume_wants_a_copy(self) -> None:
        with Slow(large(), "--latency", 0.01) as slow:
            files_in(slow.path)  # what the system then has in memory must not count
            done = run("weights", "check", slow.path, scratch, "--time")
            self.ended(done, OK)
            self.assertIn("reading in parallel is worth it", done.stdout)
            rate, unit = re.search(r"one reader +([\d.]+) (\w)iB/s", done.stdout).groups()
            self.assertEqual(unit, "M")
            self.assertLess(float(rate), 64)  # two reads of 128 KiB at a time take 0.01 s
            self.assertIn("a copy is worth it", done.stdout)
            self.assertIn(f"dsv32-verify weights copy {slow.path} {slow.path}-copy", done.stdout)


def tearDownModule() -> None:  # noqa: N802
    clean_up()


if __name__ == "__main__":
    unittest.main(verbosity=2)
