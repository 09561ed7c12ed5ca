"""Prepare the RSNA Pneumonia Detection Challenge (stage 2): images with label and boxes.

``python -m data_scripts.prepare_rsna --raw rsna --out prepared/rsna`` reads ``stage_2_train_labels.csv`` (a row a
box), ``stage_2_detailed_class_info.csv`` where it is there, and ``stage_2_train_images/<patientId>.dcm``. The test
images of the challenge have no labels and are not used.

Labels: ``Pneumonia`` (the column Target) and the three detailed classes, 0 or 1; null where the file is missing.
Boxes are scaled to the stored image and named "Pneumonia". The view comes from the DICOM tag ViewPosition.

Split: 70 % of the patients for training and 15 % each for validation and test, as published: scikit-learn's
``train_test_split`` with seed 0 on the patients in order of appearance, first 30 % off, then that in halves.
"""

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_scripts.candidates import Candidate
from data_scripts.command_line import Settings, add_common_arguments, run_command
from data_scripts.ledger import Ledger, Summary
from data_scripts.preparation import Origin, build_dataset, find_root, is_phantom, is_safe_name, read_table
from data_scripts.selection import PUBLISHED_SEED, split_patients_as_published
from mgca_lib.data.studies import DatasetError
from mgca_lib.data.tasks import TASKS

LABELS_FILE = "stage_2_train_labels.csv"
CLASSES_FILE = "stage_2_detailed_class_info.csv"
IMAGES_FOLDER = "stage_2_train_images"
(TARGET,) = TASKS["rsna"].classes
DETAILED_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")


def prepare(raw: str | Path, out: str | Path, **settings: object) -> Summary:
    """Turn the RSNA challenge data into a prepared dataset.

    Args:
        raw: Folder with ``stage_2_train_labels.csv``, or the folder above it.
        out: Folder of the prepared dataset.
        settings: See :class:`data_scripts.command_line.Settings`.

    Returns:
        Counts, printable; rows are rows of the label table, several of which can belong to one image.

    Raises:
        DatasetError: the raw dataset cannot be used at all; the message is one line.
    """
    common = Settings(**settings)
    root = find_root(raw, LABELS_FILE, inside=("rsna*", "RSNA*"), what="RSNA stage 2")
    table = read_table(root / LABELS_FILE, ["patientId", "x", "y", "width", "height", "Target"])
    folder = root / IMAGES_FOLDER
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; it holds the images of RSNA stage 2")
    ledger = Ledger(rows_in=len(table))
    classes = _read_classes(root / CLASSES_FILE)
    if classes is None:
        ledger.notes.append(f"no {CLASSES_FILE}; the detailed classes are unknown")
    records: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in table.to_dict("records"):
        if not is_safe_name(record["patientId"]):
            ledger.drop(LABELS_FILE, record["row"], repr(record["patientId"]), "id missing or malformed")
            continue
        same = [other for other in records[record["patientId"]] if _content(other) == _content(record)]
        if same:
            detail = f"same as row {same[0]['row']}"
            ledger.drop(LABELS_FILE, record["row"], record["patientId"], "duplicate row", detail)
            continue
        records[record["patientId"]].append(record)
    splits = split_patients_as_published(list(records))
    candidates = []
    for patient, rows in records.items():
        candidate = Candidate(
            image_id=patient,
            patient_id=patient,
            study_id=patient,
            split=splits[patient],
            path=folder / f"{patient}.dcm",
            source=f"{IMAGES_FOLDER}/{patient}.dcm",
            file=LABELS_FILE,
            rows=tuple(record["row"] for record in rows),
            stored=patient,
            labels={},
        )
        try:
            target, candidate.boxes = _read_boxes(rows)
            candidate.labels = {TARGET: target} | _detailed_labels(patient, classes)
        except ValueError as error:
            reason, _, detail = str(error).partition(": ")
            ledger.drop_candidate(candidate, reason, detail)
            continue
        candidates.append(candidate)
    return build_dataset(
        candidates,
        ledger,
        root=root,
        phantom=is_phantom(root),
        out=out,
        origin=Origin(
            name="rsna",
            version="stage 2",
            source="RSNA Pneumonia Detection Challenge 2018 (images of the NIH Clinical Center)",
            licence="rules of the RSNA Pneumonia Detection Challenge: non-commercial and academic use",
        ),
        options={"splits": "70/15/15 by patient", "seed": PUBLISHED_SEED, "detailed_classes": classes is not None},
        settings=common,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.prepare_rsna",
        description=__doc__.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    return run_command(parser, prepare, argv)


def _content(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(record[name] for name in ("x", "y", "width", "height", "Target"))


def _read_boxes(rows: Sequence[dict[str, Any]]) -> tuple[float, list[dict[str, Any]]]:
    """Return target and boxes of one patient.

    Raises:
        ValueError: "reason: detail", when the rows make no sense.
    """
    targets = {record["Target"] for record in rows}
    for record in rows:
        if record["Target"] not in ("0", "1", "0.0", "1.0"):
            raise ValueError(f"label out of range: row {record['row']}: Target is {record['Target']!r}, not 0 or 1")
    if len({float(target) for target in targets}) > 1:
        raise ValueError(f"Target both 0 and 1: rows {', '.join(str(record['row']) for record in rows)}")
    target = float(targets.pop())
    boxes = []
    for record in rows:
        texts = [record[name] for name in ("x", "y", "width", "height")]
        blank = [text.lower() in ("", "nan") for text in texts]
        if target == 0 and all(blank):
            continue
        if target == 0:
            raise ValueError(f"box without pneumonia: row {record['row']}: {', '.join(texts)} although Target is 0")
        if any(blank):
            raise ValueError(f"box missing: row {record['row']}: {', '.join(texts)} although Target is 1")
        try:
            x, y, w, h = (float(text) for text in texts)
        except ValueError:
            raise ValueError(f"box not a number: row {record['row']}: {', '.join(texts)}") from None
        if not all(math.isfinite(value) for value in (x, y, w, h)):
            raise ValueError(f"box not a number: row {record['row']}: {', '.join(texts)}")
        if w <= 0 or h <= 0:
            raise ValueError(f"box without area: row {record['row']}: {', '.join(texts)}")
        boxes.append({"x": x, "y": y, "w": w, "h": h, "name": TARGET})
    return target, boxes


def _read_classes(path: Path) -> dict[str, list[tuple[int, str]]] | None:
    if not path.is_file():
        return None
    table = read_table(path, ["patientId", "class"])
    classes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for patient, name, row in zip(table["patientId"], table["class"], table["row"], strict=True):
        classes[patient].append((row, name))
    return classes


def _detailed_labels(patient: str, classes: dict[str, list[tuple[int, str]]] | None) -> dict[str, float | None]:
    if classes is None:
        return dict.fromkeys(DETAILED_CLASSES)
    found = classes.get(patient)
    if not found:
        raise ValueError(f"no detailed class: not in {CLASSES_FILE}")
    for row, name in found:
        if name not in DETAILED_CLASSES:
            raise ValueError(f"unknown class: {CLASSES_FILE}, row {row}: {name!r}")
    if len({name for _, name in found}) > 1:
        raise ValueError(f"several detailed classes: {CLASSES_FILE}, rows {', '.join(str(row) for row, _ in found)}")
    return {name: float(name == found[0][1]) for name in DETAILED_CLASSES}


if __name__ == "__main__":
    sys.exit(main())
