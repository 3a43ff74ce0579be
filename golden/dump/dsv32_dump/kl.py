"""The KL divergence that trains the indexer, for implementations that have no such loss themselves.

The target is the attention that the main heads paid, summed over heads and normalised; the student
is the softmax of the index scores. Both live on the support: all visible keys in the warm-up stage,
the picked ones in the sparse stage.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Under which names forks hand out a KL of their own, and their switches for training outputs.
KL_FIELDS = ("indexer_kl_loss", "indexer_loss", "kl_loss")
KL_STAGES = ("warmup", "sparse")  # Eq. 3 and Eq. 4 of the paper
KL_INPUTS = ("attn.probs", "topk")  # kept in a KL run, asked for or not
KL_TAPS = ("kl.target", "kl.student", "kl.rows", "kl.dscores", "loss.kl")
TRAINING_OUTPUTS = ("indexer_scores", "indexer_kl_target", "indexer_targets")


def expected_kl_taps(layers: int) -> list[str]:
    """Every KL tap of a model, in execution order."""
    return [f"layers.{layer}.{tap}" for layer in range(layers) for tap in KL_TAPS] + ["loss.kl"]


def indexer_kl(probs: Tensor, scores: Tensor, support: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """One layer's KL taps, loss.kl with its graph: the mean of KL(target || student) over rows.

    probs: [B,H,S,T]; scores (with their graph) and support: [B,S,T]; valid: [B,S], the queries that
    are not padding.
    """
    support = support & valid[..., None]
    target = (probs.sum(dim=1) * support).to(torch.promote_types(probs.dtype, torch.float32))
    target = target / target.sum(dim=-1, keepdim=True).masked_fill(~valid[..., None], 1)
    # A row of a padded query sees nothing: equal scores there, no NaN, cut off below.
    seen = torch.where(valid[..., None], -math.inf, 0.0)
    logs = torch.log_softmax(torch.where(support, scores.to(target.dtype), seen), dim=-1)
    logs = torch.where(support, logs, 0.0)
    rows = (torch.xlogy(target, target) - target * logs).sum(dim=-1)
    (slope,) = torch.autograd.grad(rows.sum(), scores, retain_graph=True)
    return {
        "kl.target": target,
        "kl.student": torch.where(support, logs.exp(), 0.0).detach(),
        "kl.rows": rows.detach(),
        "kl.dscores": slope,
        "loss.kl": rows[valid].mean(),
    }
