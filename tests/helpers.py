"""A tiny prepared dataset made on the fly, settings small enough for seconds, and an independent tokenizer.

Every image shows one of four patterns, and its report names the pattern, so that pretraining has something to
learn and every task has labels.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mgca_lib.config import Config, load_profile
from mgca_lib.data.pairs import PairBatch, PairImages, report_texts
from mgca_lib.data.studies import Studies, load_studies, write_studies
from mgca_lib.data.tokenization import train_tokenizer
from mgca_lib.data.transforms import ImageTransform

CARD = {"name": "tiny", "version": "1", "source": "phantom", "licence": "CC0", "options": {"size": 40}}
PATTERNS = {
    "pleural effusion": (24, 4, "there is a left pleural effusion"),
    "edema": (4, 4, "perihilar haze suggests edema"),
    "consolidation": (4, 22, "dense right upper consolidation"),
    "normal": (None, None, "no acute process"),
}
SMALL = {
    "stored_size": 36,
    "image_size": 32,
    "text_layers": 1,
    "text_width": 16,
    "text_vocabulary": 120,
    "hidden_dim": 24,
    "joint_dim": 16,
    "num_prototypes": 6,
    "batch_size": 8,
    "epochs": 2,
    "checkpoint_steps": 1,
}


def tiny_config(**settings) -> Config:
    """The smoke profile, smaller."""
    return load_profile("smoke", **(SMALL | settings))


def with_cell(studies: Studies, row: int, column: str, value: Any) -> Studies:
    """The same studies, one cell of the table replaced; a column as Arrow stores it takes no list or dict."""
    values = studies.table[column].tolist()
    values[row] = value
    return replace(studies, table=studies.table.assign(**{column: pd.Series(values, dtype=object)}))


def draw(pattern: str, rng: np.random.Generator, *, width: int = 44, height: int = 40) -> np.ndarray:
    """Noise with a bright square where the pattern says."""
    grey = rng.integers(0, 60, (height, width), dtype=np.uint8)
    top, left, _ = PATTERNS[pattern]
    if top is not None:
        grey[top : top + 12, left : left + 14] += 170
    return grey


def tiny_table(root: Path, *, train: int = 24, valid: int = 8, test: int = 8, seed: int = 0) -> pd.DataFrame:
    """Draw the images into ``root/images`` and return the table that describes them."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        for number in range(count):
            pattern = list(PATTERNS)[number % len(PATTERNS)]
            name = f"{split}{number:03d}"
            Image.fromarray(draw(pattern, rng)).save(root / "images" / f"{name}.png")
            extra = [text for text in ("the heart is normal in size", "lungs clear") if rng.random() < 0.5]
            rows.append(
                {
                    "image_id": name,
                    "patient_id": f"p-{name}",
                    "study_id": f"s-{name}",
                    "split": split,
                    "view": "PA" if number % 2 else "AP",
                    "image": f"images/{name}.png",
                    "width": 44,
                    "height": 40,
                    "findings": "",
                    "impression": PATTERNS[pattern][2],
                    "sentences": [PATTERNS[pattern][2], *extra],
                    "labels": tiny_labels(pattern),
                    "boxes": [{"x": 4.0, "y": 4.0, "w": 14.0, "h": 12.0, "name": "edema"}] * (pattern == "edema"),
                    "mask": "",
                    "source": f"raw/{name}.png",
                }
            )
    return pd.DataFrame(rows)


def tiny_labels(pattern: str) -> dict[str, float | None]:
    """Labels for all three tasks."""
    return {
        "Atelectasis": None,
        "Cardiomegaly": 0.0,
        "Consolidation": float(pattern == "consolidation"),
        "Edema": float(pattern == "edema"),
        "Pleural Effusion": -1.0 if pattern == "edema" else float(pattern == "pleural effusion"),
        "Pneumonia": float(pattern == "consolidation"),
        "normal": float(pattern == "normal"),
        "pneumonia": float(pattern in ("consolidation", "edema")),
        "COVID-19": float(pattern == "pleural effusion"),
    }


def tiny_studies(root: Path, *, restricted: bool = False, **sizes: int) -> Studies:
    """Write the tiny dataset into ``root`` and load it."""
    write_studies(root, tiny_table(root, **sizes), restricted=restricted, **CARD)
    return load_studies(root)


def tiny_tokenizer(studies: Studies) -> PreTrainedTokenizerFast:
    """A tokenizer trained on the reports."""
    return train_tokenizer(sorted(set(report_texts(studies))), vocabulary=SMALL["text_vocabulary"])


def tiny_batch(studies: Studies, rows: list[int], *, max_pieces: int = 112) -> PairBatch:
    """A batch of these rows, centre crops."""
    transform = ImageTransform(SMALL["stored_size"], SMALL["image_size"])
    pairs = PairImages(studies, tiny_tokenizer(studies), transform, max_pieces=max_pieces, seed=0)
    return pairs.collate([pairs[row] for row in rows])


def word_pieces(word: str, vocabulary: list[str]) -> list[str]:
    """Greedy longest-match-first WordPiece of one word, from its definition."""
    pieces, rest = [], word
    while rest:
        marks = "##" if pieces else ""
        fitting = [rest[:end] for end in range(len(rest), 0, -1) if marks + rest[:end] in vocabulary]
        if not fitting:
            return ["[UNK]"]
        pieces.append(marks + fitting[0])
        rest = rest[len(fitting[0]) :]
    return pieces


def small_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with exactly this vocabulary behind the five special tokens."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    core = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(names)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
