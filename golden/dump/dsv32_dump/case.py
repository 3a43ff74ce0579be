"""Which batch and weights a run is about: a case by name, as JSON, or as the checkpoint tells it.

A case is one line of configs/cases.json; dsv32_trace says what it may be and makes its data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsv32_trace import (
    CASE_FILE,
    WEIGHT_KEYS,
    DumpError,
    canonical_json,
    check_case,
    listed_cases,
    plain_case,
)


def find_case(text: str | None, checkpoint: Path) -> dict[str, Any]:
    """The case that `text` names or holds as JSON; with None the one of the checkpoint.

    A checkpoint that was made for another case is refused: its weights would not be the case's.
    """
    file = checkpoint / CASE_FILE
    own = None
    if file.is_file():
        own = check_case(json_object(file.read_text(), str(file)), str(file))
    if text is not None:
        case = _asked_for(text, own)
        _check_made_for(case, own, file)
        return case
    if own is None:
        want = f"a name or JSON, or {CASE_FILE} in the checkpoint"
        raise DumpError(2, "--case", "no case given", want, "neither")
    return _named(own)


def _asked_for(text: str, own: dict[str, Any] | None) -> dict[str, Any]:
    """The case that the command line names or holds; `own` is the checkpoint's."""
    if text.lstrip().startswith("{"):
        return _named(check_case(json_object(text, "--case"), "--case"))
    if text in listed_cases():
        return check_case(dict(listed_cases()[text]), text)
    if own is not None and own.get("name") == text:
        return own
    unlisted = "none: configs/cases.json is not in reach; pass the case as JSON"
    known = ", ".join(listed_cases()) or unlisted
    raise DumpError(2, "--case", "unknown case", f"one of {known}", repr(text))


def _check_made_for(case: dict[str, Any], own: dict[str, Any] | None, file: Path) -> None:
    """Throws DumpError unless the weights of the checkpoint are those of the case."""
    hint = "make the checkpoint of this case"
    for key in WEIGHT_KEYS if own else ():
        if own[key] != case[key]:
            want, got = (canonical_json(each[key]) for each in (case, own))
            got = f"a checkpoint made for {got}"
            raise DumpError(4, str(file), f"case.{key}", want, got, hint)


def json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in a text. Throws DumpError when it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise DumpError(4, where, "case", "JSON", str(error)) from error
    if not isinstance(value, dict):
        raise DumpError(4, where, "case", "a JSON object", type(value).__name__)
    return value


def _named(case: dict[str, Any]) -> dict[str, Any]:
    """Gives a case the name (and mask) of the listed case with the same numbers."""
    for name, listed in listed_cases().items():
        if plain_case(listed) == plain_case(case):
            if case.get("mask_given", listed["mask_given"]) == listed["mask_given"]:
                return {**case, "name": name, "mask_given": listed["mask_given"]}
    return case
