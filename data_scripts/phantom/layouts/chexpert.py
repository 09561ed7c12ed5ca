"""CheXpert-v1.0 in miniature: ``CheXpert-v1.0/{train,valid}.csv`` and the tree of JPEGs they name.

::

    CheXpert-v1.0/train.csv       labels read from reports: 1, 0, -1 uncertain, empty not mentioned
    CheXpert-v1.0/valid.csv       expert labels: 1 or 0
    CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg

The reports themselves are not shipped, as in the original.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from data_scripts.phantom import PHANTOM_FILE
from data_scripts.phantom.cases import Case, sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.labels import chexpert_labels, expert_labels
from data_scripts.phantom.layouts.common import (
    COMPETITION_FINDINGS,
    Film,
    Map,
    Settings,
    coverage,
    dataset_key,
    follow_up,
    generator,
    patient_seed,
    write_csv,
    write_films,
)
from data_scripts.phantom.lexicon import CHEXPERT_CLASSES
from data_scripts.phantom.reports import write_report

NAME = "chexpert"
FORMAT = "CheXpert-v1.0"
SPLITS = ("train", "valid")
ROOT = "CheXpert-v1.0"
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_CLASSES)
FIRST_PATIENT = {"train": 1, "valid": 64_541}
"""Patient numbers start where the original's do."""


@dataclass(frozen=True)
class _Row:
    film: Film
    view: str
    case: Case
    labels: dict[str, float]


def write(folder: Path, settings: Settings, *, develop: Map) -> None:
    """Write the whole layout into an existing empty folder."""
    rows = {split: _plan(settings, split) for split in SPLITS}
    films = [row.film for split in SPLITS for row in rows[split]]
    write_films(folder, films, develop=develop, name=NAME)
    for split in SPLITS:
        table = [
            (
                row.film.path,
                "Female" if row.case.sex == "F" else "Male",
                row.case.age,
                "Lateral" if row.view == "lateral" else "Frontal",
                "" if row.view == "lateral" else row.view,
                *row.labels.values(),
            )
            for row in rows[split]
        ]
        write_csv(folder / ROOT / f"{split}.csv", COLUMNS, table)
    # The mark must lie where the tables do: whoever puts the real release beside this folder must not inherit it.
    (folder / ROOT / PHANTOM_FILE).write_text('{"source": "phantom"}\n', encoding="utf-8")


def _plan(settings: Settings, split: str) -> list[_Row]:
    hospital = HOSPITALS[NAME]
    key = dataset_key(NAME)
    repeats = 3 if split == "train" else 1  # some reports doubt what others state
    forced = coverage((*COMPETITION_FINDINGS, "pneumothorax", "pneumonia", "nodule"), repeats=repeats)
    rows: list[_Row] = []
    left = settings.counts[split]
    patient = FIRST_PATIENT[split]
    while left > 0:
        rng = generator(settings.seed, key, 1, patient)
        case, previous = sample_case(rng, hospital, findings=forced.pop(0) if forced else None), None
        case = replace(case, patient=patient_seed(settings, NAME, patient))
        for visit in range(1, 2 + int(rng.choice(3, p=(0.72, 0.20, 0.08)))):
            if left <= 0:
                break
            if visit > 1:
                previous, case = case, follow_up(case, hospital, rng)
            case = replace(case, lateral=case.view == "PA" and bool(rng.random() < 0.6))
            report = write_report(case, rng, previous=previous)
            labels = expert_labels(case) if split == "valid" else chexpert_labels(report)
            views = [case.view] + (["lateral"] if case.lateral else [])
            for number, view in enumerate(views, start=1):
                kind = "lateral" if view == "lateral" else "frontal"
                film = Film(
                    path=f"{ROOT}/{split}/patient{patient:05d}/study{visit}/view{number}_{kind}.jpg",
                    case=None if view == "lateral" else case,
                    hospital=NAME,
                    seed=(settings.seed, key, 2, patient, visit, number),
                    size=settings.size,
                    aspect=0.82 if rng.random() < 0.3 else 1.19,
                )
                rows.append(_Row(film, view, case, labels))
            left -= 1
        patient += 1
    return rows
