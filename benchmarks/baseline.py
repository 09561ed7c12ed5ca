"""A plain PyTorch MGCA that works the way the published code works, to be timed against.

Written from facts about that code, not from the code. What it shares with it, because it costs time: anomaly
detection of autograd; attention written out in every ViT block, the last block's map kept on its module with a
gradient hook; every report padded to 112 pieces; word pieces merged by a Python loop that reads every id from the
device; attention clipped study by study; logarithms of softmaxes; all in float32.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOTS = 112
TEMPERATURES = {"instance": 0.07, "token": 0.1, "prototype": 0.2}


class Attention(nn.Module):
    """Self-attention, written out."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the mixed tokens and the ``(B, heads, N, N)`` map before dropout."""
        batch, count, width = tokens.shape
        parts = self.query_key_value(tokens).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        scores = query @ key.transpose(2, 3) / math.sqrt(key.shape[-1])
        attention = (scores if bias is None else scores + bias).softmax(dim=-1)
        mixed = (self.dropout(attention) @ value).transpose(1, 2).reshape(batch, count, width)
        return self.out(mixed), attention


class ViTBlock(nn.Module):
    """A block that normalises first; on request it keeps its attention map, and the map's gradient."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attention = Attention(width, heads, 0.0)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.map: Tensor | None = None
        self.map_gradient: Tensor | None = None

    def forward(self, tokens: Tensor, keep_map: bool) -> Tensor:
        """Apply the block to ``(B, N, width)``."""
        mixed, attention = self.attention(self.norms[0](tokens))
        if keep_map:
            self.map = attention
            attention.register_hook(self._note)
        tokens = tokens + mixed
        return tokens + self.mlp(self.norms[1](tokens))

    def _note(self, gradient: Tensor) -> None:
        self.map_gradient = gradient


class ViT(nn.Module):
    """Image encoder."""

    def __init__(self, *, size: int, patch: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(ViTBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class token, patches, and the head-averaged attention of the former to the latter."""
        patches = self.cut(images.repeat(1, 3, 1, 1)).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.position
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, number == len(self.blocks) - 1)
        tokens = self.norm(tokens)
        seen = self.blocks[-1].map.detach().mean(dim=1)[:, 0, 1:].clone()
        return tokens[:, 0], tokens[:, 1:], seen


class BertLayer(nn.Module):
    """A layer that normalises last."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens and the attention map."""
        mixed, attention = self.attention(tokens, bias)
        tokens = self.norms[0](tokens + self.dropout(mixed))
        return self.norms[1](tokens + self.dropout(self.mlp(tokens))), attention


