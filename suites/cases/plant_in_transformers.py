"""Writes the trace of real transformers with a bug of planted_bugs.py in it: one file for each.

    python plant_in_transformers.py CHECKPOINTS OUT [LABEL]...

CHECKPOINTS holds one folder per case; OUT gets NUMBER.safetensors, numbered as KNOWN + UNKNOWN +
BACKWARD.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from dsv32_dump import Options, dump
from dsv32_dump.load import Loading, import_transformers, load_model
from planted_backward import BACKWARD
from planted_bugs import KNOWN, UNKNOWN, Bug

MODULE = "transformers.models.deepseek_v32.modeling_deepseek_v32"


def plant(source: str, bug: Bug) -> str:
    for old, new in bug.edits:
        if source.count(old) < 1:
            raise SystemExit(f"{bug.label}: this transformers has no line {old!r}")
        source = source.replace(old, new)
    return source


def main(checkpoints: Path, out: Path, labels: list[str]) -> None:
    transformers = import_transformers()
    module = importlib.import_module(MODULE)
    source = Path(module.__file__).read_text(encoding="utf-8")
    for number, bug in enumerate(KNOWN + UNKNOWN + BACKWARD):
        if labels and bug.label not in labels:
            continue
        code = compile(plant(source, bug), module.__file__, "exec", dont_inherit=True)
        exec(code, vars(module))  # noqa: S102
        checkpoint = checkpoints / bug.case
        loading = Loading(checkpoint, cls=f"{MODULE}.DeepseekV32ForCausalLM", attn=bug.attn)
        model = load_model(transformers, loading)
        # The backend of experts that runs the edited lines.
        model.set_experts_implementation("eager")
        case = json.loads((checkpoint / "dsv32_case.json").read_text(encoding="utf-8"))
        dump(
            model,
            case,
            str(out / f"{number}.safetensors"),
            Options(backward=True, slopes=bug.slopes),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
