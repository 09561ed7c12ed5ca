"""Masked language modelling: a report encoder reads reports alone, before it sees a film.

Upstream starts from BioClinicalBERT, which had filled in the masked words of two million clinical notes before MGCA
began. A report encoder built from scratch has read nothing; here it does the same with the training reports: BERT's
first task (Devlin et al. 2019, section 3.1, without the second one, next sentences).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    BertModel,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from mgca_lib.data.tokenization import TokenizedReports, tokenize_reports
from mgca_lib.encoders import EncoderError, ReportEncoder
from mgca_lib.run import progress

_NOT_MASKED = -100  # what the collator writes where nothing is to be guessed
_VALIDATION_SEED = 0


def train_masked_language(
    encoder: ReportEncoder,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[str],
    valid: Sequence[str],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    max_pieces: int,
    seed: int,
    accelerator: Accelerator,
) -> list[dict[str, float]]:
    """Train a report encoder, in place, to fill in masked word pieces.

    Of the pieces 15 % are chosen anew in every pass; eight tenths of these are masked, a tenth replaced by any other,
    a tenth left as they are. The encoder reads as it will in alignment (``word_window``). AdamW, a tenth of the steps
    warm-up, then half a cosine. The layer that guesses shares its weights with the piece embeddings and is thrown
    away in the end. Every process trains alone and alike, since this is short.

    Args:
        encoder: A report encoder around a BertModel, on the accelerator's device; new, or one that has learned from
            other texts.
        tokenizer: Its tokenizer.
        train: Cleaned reports.
        valid: Cleaned reports to measure on; they are masked alike in every epoch.
        epochs: Passes over ``train``.
        batch_size: Reports a step; the last, incomplete batch is dropped.
        learning_rate: Peak rate.
        max_pieces: Pieces kept of a report.
        seed: Decides order, masks, dropout and the first weights of the guessing layer.
        accelerator: Knows device and precision.

    Returns:
        One dictionary an epoch: ``epoch``, ``train`` and ``valid``, mean cross-entropy of a masked piece in nats;
        ``log(vocabulary)`` is a blind guess.

    Raises:
        EncoderError: the model is of another class, whose guessing layer would be another.
    """
    if not isinstance(encoder.model, BertModel):
        name = type(encoder.model).__name__
        raise EncoderError(f"mlm_epochs: needs a BertModel, and text_model is a {name}; leave mlm_epochs at 0")
    torch.manual_seed(seed)
    head = _guessing_head(encoder).to(accelerator.device, encoder.model.dtype)
    parameters = list({id(weight): weight for part in (encoder, head) for weight in part.parameters()}.values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01, fused=True)
    reports = tokenize_reports(tokenizer, train, max_pieces=max_pieces)
    held_out = tokenize_reports(tokenizer, valid, max_pieces=max_pieces)
    collate = _collator(tokenizer, seed)
    steps = epochs * (len(reports) // batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    bar = progress(total=steps, description="masked words")
    history = []
    for epoch in range(epochs):
        encoder.train()
        total, masked = 0.0, 0
        order = np.random.default_rng((seed, epoch)).permutation(len(reports))
        for batch in _batches(reports, order[: len(order) // batch_size * batch_size], batch_size, collate):
            loss, count = _loss(encoder, head, batch, accelerator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total, masked = total + float(loss.detach()) * count, masked + count
            bar.update(1)
        history.append(
            {
                "epoch": epoch + 1,
                "train": total / max(masked, 1),
                "valid": _measure(encoder, head, held_out, tokenizer, batch_size, accelerator),
            }
        )
        bar.set_postfix({"valid": f"{history[-1]['valid']:.2f}"})
    bar.close()
    return history


def _guessing_head(encoder: ReportEncoder) -> nn.Module:
    """BERT's layer from hidden vectors to piece logits, tied to the piece embeddings."""
    with torch.device("meta"):
        whole = BertForMaskedLM(encoder.model.config)
    head = whole.cls.to_empty(device="cpu")
    for part in head.modules():
        whole._init_weights(part)
    head.predictions.decoder.weight = encoder.model.get_input_embeddings().weight
    return head


def _collator(tokenizer: PreTrainedTokenizerBase, seed: int) -> DataCollatorForLanguageModeling:
    collate = DataCollatorForLanguageModeling(tokenizer)
    # Its own way to have a seed refuses to work in a process that another one started.
    collate.generator = torch.Generator().manual_seed(seed)
    return collate


def _batches(
    reports: TokenizedReports, order: Sequence[int], size: int, collate: DataCollatorForLanguageModeling
) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(order), size):
        yield collate([{"input_ids": reports.report(row)[0].tolist()} for row in order[start : start + size]])


def _loss(
    encoder: ReportEncoder, head: nn.Module, batch: dict[str, Tensor], accelerator: Accelerator
) -> tuple[Tensor, int]:
    """Mean cross-entropy of the masked pieces of a batch, and how many they are."""
    pieces, keep, labels = (batch[name].to(accelerator.device) for name in ("input_ids", "attention_mask", "labels"))
    wanted = labels != _NOT_MASKED
    with accelerator.autocast():
        hidden = encoder.read(pieces, keep.bool())
        logits = head(hidden[wanted])
    count = int(wanted.sum())
    return F.cross_entropy(logits.float(), labels[wanted], reduction="sum") / max(count, 1), count


@torch.no_grad()
def _measure(
    encoder: ReportEncoder,
    head: nn.Module,
    reports: TokenizedReports,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    accelerator: Accelerator,
) -> float:
    encoder.eval()
    collate = _collator(tokenizer, _VALIDATION_SEED)
    total, masked = 0.0, 0
    for batch in _batches(reports, range(len(reports)), batch_size, collate):
        loss, count = _loss(encoder, head, batch, accelerator)
        total, masked = total + float(loss) * count, masked + count
    encoder.train()
    return total / max(masked, 1)
