"""`dsv32-verify doctor` on this machine and on made-up ones: another /proc, programs that lie.

Which lack gives which line and remedy is tested on facts alone (self_doctor); here it is what a
machine's files and programs say.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import unittest
from pathlib import Path

from program import ENVIRONMENT, OK, USAGE, CliTest, environment, run

CPUINFO = """processor	: 0
model name	: A Test CPU
flags		: fpu sse avx2 fma avx512f avx512_bf16
"""
MEMINFO = "MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable: 60000000 kB\n"
LIMITS = "Limit                     Soft Limit           Hard Limit           Units\n" \
         "Max open files            65536                65536                files\n"  # fmt: skip
MOUNTS = "proc /proc proc rw 0 0\nshm /dev/shm tmpfs rw,nosuid,size=8388608k 0 0\n"
GPUS = "NVIDIA H200, 143771, {driver}\n" * 8
PYTHON = """#!/bin/sh
echo "python 3.11.2"
{lines}
"""
WHOLE = "torch 2.11.0\nnumpy 2.4.6\nsafetensors 0.8.0\ntransformers 5.23.0\ndeepseek_v32 yes"


class Doctor(CliTest):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.tell("proc/cpuinfo", CPUINFO)
        self.tell("proc/meminfo", MEMINFO)
        self.tell("proc/self/limits", LIMITS)
        self.tell("proc/mounts", MOUNTS)
        self.program("nvidia-smi", f"#!/bin/sh\nprintf '{GPUS.format(driver='580.65.06')}'")
        self.python(WHOLE)

    def tell(self, name: str, text: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def program(self, name: str, text: str) -> None:
        self.tell(f"bin/{name}", text)
        (self.root / "bin" / name).chmod(0o755)

    def python(self, packages: str) -> None:
        lines = "\n".join(f'echo "{line}"' for line in packages.splitlines())
        self.program("python", PYTHON.format(lines=lines))

    def look(self, *words: object) -> tuple[int, str]:
        env = environment(
            DSV32_DOCTOR_ROOT=str(self.root), PATH=f"{self.root / 'bin'}:{os.environ['PATH']}"
        )
        python = self.root / "bin" / "python"
        done = run("doctor", "--python", python, *words, env=env)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def expect(self, code: int, *texts: str) -> None:
        got, out = self.look()
        self.assertEqual(got, code, out)
        for text in texts:
            self.assertIn(text, out)

    def test_a_whole_node_lacks_nothing(self) -> None:
        self.expect(OK, "A Test CPU", "8 x NVIDIA H200", "8.6 GB", "dumps forward", "OK | --config")

    def test_little_memory(self) -> None:
        self.tell("proc/meminfo", MEMINFO.replace("60000000", "1000000"))
        self.expect(ENVIRONMENT, "lack  memory", "1.0 GB free", "--config tiny", "LACKING")

    def test_a_small_shared_memory(self) -> None:
        self.tell("proc/mounts", MOUNTS.replace("8388608k", "65536k"))
        self.expect(ENVIRONMENT, "lack  shared memory", "64 MiB", "--shm-size=8g")

    def test_few_open_files(self) -> None:
        self.tell("proc/self/limits", LIMITS.replace("65536 ", "1024  ", 1))
        self.expect(OK, "note  open files", "limit 1024", "ulimit -n 65536")

    def test_an_old_driver(self) -> None:
        self.program("nvidia-smi", f"#!/bin/sh\nprintf '{GPUS.format(driver='470.82.01')}'")
        got, out = self.look()
        lacking = "CUDA none" not in out  # a build without CUDA has nothing to run on it
        self.assertEqual(got, ENVIRONMENT if lacking else OK, out)
        self.assertIn("470.82.01", out)

    def test_a_driver_that_does_not_answer(self) -> None:
        said = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."
        self.program("nvidia-smi", f'#!/bin/sh\necho "{said}"\nexit 9')
        self.expect(OK, "note  gpu", said, "--device cpu")

    def test_what_each_python_can_dump(self) -> None:
        self.python(WHOLE.replace("\ndeepseek_v32 yes", ""))
        self.expect(OK, "has no deepseek_v32", "transformers>=5.12")
        self.python("numpy 2.4.6")
        self.expect(OK, "cannot dump, has the trace kit's numpy", "pip install torch safetensors")
        self.program("python", "#!/bin/sh\nexit 1")
        self.expect(OK, "does not run", "--python PATH")

    def test_a_real_python_is_asked_without_importing(self) -> None:
        done = run("doctor", "--config", "tiny", "--python", sys.executable)
        self.assertIn("numpy", done.stdout)

    def test_a_taken_port(self) -> None:
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                taken.bind(("127.0.0.1", 29500))
            except OSError:
                pass  # somebody else has it: taken all the same
            taken.listen()
            self.expect(OK, "29500 is taken", "--master-port")

    def test_the_sums_of_the_full_model(self) -> None:
        _, out = self.look()
        rows = {line.split("  ")[0]: line.split() for line in out.splitlines() if line}
        self.assertEqual(rows["full"][1:4], ["671.9e9", "1344", "GB"])
        self.assertEqual(rows["8 x 80 GB"][-2:], ["no", "no"])
        self.assertEqual(rows["4 x 141 GB"][-2:], ["no", "no"])
        self.assertEqual(rows["8 x 141 GB"][-2:], ["no", "fits"])
        self.assertEqual(rows["this machine"][-2:], ["no", "fits"])

    def test_a_volume_that_cannot_be_written(self) -> None:
        got, out = self.look("--weights", "/proc")
        self.assertEqual(got, ENVIRONMENT, out)
        self.assertIn("cannot be written", out)

    def test_another_config_than_the_four(self) -> None:
        done = run("doctor", "--config", "huge")
        self.assertEqual(done.returncode, USAGE)

    def test_this_machine(self) -> None:
        done = run("doctor", "--config", "tiny")
        self.assertEqual(done.returncode, OK, done.stdout)


if __name__ == "__main__":
    unittest.main()
