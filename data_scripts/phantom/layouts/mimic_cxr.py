"""MIMIC-CXR-JPG 2.0.0 in miniature: tables, ``files/`` tree of JPEGs, tree of reports, and the ground truth beside it.

::

    mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv.gz
    files/p10/p10000032/s50414267/<dicom_id>.jpg
    mimic-cxr-reports/files/p10/p10000032/s50414267.txt
    ground_truth/phrases.parquet    one row a frontal image and phrase: word span, finding, mask
    ground_truth/cases.parquet      one row a frontal image and finding, spoken of or not
    ground_truth/masks/<dicom_id>_<finding number>.png

Mask paths in the tables are relative to ``ground_truth/``. A finding that shows nowhere has an empty mask path
in ``cases.parquet`` and no phrase in ``phrases.parquet``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_scripts.phantom.cases import Case, sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.labels import chexpert_labels, negbio_labels
from data_scripts.phantom.layouts.common import (
    COMPETITION_FINDINGS,
    Film,
    Map,
    Settings,
    WrittenFilm,
    coverage,
    dataset_key,
    follow_up,
    generator,
    hex_groups,
    patient_seed,
    unique_numbers,
    write_csv,
    write_films,
    write_parquet,
)
from data_scripts.phantom.reports import PhantomReport, Phrase, write_report

NAME = "mimic_cxr"
FORMAT = "MIMIC-CXR-JPG 2.0.0"
SPLITS = ("train", "validate", "test")
GROUND_TRUTH = "ground_truth"

METADATA_COLUMNS = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
SPLIT_COLUMNS = ("dicom_id", "study_id", "subject_id", "split")
LABEL_CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
_BOX_COLUMNS = dict.fromkeys(("x", "y", "w", "h"), pa.int32())
PHRASE_COLUMNS = {
    "dicom_id": pa.string(),
    "study_id": pa.string(),
    "section": pa.string(),
    "first_word": pa.int32(),
    "last_word": pa.int32(),
    "phrase": pa.string(),
    "finding": pa.string(),
    "side": pa.string(),
    "zone": pa.string(),
    "severity": pa.string(),
    "negated": pa.bool_(),
    "uncertain": pa.bool_(),
    "mask": pa.string(),
    **_BOX_COLUMNS,
}
CASE_COLUMNS = {
    "dicom_id": pa.string(),
    "study_id": pa.string(),
    "subject_id": pa.string(),
    "split": pa.string(),
    "finding": pa.string(),
    "side": pa.string(),
    "zone": pa.string(),
    "severity": pa.string(),
    "kind": pa.string(),
    "mentioned": pa.bool_(),
    "mask": pa.string(),
    **_BOX_COLUMNS,
}
_VIEW_MEANING = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral"}


@dataclass(frozen=True)
class _Image:
    dicom_id: str
    view: str
    film: Film


@dataclass(frozen=True)
class _Study:
    subject_id: int
    study_id: int
    split: str
    date: int
    time: str
    case: Case
    report: PhantomReport
    images: tuple[_Image, ...]


def write(folder: Path, settings: Settings, *, develop: Map) -> None:
    """Write the whole layout into an existing empty folder."""
    studies = _plan(settings)
    films = [image.film for study in studies for image in study.images]
    written = write_films(folder, films, develop=develop, name=NAME)
    results = {film.path: result for film, result in zip(films, written, strict=True)}
    for study in studies:
        path = folder / "mimic-cxr-reports" / f"{_study_folder(study.subject_id, study.study_id)}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(study.report.text, encoding="ascii", newline="\n")
    _write_tables(folder, studies, results)
    _write_ground_truth(folder / GROUND_TRUTH, studies, results)


def _plan(settings: Settings) -> list[_Study]:
    hospital = HOSPITALS[NAME]
    key = dataset_key(NAME)
    ids = generator(settings.seed, key, 0)
    total = sum(settings.counts.values())
    subjects = iter(ids.permutation(unique_numbers(ids, 10_000_000, 20_000_000, total)).tolist())
    study_ids = ids.permutation(unique_numbers(ids, 50_000_000, 60_000_000, total)).tolist()
    studies: list[_Study] = []
    for split in SPLITS:
        forced = coverage(repeats=2) + coverage(COMPETITION_FINDINGS)
        left = settings.counts[split]
        while left > 0:
            subject = next(subjects)
            previous: Case | None = None
            date = None
            visits = 1 + int(ids.choice(4, p=(0.62, 0.22, 0.11, 0.05)))
            for _ in range(visits):
                if left <= 0:
                    break
                number = len(studies)
                rng = generator(settings.seed, key, 1, number)
                if forced:
                    case, previous = sample_case(rng, hospital, findings=forced.pop(0)), None
                elif previous is None:
                    case = sample_case(rng, hospital)
                else:
                    case = follow_up(previous, hospital, rng)
                case = replace(
                    case,
                    patient=patient_seed(settings, NAME, subject),
                    lateral=case.view == "PA" and bool(rng.random() < 0.35),
                )
                report = write_report(case, rng, previous=previous)
                frontals = min(left, 2 if rng.random() < 0.08 else 1)
                date = _next_date(date, rng)
                study_id = study_ids[number]
                images = _plan_images(settings, case, rng, subject, study_id, frontals)
                time = f"{rng.integers(24):02d}{rng.integers(60):02d}{rng.integers(60):02d}.{rng.integers(1000):03d}"
                studies.append(_Study(subject, study_id, split, date, time, case, report, images))
                left -= frontals
                previous = case
                if forced:
                    break
    return studies


def _plan_images(
    settings: Settings, case: Case, rng: np.random.Generator, subject: int, study: int, frontals: int
) -> tuple[_Image, ...]:
    views = [case.view] * frontals + ["LATERAL"] * case.lateral
    shared = int(rng.integers(2**62))
    images = []
    for view in views:
        dicom_id = hex_groups(rng, (8, 8, 8, 8, 8))
        lateral = view == "LATERAL"
        portrait = rng.random() < (0.25 if view == "AP" else 0.75)
        film = Film(
            path=f"{_study_folder(subject, study)}/{dicom_id}.jpg",
            case=None if lateral else replace(case, rotation=case.rotation + float(rng.normal(0.0, 1.0))),
            hospital=NAME,
            seed=(settings.seed, dataset_key(NAME), 2, study, len(images)),
            size=settings.size,
            aspect=0.83 if portrait else 1.2,
            masks=()
            if lateral
            else tuple(f"{GROUND_TRUTH}/masks/{dicom_id}_{i}.png" for i in range(len(case.findings))),
            study=shared,
        )
        images.append(_Image(dicom_id, view, film))
    return tuple(images)


def _study_folder(subject: int, study: int) -> str:
    return f"files/p{str(subject)[:2]}/p{subject}/s{study}"


def _next_date(date: int | None, rng: np.random.Generator) -> int:
    """A shifted date as yyyymmdd; a later one than ``date``."""
    if date is None:
        start = np.datetime64("2110-01-01") + int(rng.integers(33_000))
    else:
        text = str(date)
        start = np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:]}") + int(rng.integers(1, 200))
    return int(str(start).replace("-", ""))


def _write_tables(folder: Path, studies: list[_Study], results: dict[str, WrittenFilm]) -> None:
    metadata, splits = [], []
    for study in studies:
        procedure = _procedure(study.case)
        posture = "Recumbent" if study.case.supine else "Erect"
        for image in study.images:
            size = results[image.film.path]
            metadata.append(
                (
                    image.dicom_id,
                    study.subject_id,
                    study.study_id,
                    procedure,
                    image.view,
                    size.height,
                    size.width,
                    study.date,
                    study.time,
                    procedure,
                    _VIEW_MEANING[image.view],
                    posture,
                )
            )
            splits.append((image.dicom_id, study.study_id, study.subject_id, study.split))
    write_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA_COLUMNS, metadata)
    write_csv(folder / "mimic-cxr-2.0.0-split.csv.gz", SPLIT_COLUMNS, splits)
    for labeler, label in (("chexpert", chexpert_labels), ("negbio", negbio_labels)):
        rows = []
        for study in studies:
            values = label(study.report)
            rows.append((study.subject_id, study.study_id, *(values[name] for name in LABEL_CLASSES)))
        write_csv(folder / f"mimic-cxr-2.0.0-{labeler}.csv.gz", ("subject_id", "study_id", *LABEL_CLASSES), rows)


def _procedure(case: Case) -> str:
    """Name of the examination; it says "LAT" only where there is a lateral film."""
    if case.view == "AP":
        return "CHEST (PORTABLE AP)"
    return "CHEST (PA AND LAT)" if case.lateral else "CHEST (PA)"


def _write_ground_truth(folder: Path, studies: list[_Study], results: dict[str, WrittenFilm]) -> None:
    folder.mkdir(exist_ok=True)
    phrases, cases = [], []
    for study in studies:
        for image in study.images:
            if image.film.case is not None:
                boxes = results[image.film.path].boxes
                phrases += [
                    _phrase_row(study, image, boxes, phrase)
                    for phrase in study.report.phrases
                    if phrase.negated or boxes[phrase.finding]
                ]
                cases += [_case_row(study, image, boxes, i) for i in range(len(study.case.findings))]
    write_parquet(folder / "phrases.parquet", PHRASE_COLUMNS, phrases)
    write_parquet(folder / "cases.parquet", CASE_COLUMNS, cases)


def _place(study: _Study, image: _Image, boxes: tuple, index: int) -> dict[str, object]:
    finding = study.case.findings[index]
    box = boxes[index]
    x, y, w, h = box or (None,) * 4
    return {
        "finding": finding.name,
        "side": finding.side,
        "zone": finding.zone,
        "severity": finding.severity,
        "mask": image.film.masks[index].removeprefix(f"{GROUND_TRUTH}/") if box else "",
        "x": x,
        "y": y,
        "w": w,
        "h": h,
    }


def _phrase_row(study: _Study, image: _Image, boxes: tuple, phrase: Phrase) -> dict[str, object]:
    if phrase.finding is None:
        place = dict.fromkeys(("side", "zone", "severity", "mask"), "") | dict.fromkeys(("x", "y", "w", "h"))
        place["finding"] = phrase.name
    else:
        place = _place(study, image, boxes, phrase.finding)
    return {
        "dicom_id": image.dicom_id,
        "study_id": str(study.study_id),
        "section": phrase.section,
        "first_word": phrase.first_word,
        "last_word": phrase.last_word,
        "phrase": phrase.phrase,
        "negated": phrase.negated,
        "uncertain": phrase.uncertain,
    } | place


def _case_row(study: _Study, image: _Image, boxes: tuple, index: int) -> dict[str, object]:
    return {
        "dicom_id": image.dicom_id,
        "study_id": str(study.study_id),
        "subject_id": str(study.subject_id),
        "split": study.split,
        "kind": study.case.findings[index].kind,
        "mentioned": any(phrase.finding == index for phrase in study.report.phrases),
    } | _place(study, image, boxes, index)
