r"""Token-level alignment (CTA), the second of MGCA's three terms: which word looks at which patch?

For one study with unit-norm words :math:`w_j` (:math:`W` slots, some of them padding), unit-norm
patches :math:`p_k` (:math:`P`), temperature :math:`\tau` and weights :math:`\omega_j, \omega'_k`:

.. math::
    c_j &= \mathrm{unit}\Big(\sum_k \mathrm{softmax}_k(w_j \cdot p_k / \tau)\, p_k\Big), &
    S_{jm} &= w_j \cdot c_m / \tau \\
    d_k &= \mathrm{unit}\Big(\sum_j \mathrm{softmax}_j(p_k \cdot w_j / \tau)\, w_j\Big), &
    T_{kn} &= p_k \cdot d_n / \tau

.. math::
    L_w = \tfrac12 \sum_j \omega_j \big[\mathrm{CE}(S_{j*}, j) + \mathrm{CE}(S_{*j}, j)\big], \qquad
    L_p = \tfrac12 \sum_k \omega'_k \big[\mathrm{CE}(T_{k*}, k) + \mathrm{CE}(T_{*k}, k)\big]

and the term is the mean over the batch of :math:`L_w + L_p`. The negatives lie *inside* the study.

========================  ===============================  =================  =====================
switch                    words :math:`j, m` range over    :math:`d_k` reads  :math:`d_k` unit norm
========================  ===============================  =================  =====================
none                      real words                       real words         yes
``padded_softmax``        all slots, padding included      real words         yes
``unnormalized_context``  real words                       real words         no
``upstream="resnet"``     all slots, padding included      real words         yes
``upstream="vit"``        all slots, padding included      real words         no
========================  ===============================  =================  =====================

The two upstream modes reproduce the published code: ``"resnet"`` is the first switch, ``"vit"`` is both.
There, every padded slot holds the same vector and is one more negative for each real word; the ViT
branch also forgets to normalise :math:`d_k`, whose norm below 1 softens :math:`T`. A study without any
real word contributes zero in every mode, and still counts in the mean.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mgca_lib.alignment.precision import check_positive, full_precision

Upstream = Literal["vit", "resnet"]

# Finite, so that a row without entries has gradients of 0 and not NaN; exp(_MASKED) is 0.
_MASKED = -1e30
# Of one chunk; 4 MB, which a processor's cache holds.
_LOGITS_AT_ONCE = 2**20


@dataclass(frozen=True)
class TokenAlignmentParts:
    """The two sides of the term, each a scalar mean over the batch.

    Attributes:
        word_side: Words find the patches they attend to; ``ln W`` at chance.
        patch_side: Patches find the words they attend to; ``ln P`` at chance.
    """

    word_side: Tensor
    patch_side: Tensor

    @property
    def total(self) -> Tensor:
        """Sum of both sides, which is the loss."""
        return self.word_side + self.patch_side


@torch.no_grad()
@full_precision
def importance_weights(attention: Tensor, keep: Tensor | None, *, low: float = 0.1, high: float = 0.9) -> Tensor:
    """Turn attention into token weights: clip to the row's own quantiles, normalise to sum 1.

    Quantiles (linear interpolation, as ``numpy.percentile``) and clipping look at the kept,
    *non-zero* entries of each row only; an entry of exactly 0 stays 0, as upstream has it. A row
    whose kept entries are all zero falls back to equal weights over its kept entries, and a row
    with nothing kept gets zeros.

    Args:
        attention: ``(B, N)`` attention received by each token, not negative.
        keep: ``(B, N)`` bool, True where the token is real; ``None`` keeps all. What stands
            elsewhere is ignored.
        low: Lower quantile in ``[0, high]``.
        high: Upper quantile in ``[low, 1]``.

    Returns:
        ``(B, N)`` weights without gradient; rows sum to 1 (or 0 where nothing is kept).

    Raises:
        ValueError: The shapes do not fit or the quantiles are out of order.

    >>> attention = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    >>> keep = torch.tensor([[True, True, True, False]])
    >>> importance_weights(attention, keep, low=0.5, high=1.0)  # clipped to 2, 2, 3
    tensor([[0.2857, 0.2857, 0.4286, 0.0000]])
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"quantiles need 0 <= low <= high <= 1, got low={low} and high={high}")
    keep = torch.ones_like(attention, dtype=torch.bool) if keep is None else keep.bool()
    if attention.ndim != 2 or keep.shape != attention.shape:
        raise ValueError(
            f"attention and keep must both be (B, N), got {tuple(attention.shape)} and {tuple(keep.shape)}"
        )
    counted = keep & (attention != 0)
    ordered = attention.masked_fill(~counted, torch.inf).sort(dim=1).values
    last = counted.sum(dim=1, keepdim=True).sub(1).clamp(min=0)

    def quantile(q: float) -> Tensor:
        position = q * last.to(attention.dtype)
        below = position.floor().long()
        above = torch.minimum(below + 1, last)
        start, stop = ordered.gather(1, below), ordered.gather(1, above)
        return torch.lerp(start, stop, position - below)

    clipped = torch.minimum(torch.maximum(attention, quantile(low)), quantile(high))
    # where, not a product: entries that do not count may hold NaN, and 0 * NaN is NaN.
    weight = torch.where(counted, clipped, 0.0)
    weight = torch.where(counted.any(dim=1, keepdim=True), weight, keep.to(weight.dtype))
    total = weight.sum(dim=1, keepdim=True)
    return weight / torch.where(total > 0, total, 1.0)


