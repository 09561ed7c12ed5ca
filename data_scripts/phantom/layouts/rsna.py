"""RSNA pneumonia detection challenge, stage 2, in miniature.

::

    stage_2_train_images/<patientId>.dcm       8 bit, MONOCHROME2, JPEG baseline
    stage_2_train_labels.csv                   patientId,x,y,width,height,Target; a row a box, or one empty row
    stage_2_detailed_class_info.csv            patientId,class; as many rows a patient as in the labels

Target is 1 where pneumonia or another consolidation is on the film; each connected part has its box, and boxes that
lie mostly one inside another become one. "Normal" films show no finding, no device, and neither broken ribs nor
thickened pleura.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from data_scripts.phantom.cases import PLEURAL_THICKENINGS, RIB_FRACTURES, Case, sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.layouts.common import (
    Box,
    Film,
    Map,
    Settings,
    WrittenFilm,
    coverage,
    dataset_key,
    generator,
    hex_groups,
    write_csv,
    write_films,
)

NAME = "rsna"
FORMAT = "RSNA pneumonia detection challenge, stage 2"
SPLITS = ("train",)
LABEL_COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
CLASS_COLUMNS = ("patientId", "class")
BOXED = ("pneumonia", "consolidation")


def write(folder: Path, settings: Settings, *, develop: Map) -> None:
    """Write the whole layout into an existing empty folder."""
    films = _plan(settings)
    written = write_films(folder, films, develop=develop, name=NAME)
    labels, classes = [], []
    for film, result in zip(films, written, strict=True):
        patient = film.tags["PatientID"]
        boxes = _boxes(film.case, result)
        for box in boxes:
            labels.append((patient, *(float(value) for value in box), 1))
            classes.append((patient, "Lung Opacity"))
        if not boxes:
            labels.append((patient, None, None, None, None, 0))
            classes.append((patient, "Normal" if _is_normal(film.case) else "No Lung Opacity / Not Normal"))
    write_csv(folder / "stage_2_train_labels.csv", LABEL_COLUMNS, labels)
    write_csv(folder / "stage_2_detailed_class_info.csv", CLASS_COLUMNS, classes)


def _is_normal(case: Case) -> bool:
    old = {*RIB_FRACTURES, *PLEURAL_THICKENINGS}
    return not case.findings and not case.devices and not old.intersection(case.incidentals)


def _boxes(case: Case, result: WrittenFilm) -> list[Box]:
    named = [i for i, finding in enumerate(case.findings) if finding.name in BOXED]
    return _merge([box for i in named for box in result.parts[i][:4]])


def _merge(boxes: list[Box], *, most: float = 0.6) -> list[Box]:
    """Join boxes where one holds more than ``most`` of another: a reader draws one box around one opacity.

    >>> _merge([(0, 0, 10, 10), (2, 2, 4, 12), (20, 0, 5, 5)])
    [(0, 0, 10, 14), (20, 0, 5, 5)]
    """
    for one, other in itertools.combinations(boxes, 2):
        if _shared(one, other) > most * min(one[2] * one[3], other[2] * other[3]):
            x, y = min(one[0], other[0]), min(one[1], other[1])
            right, bottom = max(one[0] + one[2], other[0] + other[2]), max(one[1] + one[3], other[1] + other[3])
            joined = (x, y, right - x, bottom - y)
            return _merge([joined if box is one else box for box in boxes if box is not other], most=most)
    return boxes


def _shared(one: Box, other: Box) -> int:
    """Area that two boxes share, in pixels."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _plan(settings: Settings) -> list[Film]:
    hospital = HOSPITALS[NAME]
    key = dataset_key(NAME)
    forced = coverage(("pneumonia", "consolidation", "edema", "nodule"), repeats=2)
    films = []
    for number in range(settings.counts["train"]):
        rng = generator(settings.seed, key, 1, number)
        case = sample_case(rng, hospital, findings=forced.pop(0) if forced else None)
        patient = hex_groups(rng, (8, 4, 4, 4, 12))
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
                path=f"stage_2_train_images/{patient}.dcm",
                case=case,
                hospital=NAME,
                seed=(settings.seed, key, 2, number),
                size=settings.size,
                tags=tags,
            )
        )
    return films
