"""SIIM-ACR pneumothorax segmentation challenge, stage 1, in miniature.

::

    dicom-images-train/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm    8 bit, JPEG baseline
    train-rle.csv      "ImageId, EncodedPixels", blank included; a row a lesion, " -1" for none

Each connected part of a pneumothorax is a row of its own. About one patient in seven has two films.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from scipy import ndimage

from data_scripts.phantom.cases import sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.layouts.common import (
    Film,
    Map,
    Settings,
    coverage,
    dataset_key,
    follow_up,
    generator,
    hex_groups,
    patient_seed,
    write_csv,
    write_films,
)
from data_scripts.run_length import NO_RUNS, encode_runs

NAME = "siim"
FORMAT = "SIIM-ACR pneumothorax segmentation challenge, stage 1"
SPLITS = ("train",)
COLUMNS = ("ImageId", " EncodedPixels")
FINDING = "pneumothorax"
_UNSORTED, _MASKS = "unsorted", "masks"


def write(folder: Path, settings: Settings, *, develop: Map) -> None:
    """Write the whole layout into an existing empty folder."""
    films = _plan(settings)
    write_films(folder, films, develop=develop, name=NAME)
    rows = []
    for film in films:
        image = _file_away(folder, folder / film.path)
        rows += [(image, f" {text}") for text in _encode(folder, film)]
    for name in (_UNSORTED, _MASKS):
        shutil.rmtree(folder / name, ignore_errors=True)
    write_csv(folder / "train-rle.csv", COLUMNS, rows)


def _file_away(folder: Path, path: Path) -> str:
    """Move a film to where its own identifiers say; return the image's."""
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    place = folder / "dicom-images-train" / dataset.StudyInstanceUID / dataset.SeriesInstanceUID
    place.mkdir(parents=True, exist_ok=True)
    path.rename(place / f"{dataset.SOPInstanceUID}.dcm")
    return str(dataset.SOPInstanceUID)


def _encode(folder: Path, film: Film) -> list[str]:
    masks = [path for finding, path in zip(film.case.findings, film.masks, strict=True) if finding.name == FINDING]
    if not masks or not (folder / masks[0]).is_file():
        return [NO_RUNS]
    parts, count = ndimage.label(np.asarray(Image.open(folder / masks[0])))
    return [encode_runs(parts == number) for number in range(1, count + 1)]


def _plan(settings: Settings) -> list[Film]:
    hospital = HOSPITALS[NAME]
    key = dataset_key(NAME)
    forced = coverage((FINDING,), repeats=3)
    films: list[Film] = []
    person = 0
    while len(films) < settings.counts["train"]:
        rng = generator(settings.seed, key, 1, person)
        patient = hex_groups(rng, (8, 4, 4, 4, 12))
        first = sample_case(rng, hospital, findings=forced.pop(0) if forced else None)
        visits = [replace(first, patient=patient_seed(settings, NAME, person))]
        if rng.random() < 0.15:
            visits.append(follow_up(visits[0], hospital, rng))
        for case in visits[: settings.counts["train"] - len(films)]:
            number = len(films)
            tags = {
                "PatientID": patient,
                "PatientName": patient,
                "PatientSex": case.sex,
                "PatientAge": str(case.age),
                "ViewPosition": case.view,
                "SeriesDescription": f"view: {case.view}",
                "InstanceNumber": str(number + 1),
            }
            films.append(
                Film(
                    path=f"{_UNSORTED}/{number}.dcm",
                    case=case,
                    hospital=NAME,
                    seed=(settings.seed, key, 2, number),
                    size=settings.size,
                    masks=tuple(f"{_MASKS}/{number}-{place}.png" for place in range(len(case.findings))),
                    tags=tags,
                )
            )
        person += 1
    return films
