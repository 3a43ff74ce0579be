"""Worlds in which a rank dies, hangs, differs or never comes; launchers that must leave nothing.

ctest: `sharded_faults`. Every rank is a process of dsv32-verify; which one fails, and how, is part
of its command line. A rank that hangs or never joins is known when its world's timeout is over, one
that died within a second. Where nobody is late on purpose the timeout is long: on a busy machine
healthy ranks need more than a few seconds to meet.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import uuid
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("DSV32_VERIFY", str(ROOT / "build" / "dsv32-verify"))
TORCHRUN = str(ROOT / ".venv" / "bin" / "torchrun")

OK, PARITY, USAGE, INTERNAL, ARTEFACT, NOTHING, ENVIRONMENT = range(7)
TIMEOUT = 10.0  # seconds that ranks wait for one that never comes
HANG_TIMEOUT = 20.0  # for one that hangs: twelve healthy processes must have met before
PATIENCE = 120.0  # where nobody is late on purpose
DEATH = 1.0  # seconds after which a death must be known
SLACK = 2.0  # for the end of a process on a busy machine
START = 10.0  # for its start, with eleven others, on two cores that have other work
PLAN = ("tiny-shard", "steps=3")


def environment(**changes: str) -> dict[str, str]:
    """Without the variables of a launcher that runs this test."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in names}
    return env | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"} | changes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Ended:
    code: int
    text: str
    seconds: float  # since the start of the world, or since `since`


@dataclass
class World:
    """Ranks as single processes, with no launcher that could tidy up."""

    size: int
    timeout: float = PATIENCE
    plan: tuple[str, ...] = PLAN
    port: int = field(default_factory=free_port)
    ranks: dict[int, subprocess.Popen[str]] = field(default_factory=dict)
    start_time: float = 0

    def start(self, rank: int, *words: str, program: str = PROGRAM, plan: object = None) -> None:
        self.start_time = self.start_time or time.monotonic()
        env = environment(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(self.size),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(self.port),
            DSV32_RANK_TIMEOUT=str(self.timeout),
        )
        command = [program, "sharded-rank", *(plan or self.plan), f"ranks={self.size}", *words]
        self.ranks[rank] = subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(self, rank: int, seconds: float = 60) -> Ended:
        process = self.ranks[rank]
        text, _ = process.communicate(timeout=seconds)
        return Ended(process.returncode, text, time.monotonic() - self.start_time)

    def clean_up(self) -> None:
        for process in self.ranks.values():
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()


