"""Heads that are told the truth: what could be read off frozen patches, if masks were given?

Words that do not point may have learned nothing, or there may be nothing to learn: patches can only be pointed at by
what they know. So a small head is trained on the same frozen patches with the true masks of the training films, and
plays the same pointing game. It is no competitor, since it has seen what no report tells, but a yardstick: how far
below it a loss stays is the loss's own failure, the rest is the patches'.

A second head is told less: which findings a film shows, and not where. A report that was understood in full would tell
that much, so what separates the two heads is what only places can teach, and what separates words from the second one
is reading.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from mgca_lib.evaluation.grounding import Phrases, perfect_map, phrase_mask
from mgca_lib.evaluation.local_heads import batch_orders
from mgca_lib.evaluation.receptive_field import ON_TILES


def patch_shares(
    phrases: Phrases,
    *,
    films: int,
    patches: int,
    findings: Sequence[str],
    stored_size: int,
    image_size: int,
    offset: tuple[float, float] = ON_TILES,
) -> Tensor:
    """The share of each patch that each finding covers, by the masks of the phrases.

    A finding that no phrase points at covers nothing; where several phrases of a film name the same finding, the
    larger share counts.

    Args:
        phrases: Ground truth from :func:`mgca_lib.evaluation.grounding.load_phrases`.
        films: Number of films; ``row`` of the phrases counts them.
        patches: Number of patches of a film, a square of them.
        findings: Names of the findings, in the order of the last axis; phrases of others are left out.
        stored_size: As in :class:`mgca_lib.data.transforms.ImageTransform`.
        image_size: As there.
        offset: See :func:`mgca_lib.evaluation.grounding.perfect_map`.

    Returns:
        ``(films, patches, len(findings))`` float32 in [0, 1].

    Raises:
        DatasetError: a mask file is missing or unreadable.
    """
    shares = torch.zeros(films, patches, len(findings))
    column_of = {finding: column for column, finding in enumerate(findings)}
    read: dict[str, Tensor] = {}
    for phrase in phrases.table.itertuples():
        if not phrase.mask or phrase.finding not in column_of:
            continue
        if phrase.mask not in read:
            mask = phrase_mask(phrases, phrase.mask, stored_size=stored_size, image_size=image_size)
            read[phrase.mask] = perfect_map(mask, patches, offset=offset)
        column = column_of[phrase.finding]
        shares[phrase.row, :, column] = torch.maximum(shares[phrase.row, :, column], read[phrase.mask])
    return shares


def train_mask_head(patches: Tensor, shares: Tensor, **settings: int | float) -> nn.Module:
    """Train a head of two layers to tell from each patch alone how much of it each finding covers.

    Binary cross-entropy with the shares as targets.

    Args:
        patches: ``(N, P, width)`` float32 frozen patches, on the CPU.
        shares: ``(N, P, F)`` from :func:`patch_shares`.
        **settings: Of :func:`train_head`.

    Returns:
        A module in eval mode: ``(..., width)`` to ``(..., F)`` logits.

    Raises:
        ValueError: the shapes do not belong together, or there are fewer films than ``batch_size``.
    """
    if patches.ndim != 3 or shares.ndim != 3 or patches.shape[:2] != shares.shape[:2]:
        raise ValueError(f"patches {tuple(patches.shape)} and shares {tuple(shares.shape)} do not belong together")
    return train_head(patches, shares, F.binary_cross_entropy_with_logits, **settings)


def train_label_head(patches: Tensor, labels: Tensor, **settings: int | float) -> nn.Module:
    """Train the same head where only the film has labels, and no patch: multiple-instance learning.

    Binary cross-entropy of the film's logit, the log of the mean of the patches' odds (a soft maximum that every patch
    takes part in), with its labels.

    Args:
        patches: ``(N, P, width)`` float32 frozen patches, on the CPU.
        labels: ``(N, F)`` 1 where the film shows the finding, 0 where not; any number type.
        **settings: Of :func:`train_head`.

    Returns:
        A module in eval mode: ``(..., width)`` to ``(..., F)`` logits of patches.

    Raises:
        ValueError: the shapes do not belong together, or there are fewer films than ``batch_size``.
    """
    if patches.ndim != 3 or labels.ndim != 2 or len(patches) != len(labels):
        raise ValueError(f"patches {tuple(patches.shape)} and labels {tuple(labels.shape)} do not belong together")

    def loss(logits: Tensor, own: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits.logsumexp(dim=1) - math.log(logits.shape[1]), own)

    return train_head(patches, labels.float(), loss, **settings)


def train_head(
    patches: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    hidden: int = 512,
    epochs: int = 3,
    batch_size: int = 24,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.05,
    seed: int = 0,
) -> nn.Module:
    """Train two layers on frozen patches; AdamW with a one-cycle schedule, as `local_heads.train_local_heads`.

    Args:
        patches: ``(N, P, width)`` float32.
        targets: ``(N, ...)``, one finding an element of the last axis.
        loss: Scalar loss of the logits ``(B, P, F)`` of a batch and of its targets.
        hidden: Width between the two layers.
        epochs: Passes over the films.
        batch_size: Films a step; what is left over at the end of a pass is left out.
        learning_rate: Its peak.
        weight_decay: Of AdamW.
        seed: Seed of the initial weights and of the order.

    Raises:
        ValueError: there are fewer films than ``batch_size``.
    """
    if len(patches) < batch_size:
        raise ValueError(f"{len(patches)} films do not fill a batch of {batch_size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _PatchHead(patches, hidden=hidden, findings=targets.shape[-1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=epochs * (len(patches) // batch_size))
    for order in batch_orders(len(patches), batch_size, epochs, seed):
        for rows in order:
            value = loss(head(patches[rows]), targets[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.inference_mode()
def finding_maps(head: nn.Module, patches: Tensor) -> Tensor:
    """Maps of a head over films: ``(N, P, width)`` frozen patches to ``(N, F, P)`` probabilities."""
    return torch.cat([head(part).sigmoid() for part in patches.split(256)]).transpose(1, 2).contiguous()


class _PatchHead(nn.Module):
    def __init__(self, patches: Tensor, *, hidden: int, findings: int) -> None:
        super().__init__()
        # Widths of very different size would each need a learning rate of their own.
        self.register_buffer("mean", patches.mean(dim=(0, 1)))
        self.register_buffer("deviation", patches.std(dim=(0, 1)).clamp(min=1e-6))
        self.layers = nn.Sequential(nn.Linear(patches.shape[2], hidden), nn.ReLU(), nn.Linear(hidden, findings))

    def forward(self, patches: Tensor) -> Tensor:
        return self.layers((patches - self.mean) / self.deviation)
