"""Packs the two wheels from what `cmake --install` laid out and from golden/dump: ci/wheel.

A wheel is a zip file with a list of its files; nothing else is needed to make one. The same inputs
give the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import hashlib
import platform
import re
import zipfile
from pathlib import Path

from pyz import DATE, FOLDER, ROOT

PYTHON = ">=3.10"
FACES = ROOT / "ci" / "wheels"  # what is in the wheels alone


@dataclasses.dataclass
class Wheel:
    """One wheel. files: name in it -> bytes; programs: console scripts and other entry points."""

    name: str
    version: str
    summary: str
    tag: str
    files: dict[str, bytes]
    entry_points: str
    requires: tuple[str, ...] = ()
    executables: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Writes it into the folder and returns its path."""
        info = f"{self.name}-{self.version}.dist-info"
        files = dict(sorted(self.files.items()))
        files[f"{info}/METADATA"] = self.metadata().encode()
        files[f"{info}/WHEEL"] = self.about().encode()
        files[f"{info}/entry_points.txt"] = self.entry_points.encode()
        files[f"{info}/licenses/LICENSE"] = (ROOT / "LICENSE").read_bytes()
        files[f"{info}/RECORD"] = self.record(files, f"{info}/RECORD").encode()
        path = folder / f"{self.name}-{self.version}-{self.tag}.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name, data in files.items():
                entry = zipfile.ZipInfo(name, DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.create_system = 3  # Unix
                mode = 0o100755 if name in self.executables else 0o100644
                entry.external_attr = mode << 16
                out.writestr(entry, data)
        return path

    def metadata(self) -> str:
        lines = ["Metadata-Version: 2.1", f"Name: {self.name}", f"Version: {self.version}"]
        lines += [f"Summary: {self.summary}", "License: Apache-2.0", f"Requires-Python: {PYTHON}"]
        return "\n".join(lines + [f"Requires-Dist: {x}" for x in self.requires]) + "\n"

    def about(self) -> str:
        pure = str(self.tag.endswith("-any")).lower()
        head = "Wheel-Version: 1.0\nGenerator: dsv32-verify ci/wheel\n"
        return head + f"Root-Is-Purelib: {pure}\nTag: {self.tag}\n"

    @staticmethod
    def record(files: dict[str, bytes], own: str) -> str:
        rows = []
        for name, data in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}")
        return "\n".join([*rows, f"{own},,"]) + "\n"


def version() -> str:
    """Of the project, as CMakeLists.txt has it."""
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.search(r"project\(dsv32_verify VERSION (\S+)", text)
    assert found, "CMakeLists.txt: project(dsv32_verify VERSION X ...)"
    return found[1]


def torch_requirement() -> str:
    """The torch that the program is linked with, and no other."""
    text = (ROOT / "ci" / "requirements.in").read_text()
    found = re.search(r"^torch==\S+", text, re.MULTILINE)
    assert found, "ci/requirements.in: torch==X"
    return found[0]


def judge(stage: Path) -> Wheel:
    """dsv32_verify: the installed layout under the package's name."""
    files = {
        f"dsv32_verify/{f.name}": f.read_bytes()
        for f in sorted((FACES / "dsv32_verify").glob("*.py"))
    }
    for file in sorted(f for f in stage.rglob("*") if f.is_file()):
        files[f"dsv32_verify/{file.relative_to(stage)}"] = file.read_bytes()
    libc = platform.libc_ver()[1].replace(".", "_")
    return Wheel(
        name="dsv32_verify",
        version=version(),
        summary="Judges DeepSeek-V3.2 implementations tap by tap against a float64 oracle",
        tag=f"py3-none-manylinux_{libc}_{platform.machine()}",
        files=files,
        entry_points="[console_scripts]\ndsv32-verify = dsv32_verify:main\n",
        requires=(torch_requirement(),),
        executables=("dsv32_verify/bin/dsv32-verify",),
    )


def dump() -> Wheel:
    """dsv32_dump: golden/dump with the list of cases, and the plugin of pytest."""
    files = {str(f.relative_to(FOLDER)): f.read_bytes() for f in FOLDER.rglob("*.py")}
    files.pop("__main__.py")
    files["dsv32_pytest.py"] = (FACES / "dsv32_pytest.py").read_bytes()
    files["dsv32_dump/cases.json"] = (ROOT / "configs" / "cases.json").read_bytes()
    scripts = (
        "[console_scripts]\ndsv32-dump = dsv32_dump:main\ndsv32-publish = dsv32_publish:main\n"
    )
    return Wheel(
        name="dsv32_dump",
        version=version(),
        summary="Runs a DeepSeek-V3.2 implementation and writes its trace for dsv32-verify",
        tag="py3-none-any",
        files=files,
        entry_points=scripts + "\n[pytest11]\ndsv32 = dsv32_pytest\n",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="ci/wheel", description=__doc__.split("\n")[0])
    parser.add_argument("--stage", type=Path, required=True, help="what cmake --install laid out")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for wheel in (judge(arguments.stage), dump()):
        path = wheel.write(arguments.out)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