@full_precision
def attention_maps(
    words: Tensor, patches: Tensor, *, temperature: float = 0.1, word_keep: Tensor | None = None
) -> Tensor:
    r"""Where each word looks: :math:`\mathrm{softmax}_k(w_j \cdot p_k / \tau)` over the patches.

    This is the attention the token loss trains, and so what a heat map should show. (The published
    figures' notebook draws one minus the weight of an attention module that was never trained.)

    Args:
        words: ``(B, W, D)`` word embeddings of any norm.
        patches: ``(B, P, D)`` patch embeddings of any norm.
        temperature: Positive; smaller is sharper. The loss uses 0.1.
        word_keep: ``(B, W)`` bool, True for real words; the maps of other slots become all zero.

    Returns:
        ``(B, W, P)``, in ``[0, 1]``; every real word's map sums to 1 over the patches, so a word
        that looks nowhere in particular has ``1 / P`` everywhere.

    Raises:
        ValueError: The shapes do not fit or the temperature is not positive.

    >>> maps = attention_maps(torch.ones(1, 2, 3), torch.ones(1, 4, 3))
    >>> maps[0, 0].tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    _check_tokens(words, patches, word_keep)
    check_positive("temperature", temperature)
    words, patches = F.normalize(words, dim=-1), F.normalize(patches, dim=-1)
    maps = (words @ patches.transpose(1, 2) / temperature).softmax(dim=-1)
    return maps if word_keep is None else maps.masked_fill(~word_keep.bool().unsqueeze(-1), 0.0)


@full_precision
def token_alignment_parts(
    words: Tensor,
    patches: Tensor,
    *,
    word_keep: Tensor,
    word_weight: Tensor | None,
    patch_weight: Tensor | None,
    temperature: float = 0.1,
    upstream: Upstream | None = None,
    padded_softmax: bool = False,
    unnormalized_context: bool = False,
) -> TokenAlignmentParts:
    """Both sides of the token loss by name; arguments as in :func:`token_alignment_loss`.

    >>> tie = torch.ones(1, 3, 8)  # every word looks at every patch alike
    >>> keep = torch.tensor([[True, True, False]])
    >>> parts = token_alignment_parts(
    ...     tie, torch.ones(1, 5, 8), word_keep=keep, word_weight=None, patch_weight=None
    ... )
    >>> [round(side.item(), 3) for side in (parts.word_side, parts.patch_side)]  # ln 2 and ln 5
    [0.693, 1.609]
    """
    _check_tokens(words, patches, word_keep)
    check_positive("temperature", temperature)
    padded_softmax, unnormalized_context = _switches(upstream, padded_softmax, unnormalized_context)
    word_keep = word_keep.bool()
    if word_weight is None:
        word_weight = word_keep / word_keep.sum(dim=1, keepdim=True).clamp(min=1).to(words.dtype)
    if patch_weight is None:
        patch_weight = patches.new_full(patches.shape[:2], 1 / patches.shape[1])
    _check_weight("word_weight", word_weight, words)
    _check_weight("patch_weight", patch_weight, patches)

    has_words = word_keep.any(dim=1, keepdim=True)
    if not padded_softmax:
        # Zeros here, and not only a mask later, keep even NaN in the padding out of values and
        # gradients.
        words = words.masked_fill(~word_keep.unsqueeze(-1), 0.0)
    word_weight = word_weight.masked_fill(~(has_words if padded_softmax else word_keep), 0.0)
    patch_weight = patch_weight.masked_fill(~has_words, 0.0)

    words, patches = F.normalize(words, dim=-1), F.normalize(patches, dim=-1)
    scores = words @ patches.transpose(1, 2) / temperature
    seen_patches = F.normalize(scores.softmax(dim=2) @ patches, dim=-1)
    to_words = scores.masked_fill(~word_keep.unsqueeze(-1), _MASKED).softmax(dim=1)
    read_words = to_words.transpose(1, 2) @ words
    if not unnormalized_context:
        read_words = F.normalize(read_words, dim=-1)
    contrasted = None if padded_softmax else word_keep
    return TokenAlignmentParts(
        word_side=_weighted_contrast(words, seen_patches, word_weight, contrasted, temperature),
        patch_side=_weighted_contrast(patches, read_words, patch_weight, None, temperature),
    )


def token_alignment_loss(
    words: Tensor,
    patches: Tensor,
    *,
    word_keep: Tensor,
    word_weight: Tensor | None,
    patch_weight: Tensor | None,
    temperature: float = 0.1,
    upstream: Upstream | None = None,
    padded_softmax: bool = False,
    unnormalized_context: bool = False,
) -> Tensor:
    """Bidirectional cross-attention contrast between the words and the patches of each study.

    The equations, and what the switches and upstream modes change, stand at the top of this module.

    Args:
        words: ``(B, W, D)`` word embeddings of any norm; padded slots may hold anything (with
            ``padded_softmax``: anything finite).
        patches: ``(B, P, D)`` patch embeddings of any norm.
        word_keep: ``(B, W)`` bool, True where a word is real.
        word_weight: ``(B, W)`` importance of each word, rows summing to 1, usually from
            :func:`importance_weights`; ``None`` weighs the real words equally. What stands on padding
            is ignored; with ``padded_softmax`` it is taken as it is.
        patch_weight: ``(B, P)`` importance of each patch, rows summing to 1; ``None`` is ``1 / P``,
            which is what upstream uses for a ResNet.
        temperature: Positive, for attention and contrast alike; upstream default 0.1.
        upstream: ``None`` for the corrected loss, or what the switches make of it; ``"vit"`` or
            ``"resnet"`` for the published code's.
        padded_softmax: Leave padded slots among the negatives of the words.
        unnormalized_context: Leave :math:`d_k`, what a patch reads from the report, at its length.

    Returns:
        Scalar in ``[0, inf)``, float32 or float64: word side + patch side. A network that knows
        nothing scores ``ln(number of words) + ln P``.

    Raises:
        ValueError: The shapes do not fit, the batch is empty, the temperature is not positive,
            ``upstream`` is unknown, or it is given together with a switch.

    >>> words, patches = torch.ones(1, 4, 8), torch.ones(1, 9, 8)
    >>> keep = torch.ones(1, 4, dtype=torch.bool)
    >>> loss = token_alignment_loss(
    ...     words, patches, word_keep=keep, word_weight=None, patch_weight=None
    ... )
    >>> round(loss.item(), 3)  # ln 4 + ln 9
    3.584
    """
    return token_alignment_parts(
        words,
        patches,
        word_keep=word_keep,
        word_weight=word_weight,
        patch_weight=patch_weight,
        temperature=temperature,
        upstream=upstream,
        padded_softmax=padded_softmax,
        unnormalized_context=unnormalized_context,
    ).total


class TokenAlignment(nn.Module):
    """Token alignment with fixed settings; it holds no state and never leaves its process.

    Args:
        temperature: See :func:`token_alignment_loss`.
        upstream: See :func:`token_alignment_loss`.
        padded_softmax: See :func:`token_alignment_loss`.
        unnormalized_context: See :func:`token_alignment_loss`.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        upstream: Upstream | None = None,
        padded_softmax: bool = False,
        unnormalized_context: bool = False,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.padded_softmax, self.unnormalized_context = _switches(upstream, padded_softmax, unnormalized_context)

    def forward(
        self,
        words: Tensor,
        patches: Tensor,
        *,
        word_keep: Tensor,
        word_weight: Tensor | None,
        patch_weight: Tensor | None,
    ) -> Tensor:
        """Return the scalar loss; arguments as in :func:`token_alignment_loss`."""
        return token_alignment_loss(
            words,
            patches,
            word_keep=word_keep,
            word_weight=word_weight,
            patch_weight=patch_weight,
            temperature=self.temperature,
            padded_softmax=self.padded_softmax,
            unnormalized_context=self.unnormalized_context,
        )


