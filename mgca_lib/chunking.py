"""Batches larger than memory: a chunk at a time, its activations thrown away and computed again when needed.

Contrast wants many negatives, and the activations of the encoders are what fills a card. Here each encoder reads
``chunk_size`` pairs at a time and keeps only what it returns; the losses see the whole batch; the backward pass runs
each chunk again, with the random numbers it had, and gives it the gradient of its own outputs. That is GradCache (Gao
et al., 2021), written with :func:`torch.utils.checkpoint.checkpoint`, so that one ``backward()`` does it all.

The result is that of the whole batch at once, to rounding, with one exception: dropout draws its masks chunk by
chunk, so they are others than those of the whole batch. The BatchNorm of the projection heads spans the batch, see
:func:`project_in_chunks`; a backbone with BatchNorm (ResNet) would normalise each chunk by itself, and is refused.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mgca_lib.alignment.distributed import sum_across
from mgca_lib.batch_norm import MaskedBatchNorm
from mgca_lib.encoders import LocalProjection, Tokens

_recomputed = partial(checkpoint, use_reentrant=False)


def encode_in_chunks(encoder: nn.Module, chunk_size: int, *inputs: Tensor, **settings: int) -> Tokens:
    """Encode a batch, keeping the activations of at most one chunk in memory.

    Args:
        encoder: Takes tensors with one row a study, and returns :class:`Tokens`; without BatchNorm.
        chunk_size: Studies at a time.
        *inputs: ``(B, ...)`` each.
        **settings: Passed on to the encoder.

    Returns:
        The tokens of the whole batch.
    """
    parts = [
        _recomputed(encoder, *part, **settings)
        for part in zip(*(tensor.split(chunk_size) for tensor in inputs), strict=True)
    ]
    return Tokens(**{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Tokens)})


def project_in_chunks(head: LocalProjection, local: Tensor, keep: Tensor, chunk_size: int) -> Tensor:
    """Apply a head for words or patches; its BatchNorm takes the statistics of the whole batch.

    The hidden layer is the largest tensor of a step (2,048 numbers a patch). A pass over the chunks for each mean and
    each variance, and one for the result, costs five products of the first layer instead of one, and little of a step.

    Args:
        head: The head.
        local: ``(B, N, width)``.
        keep: ``(B, N)`` bool, True where a token is real.
        chunk_size: Studies at a time.

    Returns:
        ``(B, N, joint)``, equal to ``head(local, keep)`` to rounding.
    """
    if head.padded:
        keep = torch.ones_like(keep)
    parts = list(zip(local.split(chunk_size), keep.split(chunk_size), strict=True))
    first = _moments(head.enter_norm, head.enter, parts)

    def leave(values: Tensor) -> Tensor:
        return head.leave(F.relu(head.enter_norm.standardise(_wide(head.enter(values), head.enter_norm), *first)))

    second = _moments(head.leave_norm, leave, parts)

    def project(values: Tensor) -> Tensor:
        return F.normalize(head.leave_norm.standardise(_wide(leave(values), head.leave_norm), *second), dim=-1)

    return torch.cat([_recomputed(project, values) for values, _ in parts])


def _moments(
    norm: MaskedBatchNorm, layer: Callable[[Tensor], Tensor], parts: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a layer's output over the real slots of all chunks, with gradients."""
    if not norm.training:
        return norm.running_mean, norm.running_var

    def add_up(values: Tensor, keep: Tensor) -> Tensor:
        return (_wide(layer(values), norm) * keep[..., None]).sum(dim=(0, 1))

    def add_squares(values: Tensor, keep: Tensor) -> Tensor:
        return ((_wide(layer(values), norm) - mean).square() * keep[..., None]).sum(dim=(0, 1))

    def over_all(function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        total = sum(_recomputed(function, values, keep) for values, keep in parts)
        return sum_across(total) if norm.synchronised else total

    count = sum(keep.sum() for _, keep in parts).to(norm.running_mean.dtype)
    count = sum_across(count) if norm.synchronised else count
    mean = over_all(add_up) / count
    variance = over_all(add_squares) / count
    norm.remember(mean, variance, count)
    return mean, variance


def _wide(values: Tensor, norm: MaskedBatchNorm) -> Tensor:
    return values.to(norm.running_mean.dtype)
