"""data/manifest.json: every golden in a folder with its hash (docs/formats.md)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dsv32_trace import canonical_json
from synthetic import load_cases

FORMAT = "dsv32-verify.golden-manifest"


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def update(folder: Path) -> None:
    """Goldens CASE.h5 in the order of the cases, then goldens of suites, SUITE.CASE.h5, by name."""
    cases = load_cases()
    listed = [(folder / f"{name}.h5", name, case.golden) for name, case in cases.items()]
    for file in sorted(folder.glob("*.*.h5")):
        kind = "generate" if file.stem.startswith("generate.") else "train"
        listed.append((file, file.stem, kind))
    files = [
        {"case": name, "file": file.name, "kind": kind}
        | {"sha256": sha256(file), "size": file.stat().st_size}
        for file, name, kind in listed
        if file.is_file()
    ]
    document = {"format": FORMAT, "version": 1, "files": files}
    (folder / "manifest.json").write_text(canonical_json(document) + "\n")
