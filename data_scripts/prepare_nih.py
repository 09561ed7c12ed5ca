"""Prepare NIH ChestX-ray14: frontal images with 14 text-mined labels, some with a radiologist's boxes.

``python -m data_scripts.prepare_nih --raw ChestX-ray14 --out prepared/nih`` reads what the NIH Clinical Center offers
to anyone: ``Data_Entry_2017_v2020.csv`` (or the earlier ``Data_Entry_2017.csv``; of both the later one), the images in
``images/`` or in ``images_001/`` ... ``images_012/`` (with or without an ``images/`` inside), and, where they are
there, ``BBox_List_2017.csv``, ``train_val_list.txt`` and ``test_list.txt``. A part of the images is enough:
``--partial`` counts table rows without an image as left out by design.

Labels: the 14 findings under NIH's own names, such as "Effusion" and "Pleural_Thickening"; 1 where the table names it,
0 where it does not, and all 0 for "No Finding". A program read them from reports that were never released.

Boxes: 984 on 880 images, in pixels of the released 1024 x 1024 images. For copies of another size, which must be square
as the release is, they are scaled. "Infiltrate" of that list is the finding "Infiltration".

Splits: with the two lists, ``test_list.txt`` is the test split, and ``--valid-fraction`` of the patients in
``train_val_list.txt`` are drawn for validation; without them ``--valid-fraction`` and ``--test-fraction`` of all
patients are drawn. No patient is in two splits.
"""

import argparse
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_scripts.candidates import FRONTAL_VIEWS, Candidate
from data_scripts.command_line import Settings, add_common_arguments, add_split_arguments, run_command
from data_scripts.ledger import Ledger, Summary
from data_scripts.preparation import Origin, build_dataset, find_root, is_phantom, read_lines, read_table
from data_scripts.selection import draw_splits
from mgca_lib.data.studies import DatasetError

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
BOXES = "BBox_List_2017.csv"
LISTS = {"train_val_list.txt": "train", "test_list.txt": "test"}
"""Official lists, and the split of their images before the validation patients are drawn."""

NIH_LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"
RELEASED_SIZE = 1024
"""Side of the released images, pixels; the boxes count in these."""

_BOX_NAMES = {name: name for name in NIH_LABELS} | {"Infiltrate": "Infiltration"}
TABLE_COLUMNS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "View Position")
# The list's one header "Bbox [x,y,w,h]" is cut at its commas.
BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
_INDEX = re.compile(r"(?P<patient>\d{8})_\d{3}\.png")
_SUFFIXES = (".png", ".jpg", ".jpeg")


