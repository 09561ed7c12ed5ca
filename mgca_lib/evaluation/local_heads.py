"""New heads for words and patches on frozen encoders: what does a token loss teach, when nothing else may change?

Training a whole model for every token loss is dear, and mixes two questions: what the encoders know, and what a loss
asks of them. Here both encoders stay as they are. Only the two projections into the space where words and patches
meet are trained anew, with one token loss after another on the same features, in the same order.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from transformers import PreTrainedTokenizerBase

from mgca_lib.alignment.pairwise import PairwiseAlignment
from mgca_lib.alignment.token import TokenAlignment
from mgca_lib.data.studies import Studies
from mgca_lib.encoders import LocalProjection
from mgca_lib.evaluation.features import encoder_device, frozen, model_pairs, pair_batches
from mgca_lib.model import MGCA


@dataclass(frozen=True)
class LocalFeatures:
    """Words and patches of many studies, before any projection.

    Attributes:
        patches: ``(N, P, width)`` float32.
        words: ``N`` tensors ``(W, width)`` float32, real words only.
    """

    patches: Tensor
    words: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.words)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return patches, padded words ``(B, W, width)`` and ``(B, W)`` bool, True where a word is real."""
        own = [self.words[row] for row in rows]
        words = nn.utils.rnn.pad_sequence(list(own), batch_first=True)
        keep = torch.arange(words.shape[1]) < torch.tensor([len(part) for part in own])[:, None]
        return self.patches[list(rows)], words, keep


@dataclass(frozen=True)
class TrainedHeads:
    """A model with new heads.

    Attributes:
        model: Copy of the model, in eval mode; all but its two local heads is as it was.
        history: Mean loss of each epoch.
    """

    model: MGCA
    history: tuple[float, ...]


def local_features(
    model: MGCA, tokenizer: PreTrainedTokenizerBase, studies: Studies, *, batch_size: int = 64
) -> LocalFeatures:
    """Read every image-report pair once with frozen encoders, from the centre crop.

    Args:
        model: A model; it works where it is, in eval mode and float32, and gets its training mode back.
        tokenizer: Its tokenizer.
        studies: Pairs; about 45 kB of memory each at ``demo``.
        batch_size: Pairs at a time.
    """
    pairs = model_pairs(model, tokenizer, studies)
    patches, words = [], []
    with frozen(model), torch.inference_mode(), torch.autocast(encoder_device(model).type, enabled=False):
        for batch in pair_batches(model, pairs, batch_size):
            patches.append(model.image_encoder(batch.images).local.cpu())
            report = model.report_encoder(batch.pieces, batch.piece_keep, batch.word_ids, batch.num_words)
            words += [own[keep].cpu() for own, keep in zip(report.local, report.keep, strict=True)]
    # Clones, since tensors made in inference mode may not take part in training.
    return LocalFeatures(torch.cat(patches).clone(), tuple(own.clone() for own in words))


def with_local_stride(model: MGCA, stride: int) -> MGCA:
    """Return a copy of a model whose patches come from another stage of its CNN.

    The trunk, and with it all that is pooled, stays as it was trained. The head of the patches is new, since another
    stage has another width, and untrained: :func:`train_local_heads` trains it.

    Args:
        model: A model with a CNN as image encoder; it is not changed.
        stride: Stride of the stage, as in ``ModelConfig.local_stride``.

    Raises:
        EncoderError: the image encoder has no such stage, or no stages at all.
    """
    changed = copy.deepcopy(model)
    changed.config = model.config.override(local_stride=stride)
    changed.image_encoder.set_local_stride(stride)
    settings = changed.config.model
    head = LocalProjection(changed.image_encoder.local_dim, hidden=settings.hidden_dim, joint=settings.joint_dim)
    changed.image_local = head.to(encoder_device(model))
    return changed


def train_local_heads(
    model: MGCA,
    features: LocalFeatures,
    *,
    token_form: str,
    epochs: int = 3,
    batch_size: int = 24,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> TrainedHeads:
    """Train both local heads from scratch with one token loss, on features that do not change.

    AdamW with a one-cycle schedule; the weights of words and patches, which only ``"cta"`` reads, are equal.

    Args:
        model: Where the features come from; it is not changed.
        features: From :func:`local_features`.
        token_form: ``"cta"``, ``"cta_grounded"`` or ``"gloria"``.
        epochs: Passes over the features.
        batch_size: Pairs a step; what is left over at the end of a pass is left out.
        learning_rate: Its peak.
        seed: Seed of the initial weights and of the order: the same for every loss.

    Raises:
        ValueError: there are fewer pairs than ``batch_size``, or ``token_form`` is none of the three.
    """
    if len(features) < batch_size:
        raise ValueError(f"{len(features)} pairs do not fill a batch of {batch_size}")
    temperature = model.config.alignment.token_temperature
    if token_form == "cta":
        term: nn.Module = TokenAlignment(temperature=temperature)
    else:
        term = PairwiseAlignment(token_form, temperature=temperature, gather=False)
    device = encoder_device(model)
    trained = copy.deepcopy(model)
    heads = nn.ModuleList([trained.image_local, trained.report_local]).requires_grad_(True).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in heads.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=learning_rate, weight_decay=model.config.training.weight_decay)
    steps = epochs * (len(features) // batch_size)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=steps)
    history = []
    for order in batch_orders(len(features), batch_size, epochs, seed):
        total = 0.0
        for rows in order:
            patches, words, keep = (part.to(device) for part in features.batch(rows.tolist()))
            everywhere = torch.ones(patches.shape[:2], dtype=torch.bool, device=device)
            words, patches = trained.report_local(words, keep), trained.image_local(patches, everywhere)
            loss = term(words, patches, word_keep=keep, word_weight=None, patch_weight=None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        history.append(total / len(order))
    return TrainedHeads(trained.eval(), tuple(history))


def batch_orders(count: int, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield the row numbers of each epoch's full batches; the same for whatever is trained with this seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield torch.randperm(count, generator=generator).split(batch_size)[: count // batch_size]
