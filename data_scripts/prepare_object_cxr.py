"""Prepare object-CXR: films with boxes of foreign objects.

``python -m data_scripts.prepare_object_cxr --raw object_cxr --out prepared/object_cxr`` reads ``train.csv`` and
``dev.csv`` (or ``test.csv``), each with the images in the folder of its name. A row is an image:
``image_name,annotation``. The annotation is blank, or lists objects apart by ";": a type and numbers apart by blanks.

    0 x1 y1 x2 y2               rectangle, two opposite corners
    1 x1 y1 x2 y2               ellipse, two opposite corners of its box
    2 x1 y1 x2 y2 x3 y3 ...     polygon, at least three corners

Label: ``Foreign object``, 0 or 1. Boxes are scaled to the stored image and named so too. By default they are tight.
``--boxes upstream`` enlarges those of polygons as upstream does, see :func:`upstream_box`.

Split: 10 % of ``train.csv`` for validation, scikit-learn's ``train_test_split`` with seed 0, as upstream;
``dev.csv`` is the test split. The release names no patients, so each image is taken for one.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt
from sklearn.model_selection import train_test_split

from data_scripts.candidates import Candidate
from data_scripts.command_line import Settings, add_common_arguments, run_command
from data_scripts.ledger import Ledger, Summary
from data_scripts.preparation import Origin, build_dataset, find_root, is_phantom, is_safe_name, read_table
from mgca_lib.data.studies import DatasetError

TRAIN = "train"
TESTS = ("dev", "test")
LABEL = "Foreign object"
RECTANGLE, ELLIPSE, POLYGON = "0", "1", "2"
BOX_MODES = ("tight", "upstream")
SEED = 0
VALID_SHARE = 0.1
UPSTREAM_BUFFER = 100
"""Width in pixels of the band around a polygon's outline in which upstream looks for the deepest point."""


