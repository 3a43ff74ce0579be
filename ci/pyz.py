"""Zips golden/dump and the list of cases into one file that Python runs: ci/pyz [FILE].

The same sources give the same bytes: files in the order of their names, one date, no compression
(whose output depends on the version of zlib).
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "golden" / "dump"
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can hold
SHEBANG = b"#!/usr/bin/env python3\n"


def contents() -> dict[str, bytes]:
    """Name in the archive -> bytes."""
    files = {str(file.relative_to(FOLDER)): file.read_bytes() for file in FOLDER.rglob("*.py")}
    return files | {"dsv32_dump/cases.json": (ROOT / "configs" / "cases.json").read_bytes()}


def archive(files: dict[str, bytes]) -> bytes:
    """The zip file, with the line before it by which a shell finds Python."""
    buffer = io.BytesIO()
    buffer.write(SHEBANG)
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as out:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, DATE)
            entry.create_system = 3  # Unix, wherever it is made
            entry.external_attr = 0o100644 << 16
            out.writestr(entry, data)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(prog="ci/pyz", description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "golden" / "dump.pyz")
    file = parser.parse_args().file
    file.write_bytes(archive(contents()))
    file.chmod(0o755)
    print(f"{file}: {file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
