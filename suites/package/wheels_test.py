"""The two wheels in fresh environments, away from the source tree. ctest: `package.wheels`.

The environments get this machine's torch and transformers as links, so that nothing is downloaded;
pip installs the wheels themselves, without any index.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = {"pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"}

FOLDER = Path(tempfile.mkdtemp(prefix="dsv32-wheels-"))
WHEELS = FOLDER / "wheels"

PARITY = """
import os, re, shutil, sys
import torch
from dsv32_dump import assert_parity
from dsv32_dump.parity import make_checkpoint
from transformers import AutoModelForCausalLM
path = make_checkpoint("tiny-wide", sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
report = assert_parity(model, "tiny-wide", checkpoint=path)
print("green", report["counts"]["pass"])
model.model.layers[0].self_attn.indexer.k_norm.eps = 1e-5
try:
    assert_parity(model, "tiny-wide", checkpoint=path)
except AssertionError as error:
    print("red", "k-norm-eps" in str(error))
    folder = re.search("trace and reports: (.*)", str(error))[1]
    print("kept", sorted(os.listdir(folder)))
    shutil.rmtree(folder)
"""
# pytest is in no environment here: what the plugin takes from it, in a few lines.
FIXTURE = """
import pathlib, sys, types
fixtures = {}
pytest = types.ModuleType("pytest")
pytest.fixture = lambda scope: lambda function: fixtures.setdefault(function.__name__, function)
sys.modules["pytest"] = pytest
import dsv32_pytest
assert "torch" not in sys.modules, "a test run that does not use it pays nothing"
class Config:
    getoption = staticmethod(lambda name: None)
class Request:
    config = Config
class Folders:
    mktemp = staticmethod(lambda name: pathlib.Path(sys.argv[1]))
judge = fixtures["dsv32"](Request, Folders)
path = judge.checkpoint("tiny-wide")
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
print("green", judge.assert_parity(model, "tiny-wide", checkpoint=path)["counts"]["fail"])
"""


def call(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Away from the source tree, with nothing of the build in the environment."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(FOLDER), **dict(options.pop("env", {}))}
    return subprocess.run(
        list(map(str, words)), cwd=FOLDER, env=env, capture_output=True, text=True, timeout=300
    )


def site_packages(venv: Path) -> Path:
    return next((venv / "lib").glob("python3*")) / "site-packages"


def environment(name: str, *sources: str) -> Path:
    """A fresh environment with the packages of these ones as links."""
    venv = FOLDER / name
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    for source in sources:
        for entry in site_packages(ROOT / source).iterdir():
            place = site_packages(venv) / entry.name
            if entry.name not in OWN and not entry.name.startswith("pip-") and not place.exists():
                place.symlink_to(entry)
    return venv


def install(venv: Path, wheel: str) -> subprocess.CompletedProcess[str]:
    file = next(WHEELS.glob(f"{wheel}-*.whl"))
    words = ["-m", "pip", "install", "--no-index", "--no-deps", "--disable-pip-version-check"]
    return call(venv / "bin" / "python", *words, file)


def setUpModule() -> None:
    env = os.environ | {"DSV32_BUILD": "0"}
    done = subprocess.run(
        [ROOT / "ci" / "wheel", WHEELS], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def tearDownModule() -> None:
    shutil.rmtree(FOLDER)


class Judge(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.venv = environment("judge", ".venv")
        done = install(cls.venv, "dsv32_verify")
        assert done.returncode == 0, done.stderr
        cls.program = cls.venv / "bin" / "dsv32-verify"

    def test_the_tiny_cases_are_green(self) -> None:
        done = call(self.program)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("tiny-wide", done.stdout)

    def test_it_judges_by_its_own_data(self) -> None:
        done = call(self.program, "--version", env={"DSV32_DATA": "/nowhere"})
        beside = site_packages(self.venv) / "dsv32_verify" / "share" / "dsv32-verify"
        self.assertIn(f"data {beside} (beside the program)", done.stdout)
        for word in ("torch", "CUDA", "HDF5"):
            self.assertRegex(done.stdout, rf"(?m)^{word} \S+")

    def test_a_copied_program_says_whose_data_it_takes(self) -> None:
        package = site_packages(self.venv) / "dsv32_verify"
        copy = site_packages(self.venv) / "copy" / "bin" / "dsv32-verify"
        copy.parent.mkdir(parents=True)
        shutil.copy(package / "bin" / "dsv32-verify", copy)
        shutil.copytree(package / "lib", copy.parents[1] / "lib")
        data = str(package / "share" / "dsv32-verify")
        done = call(copy, "--version", env={"DSV32_DATA": data})
        self.assertIn(f"data {data} (DSV32_DATA)", done.stdout, done.stderr)

    def test_libraries_come_from_beside_it_alone(self) -> None:
        package = site_packages(self.venv) / "dsv32_verify"
        for file in (package / "bin" / "dsv32-verify", package / "lib" / "libdsv32_ops.so"):
            shown = subprocess.run(["readelf", "-d", file], capture_output=True, text=True).stdout
            paths = [line for line in shown.splitlines() if "RUNPATH" in line or "RPATH" in line]
            self.assertEqual(len(paths), 1)
            folders = paths[0].split("[")[1].rstrip("]").split(":")
            self.assertTrue(all(folder.startswith("$ORIGIN/") for folder in folders), paths)
            needed = [line for line in shown.splitlines() if "NEEDED" in line]
            for name in ("hdf5", "spdlog", "fmt", "curl"):
                self.assertFalse([line for line in needed if name in line])

    def test_the_ops_load_in_python(self) -> None:
        code = (
            "import dsv32_verify, torch; dsv32_verify.load_ops(); print(torch.ops.dsv32.rms_norm)"
        )
        done = call(self.venv / "bin" / "python", "-c", code)
        self.assertIn("dsv32.rms_norm", done.stdout, done.stderr)

    def test_without_torch_beside_it_says_what_it_wants(self) -> None:
        bare = environment("bare")
        self.assertEqual(install(bare, "dsv32_verify").returncode, 0)
        done = call(bare / "bin" / "dsv32-verify", "--version")
        self.assertEqual(done.returncode, 6)
        self.assertIn("torch: expected", done.stderr)

    def test_torch_is_pinned(self) -> None:
        done = call(self.venv / "bin" / "python", "-m", "pip", "show", "dsv32_verify")
        self.assertRegex(done.stdout, r"Requires: torch")

    def test_a_fork_is_judged(self) -> None:
        fork = environment("installed", ".venv-golden", ".venv")
        words = ["fork", "--python", fork / "bin" / "python", "--case", "tiny-wide,tiny-chunk"]
        done = call(self.program, *words, "--out", FOLDER / "report")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


class Dump(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        judge = environment("other", ".venv")
        assert install(judge, "dsv32_verify").returncode == 0
        cls.variables = {"DSV32_VERIFY": str(judge / "bin" / "dsv32-verify")}
        cls.venv = environment("fork", ".venv-golden", ".venv")
        done = install(cls.venv, "dsv32_dump")
        assert done.returncode == 0, done.stderr

    def python(self, code: str, *words: object) -> str:
        done = call(self.venv / "bin" / "python", "-c", code, *words, env=self.variables)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_it_is_a_program(self) -> None:
        done = call(self.venv / "bin" / "dsv32-dump", "--help")
        self.assertIn("--checkpoint", done.stdout, done.stderr)
        done = call(self.venv / "bin" / "dsv32-publish", "--help")
        self.assertIn("wandb", done.stdout, done.stderr)

    def test_it_pins_nothing(self) -> None:
        with zipfile.ZipFile(next(WHEELS.glob("dsv32_dump-*.whl"))) as file:
            names = [name for name in file.namelist() if name.endswith("METADATA")]
            self.assertNotIn("Requires-Dist", file.read(names[0]).decode())

    def test_parity_is_asserted_in_python(self) -> None:
        said = self.python(PARITY, FOLDER / "checkpoint")
        self.assertRegex(said, r"green \d+")
        self.assertIn("red True", said)
        self.assertIn("'report.html'", said)
        self.assertIn("'tiny-wide.safetensors'", said)

    def test_the_fixture_judges_a_model(self) -> None:
        self.assertIn("green 0", self.python(FIXTURE, FOLDER / "fixture"))


class Bytes(unittest.TestCase):
    def test_two_builds_are_the_same_bytes(self) -> None:
        again = FOLDER / "again"
        command = [ROOT / ".venv" / "bin" / "python", ROOT / "ci" / "wheel.py"]
        stage = ROOT / "build" / "wheel-stage"
        words = ["--stage", stage, "--out", again]
        subprocess.run([*command, *words], check=True, capture_output=True)
        for wheel in WHEELS.glob("*.whl"):
            self.assertEqual((again / wheel.name).read_bytes(), wheel.read_bytes())

    def test_every_file_is_in_the_record(self) -> None:
        for wheel in WHEELS.glob("*.whl"):
            with zipfile.ZipFile(wheel) as file:
                record = next(name for name in file.namelist() if name.endswith("RECORD"))
                rows = file.read(record).decode().splitlines()
                self.assertEqual({row.split(",")[0] for row in rows}, set(file.namelist()))

    def test_data_of_the_wheel_is_the_tree_s(self) -> None:
        wheel = next(WHEELS.glob("dsv32_verify-*.whl"))
        with zipfile.ZipFile(wheel) as file:
            inside = file.read("dsv32_verify/share/dsv32-verify/configs/cases.json")
        self.assertEqual(json.loads(inside), json.loads((ROOT / "configs/cases.json").read_text()))


if __name__ == "__main__":
    unittest.main()
