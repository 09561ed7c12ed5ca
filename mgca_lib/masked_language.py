"""Masked language modelling: a report encoder reads reports alone, before it sees a film.

Upstream starts from BioClinicalBERT, which had filled in the masked words of two million clinical notes before MGCA
began. A report encoder built from scratch has read nothing; here it does the same with the training reports: BERT's
first task (Devlin et al. 2019, section 3.1, without the second one, next sentences).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from mgca_lib.checkpoint import CheckpointError, optimizer_tensors, restore_optimizer
from mgca_lib.data.tokenization import TokenizedReports, tokenize_reports
from mgca_lib.encoders import EncoderError, ReportEncoder
from mgca_lib.run import progress

_NOT_MASKED = -100  # what the collator writes where nothing is to be guessed
_VALIDATION_SEED = 0


@dataclass(frozen=True)
class Reading:
    """Where masked language modelling stands between two passes: what it needs to go on, beside the encoder's weights.

    Attributes:
        history: As :func:`train_masked_language` returns it, one entry for each pass that was made.
        schedule: State of the learning rate's schedule, JSON-compatible.
        tensors: Guessing layer, optimiser and random generators, by name; those of the training itself, which change
            when it goes on.
        path: Where they were stored, for messages.
    """

    history: list[dict[str, float]]
    schedule: dict[str, Any]
    tensors: dict[str, Tensor]
    path: Path = Path("what was kept of masked words")


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
    begin: Reading | None = None,
    keep: Callable[[Reading], None] | None = None,
) -> list[dict[str, float]]:
    """Train a report encoder, in place, to fill in masked word pieces.

    Of the pieces 15 % are chosen anew in every pass; eight tenths of these are masked, a tenth replaced by any other,
    a tenth left as they are. The encoder reads as it will in alignment (``word_window``). AdamW, a tenth of the steps
    warm-up, then half a cosine. The layer that guesses shares its weights with the piece embeddings and is thrown
    away in the end. Several processes share each batch and add up their gradients, so that any number of them trains
    the same model, to rounding and the masks of dropout.

    Args:
        encoder: A report encoder around a BertModel, on the accelerator's device; new, or one that has learned from
            other texts.
        tokenizer: Its tokenizer.
        train: Cleaned reports.
        valid: Cleaned reports to measure on; they are masked alike in every epoch.
        epochs: Passes over ``train``.
        batch_size: Reports a step, over all processes and so a multiple of their number; the last, incomplete batch is
            dropped.
        learning_rate: Peak rate.
        max_pieces: Pieces kept of a report.
        seed: Decides order, masks, dropout and the first weights of the guessing layer.
        accelerator: Knows device, precision and the other processes.
        begin: Go on from here, with an encoder that has the weights of then; ``None``: from the start.
        keep: Called after each pass with where the training stands, on every process.

    Returns:
        One dictionary an epoch: ``epoch``, ``train`` and ``valid``, mean cross-entropy of a masked piece in nats;
        ``log(vocabulary)`` is a blind guess.

    Raises:
        EncoderError: the model is of another class, whose guessing layer would be another.
        CheckpointError: ``begin`` does not fit this encoder, or a part of it is missing.
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
    history = []
    if begin is not None:
        history = list(begin.history)
        _put_back(begin, head, optimizer, schedule, collate.generator, accelerator)
    done = len(history)
    bar = progress(total=steps, description="masked words", initial=done * (len(reports) // batch_size))
    for epoch in range(done, epochs):
        encoder.train()
        if accelerator.process_index:  # the first process alone goes on with the numbers that it has drawn
            torch.manual_seed(
                int(np.random.SeedSequence((seed, epoch, accelerator.process_index)).generate_state(1)[0])
            )
        total, masked = 0.0, 0
        order = np.random.default_rng((seed, epoch)).permutation(len(reports))
        for batch in _batches(reports, order[: len(order) // batch_size * batch_size], batch_size, collate):
            count = _masked_pieces(batch)
            loss = _loss(encoder, head, _share(batch, accelerator), accelerator) / max(count, 1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            _add_up_gradients(parameters, accelerator)
            optimizer.step()
            schedule.step()
            total, masked = total + float(loss.detach()) * count, masked + count
            bar.update(1)
        total = float(accelerator.reduce(torch.tensor(total, dtype=torch.float64, device=accelerator.device), "sum"))
        history.append(
            {
                "epoch": epoch + 1,
                "train": total / max(masked, 1),
                "valid": _measure(encoder, head, held_out, tokenizer, batch_size, accelerator),
            }
        )
        bar.set_postfix({"valid": f"{history[-1]['valid']:.2f}"})
        if keep is not None:
            keep(_standing(history, head, optimizer, schedule, collate.generator, accelerator))
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


def _masked_pieces(batch: dict[str, Tensor]) -> int:
    return int((batch["labels"] != _NOT_MASKED).sum())


def _share(batch: dict[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """The rows of this process; all of them have made the whole batch, masked alike."""
    size = len(batch["labels"]) // accelerator.num_processes
    own = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
    return {name: values[own] for name, values in batch.items()}


def _add_up_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Give every process the gradient of the whole batch, in one exchange."""
    if accelerator.num_processes > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        together = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
        for gradient, summed in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _standing(
    history: list[dict[str, float]],
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    masks: torch.Generator,
    accelerator: Accelerator,
) -> Reading:
    tensors = {f"head.{name}": weight for name, weight in _own_weights(head).items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(optimizer).items()}
    tensors |= {"random.masks": masks.get_state(), "random.cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return Reading(history=list(history), schedule=schedule.state_dict(), tensors=tensors)


def _put_back(
    begin: Reading,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    masks: torch.Generator,
    accelerator: Accelerator,
) -> None:
    tensors, own = begin.tensors, _own_weights(head)
    for name, weight in own.items():
        found = tensors.get(f"head.{name}")
        if found is None or found.shape != weight.shape:
            raise CheckpointError(f"{begin.path}: weight 'head.{name}' is missing or of another shape")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(tensors[f"head.{name}"])
    slots = {key.removeprefix("optimizer."): tensor for key, tensor in tensors.items() if key.startswith("optimizer.")}
    restore_optimizer(optimizer, slots, begin.path)
    try:
        schedule.load_state_dict(begin.schedule)
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        masks.set_state(tensors["random.masks"])
        torch.set_rng_state(tensors["random.cpu"])
        if accelerator.device.type == "cuda" and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"], accelerator.device)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{begin.path}: schedule or random generators cannot be put back ({error})") from None


def _own_weights(head: nn.Module) -> dict[str, Tensor]:
    """Weights of the guessing layer, each once, without those that belong to the encoder."""
    return {name: weight for name, weight in head.named_parameters() if name != "predictions.decoder.weight"}


def _loss(encoder: ReportEncoder, head: nn.Module, batch: dict[str, Tensor], accelerator: Accelerator) -> Tensor:
    """Cross-entropy of the masked pieces of a batch, summed over them."""
    pieces, keep, labels = (batch[name].to(accelerator.device) for name in ("input_ids", "attention_mask", "labels"))
    wanted = labels != _NOT_MASKED
    with accelerator.autocast():
        hidden = encoder.read(pieces, keep.bool())
        logits = head(hidden[wanted])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels[wanted], reduction="sum")


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
        count = _masked_pieces(batch)
        loss = _loss(encoder, head, batch, accelerator) / max(count, 1)
        total, masked = total + float(loss) * count, masked + count
    encoder.train()
    return total / max(masked, 1)
