"""Runs one implementation of DeepSeek-V3.2 in its own Python environment and writes its trace.

It needs torch >= 2.4, numpy, safetensors and the transformers under test, nothing else. It runs
from the folder, or as one zipped file that can be copied to wherever the implementation is
(`ci/pyz` makes golden/dump.pyz):

    python golden/dump --checkpoint ckpt/ --case small --out fork.safetensors
        [--transformers PATH]
        [--mode backward | kl-warmup | kl-sparse | train --suite loss_descent | generate]
    python dump.pyz ...

or, on a live model, with golden/dump or dump.pyz on PYTHONPATH:

    from dsv32_dump import Options, capture, dump
    run = capture(model, case, Options(backward=True))   # run.taps, run.missing, run.metadata
    dump(model, case, "fork.safetensors")                # the same, as a trace file
    assert_parity(model, "tiny-wide")                    # the same, judged by dsv32-verify

From the outside in:

    command       words to a case, a model and Options
    case, batch   which tokens
    load          the fork's own from_pretrained
    jobs, bounds  many dumps in one process, each in a child within limits; modular: the tree's own
                  check of generated files
    deliver       a live model to a trace file; parity: and to the judge
    own_run       steps of somebody's own training; own_callback: by the Trainer of transformers;
                  own_step: one of them; adapters: what LoRA was put on
    weights       what was loaded, bit for bit
    generate      greedy decoding by the implementation's own loop
    run           one capture; training, lora: one training run
    settings      Options; switches set on the model and put back
    recorder      what passes through modules and through torch; watch: installs it
    parts         which module is what in the paper
    taps          raw material to taps; slopes, slope_taps: their gradients
    objective     the losses that train the indexer; kl: their formula
    environment   provenance; packages: what is not installed
    trace         the file; sketch: what a small one keeps; gradients, tensors, errors

Modules are found by structure and checkpoint name, never by class name. Index scores, softmax
inputs and routing are read where they pass through torch, while the forward pass runs. Nothing is
computed on the model's behalf but what `derived_taps` in the metadata lists.

Exit codes: 0 written · 1 the implementation crashed (the file has the account of it in `failure`,
and the taps seen until then) · 2 usage · 3 a bug of this tool · 4 wrong input (checkpoint, case,
another transformers than asked for) · 6 environment (output not writable, a package missing) · 130
interrupted · 143 terminated.
"""

from typing import Any

from .command import main
from .deliver import dump
from .errors import Capture, DumpError, ModelCrash
from .generate import generate
from .own_run import OwnRun, follow, judge
from .parity import assert_parity
from .run import capture
from .settings import Decoding, Options
from .training import train

__all__ = [
    "Capture",
    "Decoding",
    "DumpError",
    "ModelCrash",
    "Options",
    "OwnRun",
    "ParityCallback",
    "assert_parity",
    "capture",
    "dump",
    "follow",
    "generate",
    "judge",
    "main",
    "train",
]


def __getattr__(name: str) -> Any:
    """ParityCallback, which needs transformers, when it is asked for."""
    if name != "ParityCallback":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .own_callback import ParityCallback

    return ParityCallback
