"""RSNA pneumonia detection challenge, stage 2, in miniature.

::

    stage_2_train_images/<patientId>.dcm       8 bit, MONOCHROME2, JPEG baseline
    stage_2_train_labels.csv                   patientId,x,y,width,height,Target; a row a box, or one empty row
    stage_2_detailed_class_info.csv            patientId,class; as many rows a patient as in the labels

Target is 1 where pneumonia or another consolidation is on the film; each connected part has its box.
"""

from __future__ import annotations

from pathlib import Path

from data_scripts.phantom.cases import Case, sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.layouts.common import (
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
            ill = any(finding.name != "foreign object" for finding in film.case.findings)
            classes.append((patient, "No Lung Opacity / Not Normal" if ill else "Normal"))
    write_csv(folder / "stage_2_train_labels.csv", LABEL_COLUMNS, labels)
    write_csv(folder / "stage_2_detailed_class_info.csv", CLASS_COLUMNS, classes)


def _boxes(case: Case, result: WrittenFilm) -> list[tuple[int, int, int, int]]:
    named = [i for i, finding in enumerate(case.findings) if finding.name in BOXED]
    return [box for i in named for box in result.parts[i][:4]]


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
            "PatientAge": f"{case.age:03d}Y",
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
