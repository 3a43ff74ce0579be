"""docs/troubleshooting.md: every entry happens, in these words.

ctest: `golden.troubleshooting`, in .venv-golden.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path

import dsv32_trace as kit
import numpy as np
from program import ROOT, checkpoint, clean_up, run, run_within, scratch
from safetensors.numpy import save_file

sys.path.insert(0, str(ROOT / "integrations" / "engines"))
import numpy_engine  # noqa: E402

ENTRIES = re.findall(r"^### (.+)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.M)

Seen = tuple[int, str]


def said(*words: object) -> Seen:
    """Exit code and both streams of a run of dsv32-verify."""
    done = run(*words)
    return done.returncode, done.stdout + done.stderr


def too_large() -> Seen:
    done = run_within(8, "--config", "full", "--suite", "forward")
    return done.returncode, done.stdout + done.stderr


def dump(*words: object, python: str = sys.executable, case: str = "tiny-wide") -> Seen:
    given = [] if "--checkpoint" in words else ["--checkpoint", checkpoint(case), "--case", case]
    command = [python, ROOT / "golden" / "dump", *given, "--out", scratch / "x.safetensors", *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return done.returncode, done.stderr


def logits(positions: bool = True) -> np.ndarray:
    case = kit.open_case("tiny-wide")
    mask, places = case.batch["attention_mask"], case.position_ids
    if not positions:
        mask, places = np.ones_like(mask), np.tile(np.arange(33), (2, 1))
    weights = dict(case.weights())

    def ignore(*_: object) -> None:
        pass

    return numpy_engine.forward(weights, case.config, case.input_ids, places, mask, ignore)


def trace(**taps: np.ndarray) -> Path:
    made = kit.Trace(kit.open_case("tiny-wide"))
    for name, value in taps.items():
        made.put(name.replace("loss_lm", "loss.lm"), value, allow_nan=True)
    return made.write(scratch / "made.safetensors")


def ids_beyond() -> Seen:
    ids = kit.open_case("tiny-wide").input_ids.copy()
    ids[0, 3] = 100
    save_file({"input_ids": ids}, scratch / "ids.safetensors")
    return dump("--batch", scratch / "ids.safetensors")


def broken_weight() -> Seen:
    """A checkpoint whose last norm is NaN."""
    import torch
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save

    folder = scratch / "nan"
    shutil.copytree(checkpoint("tiny-wide"), folder)
    file = folder / "model-00001-of-00001.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * torch.nan
    save(tensors, file, {"format": "pt"})
    return dump("--checkpoint", folder, "--mode", "backward")


def lost_weights() -> Seen:
    return dump("--class", "DeepseekV3ForCausalLM")


def nan_logits() -> Seen:
    value = logits()
    value[0, 5] = np.nan
    return said("--candidate", trace(logits=value))


def stand_in() -> Seen:
    """A tree whose model file imports fast_hadamard_transform."""
    source = Path(sys.prefix) / "lib"
    package = next(source.glob("python3*/site-packages/transformers"))
    tree = scratch / "tree" / "transformers"
    shutil.copytree(package, tree, ignore=shutil.ignore_patterns("__pycache__"))
    file = tree / "models" / "deepseek_v32" / "modeling_deepseek_v32.py"
    imported = "from __future__ import annotations\n"
    text = file.read_text()
    line = "import fast_hadamard_transform\n"
    start = text.index("import torch\n")
    file.write_text(text[:start] + line + text[start:].replace(imported, ""))
    return dump("--transformers", tree.parent)


def wrong_shape() -> Seen:
    made = kit.Trace(kit.open_case("tiny-wide"))
    made.taps["logits"] = np.zeros((33, 2, 100), np.float32)
    return said("--candidate", made.write(scratch / "shape.safetensors"))


def yarn() -> Seen:
    dump(case="tiny-yarn")
    return said("--candidate", scratch / "x.safetensors")


OWN_RUN = """
import sys, peft, torch, transformers
from dsv32_dump import follow
from dsv32_dump.lora import plain_lora_targets
load = transformers.AutoModelForCausalLM.from_pretrained
model = load(sys.argv[1], dtype=torch.float32).train()
with plain_lora_targets():
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["o_proj", "wq"]))
with follow(model, torch.optim.SGD(model.parameters(), 1e-3), sys.argv[2]):
    model(inputs_embeds=torch.zeros(1, 8, 64))
"""


def own_run() -> Seen:
    command = [sys.executable, "-c", OWN_RUN, checkpoint("tiny-wide"), scratch / "own"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return done.returncode, done.stderr


def no_tracker() -> Seen:
    said("--case", "tiny", "--impl", "reference", "--out", scratch / "report")
    script = ROOT / "golden" / "dump" / "dsv32_publish.py"
    command = [sys.executable, script, scratch / "report" / "report.json", "--to", "wandb"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    return done.returncode, done.stderr


EXPECTED: dict[str, tuple[Callable[[], Seen], int]] = {
    "tokens in [0, 100), got a token outside": (ids_beyond, 4),
    "NaN, first in": (broken_weight, 0),
    "no lightning indexer was found in this model": (lost_weights, 0),
    "weights missing": (lost_weights, 0),
    "transformers: import: expected an installed package": (
        lambda: dump(python=str(ROOT / ".venv" / "bin" / "python")), 6),
    "expected a source tree or a transformers package folder": (
        lambda: dump("--transformers", scratch), 4),
    "a checkpoint made for": (
        lambda: dump("--checkpoint", checkpoint("tiny"), "--case", "tiny-wide"), 4),
    "expected a folder with config.json": (lambda: dump("--checkpoint", scratch / "none"), 4),
    "a plain torch stand-in takes its place": (stand_in, 0),
    "0 modules matched": (own_run, 0),
    "not taken": (own_run, 0),
    "loss alone hardly depends on the model": (
        lambda: said("--candidate", trace(loss_lm=np.float32(5.5))), 1),
    "NaN or infinite values, the first at": (nan_logits, 1),
    "those of batch row 1 and no others": (
        lambda: said("--candidate", trace(logits=logits(positions=False))), 1),
    "= dialect hf": (yarn, 1),
    "contradicts --case": (
        lambda: said("--candidate", trace(logits=logits()), "--case", "tiny"), 4),
    "shape: expected": (wrong_shape, 4),
    "expected it to import": (no_tracker, 6),
    "memory: expected": (too_large, 6),
    "cannot be written": (lambda: said("--config", "tiny", "--out", "/proc/x"), 6),
    "the time limit was reached": (lambda: said("--config", "small", "--timeout", "0.5"), 6),
    "the others are ended": (lambda: said("launch", "--nproc", "2", "--", "false"), 1),
}  # fmt: skip


class Troubleshooting(unittest.TestCase):
    def test_the_page_and_the_test_have_the_same_entries(self) -> None:
        self.assertEqual(ENTRIES, list(EXPECTED))

    def test_each_entry_happens_in_these_words(self) -> None:
        seen: dict[Callable[[], Seen], Seen] = {}
        for words, (make, code) in EXPECTED.items():
            with self.subTest(words):
                if make not in seen:
                    seen[make] = make()
                got, text = seen[make]
                self.assertIn(words, text)
                self.assertEqual(got, code, text)

    def test_each_entry_says_what_to_do(self) -> None:
        page = (ROOT / "docs" / "troubleshooting.md").read_text()
        for entry in re.split(r"^### ", page, flags=re.M)[1:]:
            self.assertRegex(entry, r"Next:|nothing to do", entry)


if __name__ == "__main__":
    try:
        unittest.main()
    finally:
        clean_up()
