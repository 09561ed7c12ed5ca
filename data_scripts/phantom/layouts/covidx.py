"""COVIDx v9A in miniature: ``train/``, ``test/`` and the two lists.

::

    train_COVIDx9A.txt    lines "patientid filename class source"; class normal, pneumonia or COVID-19
    test_COVIDx9A.txt
    train/*.png, *.jpg, *.jpeg

The three classes are about balanced. They overlap: some COVID-19 patients have a clear film, and ill patients may
have other disease beside. "Normal" films show no finding. Formats do not depend on the class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_scripts.phantom.cases import Case, sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.layouts.common import (
    Film,
    Map,
    Settings,
    dataset_key,
    generator,
    hex_groups,
    patient_seed,
    same_patient,
    write_films,
)

NAME = "covidx"
FORMAT = "COVIDx v9A"
SPLITS = ("train", "test")
CLASSES = ("normal", "pneumonia", "COVID-19")
SOURCES = {
    "normal": ("rsna", "rsna", "cohen", "sirm"),
    "pneumonia": ("rsna", "rsna", "cohen", "fig1"),
    "COVID-19": ("cohen", "fig1", "actmed", "sirm", "ricord", "bimcv"),
}
COMPANIONS = ("atelectasis", "cardiomegaly", "pleural effusion")
"""Other disease that ill patients may have."""


@dataclass(frozen=True)
class _Line:
    patient: str
    name: str
    film: Film
    label: str
    source: str


def write(folder: Path, settings: Settings, *, develop: Map) -> None:
    """Write the whole layout into an existing empty folder."""
    lines = {split: _plan(settings, split) for split in SPLITS}
    films = [line.film for split in SPLITS for line in lines[split]]
    write_films(folder, films, develop=develop, name=NAME)
    for split in SPLITS:
        text = "".join(f"{line.patient} {line.name} {line.label} {line.source}\n" for line in lines[split])
        (folder / f"{split}_COVIDx9A.txt").write_text(text, encoding="ascii", newline="\n")


def _plan(settings: Settings, split: str) -> list[_Line]:
    key = dataset_key(NAME)
    lines: list[_Line] = []
    patient = 0
    while len(lines) < settings.counts[split]:
        rng = generator(settings.seed, key, 1, SPLITS.index(split), patient)
        label = CLASSES[patient % 3]
        source = str(rng.choice(SOURCES[label]))
        identity = hex_groups(rng, (8, 4, 4, 4, 12)) if source == "rsna" else f"{source.upper()}-{split}-{patient}"
        films = 1 if source == "rsna" or rng.random() < 0.85 else 2
        cases = _cases(label, films, rng, patient_seed(settings, NAME, SPLITS.index(split), patient))
        for number, case in enumerate(cases[: settings.counts[split] - len(lines)]):
            # The original's RSNA films are all PNG; here that would give the class away.
            suffix = str(rng.choice(("png", "jpg", "jpeg"), p=(0.6, 0.2, 0.2)))
            name = f"{identity}.{suffix}" if source == "rsna" else f"{identity}-{number}.{suffix}"
            film = Film(
                path=f"{split}/{name}",
                case=case,
                hospital=NAME,
                seed=(settings.seed, key, 2, SPLITS.index(split), patient, number),
                size=settings.size,
                aspect=float(rng.choice((0.85, 1.0, 1.0, 1.18))),
                colour=bool(rng.random() < 0.15),
            )
            lines.append(_Line(identity, name, film, label, source))
        patient += 1
    return lines


def _cases(label: str, films: int, rng: np.random.Generator, patient: int) -> list[Case]:
    """The films of one patient, in order of time; what ails them stays, where it is may change."""
    names = _findings(label, rng)
    cases: list[Case] = []
    for _ in range(films):
        fresh = sample_case(rng, HOSPITALS[NAME], findings=names)
        case = same_patient(fresh, cases[0]) if cases else replace(fresh, patient=patient)
        cases.append(case)
    return cases


def _findings(label: str, rng: np.random.Generator) -> list[str]:
    if label == "normal":
        return []
    names = [name for name in COMPANIONS if rng.random() < 0.10]
    if label == "pneumonia":
        names.append("pneumonia")
        if rng.random() < 0.2:
            names.append("consolidation")
    if label == "COVID-19" and rng.random() < 0.95:
        names.append("covid-like opacities")
    return names