def _weighted_contrast(
    anchors: Tensor, attended: Tensor, weight: Tensor, keep: Tensor | None, temperature: float
) -> Tensor:
    """Mean over the batch of the weighted cross-entropies of both directions, halved.

    ``weight`` must be 0 wherever ``keep`` is False.
    """
    cross_entropy = _CrossEntropies.apply(anchors / temperature, attended, keep)
    return 0.5 * (weight * cross_entropy).sum(dim=1).mean()


class _CrossEntropies(torch.autograd.Function):
    """``CE(S_j*, j) + CE(S_*j, j)`` of every token, ``(B, N)``, some studies at a time.

    The logits are the largest tensor of the whole term, ``(B, N, N)``. They are computed again in the backward pass
    instead of kept, and at most half of them exist at once, twice: memory grows with ``B N`` alone.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, anchors: Tensor, attended: Tensor, keep: Tensor | None) -> Tensor:
        by_row, by_column, positive = (anchors.new_empty(anchors.shape[:2]) for _ in range(3))
        for own in _studies(anchors):
            logits = _logits(anchors, attended, keep, own)
            positive[own] = logits.diagonal(dim1=1, dim2=2)
            by_row[own], by_column[own] = logits.logsumexp(dim=2), logits.logsumexp(dim=1)
        ctx.save_for_backward(anchors, attended, keep, by_row, by_column)
        return by_row + by_column - 2 * positive

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        anchors, attended, keep, by_row, by_column = ctx.saved_tensors
        of_anchors, of_attended = torch.empty_like(anchors), torch.empty_like(attended)
        for own in _studies(anchors):
            through_rows = _logits(anchors, attended, keep, own)
            through_columns = through_rows - by_column[own, None, :]
            through_rows.sub_(by_row[own, :, None]).exp_().mul_(gradient[own, :, None])
            of_logits = through_columns.exp_().mul_(gradient[own, None, :]).add_(through_rows)
            of_logits.diagonal(dim1=1, dim2=2).sub_(2 * gradient[own])
            if keep is not None:
                of_logits.masked_fill_(~(keep[own, :, None] & keep[own, None, :]), 0.0)
            of_anchors[own] = of_logits @ attended[own]
            of_attended[own] = of_logits.transpose(1, 2) @ anchors[own]
        return of_anchors, of_attended, None


def _studies(tokens: Tensor) -> tuple[slice, ...]:
    """Cut the batch into parts of about a million logits, and of half its studies at most."""
    batch, count, _ = tokens.shape
    size = max(1, min(_LOGITS_AT_ONCE // count**2, batch // 2))
    return tuple(slice(start, start + size) for start in range(0, batch, size))


def _logits(anchors: Tensor, attended: Tensor, keep: Tensor | None, own: slice) -> Tensor:
    logits = anchors[own] @ attended[own].transpose(1, 2)
    if keep is not None:
        logits.masked_fill_(~(keep[own, :, None] & keep[own, None, :]), _MASKED)
    return logits


def _check_tokens(words: Tensor, patches: Tensor, word_keep: Tensor | None) -> None:
    shapes = f"got words {tuple(words.shape)} and patches {tuple(patches.shape)}"
    if words.ndim != 3 or patches.ndim != 3:
        raise ValueError(f"words must be (B, W, D) and patches (B, P, D), {shapes}")
    if len(words) != len(patches) or words.shape[2] != patches.shape[2]:
        raise ValueError(f"words and patches must share batch size and width, {shapes}")
    if 0 in words.shape or 0 in patches.shape:
        raise ValueError(f"words and patches must not be empty, {shapes}")
    if word_keep is not None and word_keep.shape != words.shape[:2]:
        raise ValueError(f"word_keep must be {tuple(words.shape[:2])}, got {tuple(word_keep.shape)}")


def _check_weight(name: str, weight: Tensor, tokens: Tensor) -> None:
    if weight.shape != tokens.shape[:2]:
        raise ValueError(f"{name} must be {tuple(tokens.shape[:2])}, got {tuple(weight.shape)}")


def _switches(upstream: str | None, padded_softmax: bool, unnormalized_context: bool) -> tuple[bool, bool]:
    """Return the two switches, ``upstream`` spelled out."""
    if upstream is None:
        return padded_softmax, unnormalized_context
    if upstream not in ("vit", "resnet"):
        raise ValueError(f"upstream must be None, 'vit' or 'resnet', got {upstream!r}")
    if padded_softmax or unnormalized_context:
        raise ValueError(f"upstream={upstream!r} decides the switches already; give it or them")
    return True, upstream == "vit"