class Ranks(unittest.TestCase):
    def world(self, size: int, **more: object) -> World:
        world = World(size, **more)
        self.addCleanup(world.clean_up)
        return world

    def lost(self, ended: Ended, *words: str) -> None:
        """Exit 6, with the culprit named."""
        self.assertEqual(ended.code, ENVIRONMENT, ended.text)
        for word in words:
            self.assertIn(word, ended.text)

    def test_healthy_world(self) -> None:
        world = self.world(2)
        for rank in range(2):
            world.start(rank)
        for rank in range(2):
            ended = world.end(rank)
            self.assertEqual(ended.code, OK, ended.text)
            self.assertEqual(ended.text, "")

    def test_killed_rank_is_named_within_a_second(self) -> None:
        for culprit, step in ((0, 0), (1, 0), (2, 1), (0, 2)):
            with self.subTest(culprit=culprit, step=step):
                world = self.world(3)
                for rank in range(3):
                    fault = (f"fault-step={step}", "fault=kill") if rank == culprit else ()
                    world.start(rank, *fault)
                dead = world.end(culprit)
                self.assertEqual(dead.code, -signal.SIGKILL, dead.text)
                for rank in set(range(3)) - {culprit}:
                    ended = world.end(rank)
                    self.lost(ended, f"rank {culprit}: step {step}: ", "died")
                    self.assertLess(ended.seconds - dead.seconds, DEATH + SLACK)

    def test_rank_that_hangs_or_stops_is_named_within_the_time_limit(self) -> None:
        worlds = {}
        for fault, culprit in (("hang", 1), ("stop", 2), ("stop", 0), ("hang", 0)):
            world = worlds[fault, culprit] = self.world(3, timeout=HANG_TIMEOUT)
            for rank in range(3):
                planted = (f"fault={fault}", "fault-step=1") if rank == culprit else ()
                world.start(rank, *planted)
        for (fault, culprit), world in worlds.items():
            with self.subTest(fault=fault, culprit=culprit):
                for rank in set(range(3)) - {culprit}:
                    ended = world.end(rank)
                    self.lost(ended, f"rank {culprit}: step 1: ")
                    self.assertLess(ended.seconds, HANG_TIMEOUT + START + SLACK)
                if fault == "hang":  # its own heartbeat finds that the world has ended
                    self.lost(world.end(culprit, HANG_TIMEOUT), "(this one)", "hangs")

    def test_rank_with_an_error_is_named(self) -> None:
        world = self.world(3)
        for rank in range(3):
            world.start(rank, *(("fault=throw", "fault-step=1") if rank == 1 else ()))
        self.assertEqual(world.end(1).code, INTERNAL)
        for rank in (0, 2):
            self.lost(world.end(rank), "rank 1: step 1: ", "a planted error")

    def test_rank_that_never_joins_is_named_within_the_time_limit(self) -> None:
        worlds = {}
        for absent in (0, 1, 2):
            world = worlds[absent] = self.world(3, timeout=TIMEOUT)
            for rank in set(range(3)) - {absent}:
                world.start(rank)
        for absent, world in worlds.items():
            with self.subTest(absent=absent):
                for rank in set(range(3)) - {absent}:
                    ended = world.end(rank)
                    self.lost(ended, f"rank {absent}: before step 0: ")
                    self.assertLess(ended.seconds, TIMEOUT + START)

    def test_rank_with_another_config_seed_or_program_is_named(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            other = Path(folder) / "dsv32-verify"
            other.write_bytes(Path(PROGRAM).read_bytes() + b"\0")
            other.chmod(0o755)
            differences = {
                "another config": {"plan": ("tiny-shard", "steps=2")},
                "another seed": {"words": ("perturbation=7",)},
                "another program": {"program": str(other)},
            }
            for words, change in differences.items():
                for culprit in (0, 2):
                    with self.subTest(words=words, culprit=culprit):
                        world = self.world(3)
                        for rank in range(3):
                            mine = dict(change) if rank == culprit else {}
                            world.start(rank, *mine.pop("words", ()), **mine)
                        for rank in range(3):
                            name = f"rank {culprit}" + (" (this one)" if rank == culprit else "")
                            self.lost(world.end(rank), f"{name}: before step 0: ", words)

    def test_other_world_size_is_named(self) -> None:
        world = self.world(3)
        for rank in range(3):
            world.start(rank, *(("ranks=2",) if rank == 1 else ()))
        for rank in range(3):
            self.lost(world.end(rank), "rank 1", "another config")

    def test_taken_port(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()  # accepts, and never answers
            world = self.world(2, timeout=TIMEOUT, port=taken.getsockname()[1])
            for rank in range(2):
                world.start(rank)
            self.lost(world.end(0), "rank 0 (this one): before step 0: ", "port")
            ended = world.end(1)
            self.lost(ended, "rank 0: before step 0: ")
            self.assertLess(ended.seconds, TIMEOUT + START)


def marked(token: str) -> list[int]:
    """Processes that carry this mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if token.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Launch(unittest.TestCase):
    def setUp(self) -> None:
        self.token = uuid.uuid4().hex

    def tearDown(self) -> None:
        left = marked(self.token)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.assertEqual(left, [], "orphans")

    def start(self, *words: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, "launch", *map(str, words)], text=True,
            env=environment(DSV32_TEST_MARK=self.token),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )

    def launch(self, *words: object) -> tuple[int, str, str, float]:
        begin = time.monotonic()
        process = self.start(*words)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err, time.monotonic() - begin

    def test_sets_the_contract_and_streams_the_output(self) -> None:
        script = 'echo "$RANK $WORLD_SIZE $LOCAL_RANK $MASTER_ADDR"; echo talk >&2'
        code, out, err, _ = self.launch("--nproc", 3, "--", "sh", "-c", script)
        self.assertEqual(code, OK, err)
        self.assertEqual(sorted(out.split("\n")[:-1]), [f"{i} 3 {i} 127.0.0.1" for i in range(3)])
        self.assertEqual(sorted(err.split("\n")[:-1]), [f"[rank {i}] talk" for i in range(3)])

    def test_ranks_of_several_machines(self) -> None:
        place = ("--nnodes", 2, "--node-rank", 1, "--master-addr", "host", "--master-port", 77)
        script = 'echo "$RANK $WORLD_SIZE $LOCAL_RANK $MASTER_ADDR $MASTER_PORT"'
        code, out, _, _ = self.launch("--nproc", 2, *place, "--", "sh", "-c", script)
        self.assertEqual(code, OK)
        self.assertEqual(sorted(out.split("\n")[:-1]), ["2 4 0 host 77", "3 4 1 host 77"])

    def test_bad_command_lines(self) -> None:
        command = ("--", "true")
        for words in (
            ("--nproc", 0, *command), ("--nproc", 100000, *command), ("--nproc", -1, *command),
            ("--nproc", "two", *command), ("--nproc", 2), command,
            ("--nproc", 2, "--nnodes", 2, *command),
            ("--nproc", 2, "--nnodes", 2, "--node-rank", 2, "--master-addr", "h",
             "--master-port", 1, *command),
            ("--nproc", 2, "--master-port", 70000, *command),
            ("--nproc", 2, "--timeout", 0, *command),
            ("--nproc", 2, "--", "no-such-program-anywhere"),
        ):
            with self.subTest(words=words):
                code, out, err, _ = self.launch(*words)
                self.assertEqual((code, out), (USAGE, ""), err)
                self.assertIn("error: ", err)

    def test_exit_code_of_the_command(self) -> None:
        for wanted in (1, 4, 5, 42):
            code, _, err, _ = self.launch(
                "--nproc", 2, "--", "sh", "-c", f"[ $RANK = 0 ] || exit {wanted}"
            )
            self.assertEqual(code, wanted, err)
            self.assertIn(f"rank 1 ended with exit code {wanted}", err)

    def test_death_of_one_ends_all_with_their_children(self) -> None:
        script = "sleep 300 & if [ $RANK = 1 ]; then kill -9 $$; fi; wait"
        code, _, err, seconds = self.launch("--nproc", 3, "--", "sh", "-c", script)
        self.assertEqual(code, ENVIRONMENT, err)
        self.assertIn("rank 1 was killed by signal 9", err)
        self.assertLess(seconds, 10)

    def test_killed_launcher_leaves_nobody(self) -> None:
        process = self.start("--nproc", 2, "--", "sh", "-c", "sleep 300 & echo up; sleep 300")
        for _ in range(2):
            self.assertEqual(process.stdout.readline(), "up\n")
        self.assertGreater(len(marked(self.token)), 4)
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        deadline = time.monotonic() + 5
        while marked(self.token) and time.monotonic() < deadline:
            time.sleep(0.05)

    def test_stopped_launcher(self) -> None:
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = self.start("--nproc", 2, "--", "sh", "-c", "echo up; sleep 300")
            for _ in range(2):
                process.stdout.readline()
            process.send_signal(number)
            process.communicate(timeout=20)
            self.assertEqual(process.returncode, code)

    def test_lost_rank_of_a_real_world(self) -> None:
        script = (
            'if [ $RANK = 1 ]; then FAULT="fault=kill fault-step=1"; fi; '
            f'exec "{PROGRAM}" sharded-rank tiny-shard ranks=3 steps=3 $FAULT'
        )
        code, _, err, _ = self.launch("--nproc", 3, "--timeout", 60, "--", "sh", "-c", script)
        self.assertEqual(code, ENVIRONMENT, err)
        for rank in (0, 2):
            self.assertRegex(err, rf"\[rank {rank}\] .*rank 1: step 1: .*died")
        self.assertIn("launch: rank 1 was killed by signal 9", err)


class GivenWorld(unittest.TestCase):
    """dsv32-verify --suite sharded inside a launcher's world."""

    SUITE = ("--suite", "sharded", "--case", "tiny-shard")

    def run_program(self, *words: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env=environment(**changes), capture_output=True, text=True, timeout=240,
            check=False,
        )

    def test_real_torchrun(self) -> None:
        done = self.run_program(
            sys.executable, TORCHRUN, "--nproc-per-node", "2", "--no-python", "--master-port",
            str(free_port()), PROGRAM, *self.SUITE,
        )
        self.assertEqual(done.returncode, OK, done.stdout[-3000:] + done.stderr[-3000:])
        self.assertIn("2 ranks", done.stdout)
        self.assertEqual(done.stdout.count("PASS | "), 1, done.stdout)  # rank 0 alone reports

    def test_own_launch(self) -> None:
        done = self.run_program(
            PROGRAM, "launch", "--nproc", "3", "--", "dsv32-verify", *self.SUITE
        )
        self.assertEqual(done.returncode, OK, done.stdout[-3000:] + done.stderr[-3000:])
        self.assertIn("3 ranks", done.stdout)

    def test_missing_and_contradictory_variables(self) -> None:
        for changes, word in (
            ({"RANK": "0"}, "WORLD_SIZE"),
            ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": "29500"}, "RANK"),
        ):
            done = self.run_program(PROGRAM, *self.SUITE, **changes)
            self.assertEqual(done.returncode, ENVIRONMENT, done.stderr)
            self.assertIn(f"environment variable {word}", done.stderr)

    def test_other_suites_want_no_world(self) -> None:
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": "29500"}
        done = self.run_program(PROGRAM, "--suite", "forward,sharded", "--case", "tiny", **place)
        self.assertEqual(done.returncode, USAGE, done.stderr)


if __name__ == "__main__":
    unittest.main()
