"""The command line: a checkpoint and a case in, a trace file out."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from dsv32_trace import CASE_FILE, canonical_json

from .batch import case_with, read_batch
from .case import find_case, json_object
from .deliver import dump, report_run
from .environment import tool
from .errors import Capture, DumpError, account_of, raised_at, say
from .generate import CACHES, check_cache, decoding_metadata, decoding_of_case
from .jobs import LAST_FRAMES, Server, check_jobs
from .kl import KL_STAGES
from .load import DTYPES, Loading, import_transformers, load_model
from .packages import refuse_missing_package, with_stand_in
from .settings import Options
from .trace import check_output, trace_metadata, write_trace
from .training import SUITES
from .weights import Checkpoint, weights_identity

DESCRIPTION = "Runs a DeepSeek-V3.2 implementation and writes its trace for dsv32-verify."
MODES = ("forward", "backward", *(f"kl-{stage}" for stage in KL_STAGES), "train", "generate")


def main(words: list[str] | None = None) -> int:
    """Runs the command and returns its exit code; errors are one line on stderr."""
    arguments = parse_arguments(words)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return guarded(lambda: run_jobs(arguments) if arguments.jobs else run_command(arguments))


def guarded(work: Callable[[], int]) -> int:
    """The exit code of `work`, or of what it raises, which is told in one line."""
    try:
        return work()
    except DumpError as error:
        say(str(error))
        return error.code
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except Exception as error:
        say(f"internal error: {type(error).__name__}: {error} at {raised_at(error)}")
        return 3


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    """The words as data; `words` are those that do not belong to one job alone."""
    parser = argparse.ArgumentParser(prog="dump", description=DESCRIPTION)
    _add_what(parser.add_argument)
    _add_implementation(parser.add_argument)
    _add_how(parser.add_argument)
    arguments = parser.parse_args(words)
    _check_jobs_or_one(parser, arguments)
    arguments.words = [str(word) for word in (sys.argv[1:] if words is None else words)]
    if arguments.jobs:
        at = next(i for i, word in enumerate(arguments.words) if word.startswith("--job"))
        del arguments.words[at : at + (1 if "=" in arguments.words[at] else 2)]
    return arguments


def _check_jobs_or_one(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """One job is told on the command line, many in a file, and never both."""
    own = ("checkpoint", "out", "case", "batch", "suite", "steps", "eos", "new_tokens")
    if not arguments.jobs:
        absent = [f"--{name}" for name in own[:2] if getattr(arguments, name) is None]
        if absent:
            parser.error("the following arguments are required: " + ", ".join(absent))
        return
    both = [f"--{name}" for name in own if getattr(arguments, name) is not None]
    if both or arguments.mode != "forward":
        parser.error(f"--jobs has them for each job: {', '.join(both) or '--mode'}")


def _add_what(add: Any) -> None:
    """What is run, and where the trace goes."""
    made = "directory: config.json, safetensors (dsv32-verify weights make)"
    add("--checkpoint", type=Path, help=made)
    add("--out", type=Path, help="trace file to write (safetensors)")
    many = "many dumps in one process: a JSON list of them (docs/formats.md 4)"
    add("--jobs", type=Path, metavar="FILE", help=many)
    add("--case", help=f"name or JSON; default: {CASE_FILE} in the checkpoint")
    add("--batch", type=Path, help="own data: safetensors with input_ids, attention_mask, labels")
    add("--mode", choices=MODES, default="forward")
    add("--suite", choices=tuple(SUITES), help="mode train: whose recipe")
    add("--steps", type=int, help="mode train; default: as many as the suite's golden has")
    ends = "mode generate: the token that ends a row; default: the case's"
    add("--eos", type=int, metavar="ID", help=ends)
    add("--new-tokens", type=int, metavar="N", help="mode generate; default: the case's, or 24")
    add("--tap-gradients", action="store_true", help="dtap.NAME too: the gradient of every tap")
    kept = "comma-separated patterns of taps to keep, such as logits,loss.lm,topk"
    add("--taps", default="*", help=kept)
    small = "chosen rows, norms and projections in place of whole taps"
    add("--sketch", action="store_true", help=small)


def _add_implementation(add: Any) -> None:
    """Whose code runs."""
    tree = "source tree; refused if another one is imported"
    add("--transformers", type=Path, metavar="PATH", help=tree)
    cls = "class to load with, or module.Class"
    add("--class", dest="cls", default=Loading.cls, metavar="NAME", help=cls)
    add("--device-map", help="as from_pretrained takes it; needs accelerate")
    add("--dtype", choices=tuple(DTYPES), default="float32")
    field = "a field of the config, as from_pretrained takes it; repeatable"
    add("--config-override", type=_override, action="append", metavar="KEY=VALUE", help=field)
    code = "for a model whose code lies in the checkpoint"
    add("--trust-remote-code", action="store_true", help=code)


def _add_how(add: Any) -> None:
    """The implementation's own switches."""
    backends = "attention backend: default (what users get), eager, sdpa, ..."
    add("--attn", default="default", help=backends)
    add("--experts", default="default", help="experts backend: default, eager, ...")
    add("--mask", choices=("given", "none"), help="default: what the case says")
    add("--gradient-checkpointing", action="store_true")
    add("--no-cache", action="store_true", help="use_cache=False")
    add("--cache", choices=tuple(CACHES), help="mode generate; default: dynamic")
    outputs = "do not ask for index scores and KL targets"
    add("--no-training-outputs", action="store_true", help=outputs)


