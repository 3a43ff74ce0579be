"""Which batch and weights a run is about: a case by name, as JSON, or as the checkpoint tells it.

A case is one line of configs/cases.json. In a checkout that file is read where it stands; the
zipped tool carries a copy of it.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from pathlib import Path
from typing import Any

from .errors import DumpError

CASE_KEYS = ("config", "overrides", "seed", "B", "S", "pad", "bias_offset", "chunks")
# Optional keys and what holds without them.
EXTRA_KEYS: dict[str, Any] = {
    "edits": [],
    "pad_side": "left",
    "position_offset": 0,
    "config_style": 4,
}
EDIT_KEYS = ("name", "row", "column", "scale", "add")
WEIGHT_KEYS = ("config", "overrides", "seed", "bias_offset", "edits")  # the weights depend on them
CASE_FILE = "dsv32_case.json"


def canonical_json(value: Any) -> str:
    """RFC 8785: sorted keys, no spaces, numbers as ECMAScript prints them."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda k: k.encode("utf-16-be"))
        return (
            "{" + ",".join(canonical_json(k) + ":" + canonical_json(value[k]) for k in keys) + "}"
        )
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    if isinstance(value, float):
        return _ecmascript_number(value)
    return json.dumps(value, ensure_ascii=False)


def _ecmascript_number(value: float) -> str:
    """The shortest text that reads back as the same double, in the layout of ECMAScript."""
    if not math.isfinite(value):
        raise ValueError(f"not a JSON number: {value}")
    if value == 0:
        return "0"
    sign, text = ("-" if value < 0 else ""), repr(abs(value))
    mantissa, _, exponent = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    # Where the decimal point stands, counted from the first digit of `digits`.
    point = len(whole) + int(exponent or 0)
    digits = whole + ("" if fraction == "0" else fraction)
    stripped = digits.lstrip("0")
    point -= len(digits) - len(stripped)
    digits = stripped.rstrip("0")
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    power = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return sign + digits[0] + ("." + digits[1:] if len(digits) > 1 else "") + power


def check_case(case: dict[str, Any], where: str) -> dict[str, Any]:
    """The case with its defaults filled in.

    Throws DumpError on a missing key, a wrong type or an impossible value.
    """
    case = {"overrides": {}, "seed": 1, "pad": 0, "bias_offset": 0, "chunks": [], **case}
    case = {**EXTRA_KEYS, **case}
    if "mask" in case:
        case["mask_given"] = case.pop("mask") != "none"
    for key in CASE_KEYS:
        if key not in case:
            hint = "keys: " + " ".join(CASE_KEYS)
            raise DumpError(4, where, f"case.{key}", "a value", "a missing key", hint)
    for key, least in (("seed", 0), ("B", 1), ("S", 1), ("pad", 0)):
        if not isinstance(case[key], int) or isinstance(case[key], bool) or case[key] < least:
            raise DumpError(4, where, f"case.{key}", f"an integer >= {least}", repr(case[key]))
    if case["pad"] >= case["S"]:
        raise DumpError(4, where, "case.pad", f"less than S = {case['S']}", str(case["pad"]))
    chunks = case["chunks"]
    if not isinstance(chunks, (list, tuple)) or any(
        not isinstance(c, int) or c < 1 for c in chunks
    ):
        raise DumpError(4, where, "case.chunks", "a list of positive lengths", repr(chunks))
    if chunks and sum(chunks) != case["S"]:
        want, got = f"lengths that sum to S = {case['S']}", f"a sum of {sum(chunks)}"
        raise DumpError(4, where, "case.chunks", want, got)
    _check_extras(case, where)
    return case


def _check_extras(case: dict[str, Any], where: str) -> None:
    """The optional keys. Whether an edit fits the model is seen when its weight is made."""
    edits = case["edits"]
    if not isinstance(edits, (list, tuple)):
        raise DumpError(4, where, "case.edits", "a list", repr(edits))
    for edit in edits:
        known = isinstance(edit, dict) and isinstance(edit.get("name"), str)
        if not known or set(edit) - set(EDIT_KEYS) or ("row" in edit) == ("column" in edit):
            want = "name, row or column, scale, add"
            raise DumpError(4, where, "case.edits", want, repr(edit))
    if case["pad_side"] not in ("left", "right"):
        raise DumpError(4, where, "case.pad_side", "left or right", repr(case["pad_side"]))
    if not isinstance(case["position_offset"], int) or case["position_offset"] < 0:
        got = repr(case["position_offset"])
        raise DumpError(4, where, "case.position_offset", "an integer >= 0", got)
    if case["config_style"] not in (4, 5):
        raise DumpError(4, where, "case.config_style", "4 or 5", repr(case["config_style"]))


def plain_case(case: dict[str, Any]) -> dict[str, Any]:
    """The keys that a case is told by: the required ones, and the others where they say more."""
    extras = {key: case[key] for key, usual in EXTRA_KEYS.items() if case.get(key, usual) != usual}
    return {key: case[key] for key in (*CASE_KEYS, "batch") if key in case} | extras


def case_metadata(case: dict[str, Any]) -> str:
    """The name of a listed case, else the whole case as canonical JSON."""
    plain = plain_case(case)
    name = case.get("name")
    listed = listed_cases().get(name) if isinstance(name, str) else None
    if listed and plain == plain_case(listed):
        return str(name)
    return canonical_json(plain)


@functools.lru_cache(maxsize=1)
def listed_cases() -> dict[str, dict[str, Any]]:
    """The entries of cases.json by name; none when only the folder was copied, without the list."""
    carried = importlib.resources.files(__package__) / "cases.json"  # in the zipped tool
    checkout = Path(__file__).resolve().parent.parent.parent.parent / "configs" / "cases.json"
    file = next((file for file in (carried, checkout) if file.is_file()), None)
    entries = json.loads(file.read_text())["cases"] if file else []
    return {entry["name"]: entry for entry in entries}


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
