"""Prepare the SIIM-ACR pneumothorax segmentation challenge (stage 1): images with label and mask.

``python -m data_scripts.prepare_siim --raw siim --out prepared/siim`` reads ``train-rle.csv`` (a row a lesion, or
"-1" where there is none) and ``dicom-images-train/<study>/<series>/<ImageId>.dcm``. The test images have no masks in
stage 1 and are not used.

Label: ``Pneumothorax``, 0 or 1. Mask: the union of an image's lesions as PNG (0 and 255) in the size of the stored
image, set where the lesions cover at least half of the pixel; images without pneumothorax have none. The view comes
from the DICOM tag ViewPosition. Images in the tree that no row speaks of, as in the release, are counted with row 0.

Split: 70 % of the patients for training and 15 % each for validation and test, seed 0. Patients are told apart by the
DICOM tag PatientID; without one, or when all images share one, each image is a patient. Upstream divides the rows
instead, so that two lesions of one image can land in different splits, and takes "-1" without a blank for a lesion.
"""

import argparse
import sys
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pydicom

from data_scripts.candidates import Candidate
from data_scripts.command_line import Settings, add_common_arguments, run_command
from data_scripts.ledger import Ledger, Summary
from data_scripts.preparation import Origin, build_dataset, find_root, is_phantom, is_safe_name, read_table
from data_scripts.run_length import NO_RUNS, decode_runs
from data_scripts.selection import PUBLISHED_SEED, split_patients_as_published
from mgca_lib.data.studies import DatasetError

MASKS_FILE = "train-rle.csv"
IMAGES_FOLDER = "dicom-images-train"
LABEL = "Pneumothorax"

Lesion = tuple[int, str]
"""Line of the table, and run lengths."""


def prepare(raw: str | Path, out: str | Path, **settings: object) -> Summary:
    """Turn the SIIM-ACR challenge data into a prepared dataset.

    Args:
        raw: Folder with ``train-rle.csv``, or the folder above it.
        out: Folder of the prepared dataset.
        settings: See :class:`data_scripts.command_line.Settings`.

    Returns:
        Counts, printable; rows are rows of the table, several of which can belong to one image, and the images that
        no row speaks of.

    Raises:
        DatasetError: the raw dataset cannot be used at all; the message is one line.
    """
    common = Settings(**settings)
    root = find_root(raw, MASKS_FILE, inside=("siim*", "SIIM*"), what="SIIM-ACR pneumothorax stage 1")
    table = read_table(root / MASKS_FILE, ["ImageId", "EncodedPixels"])
    files = _find_images(root / IMAGES_FOLDER)
    ledger = Ledger(rows_in=len(table))
    lesions: dict[str, list[Lesion]] = defaultdict(list)
    for image, text, row in zip(table["ImageId"], table["EncodedPixels"], table["row"], strict=True):
        same = [other for other, content in lesions.get(image, ()) if content == text]
        if not is_safe_name(image):
            ledger.drop(MASKS_FILE, row, repr(image), "id missing or malformed")
        elif same:
            ledger.drop(MASKS_FILE, row, image, "duplicate row", f"same as row {same[0]}")
        else:
            lesions[image].append((row, text))
    _count_unlisted(files, lesions, root, ledger)
    patients = _read_patients(files, list(lesions), ledger)
    splits = split_patients_as_published(list(dict.fromkeys(patients.values())))
    candidates = []
    for image, entries in lesions.items():
        found = files.get(image, [root / IMAGES_FOLDER / f"{image}.dcm"])
        candidate = Candidate(
            image_id=image,
            patient_id=patients[image],
            study_id=found[0].parent.parent.name if image in files else image,
            split=splits[patients[image]],
            path=found[0],
            source=found[0].relative_to(root).as_posix(),
            file=MASKS_FILE,
            rows=tuple(row for row, _ in entries),
            stored=image,
            labels={LABEL: float(entries[0][1] != NO_RUNS)},
        )
        texts = [text for _, text in entries]
        if len(found) > 1:
            ledger.drop_candidate(candidate, "image twice in the tree", found[1].relative_to(root).as_posix())
            continue
        if NO_RUNS in texts and len(texts) > 1:
            ledger.drop_candidate(candidate, "mask both -1 and run lengths")
            continue
        if NO_RUNS not in texts:
            candidate.mask = partial(_draw_mask, tuple(entries))
            candidate.mask_stamp = zlib.crc32("\n".join(texts).encode())
        candidates.append(candidate)
    return build_dataset(
        candidates,
        ledger,
        root=root,
        phantom=is_phantom(root),
        out=out,
        origin=Origin(
            name="siim",
            version="stage 1",
            source="SIIM-ACR Pneumothorax Segmentation Challenge 2019 (images of the NIH Clinical Center)",
            licence="rules of the SIIM-ACR Pneumothorax Segmentation Challenge: non-commercial and academic use",
        ),
        options={"splits": "70/15/15 by patient", "seed": PUBLISHED_SEED},
        settings=common,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.prepare_siim",
        description=__doc__.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    return run_command(parser, prepare, argv)


def _find_images(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; it holds the images of SIIM-ACR stage 1")
    files: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*/*/*.dcm")):
        files[path.stem].append(path)
    if not files:
        raise DatasetError(f"{folder}: holds no <study>/<series>/<image>.dcm; unpack the images with their folders")
    return dict(files)


def _count_unlisted(files: Mapping[str, list[Path]], listed: Mapping[str, object], root: Path, ledger: Ledger) -> None:
    unlisted = [path for image, paths in files.items() if image not in listed for path in paths]
    ledger.rows_in += len(unlisted)
    for path in unlisted:
        reason = f"image without a row in {MASKS_FILE}"
        ledger.drop(IMAGES_FOLDER, 0, path.relative_to(root).as_posix(), reason, faulty=False)


def _read_patients(files: Mapping[str, list[Path]], images: Sequence[str], ledger: Ledger) -> dict[str, str]:
    """Return image -> patient; images without PatientID are patients of their own."""
    named = {image: _read_patient(files[image][0]) if image in files else "" for image in images}
    known = [patient for patient in named.values() if patient]
    if len(known) > 1 and len(set(known)) == 1:
        ledger.notes.append(f"all images have the PatientID {known[0]!r}; each image is taken for a patient")
        return {image: image for image in images}
    return {image: patient or image for image, patient in named.items()}


def _read_patient(path: Path) -> str:
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
    except Exception:  # a damaged header raises anything; the conversion says what is wrong with the file
        return ""
    return str(header.get("PatientID") or "").strip()


def _draw_mask(lesions: Sequence[Lesion], height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    for row, text in lesions:
        try:
            mask |= decode_runs(text, height=height, width=width)
        except ValueError as error:
            raise ValueError(f"row {row}: {error}") from None
    return mask


if __name__ == "__main__":
    sys.exit(main())
