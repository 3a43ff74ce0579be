"""A piece of work in a child process, within limits of time and memory, its output caught.

The child is made by fork: what was imported before is there at once. Whatever it does to itself,
hangs, dies or eats memory, this process goes on and can tell what became of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import faulthandler
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, NoReturn

GRACE = 10.0  # seconds between the limit, told as an exception, and the end of the child
POLL = 0.005
KEPT = 16000  # bytes of output, the last ones
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl


class TimeLimit(Exception):
    """Raised in the main thread, wherever it is, once the time is over."""


@dataclasses.dataclass
class Ended:
    """How a child ended. code: its exit code, negative: the signal that killed it."""

    code: int
    seconds: float
    output: str
    killed_late: bool = False  # it did not listen to the limit

    def fate(self, limit: float) -> str:
        """What became of a child that did not end by itself, in words."""
        if self.killed_late:
            return f"TimeLimit: not done after {limit:g} s, and nothing in it could be stopped"
        if self.code < 0:
            return f"killed by signal {-self.code} ({signal.strsignal(-self.code)})"
        return f"ended with exit code {self.code}, without a trace"


def in_child(work: Callable[[], int], seconds: float, gib: float) -> Ended:
    """Runs `work` in a child and returns how that ended.

    work: its result is the exit code. gib: memory beyond what this process has; 0: no limit.
    """
    with tempfile.TemporaryFile() as caught:
        sys.stdout.flush()
        sys.stderr.flush()
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _be_child(work, caught, seconds, gib)
        status, late = _wait(pid, start + seconds + GRACE)
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, time.monotonic() - start, tail_of(caught), late)


def _be_child(work: Callable[[], int], caught: IO[bytes], seconds: float, gib: float) -> NoReturn:
    code = 3
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        for stream in (1, 2):
            os.dup2(caught.fileno(), stream)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        limit_memory(gib)
        faulthandler.dump_traceback_later(seconds + GRACE / 2)  # where a call into C hangs
        with time_limit(seconds):
            code = work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 3
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def limit_memory(gib: float) -> None:
    """Lets this process have so much more memory than it has now; then torch raises."""
    if not gib:
        return
    with open("/proc/self/status") as file:
        has = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
    most = has + int(gib * (1 << 30))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeLimit in what runs longer. Main thread only."""

    def over(*_: Any) -> None:
        raise TimeLimit(f"not done after {seconds:g} s")

    old = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def _wait(pid: int, deadline: float) -> tuple[int, bool]:
    """The child's status, and whether it had to be killed at the deadline."""
    late = False
    try:
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status, late
            if not late and time.monotonic() > deadline:
                late = True
                _kill_group(pid)
            time.sleep(POLL)
    except BaseException:  # interrupted: the child goes with us
        _kill_group(pid)
        os.waitpid(pid, 0)
        raise


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def tail_of(file: IO[bytes]) -> str:
    """The last bytes of a file as text."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - KEPT))
    return file.read().decode(errors="replace")


@contextlib.contextmanager
def caught_output() -> Iterator[IO[bytes]]:
    """Standard output and error of this process go into a file that is given."""
    sys.stdout.flush()
    sys.stderr.flush()
    old = [os.dup(stream) for stream in (1, 2)]
    with tempfile.TemporaryFile() as caught:
        for stream in (1, 2):
            os.dup2(caught.fileno(), stream)
        try:
            yield caught
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, place in zip((1, 2), old, strict=True):
                os.dup2(place, stream)
                os.close(place)
