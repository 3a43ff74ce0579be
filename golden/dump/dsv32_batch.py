"""Real text as a batch: a tokenizer.json and lines of JSON in, tokens and labels out.

    dsv32-verify batch make --tokenizer tokenizer.json --text gsm8k.jsonl --out F
    dsv32-verify --config small --batch F

A line is {"question": ..., "answer": ...}, or {"text": ...}. Only tokens of the answer (of a text:
all but the first) are counted. Shorter examples are padded at the left. It needs the package
`tokenizers`, and numpy. Exit codes: 0 written, 2 usage, 4 wrong input, 6 environment.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from dsv32_trace import DumpError, write_safetensors

TEMPLATE = "{question}\n{answer}"
IGNORED = -100


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dsv32_batch", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--tokenizer", type=Path, required=True, help="tokenizer.json")
    add("--text", type=Path, required=True, help="lines of JSON: question and answer, or text")
    add("--out", type=Path, required=True, help="safetensors file to write")
    template = f"how they are joined; default {TEMPLATE!r}; \\n is a line's end"
    add("--template", default=TEMPLATE, help=template)
    add("--length", type=int, help="tokens of a row; longer examples are dropped; default longest")
    add("--examples", type=int, help="at most so many")
    add("--eos", help="a token behind each answer, counted: </s>")
    add("--config", type=Path, help="config.json whose vocab_size the tokens must respect")
    return parser.parse_args(words)


def examples_of(path: Path, template: str) -> list[tuple[str, str]]:
    """What is given and what is to be predicted, of each line. Throws DumpError on another line."""
    head, found, tail = template.replace("\\n", "\n").partition("{answer}")
    if not found or "{question}" not in head:
        raise DumpError(2, "--template", "template", "{question} before {answer}", repr(template))
    out = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            entry = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise DumpError(4, f"{path}:{number}", "line", "JSON", str(error)) from error
        if entry is None:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("text"), str):
            out.append(("", entry["text"]))
        elif isinstance(entry, dict) and {"question", "answer"} <= entry.keys():
            given = head.replace("{question}", str(entry["question"]))
            out.append((given, str(entry["answer"]) + tail))
        else:
            got = f"keys {sorted(entry)}" if isinstance(entry, dict) else type(entry).__name__
            raise DumpError(4, f"{path}:{number}", "line", "question and answer, or text", got)
    if not out:
        raise DumpError(4, str(path), "text", "at least one example", "none")
    return out


def encoded(tokenizer: Any, given: str, answer: str, eos: int | None) -> tuple[list, list]:
    """Token ids and labels of an example.

    The text is encoded whole, as a model reads it; a token counts when all of it is of the answer.
    """
    encoding = tokenizer.encode(given + answer)
    labels = [
        token if end > start >= len(given) and (given or index > 0) else IGNORED
        for index, (token, (start, end)) in enumerate(
            zip(encoding.ids, encoding.offsets, strict=True)
        )
    ]
    return encoding.ids + ([eos] if eos is not None else []), labels + (
        [eos] if eos is not None else []
    )


def batch_of(rows: list[tuple[list, list]], length: int) -> dict[str, np.ndarray]:
    """input_ids, attention_mask, labels: [B, length] int64, padding at the left with token 0."""
    shape = (len(rows), length)
    out = {"input_ids": np.zeros(shape, np.int64), "attention_mask": np.zeros(shape, np.int64),
           "labels": np.full(shape, IGNORED, np.int64)}  # fmt: skip
    for row, (ids, labels) in enumerate(rows):
        start = length - len(ids)
        out["input_ids"][row, start:] = ids
        out["attention_mask"][row, start:] = 1
        out["labels"][row, start:] = labels
        out["labels"][row, start] = IGNORED  # nothing comes before it
    return out


def read_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        hint = "pip install tokenizers"
        raise DumpError(6, "tokenizers", "import", "the package", "none", hint) from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare exceptions
        raise DumpError(4, str(path), "tokenizer", "a tokenizer.json", str(error)) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def end_token(tokenizer: Any, eos: str | None) -> int | None:
    if eos is None:
        return None
    token = tokenizer.token_to_id(eos)
    if token is None:
        raise DumpError(2, "--eos", "token", "one of the tokenizer's", repr(eos))
    return token


def check_vocabulary(config: Path | None, ids: np.ndarray) -> None:
    """Throws DumpError when a token lies beyond the model's embedding."""
    if config is None:
        return
    vocab = json.loads(config.read_text())["vocab_size"]
    if (ids >= vocab).any():
        want, hint = f"more than {int(ids.max())}", "the tokenizer of another model?"
        raise DumpError(4, str(config), "vocab_size", want, str(vocab), hint)


def make(arguments: argparse.Namespace) -> str:
    """Writes the batch and says what is in it."""
    for path in (arguments.tokenizer, arguments.text):
        if not path.is_file():
            raise DumpError(4, str(path), "file", "a readable file", "none")
    tokenizer = read_tokenizer(arguments.tokenizer)
    eos = end_token(tokenizer, arguments.eos)
    examples = examples_of(arguments.text, arguments.template)
    rows = [encoded(tokenizer, given, answer, eos) for given, answer in examples]
    length = arguments.length or max(len(ids) for ids, _ in rows)
    kept = [row for row in rows if 1 < len(row[0]) <= length][: arguments.examples]
    if not kept:
        want, got = f"an example of 2 to {length} tokens", "none"
        raise DumpError(4, str(arguments.text), "text", want, got, "a larger --length")
    batch = batch_of(kept, length)
    if not (batch["labels"] != IGNORED).any(axis=1).all():
        raise DumpError(4, str(arguments.text), "answers", "a token in each", "an empty answer")
    check_vocabulary(arguments.config, batch["input_ids"])
    metadata = {
        "format": "dsv32-verify.batch",
        "template": arguments.template,
        "tokenizer": hashlib.sha256(arguments.tokenizer.read_bytes()).hexdigest(),
        "text": hashlib.sha256(arguments.text.read_bytes()).hexdigest(),
    }
    write_safetensors(arguments.out, batch, metadata)
    counted = int((batch["labels"] != IGNORED).sum())
    dropped = len(rows) - len(kept)
    return (f"{arguments.out}: {len(kept)} examples of {length} tokens, {counted} counted"
            + (f", {dropped} left out" if dropped else ""))  # fmt: skip


def main(words: list[str] | None = None) -> int:
    try:
        print(make(parse_arguments(words)), file=sys.stderr)
    except DumpError as error:
        print(f"dsv32_batch: {error}", file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
