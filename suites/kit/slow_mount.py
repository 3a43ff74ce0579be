"""A slow, faltering volume: a folder mounted again by FUSE, with a latency and faults.

    python3 slow_mount.py SOURCE MOUNT [--latency SECONDS] [--direct] [--log FILE]
                           [--fail NAME:OFFSET:TIMES [--errno ESTALE]]
    python3 slow_mount.py --probe       # exit 0: FUSE works here

Needs Debian's python3-fusepy, so it runs under the system's Python. Each read takes the latency,
several at a time; a read that covers OFFSET of NAME fails with EIO, TIMES times. --direct: the
system keeps nothing in memory. FILE gets a line per read: name, offset, bytes, and how many reads
were in work with it.
"""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fusepy as fuse  # as Debian calls it


class Slow(fuse.Operations):
    """Reads of a folder, later than asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.source, self.latency = args.source.resolve(), args.latency
        self.error = getattr(errno, args.errno)
        self.log = args.log.open("a", buffering=1) if args.log else None
        self.faults: dict[str, list[list[int]]] = {}
        for fault in args.fail:
            name, offset, times = fault.rsplit(":", 2)
            self.faults.setdefault("/" + name, []).append([int(offset), int(times)])
        self.lock = threading.Lock()
        self.in_work = 0

    def _path(self, path: str) -> str:
        return os.path.join(self.source, path.lstrip("/"))

    def getattr(self, path: str, fh: int | None = None) -> dict:
        try:
            found = os.lstat(self._path(path))
        except OSError as error:
            raise fuse.FuseOSError(error.errno) from error
        keys = (
            "st_atime",
            "st_ctime",
            "st_gid",
            "st_mode",
            "st_mtime",
            "st_nlink",
            "st_size",
            "st_uid",
        )
        return {key: getattr(found, key) for key in keys}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._path(path))]

    def open(self, path: str, flags: int) -> int:
        try:
            return os.open(self._path(path), os.O_RDONLY)
        except OSError as error:
            raise fuse.FuseOSError(error.errno) from error

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with self.lock:
            self.in_work += 1
            if self.log:
                self.log.write(f"{path[1:]} {offset} {size} {self.in_work}\n")
        time.sleep(self.latency)
        with self.lock:
            self.in_work -= 1
            for fault in self.faults.get(path, []):
                if fault[1] > 0 and offset <= fault[0] < offset + size:
                    fault[1] -= 1
                    raise fuse.FuseOSError(self.error)
        return os.pread(fh, size, offset)


def probe() -> int:
    """Mounts something and looks at it."""
    with tempfile.TemporaryDirectory() as folder:
        source, mount = Path(folder, "source"), Path(folder, "mount")
        source.mkdir()
        mount.mkdir()
        (source / "file").write_text("there")
        server = subprocess.Popen(
            [sys.executable, __file__, source, mount], stderr=subprocess.DEVNULL
        )
        try:
            for _ in range(50):
                if (mount / "file").exists():
                    return 0 if (mount / "file").read_text() == "there" else 1
                if server.poll() is not None:
                    return 1
                time.sleep(0.1)
            return 1
        finally:
            subprocess.run(
                ["fusermount", "-u", "-z", mount], stderr=subprocess.DEVNULL, check=False
            )
            server.kill()
            server.wait()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="?", type=Path)
    parser.add_argument("mount", nargs="?")
    parser.add_argument("--latency", type=float, default=0)
    parser.add_argument("--fail", action="append", default=[])
    parser.add_argument("--errno", default="EIO")
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--probe", action="store_true")
    args = parser.parse_args()
    if args.probe:
        return probe()
    fuse.FUSE(Slow(args), args.mount, foreground=True, ro=True, direct_io=args.direct)
    return 0


if __name__ == "__main__":
    sys.exit(main())
