"""What a training golden did, step by step: the attribute `recipe` (docs/formats.md)."""

from __future__ import annotations

import dataclasses

from dsv32_trace import canonical_json


@dataclasses.dataclass(frozen=True)
class Group:
    """One AdamW (torch.optim.AdamW, betas as torch names them) and its name."""

    name: str = "all"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01

    @property
    def options(self) -> dict:
        """Keyword arguments of torch.optim.AdamW."""
        fields = dataclasses.asdict(self)
        del fields["name"]
        return fields


@dataclasses.dataclass(frozen=True)
class Recipe:
    """batches: "cycle4" (step t uses batch t mod 4) or "memorised" (batch 0). clip: global norm.

    kl: "none", "warmup" (Eq. 3) or "sparse" (Eq. 4). lm: the LM loss is part of the objective.
    """

    steps: int
    groups: tuple[Group, ...] = (Group(),)
    batches: str = "cycle4"
    clip: float | None = 1.0
    kl: str = "none"
    kl_weight: float = 1.0
    lm: bool = True
    accumulation: int = 1
    world: int = 1

    @property
    def json(self) -> str:
        return canonical_json(dataclasses.asdict(self))

    def batch_index(self, step: int) -> int:
        return 0 if self.batches == "memorised" else step % 4
