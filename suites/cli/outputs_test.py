"""What dsv32-verify writes never destroys anything. ctest: `self_cli_outputs`."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import threading
import time
import unittest
from collections.abc import Iterator
from pathlib import Path

from program import (
    ENVIRONMENT,
    OK,
    PROGRAM,
    ROOT,
    USAGE,
    CliTest,
    clean_up,
    environment,
    good,
    make_good,
    run,
    scratch,
)

setUpModule = make_good
tearDownModule = clean_up

REPORTS = ["junit.xml", "report.html", "report.json", "report.md"]
TOO_SMALL = 4096  # bytes: no report fits


def run_limited(*words: object, largest: int = TOO_SMALL) -> subprocess.CompletedProcess[str]:
    """As `ulimit -f`: no file may grow beyond this."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return subprocess.run(
        [PROGRAM, *map(str, words)], env=environment(), capture_output=True, text=True,
        timeout=300, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, hard)),
    )


def bytes_below(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def fresh(name: str) -> Path:
    folder = scratch / name
    folder.mkdir()
    return folder


@contextlib.contextmanager
def small_disk(name: str, kib: int) -> Iterator[Path | None]:
    """A disk of this size, where one may be mounted."""
    folder = fresh(name)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder],
                          capture_output=True, check=False)
    try:
        yield folder if done.returncode == 0 else None
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)


class WrittenThrough(CliTest):
    def test_links_are_followed(self) -> None:
        folder = fresh("links")
        (folder / "real.md").write_text("old")
        (folder / "link.md").symlink_to("real.md")
        self.ended(run("--candidate", good, "--md", folder / "link.md"), OK)
        self.assertTrue((folder / "link.md").is_symlink())
        self.assertIn("dsv32", (folder / "real.md").read_text())

    def test_devices_and_pipes_stay(self) -> None:
        folder = fresh("nodes")
        pipe = folder / "pipe"
        os.mkfifo(pipe)
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.append(pipe.read_text()))
        reader.start()
        done = run("--candidate", good, "--md", pipe, "--junit", "/dev/null")
        reader.join(timeout=60)
        self.ended(done, OK)
        self.assertIn("dsv32", seen[0])
        self.assertTrue(stat.S_ISFIFO(pipe.lstat().st_mode))
        self.ended(run("--candidate", good, "--md", "/dev/full"), ENVIRONMENT)
        for device in ("/dev/null", "/dev/full"):
            self.assertTrue(stat.S_ISCHR(Path(device).lstat().st_mode))

    def test_a_dump_goes_through_a_pipe(self) -> None:
        pipe, file = scratch / "dump-pipe", scratch / "dump-file"
        os.mkfifo(pipe)
        seen: list[bytes] = []
        reader = threading.Thread(target=lambda: seen.append(pipe.read_bytes()))
        reader.start()
        for out in (pipe, file):
            self.ended(run("dump", "--case", "tiny-short7", "--out", out), OK)
        reader.join(timeout=60)
        self.assertEqual(seen, [file.read_bytes()])

    def test_mode_is_kept(self) -> None:
        path = scratch / "private.md"
        path.write_text("old")
        path.chmod(0o600)
        self.ended(run("--candidate", good, "--md", path), OK)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)


