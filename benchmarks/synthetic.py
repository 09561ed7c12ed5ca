"""Data that the benchmarks make themselves: films, reports of given lengths, prepared datasets.

Nothing here looks like a radiograph; what matters to a clock is the size of the files, the number of pixels and the
lengths of the reports.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mgca_lib.config import ModelConfig
from mgca_lib.data.pairs import PairBatch, PairImages
from mgca_lib.data.studies import Studies, load_studies, write_studies
from mgca_lib.data.tasks import TASKS
from mgca_lib.data.transforms import ImageTransform

MEAN_PIECES, MOST_PIECES = 65, 112  # of MIMIC-CXR's reports, as upstream cuts them
VOCABULARY = 28996  # of Bio_ClinicalBERT
ORIGINAL = (3056, 2544)  # height and width of a film of MIMIC-CXR-JPG, pixels
STORED = (256, 213)  # the same, prepared
ORIGINAL_GRAIN = 1.9  # grey values; resizing to 256 px averages it away
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def report_lengths(count: int) -> list[int]:
    """Return ``count`` numbers of word pieces, normally distributed like MIMIC's: mean 65, the longest 112.

    >>> lengths = report_lengths(16)
    >>> round(sum(lengths) / 16), max(lengths)
    (65, 112)
    """
    spread = (MOST_PIECES - MEAN_PIECES) / NormalDist().inv_cdf(1 - 0.5 / 16)
    quantiles = [NormalDist(MEAN_PIECES, spread).inv_cdf((index + 0.5) / count) for index in range(count)]
    return [min(MOST_PIECES, max(3, round(value))) for value in quantiles]


def report_words(pieces: int, rng: np.random.Generator) -> str:
    """Return a report of so many pieces, [CLS] and [SEP] included; every fourth word has two pieces."""
    words, left = [], pieces - 2
    while left:
        size = 2 if left >= 2 and rng.random() < 0.25 else 1
        words.append("".join(rng.choice(list(_LETTERS), size)))
        left -= size
    return " ".join(words)


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Return a WordPiece tokenizer that makes one piece of every letter."""
    names = [*_SPECIAL, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    core = Tokenizer(models.WordPiece({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(list(_SPECIAL))
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=core, **dict(zip(roles, _SPECIAL, strict=True)))


def film(height: int, width: int, rng: np.random.Generator, *, grain: float = 0.2) -> np.ndarray:
    """Return uint8 ``(height, width)`` with broad shades, finer structures and grain.

    Decoding takes longer the larger the file is, so JPEGs of quality 95 have the sizes of real ones: 12 KB at
    256 x 213, and with ``ORIGINAL_GRAIN`` 1.5 MB at 3056 x 2544 (the mean of MIMIC-CXR-JPG).
    """
    grey = np.full((height, width), 120.0, dtype=np.float32)
    for cells, strength in ((6, 45.0), (40, 10.0), (150, 1.5)):
        coarse = rng.normal(scale=strength, size=(cells, cells)).astype(np.float32)
        grey += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grey += rng.normal(scale=grain, size=(height, width)).astype(np.float32)
    return np.clip(grey, 0, 255).astype(np.uint8)


def write_dataset(
    root: Path, *, lengths: Sequence[int], height: int, width: int, valid: int = 0, test: int = 0, seed: int = 0
) -> Studies:
    """Write a prepared dataset with one report and film for each length, and labels for all three tasks.

    Args:
        root: Its folder.
        lengths: Word pieces of each report.
        height: Of the stored films, pixels.
        width: Of the stored films, pixels.
        valid: So many rows before the last ``test`` are the validation split.
        test: So many last rows are the test split.
        seed: Decides everything.
    """
    rng = np.random.default_rng(seed)
    names = [name for task in TASKS.values() for name in task.classes]
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for row, length in enumerate(lengths):
        name = f"images/{row:07d}.jpg"
        Image.fromarray(film(height, width, rng)).save(root / name, "JPEG", quality=95)
        left = len(lengths) - row
        covidx = TASKS["covidx"].classes[rng.integers(3)]
        labels = {label: float(rng.random() < 0.4) for label in names}
        labels |= {label: float(label == covidx) for label in TASKS["covidx"].classes}
        rows.append(
            {
                "image_id": f"i{row}",
                "patient_id": f"p{row}",
                "study_id": f"s{row}",
                "split": "test" if left <= test else "valid" if left <= test + valid else "train",
                "view": "PA",
                "image": name,
                "width": width,
                "height": height,
                "findings": "",
                "impression": "",
                "sentences": [report_words(length, rng)],
                "labels": labels,
                "boxes": [],
                "mask": "",
                "source": name,
            }
        )
    card = {"name": "benchmark", "version": "1", "source": "synthetic", "licence": "Apache-2.0"}
    write_studies(root, pd.DataFrame(rows), restricted=False, options={}, **card)
    return load_studies(root)


def pairs_of(studies: Studies, model: ModelConfig) -> PairImages:
    """Return the pairs as pretraining reads them, random crops included."""
    transform = ImageTransform(model.stored_size, model.image_size, "crop")
    return PairImages(studies, letter_tokenizer(), transform, max_pieces=model.max_pieces, seed=0)


def make_batch(root: Path, model: ModelConfig, batch_size: int) -> PairBatch:
    """Return a batch whose reports have MIMIC's lengths; its dataset is written below ``root``."""
    side = model.stored_size
    studies = write_dataset(root, lengths=report_lengths(batch_size), height=side, width=side)
    pairs = pairs_of(studies, model)
    return pairs.collate([pairs[row] for row in range(batch_size)])
