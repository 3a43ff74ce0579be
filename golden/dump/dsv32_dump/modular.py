"""Whether a tree's generated model files are what its modular files say.

transformers generates modeling_X.py from modular_X.py. A mend by hand in the generated file works
until somebody generates it again, and then is lost. The tree's own checker is asked, in a process
of its own, in the tree.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

SECONDS = 120
LINES = 12
CHECKER = Path("utils") / "check_modular_conversion.py"
# Its command line looks at what git says has changed; the function behind it does not. Releases
# differ in what that function takes.
ASK = """
import inspect, sys
sys.path.insert(0, "utils")
sys.argv = sys.argv[:1]
import check_modular_conversion as checker
path = {path!r}
names = list(inspect.signature(checker.compare_files).parameters)
differs = checker.compare_files((path, False) if names[0] == "args" else path)
sys.exit(10 if differs else 0)
"""
DIFFERS = 10


def check_modular(tree: Path | None) -> dict[str, Any]:
    """`state`: same, differs, untested or none (no modular file); `file`, `note`."""
    root = _root_of(tree) if tree else None
    found = sorted(root.glob("src/transformers/models/deepseek_v32/modular_*.py")) if root else []
    if not root or not found:
        return {"state": "none", "file": "", "note": "no modular file in a source tree"}
    file = str(found[0].relative_to(root))
    if not (root / CHECKER).is_file():
        return {"state": "untested", "file": file, "note": f"there is no {CHECKER}"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK.format(path=file)],
            cwd=root,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"state": "untested", "file": file, "note": f"not done after {SECONDS} s"}
    if done.returncode == 0:
        return {"state": "same", "file": file, "note": ""}
    if done.returncode == DIFFERS:
        return {"state": "differs", "file": file, "note": _differences(done.stdout)}
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"state": "untested", "file": file, "note": f"its checker failed: {last}"}


def _root_of(tree: Path) -> Path:
    """The checkout's root, whether it, its src or the package was named."""
    tree = tree.resolve()
    roots = (tree, tree.parent, tree.parent.parent)
    return next((root for root in roots if (root / CHECKER).is_file()), tree)


def _differences(shown: str) -> str:
    """The lines of a diff that differ, the first of them."""
    lines = [line.strip() for line in shown.splitlines()]
    changed = [x for x in lines if x[:1] in "+-" and x[:3] not in ("+++", "---") and len(x) > 1]
    more = f", and {len(changed) - LINES} more" if len(changed) > LINES else ""
    return "generated (-) and in the file (+): " + " | ".join(changed[:LINES]) + more