class Bert(nn.Module):
    """Report encoder."""

    def __init__(self, *, vocabulary: int, width: int, heads: int, layers: int, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.layers = nn.ModuleList(BertLayer(width, heads, 0.1) for _ in range(layers))

    def forward(self, pieces: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return [CLS], the word slots, where they are empty, and their attention."""
        where = torch.arange(pieces.shape[1], device=pieces.device)
        tokens = self.dropout(self.norm(self.word(pieces) + self.position(where)))
        bias = torch.zeros(keep.shape, device=pieces.device).masked_fill(~keep, -10000.0)[:, None, None]
        for layer in self.layers:
            tokens, attention = layer(tokens, bias)
        seen = attention.detach().mean(dim=1)[:, 0, 1:]
        vectors, weights = [], []
        for row in range(len(pieces)):
            vector, weight = self._merge(tokens[row], pieces[row], seen[row])
            vectors.append(vector)
            weights.append(weight)
        words, weight = torch.stack(vectors), torch.stack(weights)
        return words[:, 0], words[:, 1:], weight == 0, weight

    def _merge(self, tokens: Tensor, pieces: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        words, weights, parts, part_weights = [], [], [], []
        for token, piece, attention in zip(tokens, pieces, seen, strict=False):  # 112 tokens, but 111 weights
            name = self.names[piece.item()]
            if name == "[SEP]":
                words.append(torch.stack(parts).sum(dim=0))
                weights.append(torch.stack(part_weights).sum())
                words.append(token)
                weights.append(attention)
                break
            if not name.startswith("##") and parts:
                words.append(torch.stack(parts).sum(dim=0))
                weights.append(torch.stack(part_weights).sum())
                parts, part_weights = [], []
            parts.append(token)
            part_weights.append(attention)
        empty = SLOTS - len(words)
        vectors = torch.cat([torch.stack(words), tokens.new_zeros(empty, tokens.shape[1])])
        return vectors, torch.cat([torch.stack(weights), seen.new_zeros(empty)])[1:]


class BaselineMGCA(nn.Module):
    """Both encoders, four heads, the prototypes.

    Args:
        size: Side of the images, pixels.
        patch: Side of a patch, pixels.
        width: Of both encoders.
        heads: Of both encoders.
        image_layers: Blocks of the ViT.
        text_layers: Layers of the BERT.
        vocabulary: Word pieces.
        names: Name of every piece that occurs.
        hidden: Width inside the heads.
        joint: Width of the joint space.
        num_prototypes: Prototypes.
    """

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        width: int,
        heads: int,
        image_layers: int,
        text_layers: int,
        vocabulary: int,
        names: Mapping[int, str],
        hidden: int,
        joint: int,
        num_prototypes: int,
    ) -> None:
        super().__init__()
        self.vit = ViT(size=size, patch=patch, width=width, heads=heads, layers=image_layers)
        self.bert = Bert(vocabulary=vocabulary, width=width, heads=heads, layers=text_layers, names=names)
        self.image_global, self.report_global = (_global_head(width, hidden, joint) for _ in range(2))
        self.image_local, self.report_local = (_local_head(width, hidden, joint) for _ in range(2))
        self.prototypes = nn.Parameter(torch.randn(num_prototypes, joint))

    def forward(self, images: Tensor, pieces: Tensor, keep: Tensor) -> Tensor:
        """Return the sum of the three losses."""
        image, patches, patch_attention = self.vit(images)
        report, words, empty, word_attention = self.bert(pieces, keep)
        return baseline_losses(
            F.normalize(self.image_global(image), dim=-1),
            F.normalize(self.report_global(report), dim=-1),
            F.normalize(self.image_local(patches.transpose(1, 2)).transpose(1, 2), dim=-1),
            F.normalize(self.report_local(words.transpose(1, 2)).transpose(1, 2), dim=-1),
            self.prototypes,
            empty=empty,
            word_attention=word_attention,
            patch_attention=patch_attention,
        )


def baseline_losses(
    image: Tensor,
    report: Tensor,
    patches: Tensor,
    words: Tensor,
    prototypes: nn.Parameter,
    *,
    empty: Tensor,
    word_attention: Tensor,
    patch_attention: Tensor,
) -> Tensor:
    """Return ITA + CTA + CPA.

    Args:
        image: ``(B, D)`` unit vectors.
        report: ``(B, D)`` unit vectors.
        patches: ``(B, P, D)`` unit vectors.
        words: ``(B, W, D)`` unit vectors, padding included.
        prototypes: ``(K, D)``; overwritten by unit vectors.
        empty: ``(B, W)`` bool, True where a slot is padding.
        word_attention: ``(B, W)``, 0 on padding.
        patch_attention: ``(B, P)``.
    """
    return (
        _instance(image, report)
        + _token(patches, words, empty, word_attention, patch_attention)
        + _prototype(image, report, prototypes)
    )


def _instance(image: Tensor, report: Tensor) -> Tensor:
    target = torch.arange(len(image), device=image.device)
    scores, back = image @ report.T / TEMPERATURES["instance"], report @ image.T / TEMPERATURES["instance"]
    return F.cross_entropy(scores, target) + F.cross_entropy(back, target)


def _token(patches: Tensor, words: Tensor, empty: Tensor, word_attention: Tensor, patch_attention: Tensor) -> Tensor:
    temperature = TEMPERATURES["token"]
    scores = words @ patches.transpose(1, 2) / temperature
    seen = F.normalize(scores.softmax(dim=-1) @ patches, dim=-1)
    back = patches @ words.transpose(1, 2) / temperature
    read = back.masked_fill(empty[:, None], float("-inf")).softmax(dim=-1) @ words
    sides = ((words, seen, _clipped(word_attention)), (patches, read, _clipped(patch_attention)))
    total = patches.new_zeros(())
    for anchors, attended, weight in sides:
        batch, count, _ = anchors.shape
        target = torch.arange(count, device=anchors.device).repeat(batch)
        logits = anchors @ attended.transpose(1, 2) / temperature
        for direction in (logits, logits.transpose(1, 2)):
            losses = F.cross_entropy(direction.reshape(batch * count, count), target, reduction="none")
            total = total + (losses.view(batch, count) * weight).sum() / batch / 2
    return total


def _clipped(attention: Tensor) -> Tensor:
    weight = attention.detach().clone()
    for row in weight:
        places = row.nonzero().squeeze()
        values = row[places]
        low, high = np.percentile(values.cpu().numpy(), (10, 90))
        row[places] = values.clip(low, high)
    return weight / weight.sum(dim=1, keepdim=True)


def _prototype(image: Tensor, report: Tensor, prototypes: nn.Parameter) -> Tensor:
    with torch.no_grad():
        prototypes.copy_(F.normalize(prototypes, dim=1))
    scores = [side @ prototypes.T for side in (image, report)]
    codes = [_sinkhorn(score.detach()) for score in scores]
    logs = [torch.log((score / TEMPERATURES["prototype"]).softmax(dim=1)) for score in scores]
    return -0.5 * sum((code * log).sum(dim=1).mean() for code, log in zip(codes, reversed(logs), strict=True))


def _sinkhorn(scores: Tensor) -> Tensor:
    plan = torch.exp(scores / 0.05).T
    plan = plan / plan.sum()
    for _ in range(3):
        plan = plan / plan.sum(dim=1, keepdim=True) / plan.shape[0]
        plan = plan / plan.sum(dim=0, keepdim=True) / plan.shape[1]
    return (plan * plan.shape[1]).T


def _global_head(*widths: int) -> nn.Sequential:
    (first, second) = (nn.Linear(*pair) for pair in pairwise(widths))
    return nn.Sequential(first, nn.BatchNorm1d(widths[1]), nn.ReLU(), second, nn.BatchNorm1d(widths[2], affine=False))


def _local_head(*widths: int) -> nn.Sequential:
    (first, second) = (nn.Conv1d(*pair, kernel_size=1) for pair in pairwise(widths))
    return nn.Sequential(first, nn.BatchNorm1d(widths[1]), nn.ReLU(), second, nn.BatchNorm1d(widths[2], affine=False))
