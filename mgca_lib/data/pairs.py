"""Image-report pairs, the batches that pretraining sees, and their order.

The order and the crops depend on the seed and the epoch alone: not on the number of processes or loader workers,
and not on how often a run was interrupted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from mgca_lib.data.denial import denied_in_report
from mgca_lib.data.studies import DatasetError, Studies
from mgca_lib.data.tasks import load_picture
from mgca_lib.data.tokenization import NO_WORD, tokenize_reports
from mgca_lib.data.transforms import ImageTransform


@dataclass(frozen=True)
class PairBatch:
    """A batch of image-report pairs; row ``i`` of every tensor is the same study.

    Attributes:
        images: ``(B, 1, S, S)`` float32 in [-1, 1].
        pieces: ``(B, T)`` int64 word-piece ids, padded with the tokenizer's padding id.
        piece_keep: ``(B, T)`` bool, ``True`` = real.
        word_ids: ``(B, T)`` int64, number of the word a piece belongs to; -1 for [CLS], [SEP] and padding.
        num_words: ``W``, number of word slots: the longest report of the batch.
        rows: ``(B,)`` int64, row numbers in the dataset.
        text_ids: ``(B,)`` int64, equal where the cleaned reports are equal: the first row that has the text.
        denied: ``(B, W)`` bool, ``True`` where the report denies what the word names; all ``False`` where the pairs do
            not find denials.
    """

    images: Tensor
    pieces: Tensor
    piece_keep: Tensor
    word_ids: Tensor
    num_words: int
    rows: Tensor
    text_ids: Tensor
    denied: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "PairBatch":
        """Return the batch on another device (asynchronous from pinned memory)."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})

    def pin_memory(self) -> "PairBatch":
        """Return the batch in page-locked memory; the loader calls this when a GPU is used."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.pin_memory() for name, value in tensors.items()})


class PairImages(Dataset):
    """Image-report pairs of a prepared dataset.

    An item is asked for by row number (centre crop or crop 0), or by ``(row, epoch)``: the random crop then
    depends on seed, epoch and row alone.

    Args:
        studies: Images whose ``sentences`` are not empty, usually one split.
        tokenizer: Cuts words into pieces.
        transform: Makes the tensor from the stored image.
        max_pieces: Pieces kept of a report.
        seed: Seed of the random crops.
        keep_images: Keep every decoded square in memory, ``stored_size`` squared bytes an image, so that later
            epochs decode nothing; every loader process keeps its own.
        denials: Find the words that reports deny, see :mod:`mgca_lib.data.denial`.

    Raises:
        DatasetError: a row has no report; the message names it.
    """

    def __init__(
        self,
        studies: Studies,
        tokenizer: PreTrainedTokenizerBase,
        transform: ImageTransform,
        *,
        max_pieces: int,
        seed: int,
        keep_images: bool = False,
        denials: bool = False,
    ) -> None:
        reports = paired_texts(studies)
        self.studies = studies
        self.transform = transform
        self.seed = seed
        self.keep_images = keep_images
        self.denials = denials
        self._squares: dict[int, Tensor] = {}
        self.padding = int(tokenizer.pad_token_id)
        first: dict[str, int] = {}
        self.text_ids = np.array([first.setdefault(report, row) for row, report in enumerate(reports)])
        self.tokens = tokenize_reports(tokenizer, reports, max_pieces=max_pieces)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[int, Tensor, np.ndarray, np.ndarray]:
        row, epoch = key if isinstance(key, tuple) else (key, 0)
        # SeedSequence mixes the three numbers well; consecutive seeds would give similar first draws.
        seed = int(np.random.SeedSequence((self.seed, epoch, row)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        image = self.transform.crop(self._square(row), generator)
        return row, image, *self.tokens.report(row)

    def _square(self, row: int) -> Tensor:
        if row in self._squares:
            return self._squares[row]
        square = self.transform.square(load_picture(self.studies, row))
        if self.keep_images:
            self._squares[row] = square
        return square

    def collate(self, items: Sequence[tuple[int, Tensor, np.ndarray, np.ndarray]]) -> PairBatch:
        """Stack items; reports are padded to the longest one of the batch."""
        length = max(len(pieces) for _, _, pieces, _ in items)
        pieces = np.full((len(items), length), self.padding, dtype=np.int64)
        words = np.full((len(items), length), NO_WORD, dtype=np.int64)
        keep = np.zeros((len(items), length), dtype=bool)
        for index, (_, _, own_pieces, own_words) in enumerate(items):
            pieces[index, : len(own_pieces)] = own_pieces
            words[index, : len(own_words)] = own_words
            keep[index, : len(own_pieces)] = True
        num_words = int(words.max()) + 1
        denied = np.zeros((len(items), num_words), dtype=bool)
        if self.denials:
            for index, (row, *_) in enumerate(items):
                flags = denied_in_report(self.studies.table["sentences"].iat[row])[:num_words]
                denied[index, : len(flags)] = flags
        return PairBatch(
            images=torch.stack([image for _, image, _, _ in items]),
            pieces=torch.from_numpy(pieces),
            piece_keep=torch.from_numpy(keep),
            word_ids=torch.from_numpy(words),
            num_words=num_words,
            rows=torch.tensor([row for row, _, _, _ in items]),
            text_ids=torch.from_numpy(self.text_ids[[row for row, _, _, _ in items]]),
            denied=torch.from_numpy(denied),
        )


@dataclass(frozen=True)
class EpochBatches:
    """Batches of one epoch for one process: a batch sampler.

    All processes cut the same seeded permutation into global batches of ``batch_size * processes`` pairs; process
    ``r`` takes the ``r``-th share of each, so that what is gathered in rank order stands in the permutation's order.
    Where each global batch begins and ends depends on that product alone, not on its factors. The last, incomplete
    global batch is dropped, since contrast depends on the number of negatives.

    Attributes:
        size: Number of pairs.
        batch_size: Pairs per process.
        seed: Seed of the permutation.
        epoch: Epoch, counted from 0.
        rank: Number of this process.
        processes: Number of processes.
        first: Global batches to skip, for resuming in the middle of an epoch.
        shuffle: ``False`` keeps one fixed permutation for all epochs (validation), so that neighbours in the
            table, often two images of one study, do not meet in a batch.
    """

    size: int
    batch_size: int
    seed: int
    epoch: int = 0
    rank: int = 0
    processes: int = 1
    first: int = 0
    shuffle: bool = True

    @property
    def total(self) -> int:
        """Number of global batches in the whole epoch."""
        return self.size // (self.batch_size * self.processes)

    def __len__(self) -> int:
        return max(0, self.total - self.first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        entropy = (self.seed, self.epoch + 1) if self.shuffle else (self.seed, 0)
        order = np.random.default_rng(entropy).permutation(self.size)
        for batch in range(self.first, self.total):
            start = (batch * self.processes + self.rank) * self.batch_size
            yield [(int(row), self.epoch) for row in order[start : start + self.batch_size]]


@dataclass(frozen=True)
class RunBatches:
    """Batches of all epochs that a run has left, one epoch after the other: a batch sampler.

    Loader processes then live as long as the run and read ahead over the end of an epoch, instead of starting anew
    with nothing read.

    Attributes:
        start: The epoch to begin with, and where in it.
        epochs: Number of epochs of the whole run.
        per_epoch: Global batches to take of each epoch; those after it are left out.
    """

    start: EpochBatches
    epochs: int
    per_epoch: int

    def __len__(self) -> int:
        return max(0, (self.epochs - self.start.epoch) * self.per_epoch - self.start.first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.start.epoch, self.epochs):
            first = self.start.first if epoch == self.start.epoch else 0
            yield from islice(replace(self.start, epoch=epoch, first=first), max(0, self.per_epoch - first))


def report_texts(studies: Studies) -> list[str]:
    """Return the cleaned report of every row: its sentences joined by spaces, as the tokenizer sees it."""
    return pc.binary_join(pa.array(studies.table["sentences"], type=pa.list_(pa.string())), " ").to_pylist()


def paired_texts(studies: Studies) -> list[str]:
    """Return what :func:`report_texts` does, where every image has a report.

    Raises:
        DatasetError: a row has no report; the message names it.
    """
    reports = report_texts(studies)
    for row, report in enumerate(reports):
        if not report.strip():
            image_id = studies.table["image_id"].iat[row]
            raise DatasetError(f"{studies.root}: image {image_id!r} (row {row}) has no report to pair it with")
    return reports