class StandardOutput(CliTest):
    def test_a_dash_is_stdout_and_alone_there(self) -> None:
        path = scratch / "dash.md"
        self.ended(run("--candidate", good, "--md", path), OK)
        for name in ("-", "/dev/stdout", "/dev/fd/1"):
            done = run("--candidate", good, "--md", name)
            self.ended(done, OK)
            self.assertEqual(done.stdout, path.read_text())
        done = run("--candidate", good, "--junit", "-")
        self.assertTrue(done.stdout.startswith("<?xml"))
        self.assertTrue(done.stdout.endswith("</testsuites>\n"))
        self.assertTrue(stat.S_ISLNK(Path("/dev/stdout").lstat().st_mode))

    def test_stdout_takes_the_data_of_one_option(self) -> None:
        for words in (("--json", "--md", "-"), ("--md", "-", "--junit", "-"),
                      ("--md", "/dev/stdout", "--junit", "-")):
            self.refused(run("--candidate", good, *words), USAGE, "standard output")
        self.refused(run("--candidate", good, "--out", "-"), USAGE, "a folder")
        self.refused(run("weights", "make", "--case", "tiny", "--out", "-"), USAGE, "a folder")

    def test_json_with_other_files(self) -> None:
        path = scratch / "beside.md"
        done = run("--candidate", good, "--json", "--md", path)
        self.ended(done, OK)
        json.loads(done.stdout)
        self.assertTrue(path.exists())

    def test_a_dump(self) -> None:
        path = scratch / "stdout.safetensors"
        words = ("dump", "--case", "tiny-short7", "--out")
        self.ended(run(*words, path), OK)
        done = subprocess.run([PROGRAM, *words, "-"], env=environment(), capture_output=True,
                              check=True)
        self.assertEqual(done.stdout, path.read_bytes())

    def test_stdout_in_a_file_is_no_report_file(self) -> None:
        path = scratch / "redirected"
        with path.open("w") as out:
            done = subprocess.run([PROGRAM, "--candidate", good, "--md", path], stdout=out,
                                  stderr=subprocess.PIPE, text=True, check=False)
        self.assertEqual(done.returncode, USAGE, done.stderr)
        self.assertEqual(path.read_text(), "")


class InputsAreKept(CliTest):
    def kept(self, path: Path, *words: object) -> None:
        before = path.read_bytes()
        self.refused(run(*words), USAGE, "would be overwritten")
        self.assertEqual(path.read_bytes(), before)

    def test_the_judged_trace(self) -> None:
        folder = fresh("inputs")
        trace = folder / "fork.safetensors"
        shutil.copy(good, trace)
        (folder / "link").symlink_to("fork.safetensors")
        (folder / "hard").hardlink_to(trace)
        (folder / "again").symlink_to(".")
        for name in ("fork.safetensors", "link", "hard", "again/fork.safetensors"):
            for option in ("--md", "--junit", "--html"):
                with self.subTest(name):
                    self.kept(trace, "--candidate", trace, option, folder / name)
        (folder / "report.json").symlink_to("fork.safetensors")
        self.kept(trace, "--candidate", trace, "--out", folder)
        self.kept(trace, "--candidate", folder / "link", "--md", trace)

    def test_other_inputs(self) -> None:
        folder = fresh("more-inputs")
        for name in ("a", "b"):
            shutil.copy(good, folder / name)
        self.kept(folder / "b", "compare", folder / "a", folder / "b", "--md", folder / "b")
        self.kept(folder / "a", "--case", "tiny", "--batch", folder / "a", "--junit", folder / "a")
        weights = folder / "weights"
        self.ended(run("weights", "make", "--case", "tiny", "--out", weights), OK)
        for file in weights.iterdir():
            self.kept(file, "--case", "tiny", "--weights", weights, "--md", file)
        config = weights / "config.json"
        self.kept(config, "--config", config, "--md", config)
        self.kept(config, "--config", weights, "--md", config)

    def test_files_of_the_program(self) -> None:
        home = scratch / "home"
        for part in ("configs", "golden/data"):
            shutil.copytree(ROOT / part, home / part)
        env = environment(DSV32_DATA=str(home))
        for name in ("configs/cases.json", "configs/tiny/config.json", "golden/data/manifest.json",
                     "golden/data/tiny.h5"):
            with self.subTest(name):
                before = (home / name).read_bytes()
                self.refused(run("--case", "tiny", "--md", home / name, env=env), USAGE,
                             "would be overwritten")
                self.assertEqual((home / name).read_bytes(), before)

    def test_two_outputs_are_two_files(self) -> None:
        path, folder = scratch / "twice", scratch / "twice-folder"
        for words in (("--md", path, "--junit", path),
                      ("--out", folder, "--md", folder / "report.md"),
                      ("--out", folder, "--junit", f"{folder}/../twice-folder/report.json")):
            self.refused(run("--candidate", good, *words), USAGE, "one file for each output")
        self.assertFalse(path.exists() or folder.exists())
        self.ended(run("--candidate", good, "--md", "/dev/null", "--junit", "/dev/null"), OK)


