"""Sources of arithmetic, cases and seeds, and in which order they are run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synthetic import ROOT

FIRST_SEED = 1001  # seeds 1 to 300 are those that the first limits were set from
CHUNK = 4  # trace files per call of dsv32-verify
CASES = (
    "tiny-wide", "tiny-yarn", "tiny-odd", "tiny-nopad", "tiny-theta", "tiny-outlier", "tiny-far",
    "o128",
)  # fmt: skip
LARGE = "small-train"
LARGE_RUNS = 2  # of each source that runs it
NO_YARN = tuple(case for case in CASES if case != "tiny-yarn")
EAGER = {"attention": "eager", "experts": "eager", "order": ""}
# mlx-lm as it is: what it does otherwise is declared, so that what remains is its arithmetic.
MLX_DIALECT = "k-norm-eps+group-fill-zero"


@dataclasses.dataclass(frozen=True)
class Source:
    """One way in which correct code computes a case.

    words: the worker's script and arguments; python: the environment it runs in; job: what it is
    told besides case, seed and file; dialect: what it declares on top of its base.
    """

    name: str
    dtype: str
    python: Path
    words: tuple[str, ...]
    job: dict[str, Any]
    cases: tuple[str, ...] = CASES
    dialect: str = ""
    simt: bool = False  # our kernels run beside it
    large: bool = False

    def declared(self, case: str) -> str:
        """What --dialect is told; empty: nothing is declared."""
        base = "hf" if case == "tiny-yarn" else "spec-1" if self.dialect else ""
        return "+".join(part for part in (base, self.dialect) if part)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Some seeds of one source in one case: one call of dsv32-verify."""

    source: Source
    case: str
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        words = f"{self.source.name} {self.source.dtype} {self.case} {self.seeds[0]}"
        return "".join(c if c.isalnum() or c in ".-" else "-" for c in words)


def released(name: str, venv: str, dtype: str = "float32", **how: Any) -> Source:
    words = ("transformers_worker.py", venv)  # the second word only names it
    fields = {key: how.pop(key) for key in ("cases", "simt", "large") if key in how}
    job = EAGER | how | {"dtype": dtype}
    return Source(name, dtype, ROOT / venv / "bin" / "python", words, job, **fields)


def engine(name: str, module: str, python: Path, **fields: Any) -> Source:
    options = fields.pop("options", {})
    words = ("engine_worker.py", module)
    return Source(name, "float32", python, words, {"options": options}, **fields)


def sources(mlx_python: Path | None) -> list[Source]:
    """All of them; a source whose environment is absent is left to the caller."""
    here = ".venv-golden"
    golden = ROOT / here / "bin" / "python"
    fast = {"attention": "sdpa", "experts": "batched_mm"}
    found = [
        released("transformers 5.23, eager", here, simt=True, large=True),
        released("transformers 5.23, sums from the last", here, order="from the last"),
        released("transformers 5.23, fused multiply-add", here, order="fused"),
        released("transformers 5.23, pairwise sums", here, order="pairwise"),
        released("transformers 5.23, split-K sums", here, order="split-K"),
        released("transformers 5.23, sdpa and batched experts", here, large=True, **fast),
        released("transformers 5.23, bfloat16", here, "bfloat16", large=True),
        released("transformers 5.23, bfloat16, split-K sums", here, "bfloat16", order="split-K"),
        released("transformers 5.17", ".venv-golden-5.17"),
        released("transformers 5.12", ".venv-golden-5.12"),
        engine("plain torch", "torch_engine", golden, cases=NO_YARN, options={"backward": True}),
        engine("numpy", "numpy_engine", golden, cases=NO_YARN),
    ]
    if mlx_python is not None:
        # It counts positions from 0 and does not read the config.json of transformers 5.
        cases = tuple(case for case in CASES if case not in ("tiny-far", "tiny-theta"))
        options = {"backward": True}
        found.append(engine("mlx-lm", "mlx_engine", mlx_python, cases=cases, options=options,
                            dialect=MLX_DIALECT))  # fmt: skip
    return found


def chunks(found: list[Source], size: int = CHUNK) -> Iterator[Chunk]:
    """Without end: each source in a case of its own, then each in the next case, and so on.

    No two chunks share a seed, so that our own models, which run beside every trace, meet a new one
    each time. The large case comes once, when every source has been in every case.
    """
    seed = FIRST_SEED
    for turn in itertools.count():
        for place, source in enumerate(found):
            case = source.cases[(turn + place) % len(source.cases)]
            yield Chunk(source, case, tuple(range(seed, seed + size)))
            seed += size
        for source in found if turn == len(CASES) - 1 else ():
            if source.large:
                yield Chunk(source, LARGE, tuple(range(seed, seed + LARGE_RUNS)))
                seed += LARGE_RUNS