def prepare(raw: str | Path, out: str | Path, *, boxes: str = "tight", **settings: object) -> Summary:
    """Turn object-CXR into a prepared dataset.

    Args:
        raw: Folder with ``train.csv``, or the folder above it.
        out: Folder of the prepared dataset.
        boxes: ``"tight"``, or ``"upstream"`` for the enlarged boxes of polygons.
        settings: See :class:`data_scripts.command_line.Settings`.

    Returns:
        Counts, printable; rows are rows of the tables, one an image.

    Raises:
        DatasetError: the raw dataset cannot be used at all; the message is one line.
    """
    common = Settings(**settings)
    if boxes not in BOX_MODES:
        raise DatasetError(f"--boxes {boxes}: use one of {', '.join(BOX_MODES)}")
    root = find_root(raw, f"{TRAIN}.csv", inside=("object*", "Object*"), what="object-CXR")
    test = next((name for name in TESTS if (root / f"{name}.csv").is_file()), TESTS[0])
    tables = {name: read_table(root / f"{name}.csv", ["image_name", "annotation"]) for name in (TRAIN, test)}
    ledger = Ledger(rows_in=sum(len(table) for table in tables.values()))
    candidates = []
    for name, table in tables.items():
        folder, file = root / name, f"{name}.csv"
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; it holds the images of {file}")
        images = list(dict.fromkeys(table["image_name"]))
        splits = split_train(images) if name == TRAIN else dict.fromkeys(images, "test")
        seen: dict[tuple[str, str], int] = {}
        for image, annotation, row in zip(table["image_name"], table["annotation"], table["row"], strict=True):
            first = seen.setdefault((image, annotation), row)
            if not is_safe_name(image):
                ledger.drop(file, row, repr(image), "id missing or malformed")
                continue
            if first != row:
                ledger.drop(file, row, image, "duplicate row", f"same as row {first}")
                continue
            try:
                objects = _read_objects(annotation)
            except ValueError as error:
                reason, _, detail = str(error).partition(": ")
                ledger.drop(file, row, f"{name}/{image}", reason, detail)
                continue
            stem = Path(image).stem
            candidates.append(
                Candidate(
                    image_id=stem,
                    patient_id=stem,
                    study_id=stem,
                    split=splits[image],
                    path=folder / image,
                    source=f"{name}/{image}",
                    file=file,
                    rows=(row,),
                    stored=stem,
                    labels={LABEL: float(bool(objects))},
                    boxes=_make_boxes(objects, folder / image, upstream=boxes == "upstream"),
                )
            )
    return build_dataset(
        candidates,
        ledger,
        root=root,
        phantom=is_phantom(root),
        out=out,
        origin=Origin(
            name="object_cxr",
            version="2020",
            source="object-CXR, JF Healthcare (challenge at MIDL 2020)",
            licence="terms of JF Healthcare; the download names no licence",
        ),
        options={"boxes": boxes, "splits": "train.csv 90/10, dev.csv is test", "seed": SEED},
        settings=common,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.prepare_object_cxr",
        description=__doc__.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    parser.add_argument("--boxes", choices=BOX_MODES, default="tight", help="boxes of polygons (default tight)")
    return run_command(parser, prepare, argv)


def split_train(images: Sequence[str]) -> dict[str, str]:
    """Split the images of ``train.csv`` 90/10 as upstream does.

    Args:
        images: Distinct images, in the order of the table.

    Returns:
        Image -> split. A single image is a training image.

    >>> sizes = list(split_train([str(number) for number in range(8000)]).values())
    >>> [sizes.count(split) for split in ("train", "valid")]
    [7200, 800]
    """
    if len(images) < 2:
        return dict.fromkeys(images, TRAIN)
    train, valid = train_test_split(list(images), test_size=VALID_SHARE, random_state=SEED)
    return dict.fromkeys(train, TRAIN) | dict.fromkeys(valid, "valid")


def upstream_box(corners: np.ndarray) -> tuple[float, float, float, float]:
    """Box of a polygon as upstream makes it: centred on a deep point, and therefore too large.

    The closed outline is widened to a band that reaches 100 pixels to either side. The box has the point of the band
    that is farthest from the band's border (its pole of inaccessibility) in the middle, and reaches in each direction
    as far as the farther side of the tight box. Upstream looks for the pole to within 10 pixels, here a grid of at
    most about 512 points a side does; of several poles, as in a wide ring, the topmost is taken.

    Args:
        corners: ``(N, 2)`` x and y in pixels.

    Returns:
        x, y of the upper left corner, width and height; can reach beyond the image.
    """
    low, high = corners.min(axis=0), corners.max(axis=0)
    step = max(1.0, float((high - low).max() + 2 * UPSTREAM_BUFFER) / 512)
    origin = low - UPSTREAM_BUFFER - 2 * step
    columns, rows = np.ceil((high - origin + UPSTREAM_BUFFER) / step).astype(int) + 2
    picture = Image.new("L", (int(columns), int(rows)), 1)
    closed = (np.concatenate([corners, corners[:1]]) - origin) / step
    ImageDraw.Draw(picture).line([tuple(point) for point in closed.tolist()], fill=0)
    band = distance_transform_edt(np.asarray(picture)) * step <= UPSTREAM_BUFFER
    depth = distance_transform_edt(band)
    pole = origin + step * np.array(np.unravel_index(depth.argmax(), depth.shape))[::-1]
    reach = np.maximum(pole - low, high - pole)
    x, y, w, h = (float(number) for number in (*(pole - reach), *(2 * reach)))
    return x, y, w, h


def _read_objects(annotation: str) -> list[tuple[str, np.ndarray]]:
    """Return type and ``(N, 2)`` points of each object.

    Raises:
        ValueError: "reason: detail", when the annotation makes no sense.
    """
    objects = []
    for number, text in enumerate(annotation.split(";") if annotation else (), start=1):
        where = f"object {number}: {text.strip()[:40]!r}"
        kind, *parts = text.split() or [""]
        if not kind:
            raise ValueError(f"annotation malformed: {where} is empty")
        if kind not in (RECTANGLE, ELLIPSE, POLYGON):
            raise ValueError(f"unknown annotation type: {where} has the type {kind!r}, not 0, 1 or 2")
        if kind == POLYGON and (len(parts) < 6 or len(parts) % 2):
            raise ValueError(f"annotation malformed: {where} has {len(parts)} numbers, not pairs for 3 or more corners")
        if kind != POLYGON and len(parts) != 4:
            raise ValueError(f"annotation malformed: {where} has {len(parts)} numbers, not 4")
        try:
            points = np.array([float(part) for part in parts]).reshape(-1, 2)
        except ValueError:
            raise ValueError(f"box not a number: {where}") from None
        if not all(math.isfinite(value) for value in points.flat):
            raise ValueError(f"box not a number: {where}")
        if (np.ptp(points, axis=0) <= 0).any():
            raise ValueError(f"box without area: {where}")
        objects.append((kind, points))
    return objects


def _make_boxes(objects: Sequence[tuple[str, np.ndarray]], path: Path, *, upstream: bool) -> list[dict[str, Any]]:
    boxes = []
    for kind, points in objects:
        low, high = points.min(axis=0), points.max(axis=0)
        if upstream and kind == POLYGON:
            x, y, w, h = upstream_box(points)
            # Cut at the border of the image, but not what the annotation itself has beyond it: that is a fault.
            low, high = (
                np.maximum((x, y), np.minimum(low, 0)),
                np.minimum((x + w, y + h), np.maximum(high, _size(path))),
            )
        (x, y), (w, h) = low.tolist(), (high - low).tolist()
        boxes.append({"x": x, "y": y, "w": w, "h": h, "name": LABEL})
    return boxes


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError:
        return (0, 0)  # the conversion says what is wrong with the file


if __name__ == "__main__":
    sys.exit(main())