def _override(text: str) -> tuple[str, Any]:
    """KEY=VALUE; a value that is JSON is taken as JSON."""
    key, equals, value = text.partition("=")
    if not key.isidentifier() or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def run_jobs(arguments: argparse.Namespace) -> int:
    """Many dumps; jobs.py."""

    def write_failure(one: argparse.Namespace, failure: dict[str, Any], phase: str) -> None:
        case = find_case(one.case, one.checkpoint)
        run = failed_before_run(one, case, failure)
        write_trace(one.out, {}, run.metadata)

    server = Server(arguments, lambda one: guarded(lambda: run_command(one)), write_failure)
    check_jobs(server.list)
    return server.serve()


def run_command(arguments: argparse.Namespace) -> int:
    """Everything is checked before the model is loaded: a wrong word must not cost minutes."""
    check_training(arguments)
    check_generate(arguments)
    check_output(arguments.out)
    config = read_config(arguments.checkpoint)
    case = find_case(arguments.case, arguments.checkpoint)
    if arguments.mode != "forward" and case["chunks"]:
        got = f"chunks {case['chunks']}"
        raise DumpError(2, "--mode", arguments.mode, "a case of one pass", got)
    check_overrides(case, config, arguments.checkpoint)
    options = options_of(arguments)
    if arguments.batch:
        batch = read_batch(arguments.batch, case, config["vocab_size"])
        digest = hashlib.sha256(arguments.batch.read_bytes()).hexdigest()
        case, options = case_with(case, batch, digest), options_of(arguments, batch)
    if arguments.mode == "generate":
        decoding = decoding_of_case(case, arguments.eos, arguments.new_tokens)
        options = dataclasses.replace(options, decoding=decoding)
    run = load_and_dump(arguments, case, options)
    report_run(run, arguments.out)
    return 1 if run.failure else 0


def load_and_dump(arguments: argparse.Namespace, case: dict[str, Any], options: Options) -> Capture:
    """Writes the trace; what the implementation raises on import or loading goes there."""
    phase = "import"
    try:
        transformers = with_stand_in(lambda: import_transformers(arguments.transformers))
        phase = "load"
        model = with_stand_in(lambda: load_model(transformers, loading_of(arguments)))
    except DumpError:
        raise
    except Exception as error:  # whatever the fork raises is its verdict
        refuse_missing_package(error)
        run = failed_before_run(arguments, case, account_of(error, phase))
        write_trace(arguments.out, {}, run.metadata)
        return run
    return dump(model, case, arguments.out, options, checkpoint=arguments.checkpoint)


def loading_of(arguments: argparse.Namespace) -> Loading:
    names = ("checkpoint", "cls", "dtype", "attn", "device_map", "trust_remote_code")
    overrides = tuple(arguments.config_override or ())
    return Loading(**{name: getattr(arguments, name) for name in names}, overrides=overrides)


