"""Images with one bright square each, its box and its mask: something that a detector learns within seconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from helpers import CARD, tiny_labels
from PIL import Image

from mgca_lib.data.studies import Studies, load_studies, write_studies
from mgca_lib.evaluation.dense_data import BoxImages, MaskImages


def square_table(root: Path, *, size: int, sizes: dict[str, int], seed: int = 0) -> pd.DataFrame:
    """Draw the images and masks into ``root``; every fourth image has no square."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for split, count in sizes.items():
        for number in range(count):
            name = f"{split}{number:03d}"
            grey = rng.integers(0, 40, (size, size), dtype=np.uint8)
            mask = np.zeros((size, size), dtype=np.uint8)
            boxes = []
            if number % 4 != 3:
                side = int(rng.integers(size // 4, size // 2))
                x, y = rng.integers(0, size - side, 2).tolist()
                grey[y : y + side, x : x + side] += 180
                mask[y : y + side, x : x + side] = 255
                boxes = [{"x": float(x), "y": float(y), "w": float(side), "h": float(side), "name": "square"}]
                Image.fromarray(mask).save(root / "masks" / f"{name}.png")
            Image.fromarray(grey).save(root / "images" / f"{name}.png")
            rows.append(
                {
                    "image_id": name,
                    "patient_id": f"p-{name}",
                    "study_id": f"s-{name}",
                    "split": split,
                    "view": "PA",
                    "image": f"images/{name}.png",
                    "width": size,
                    "height": size,
                    "findings": "",
                    "impression": "",
                    "sentences": [],
                    "labels": tiny_labels("normal"),
                    "boxes": boxes,
                    "mask": f"masks/{name}.png" if boxes else "",
                    "source": f"raw/{name}.png",
                }
            )
    return pd.DataFrame(rows)


def square_studies(root: Path, *, size: int = 64, seed: int = 0, **sizes: int) -> Studies:
    """Write the dataset into ``root`` and load it; ``sizes`` are images per split, as ``train=8``."""
    write_studies(root, square_table(root, size=size, sizes=sizes, seed=seed), restricted=False, **CARD)
    return load_studies(root)


def give_patients_two_images(dataset: BoxImages | MaskImages) -> None:
    """Let every two images of a dataset belong to one patient."""
    names = [f"p{row // 2}" for row in range(len(dataset))]
    dataset.studies = replace(dataset.studies, table=dataset.studies.table.assign(patient_id=names))