def prepare(
    raw: str | Path,
    out: str | Path,
    *,
    partial: bool = False,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    **settings: object,
) -> Summary:
    """Turn ChestX-ray14 into a prepared dataset.

    Args:
        raw: Folder with the table and the images, or the folder above it.
        out: Folder of the prepared dataset.
        partial: The images are a part of the release: rows without an image are no fault.
        valid_fraction: Share of the patients for validation.
        test_fraction: Share of the patients for the test; unused where the official lists say it.
        seed: Seed of the split.
        settings: See :class:`data_scripts.command_line.Settings`.

    Returns:
        Counts, printable.

    Raises:
        DatasetError: the raw dataset cannot be used at all; the message is one line.
    """
    common = Settings(**settings)
    root = find_root(
        raw,
        "Data_Entry_2017*.csv",
        inside=("ChestX-ray14*", "ChestXray-NIHCC*", "nih", "nih_cxr14"),
        what="NIH ChestX-ray14 (Data_Entry_2017_v2020.csv)",
    )
    file = next((name for name in TABLES if (root / name).is_file()), None)
    if file is None:
        raise DatasetError(f"{root}: its Data_Entry_2017*.csv is called neither {TABLES[0]} nor {TABLES[1]}")
    records = read_table(root / file, TABLE_COLUMNS).to_dict("records")
    ledger = Ledger(rows_in=len(records))
    images = _find_images(root, ledger)
    listed = _read_lists(root)
    splits = _draw(records, listed, valid=valid_fraction, test=test_fraction, seed=seed)
    boxes = _read_boxes(root, {record["Image Index"] for record in records}, ledger)
    candidates: list[Candidate] = []
    for record in records:
        index, row = record["Image Index"], record["row"]
        path = images.get(index.rsplit(".", 1)[0])
        reason, detail = _problem(record, listed)
        if not reason and path is None and partial:
            ledger.drop(file, row, index, "image not in this part of the release", faulty=False)
            continue
        own: list[dict[str, Any]] = []
        if not reason:
            try:
                own = _own_boxes(boxes.get(index, []), path)
            except ValueError as error:
                reason, detail = "box malformed", str(error)
        if reason:
            ledger.drop(file, row, index or "(no image)", reason, detail)
            continue
        patient, visit = index[:8], record["Follow-up #"]
        candidates.append(
            Candidate(
                image_id=index,
                patient_id=patient,
                study_id=f"{patient}_{visit.zfill(3)}" if visit.isdigit() else index[:-4],
                split=splits[patient] if listed is None or listed[index] == "train" else "test",
                view=record["View Position"],
                path=path or root / "images" / index,
                source=path.relative_to(root).as_posix() if path else f"images/{index}",
                file=file,
                rows=(row,),
                stored=f"{patient[:5]}/{index[:-4]}",
                labels=labels_from_findings(record["Finding Labels"]),
                boxes=own,
            )
        )
    return build_dataset(
        candidates,
        ledger,
        root=root,
        phantom=is_phantom(root),
        out=out,
        origin=Origin(
            name="nih",
            version=file.removesuffix(".csv"),
            source="NIH ChestX-ray14, NIH Clinical Center, https://nihcc.app.box.com/v/ChestXray-NIHCC (Wang et al., "
            "CVPR 2017)",
            licence="NIH Clinical Center terms: unrestricted use; name the NIH Clinical Center as provider, link its "
            "download site, cite Wang et al. 2017",
            restricted=False,
        ),
        options={
            "partial": partial,
            "labels": "14 findings, text-mined",
            "valid_fraction": valid_fraction,
            "test_fraction": test_fraction if listed is None else None,
            "seed": seed,
            "splits": "by patient" if listed is None else "test_list.txt is test; valid is drawn by patient",
        },
        settings=common,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.prepare_nih",
        description=__doc__.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    add_split_arguments(parser)
    parser.add_argument("--partial", action="store_true", help="the images are a part of the release")
    return run_command(parser, prepare, argv)


def labels_from_findings(text: str) -> dict[str, float]:
    """Return the 14 labels of a row.

    Args:
        text: Findings with ``|`` between them, or "No Finding" alone.

    Raises:
        ValueError: a finding is unknown, there is none, or "No Finding" has company.

    >>> labels = labels_from_findings("Edema|Effusion")
    >>> [name for name, value in labels.items() if value == 1], len(labels)
    (['Effusion', 'Edema'], 14)
    """
    names = {name.strip() for name in text.split("|")}
    if names == {NO_FINDING}:
        return dict.fromkeys(NIH_LABELS, 0.0)
    if wrong := sorted(names - set(NIH_LABELS)):
        raise ValueError(f"{wrong[0]!r} in {text!r} is none of the 14 findings" if wrong[0] else f"blank in {text!r}")
    return {name: float(name in names) for name in NIH_LABELS}


def _problem(record: Mapping[str, str], listed: Mapping[str, str] | None) -> tuple[str, str]:
    """Return why a row is left out (reason, detail), or an empty reason."""
    index, patient = record["Image Index"], record["Patient ID"]
    match = _INDEX.fullmatch(index)
    if match is None:
        return "id missing or malformed", f"Image Index {index!r} is not of the form 00000001_000.png"
    if not re.fullmatch(r"[0-9]+", patient) or int(patient) != int(match["patient"]):
        return "id missing or malformed", f"Patient ID {patient!r} is not that of {index}"
    if record["View Position"] not in FRONTAL_VIEWS:
        return "unknown view", repr(record["View Position"])
    try:
        labels_from_findings(record["Finding Labels"])
    except ValueError as error:
        return "unknown finding", str(error)
    if listed is not None and index not in listed:
        return "not in the split lists", ""
    return "", ""


def _find_images(root: Path, ledger: Ledger) -> dict[str, Path]:
    """Return the image files by name without suffix; of files with the same name the first in order of folders."""
    folders = sorted({*root.glob("images"), *root.glob("images_*"), *root.glob("images_*/images")})
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        raise DatasetError(f"{root / 'images'}: no such folder (nor images_001 ...); it holds the images")
    found: dict[str, Path] = {}
    doubled = 0
    for folder in folders:
        for name in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in _SUFFIXES:
                doubled += stem in found
                found.setdefault(stem, folder / name)
    if doubled:
        ledger.notes.append(f"{doubled} image files have the name of another one; the first was taken")
    return found


def _read_lists(root: Path) -> dict[str, str] | None:
    """Return image -> "train" or "test" of the official lists, or ``None`` where there are none."""
    there = [name for name in LISTS if (root / name).exists()]
    if not there:
        return None
    listed: dict[str, str] = {}
    for name, split in LISTS.items():
        if name not in there:
            raise DatasetError(f"{root / name}: no such file, but {there[0]} is there; the split needs both or none")
        for row, index in read_lines(root / name):
            if listed.setdefault(index, split) != split:
                raise DatasetError(f"{root / name}, row {row}: {index} is in {there[0]}, too")
    return listed


def _draw(
    records: Sequence[Mapping[str, str]], listed: Mapping[str, str] | None, *, valid: float, test: float, seed: int
) -> dict[str, str]:
    """Return the split of each patient; with official lists only of those that the training list names."""
    indices = [record["Image Index"] for record in records if _INDEX.fullmatch(record["Image Index"])]
    if listed is not None:
        training = (index[:8] for index in indices if listed.get(index) == "train")
        return draw_splits(training, valid=valid, test=0.0, seed=seed)
    return draw_splits((index[:8] for index in indices), valid=valid, test=test, seed=seed)


def _read_boxes(root: Path, known: set[str], ledger: Ledger) -> dict[str, list[dict[str, str]]]:
    """Return the rows of the box list by image."""
    if not (root / BOXES).exists():
        ledger.notes.append(f"there is no {BOXES}, so no image has boxes")
        return {}
    boxes = defaultdict(list)
    for record in read_table(root / BOXES, BOX_COLUMNS).to_dict("records"):
        boxes[record["Image Index"]].append(record)
    if strange := sorted(set(boxes) - known):
        ledger.notes.append(f"{len(strange)} images of {BOXES} are not in the table, the first is {strange[0]!r}")
    return dict(boxes)


def _own_boxes(rows: Sequence[Mapping[str, str]], path: Path | None) -> list[dict[str, Any]]:
    """Return the boxes of one image in its own pixels.

    Raises:
        ValueError: a box is malformed, or the image is not square although boxes speak of it.
    """
    boxes = []
    for record in rows:
        where = f"{BOXES}, row {record['row']}"
        name = _BOX_NAMES.get(record["Finding Label"])
        if name is None:
            raise ValueError(f"{where}: unknown finding {record['Finding Label']!r}")
        cells = [record[column] for column in BOX_COLUMNS[2:]]
        try:
            x, y, w, h = (float(cell) for cell in cells)
        except ValueError:
            raise ValueError(f"{where}: {', '.join(cells)} are not four numbers") from None
        if not (w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= RELEASED_SIZE and y + h <= RELEASED_SIZE):
            raise ValueError(f"{where}: {x:g}, {y:g}, {w:g}, {h:g} is not in an image of {RELEASED_SIZE} pixels")
        boxes.append({"x": x, "y": y, "w": w, "h": h, "name": name})
    if not boxes or path is None:
        return boxes
    try:
        with Image.open(path) as picture:  # reads the header only
            width, height = picture.size
    except OSError:
        return boxes  # the conversion will say so
    if width != height:
        raise ValueError(f"the image is {width} x {height}, so {BOXES} does not fit it: the released ones are square")
    scale = width / RELEASED_SIZE
    for box in boxes:
        box |= {side: box[side] * scale for side in "xywh"}
        # Rounding must not push the far edge over the border.
        box |= {"w": min(box["w"], width - box["x"]), "h": min(box["h"], height - box["y"])}
    return boxes


if __name__ == "__main__":
    sys.exit(main())