def options_of(arguments: argparse.Namespace, batch: dict[str, Any] | None = None) -> Options:
    return Options(
        backward=arguments.mode == "backward",
        kl=arguments.mode.partition("kl-")[2],
        suite=arguments.suite or "",
        steps=arguments.steps,
        attn_implementation=None if arguments.attn == "default" else arguments.attn,
        experts_implementation=None if arguments.experts == "default" else arguments.experts,
        mask=arguments.mask,
        batch=batch,
        use_cache=False if arguments.no_cache else None,
        gradient_checkpointing=arguments.gradient_checkpointing,
        taps=tuple(arguments.taps.split(",")),
        slopes=arguments.tap_gradients,
        training_outputs=not arguments.no_training_outputs,
        sketch=arguments.sketch,
        cache=arguments.cache or "dynamic",
    )


def check_training(arguments: argparse.Namespace) -> None:
    """Throws DumpError on words that go with mode train alone, or not with it."""
    training = arguments.mode == "train"
    if training != (arguments.suite is not None):
        want = "one of " + ", ".join(SUITES) if training else "mode train"
        raise DumpError(2, "--suite", f"mode {arguments.mode}", want, str(arguments.suite))
    if arguments.steps is not None and (not training or arguments.steps < 1):
        got = f"{arguments.steps} in mode {arguments.mode}"
        raise DumpError(2, "--steps", "steps", "at least 1, in mode train", got)
    if training and (arguments.batch or arguments.mask):
        raise DumpError(2, "--mode", "train", "the batches of the case", "--batch or --mask")


def check_generate(arguments: argparse.Namespace) -> None:
    """Throws DumpError on words that go with mode generate alone, or not with it."""
    if arguments.mode == "generate":
        for word, given in (("--sketch", arguments.sketch), ("--no-cache", arguments.no_cache)):
            if given:
                raise DumpError(2, "--mode", "generate", "whole taps and a cache", word)
        if arguments.new_tokens is not None and arguments.new_tokens < 1:
            raise DumpError(2, "--new-tokens", "steps", "at least 1", str(arguments.new_tokens))
        check_cache(arguments.cache or "dynamic")
        return
    for word in ("eos", "new_tokens", "cache"):
        if getattr(arguments, word) is not None:
            option = "--" + word.replace("_", "-")
            raise DumpError(2, option, f"mode {arguments.mode}", "mode generate", option)


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's config.json. Throws DumpError when it is not there or not one."""
    path = checkpoint / "config.json"
    if not path.is_file():
        raise DumpError(4, str(checkpoint), "checkpoint", "a folder with config.json", "none")
    config = json_object(path.read_text(), str(path))
    if not isinstance(config.get("vocab_size"), int):
        raise DumpError(4, str(path), "vocab_size", "an integer", repr(config.get("vocab_size")))
    return config


def check_overrides(case: dict[str, Any], config: dict[str, Any], checkpoint: Path) -> None:
    """Throws DumpError unless the case's overrides are in the checkpoint's config."""
    where, hint = str(checkpoint / "config.json"), "make the case's checkpoint"
    for key, want in case["overrides"].items():
        if key in config and config[key] != want and key != "use_sparse_attention":
            got = canonical_json(config[key])
            raise DumpError(4, where, key, canonical_json(want), got, hint)


def failed_before_run(
    arguments: argparse.Namespace, case: dict[str, Any], failure: dict[str, Any]
) -> Capture:
    """The account of an implementation that left no trace: not imported, not loaded, killed."""
    transformers = sys.modules.get("transformers")
    producer = {
        **tool(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": str(getattr(transformers, "__version__", "unknown")),
        "transformers_path": str(getattr(transformers, "__file__", arguments.transformers)),
    }
    frames = failure.get("frames", [])
    if frames:
        told = failure["message"] + LAST_FRAMES + " <- ".join(frames)
        failure = {**failure, "message": told}
    run = Capture(failure=failure)
    run.metadata = trace_metadata(
        case,
        mode=arguments.mode,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn,
        mask=str(Options(mask=arguments.mask).of_case(case).mask),
        producer=canonical_json(producer),
        weights=weights_identity(Checkpoint(arguments.checkpoint).tensors, case),
        failure=canonical_json(run.failure),
    )
    if arguments.mode == "generate":
        decoding = decoding_of_case(case, arguments.eos, arguments.new_tokens)
        run.metadata |= decoding_metadata(decoding)
    return run
