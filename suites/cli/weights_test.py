"""weights copy and weights check --time on ordinary folders. ctest: `self_cli_weights`."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import time
import unittest
from pathlib import Path

from program import (
    ARTEFACT,
    ENVIRONMENT,
    INTERRUPTED,
    OK,
    PROGRAM,
    USAGE,
    CliTest,
    checkpoint,
    clean_up,
    environment,
    run,
    run_on_terminal,
    scratch,
)

tearDownModule = clean_up


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def wide_case() -> str:
    """Case tiny with 28 MB of weights, most of them in its MLPs: little to compute."""
    return json.dumps(
        {
            "config": "tiny",
            "overrides": {"intermediate_size": 32768, "moe_intermediate_size": 8192},
            "seed": 1,
            "B": 1,
            "S": 32,
            "pad": 0,
            "bias_offset": 0,
            "chunks": [],
        }
    )


def large() -> Path:
    """The checkpoint of wide_case()."""
    out = scratch / "large"
    if not out.exists():
        made = run("weights", "make", "--case", wide_case(), "--out", out)
        assert made.returncode == OK, made.stderr
    return out


class Copy(CliTest):
    def test_a_copy_is_the_checkpoint(self) -> None:
        source, copy = checkpoint("tiny"), scratch / "copy"
        done = run("weights", "copy", source, copy)
        self.ended(done, OK)
        self.assertRegex(done.stdout, r"4 files, [\d.]+ KiB: read back, every block as it was read")
        self.assertEqual(files_in(copy), files_in(source))
        self.ended(run("weights", "check", copy, "--full"), OK)
        again = run("weights", "copy", source, copy)
        self.ended(again, OK)
        self.assertRegex(again.stdout, r"^nothing to copy: 4 files")
        self.assertEqual(again.stderr, "")

    def test_words_that_make_no_sense(self) -> None:
        source = checkpoint("tiny")
        self.refused(run("weights", "copy", source, source), USAGE, "the folder itself")
        self.refused(run("weights", "copy", source, source / "in"), USAGE, "a folder in it")
        self.refused(run("weights", "copy", scratch / "none", scratch / "to"), ARTEFACT, "none")
        self.assertFalse((scratch / "to").exists() and files_in(scratch / "to"))
        self.refused(run("weights", "copy", source, "/proc/none"), ENVIRONMENT, "/proc/none")
        self.refused(run("weights", "check", source, scratch), USAGE, "--time")
        done = run("weights", "copy", source)
        self.ended(done, USAGE)
        self.assertIn("weights copy --help", done.stderr)

    def test_an_index_that_leaves_its_folder(self) -> None:
        source = scratch / "escape"
        self.ended(run("weights", "make", "--case", "tiny", "--out", source), OK)
        index = source / "model.safetensors.index.json"
        name = next(source.glob("*.safetensors")).name
        index.write_text(index.read_text().replace(name, "../" + name))
        self.refused(
            run("weights", "copy", source, scratch / "escaped"),
            ARTEFACT,
            "file names without a folder",
        )

    def test_a_full_disk(self) -> None:
        source, copy = large(), scratch / "cut"
        done = subprocess.run(
            [
                "bash",
                "-c",
                'ulimit -f 1000; exec "$0" weights copy "$1" "$2"',
                PROGRAM,
                source,
                copy,
            ],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.refused(done, ENVIRONMENT, "room for", "the same command goes on from it")
        self.assertEqual(files_in(copy), {})
        self.ended(run("weights", "copy", source, copy), OK)
        self.assertEqual(files_in(copy), files_in(source))

    def test_too_little_room_is_said_before_any_work(self) -> None:
        """A shard with a hole of 8 TiB, which ext4 can just name."""
        source, size = scratch / "huge", 1 << 43
        source.mkdir()
        header = b'{"x":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
        with (source / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + size)
        done = run("weights", "copy", source, scratch / "too-small")
        self.refused(done, ENVIRONMENT, "disk: expected", "free bytes")
        self.assertEqual(list((scratch / "too-small" / ".dsv32-copy" / "parts").iterdir()), [])

    def test_killed_at_random_moments(self) -> None:
        source, copy = large(), scratch / "killed"
        wanted, moments, killed = files_in(source), random.Random(32), 0
        for _ in range(8):
            child = subprocess.Popen(
                [PROGRAM, "weights", "copy", source, copy],
                env=environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            time.sleep(moments.uniform(0.02, 0.25))
            child.kill()
            finished = child.wait() == OK
            killed += not finished
            there = files_in(copy) if copy.exists() else {}
            self.assertEqual(there, {name: wanted[name] for name in there})
            if finished:
                shutil.rmtree(copy)
        self.assertGreater(killed, 2)
        self.ended(run("weights", "copy", source, copy), OK)
        self.assertEqual(files_in(copy), wanted)
        self.assertIn("nothing to copy", run("weights", "copy", source, copy).stdout)

    def test_a_terminal_shows_how_far_it_is(self) -> None:
        code, seen = run_on_terminal("weights", "copy", large(), scratch / "shown")
        self.assertEqual(code, OK)
        self.assertRegex(seen, r"files, [\d.]+ MiB: read back")

    def test_interrupted(self) -> None:
        source, copy = large(), scratch / "stopped"
        child = subprocess.Popen(
            [PROGRAM, "weights", "copy", source, copy],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not list(copy.glob(".dsv32-copy/parts/*")) and child.poll() is None:
            time.sleep(0.001)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate()
        self.assertEqual(child.returncode, INTERRUPTED)
        self.assertIn("what was copied is kept", said)
        self.assertEqual(files_in(copy), {})
        self.ended(run("weights", "copy", source, copy), OK)
        self.assertEqual(files_in(copy), files_in(source))


class Time(CliTest):
    def test_says_what_is_worth_it(self) -> None:
        done = run("weights", "check", large(), scratch, "--time")
        self.ended(done, OK)
        rates = re.findall(r"([\d.]+) [KMG]iB/s", done.stdout)
        self.assertEqual(len(rates), 4, done.stdout)
        self.assertTrue(all(float(rate) > 0 for rate in rates))
        self.assertRegex(done.stdout, "a copy (is|does)")
        self.assertEqual(list(scratch.glob(".dsv32-time*")), [])
        self.refused(
            run("weights", "check", large(), scratch / "none", "--time"),
            ENVIRONMENT,
            "temporary file",
        )


if __name__ == "__main__":
    unittest.main(verbosity=2)
