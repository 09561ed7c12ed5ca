"""object-CXR in miniature: films with and without foreign objects.

::

    train/<number>.jpg, dev/<number>.jpg
    train.csv, dev.csv      image_name,annotation; objects apart by ";", each "type x1 y1 x2 y2 ..."

Type 0 is a rectangle and 1 an ellipse, both given by two corners of their box; 2 is a polygon, given by its corners.
The object's kind decides which of the three. Devices (tubes, wires, leads) are not annotated. Half of the films have
an object, and never more than one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial import ConvexHull

from data_scripts.phantom.cases import sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.layouts.common import (
    Box,
    Film,
    Map,
    Settings,
    WrittenFilm,
    dataset_key,
    generator,
    write_csv,
    write_films,
)

NAME = "object_cxr"
FORMAT = "object-CXR"
SPLITS = ("train", "dev")
COLUMNS = ("image_name", "annotation")
FINDING = "foreign object"
RECTANGLE, ELLIPSE, POLYGON = 0, 1, 2
SHAPES = {
    "coin": ELLIPSE,
    "button": ELLIPSE,
    "earring": ELLIPSE,
    "safety pin": RECTANGLE,
    "hair clip": RECTANGLE,
    "necklace": POLYGON,
    "key": POLYGON,
}
_MASKS = "masks"


def write(folder: Path, settings: Settings, *, develop: Map) -> None:
    """Write the whole layout into an existing empty folder."""
    films = {split: _plan(settings, split) for split in SPLITS}
    written = iter(write_films(folder, [film for split in SPLITS for film in films[split]], develop=develop, name=NAME))
    for split in SPLITS:
        rows = [(Path(film.path).name, _annotate(folder, film, next(written))) for film in films[split]]
        write_csv(folder / f"{split}.csv", COLUMNS, rows)
    shutil.rmtree(folder / _MASKS, ignore_errors=True)


def _annotate(folder: Path, film: Film, result: WrittenFilm) -> str:
    objects = []
    for finding, path, box in zip(film.case.findings, film.masks, result.boxes, strict=True):
        if finding.name == FINDING and box is not None:
            shape = SHAPES[finding.kind]
            points = _outline(folder / path) if shape == POLYGON else _corners(box)
            objects.append(" ".join(str(number) for number in (shape, *points)))
    return ";".join(objects)


def _corners(box: Box) -> tuple[int, ...]:
    x, y, width, height = box
    return x, y, x + width, y + height


def _outline(path: Path) -> tuple[int, ...]:
    """Corners of the convex hull of a mask's pixels, as x, y, x, y, ..."""
    rows, columns = np.nonzero(np.asarray(Image.open(path)))
    pixels = np.stack([columns, rows], axis=1)
    corners = np.concatenate([pixels + step for step in ((0, 0), (0, 1), (1, 0), (1, 1))])
    return tuple(int(number) for number in corners[ConvexHull(corners).vertices].ravel())


def _plan(settings: Settings, split: str) -> list[Film]:
    hospital = HOSPITALS[NAME]
    key = dataset_key(NAME)
    first = 1 + sum(settings.counts[other] for other in SPLITS[: SPLITS.index(split)])
    films = []
    for number in range(settings.counts[split]):
        rng = generator(settings.seed, key, 1, SPLITS.index(split), number)
        # The first films of a split have an object, so that the smallest split has one too.
        case = sample_case(rng, hospital, findings=[FINDING] if number < 2 else None)
        name = f"{first + number:05d}"
        films.append(
            Film(
                path=f"{split}/{name}.jpg",
                case=case,
                hospital=NAME,
                seed=(settings.seed, key, 2, SPLITS.index(split), number),
                size=settings.size,
                aspect=float(rng.choice((0.83, 0.83, 1.0, 1.2))),
                masks=tuple(f"{_MASKS}/{name}-{place}.png" for place in range(len(case.findings))),
            )
        )
    return films