class TogetherOrNotAtAll(CliTest):
    def test_a_limit_of_file_size_keeps_the_older_report(self) -> None:
        folder = fresh("limited")
        self.ended(run("--case", "tiny-short7", "--impl", "reference", "--out", folder), OK)
        before = bytes_below(folder)
        self.assertEqual(sorted(before), REPORTS)
        done = run_limited("--case", "tiny-short7", "--out", folder)
        self.ended(done, ENVIRONMENT)
        self.assertIn("File too large", done.stderr)
        self.assertEqual(bytes_below(folder), before)

    def test_a_full_disk_keeps_the_older_report(self) -> None:
        first = ("--case", "tiny-short7", "--impl", "reference", "--dtype", "float32")
        measured = fresh("measured")
        self.ended(run(*first, "--out", measured), OK)
        size = sum(-(-len(content) // 4096) * 4 for content in bytes_below(measured).values())
        with small_disk("disk", size + 40) as disk:
            if disk is None:  # an unprivileged user: the test above has the same write fail
                return
            self.ended(run(*first, "--out", disk), OK)
            before = bytes_below(disk)
            done = run("--case", "tiny-short7", "--out", disk)
            self.ended(done, ENVIRONMENT)
            self.assertIn("No space", done.stderr)
            self.assertEqual(bytes_below(disk), before)

    def test_dump_and_checkpoint_under_a_limit(self) -> None:
        folder = fresh("limited-files")
        shutil.copy(good, folder / "x.safetensors")
        before = bytes_below(folder)
        done = run_limited("dump", "--case", "tiny-wide", "--out", folder / "x.safetensors")
        self.ended(done, ENVIRONMENT)
        self.assertEqual(bytes_below(folder), before)
        weights = folder / "weights"
        self.ended(run("weights", "make", "--case", "tiny", "--out", weights), OK)
        before = bytes_below(weights)
        self.ended(run_limited("weights", "make", "--case", "tiny-wide", "--out", weights),
                   ENVIRONMENT)
        self.assertEqual(bytes_below(weights), before)
        self.ended(run("weights", "check", weights, "--full"), OK)

    def test_a_killed_run_leaves_nothing_for_long(self) -> None:
        folder = scratch / "killed"
        child = subprocess.Popen([PROGRAM, "weights", "make", "--case", "small", "--out", folder],
                                 env=environment(), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(folder.glob(".model-*")) and time.monotonic() < deadline:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        self.assertTrue(list(folder.glob(f".model-*.tmp.{child.pid}")), "ended before the kill")
        self.assertEqual(list(folder.glob("[!.]*")), [], "nothing has its name before all have")
        self.ended(run("weights", "make", "--case", "tiny", "--out", folder), OK)
        self.assertEqual(sorted(p.name for p in folder.iterdir()),
                         ["config.json", "dsv32_case.json", "model-00001-of-00001.safetensors",
                          "model.safetensors.index.json"])

    def test_temporaries_of_dead_runs_go_at_the_start(self) -> None:
        folder = fresh("leftovers")
        child = subprocess.Popen(["true"])
        child.wait()
        for name in (f".report.md.tmp.{child.pid}", f".m.md.tmp.{child.pid}"):
            (folder / name).write_text("half")
        mine = folder / f".report.md.tmp.{os.getpid()}"
        mine.write_text("alive")
        done = run("--candidate", good, "--out", folder, "--md", folder / "m.md", "-k", "embed")
        self.ended(done, OK)
        self.assertEqual(sorted(p.name for p in folder.iterdir()),
                         sorted([*REPORTS, "m.md", mine.name]))


class Strangers(CliTest):
    def test_a_config_of_other_origin_is_kept(self) -> None:
        folder = fresh("stranger")
        (folder / "config.json").write_text("{}")
        self.refused(run("weights", "make", "--case", "tiny", "--out", folder), USAGE,
                     "config.json", "other origin")
        self.assertEqual(bytes_below(folder), {"config.json": b"{}"})

    def test_a_file_makes_no_folders(self) -> None:
        missing = scratch / "typo" / "dir"
        name = missing / "x"
        for words in (("dump", "--case", "tiny", "--out", name),
                      ("--candidate", good, "--md", name), ("--candidate", good, "--junit", name)):
            self.refused(run(*words), ENVIRONMENT, "No such file")
        self.assertFalse(missing.parent.exists())


if __name__ == "__main__":
    unittest.main()
