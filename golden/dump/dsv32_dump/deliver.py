"""A live model to a trace file, and the account of the run for people on stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dsv32_trace import canonical_json, check_case, make_batch
from torch import Tensor, nn

from .errors import Capture, ModelCrash, say
from .generate import generate
from .packages import refuse_missing_package, with_stand_in
from .parts import Sizes
from .run import capture
from .settings import Options
from .sketch import sketched_taps
from .trace import write_trace
from .training import train
from .weights import Checkpoint, compare_weights, loaded_tensors, weights_identity

NAMES_SHOWN = 8


def dump(
    model: nn.Module,
    case: dict[str, Any],
    out: str | Path,
    options: Options | None = None,
    *,
    checkpoint: str | Path | None = None,
) -> Capture:
    """Captures a live model, or trains it when `options` name a suite, and writes the trace file.

    checkpoint: the directory that the model was loaded from; its weights are compared with it bit
    for bit.
    A crash of the model is written as a trace with `failure` and then returned, not raised.
    """
    case, options = check_case(case, "case"), options or Options()
    identity = identity_of(model, case, checkpoint)
    work = train if options.suite else generate if options.decoding else capture
    try:
        run = with_stand_in(lambda: work(model, case, options))
    except ModelCrash as crash:
        refuse_missing_package(crash)
        run = crash.capture
    run.metadata |= identity
    if run.failure:
        run.metadata["failure"] = canonical_json(run.failure)
    taps = run.taps
    if options.sketch:
        taps = _sketched(model, case, options, taps)
        run.metadata["sketch"] = "1"
    write_trace(Path(out), taps, run.metadata)
    return run


def _sketched(
    model: nn.Module, case: dict[str, Any], options: Options, taps: dict[str, Tensor]
) -> dict[str, Tensor]:
    config = getattr(model.config, "text_config", None) or model.config
    batch = options.batch or make_batch(case, config.vocab_size)
    values = {name: value.detach().cpu() for name, value in taps.items()}
    wide = {n: (v.float() if v.is_floating_point() else v).numpy() for n, v in values.items()}
    parts = sketched_taps(wide, batch, config.index_topk)
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in parts.items()}


def identity_of(
    model: nn.Module, case: dict[str, Any], checkpoint: str | Path | None
) -> dict[str, str]:
    """What the trace says of the weights: which they are, and whether they are the checkpoint's."""
    if checkpoint is None:
        own = loaded_tensors(model, Sizes.of(model.config).hidden)
        return {"weights": weights_identity(lambda: iter(own.items()), case)}
    files = Checkpoint(Path(checkpoint))
    loaded = compare_weights(model, files)
    report_weights(loaded)
    identity = weights_identity(files.tensors, case)
    return {"weights": identity, "weights_loaded": canonical_json(loaded)}


def report_weights(loaded: dict[str, Any]) -> None:
    """Says which tensors the model did not load as they are in the checkpoint."""
    for kind in ("different", "missing", "unexpected"):
        names = loaded[kind]
        if names:
            shown = ", ".join(names[:NAMES_SHOWN]) + (" ..." if len(names) > NAMES_SHOWN else "")
            say(f"weights {kind}: {len(names)}: {shown}")


def first_nan(taps: dict[str, Tensor]) -> str | None:
    """The first tap that holds a NaN, in execution order; padding may, if the loss is a number."""
    for name, value in taps.items():
        if not value.is_floating_point() or not value.isnan().any():
            continue
        if value.dim() < 2 or ("loss.lm" in taps and taps["loss.lm"].isnan()):
            return name
    return None


def report_hints(run: Capture) -> None:
    """Says what to do next about a NaN and about a model that is another one."""
    nan = first_nan(run.taps)
    if nan is not None:
        say(f"NaN, first in {nan}; hint: ids beyond the vocabulary, a row without visible keys, "
            "float16, or a learning rate too high: docs/troubleshooting.md")
    indexer = [name for name in run.missing if ".ix." in name or name.endswith(".topk")]
    if indexer and not any(".ix." in name for name in run.taps):
        say("no lightning indexer was found in this model; hint: is it DeepSeek-V3.2, on the "
            "fork's branch that has it? --class NAME, --transformers PATH")


def report_slopes(run: Capture) -> None:
    """Says where the gradient stops, if it does."""
    stopped = json.loads(run.metadata.get("slopes_none", "[]"))
    if stopped:
        more = f" and {len(stopped) - 1} more" if len(stopped) > 1 else ""
        say(f"no gradient reaches {stopped[0]}{more}; hint: detached there, in no_grad, or times 0")


def report_run(run: Capture, out: Path) -> None:
    """Says what was written, what is missing, and how the model crashed."""
    report_hints(run)
    report_slopes(run)
    for name in run.missing if not run.failure else ():
        say(f"tap {name}: {run.reasons.get(name, 'not found')}")
    if run.failure:
        failure = run.failure
        say(f"the model crashed: {failure['where']}: {failure['phase']}: {failure['message']}")
        say(f"inputs of that module: {failure['shapes']}; raised at {failure['raised_at']}")
    backend = run.metadata["attn_implementation"]
    say(f"{out}: {len(run.taps)} taps, {len(run.missing)} missing, {backend} attention")
