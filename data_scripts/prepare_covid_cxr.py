"""Prepare the COVID-19 image data collection of J. P. Cohen et al.: chest films with clinical notes.

``python -m data_scripts.prepare_covid_cxr --raw covid-chestxray-dataset --out prepared/covid_cxr`` reads a copy of the
repository ieee8023/covid-chestxray-dataset: ``metadata.csv`` (a row an image) and ``images/``. Column names are taken
in the form of the last releases (``clinical_notes``) and of earlier ones (``clinical notes``, ``notes``).

Images: modality X-ray. ``--views frontal`` (the default) keeps PA and AP (AP Supine and AP Erect are AP), ``--views
all`` also lateral films and films without a stated view.

Text: the clinical notes become the findings. They are no radiology report: one to five sentences of history, of
findings on the film or on CT, the same for several films of a patient at times. Many films have none;
``--require-notes`` leaves those out, as pretraining on pairs needs.

Labels: ``finding`` is the diagnosis of the patient, not what the film shows, and it is a path: every part of
"Pneumonia/Viral/COVID-19" is a label that is 1. What may be further down the path is unknown (a "Pneumonia" can be
of any kind), all else is 0. The labels are the parts that occur in the table. Films with the finding "todo",
"Unknown" or none have unknown labels.

Licence: each image has its own; many have none stated and must not be passed on. The column ``source`` keeps file,
licence and reference (DOI or address) of each image; :func:`split_source` takes it apart. The dataset is restricted as
soon as one image may not be passed on in resized form; a table of Creative Commons images without ND is not.

Masks: ``--lung-masks DIR`` names a folder with outlines of both lungs, one an image and of its size, called like the
image (``film.jpg``, such as those of V7 Labs, CC BY 4.0, which are PNG all the same) or ``film.png``. A pixel is lung
where it is brighter than half the brightest. An image without one, or whose outline has no pixel, has no mask.

Splits: 70 % of the patients for training, 10 % for validation and 20 % for the test, drawn with ``--seed``.
"""

import argparse
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data_scripts.candidates import Candidate
from data_scripts.command_line import Settings, add_common_arguments, add_split_arguments, run_command
from data_scripts.ledger import Ledger, Summary
from data_scripts.preparation import Origin, build_dataset, find_root, is_phantom, is_safe_name, read_table
from data_scripts.selection import draw_splits
from mgca_lib.data.reports import clean_sentences
from mgca_lib.data.studies import DAMAGED, DatasetError

TABLE = "metadata.csv"
VIEW_MODES = ("frontal", "all")
VIEWS = {
    "PA": "PA",
    "AP": "AP",
    "AP SUPINE": "AP",
    "APS": "AP",
    "AP ERECT": "AP",
    "L": "lateral",
    "LATERAL": "lateral",
    "": "",
}
"""View in the table, upper case -> view in the prepared dataset."""

NOT_STATED = "licence not stated"
MIN_NOTE_WORDS = 3
MASK_RULE = 1
"""Raised when the same file would give another mask."""

_UNKNOWN_FINDINGS = ("", "todo", "unknown")
_COLUMNS = ("patientid", "finding", "view", "modality", "filename", "license")
_NOTES = ("clinical_notes", "clinical notes", "notes")
_SEPARATOR = " | "
_ADAPTABLE = re.compile(r"CC0.*|CC BY(-NC)?(-SA)?( \d\.\d)?")
_OPEN = re.compile(r"CC0.*|CC BY(-SA)?( \d\.\d)?")


@dataclass(frozen=True)
class Source:
    """Where an image comes from.

    Attributes:
        file: The image relative to the raw folder.
        licence: Its licence as the table states it, or ``NOT_STATED``.
        reference: DOI or address to cite, ``""`` where there is none.
    """

    file: str
    licence: str
    reference: str


def prepare(
    raw: str | Path,
    out: str | Path,
    *,
    views: str = "frontal",
    require_notes: bool = False,
    lung_masks: str | Path = "",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    **settings: object,
) -> Summary:
    """Turn the COVID-19 image data collection into a prepared dataset.

    Args:
        raw: Folder with ``metadata.csv`` and ``images/``, or the folder above it.
        out: Folder of the prepared dataset.
        views: ``"frontal"`` or ``"all"``; see the module's description.
        require_notes: Leave out images whose notes have fewer than 3 words after cleaning.
        lung_masks: Folder with outlines of the lungs; empty: no image has a mask.
        valid_fraction: Share of the patients for validation.
        test_fraction: Share of the patients for the test.
        seed: Seed of the split.
        settings: See :class:`data_scripts.command_line.Settings`.

    Returns:
        Counts, printable.

    Raises:
        DatasetError: the raw dataset cannot be used at all; the message is one line.
    """
    common = Settings(**settings)
    if views not in VIEW_MODES:
        raise DatasetError(f"--views {views}: use one of {', '.join(VIEW_MODES)}")
    root = find_root(
        raw,
        TABLE,
        inside=("covid-chestxray-dataset*", "covid_cxr"),
        what="the COVID-19 image data collection (metadata.csv)",
    )
    table = read_table(root / TABLE, _COLUMNS, optional=("offset", "folder", "doi", "url", *_NOTES))
    if lung_masks and not Path(lung_masks).is_dir():
        raise DatasetError(f"--lung-masks {lung_masks}: no such folder")
    if not (root / "images").is_dir():
        raise DatasetError(f"{root / 'images'}: no such folder; it holds the images of {TABLE}")
    records = table.to_dict("records")
    splits = draw_splits(
        (record["patientid"] for record in records if record["patientid"]),
        valid=valid_fraction,
        test=test_fraction,
        seed=seed,
    )
    hierarchy = _hierarchy(records)
    if not hierarchy:
        raise DatasetError(f"{root / TABLE}: no row has a finding, so there are no labels")
    ledger = Ledger(rows_in=len(table))
    masks = _find_masks(Path(lung_masks), table["filename"], ledger) if lung_masks else {}
    candidates: list[Candidate] = []
    for record in records:
        file = f"{record['folder'] or 'images'}/{record['filename']}"
        notes = " ".join(next((record[name] for name in _NOTES if record[name]), "").split())
        sentences = clean_sentences(findings=notes, impression="")
        reason, detail, faulty = _problem(record, views)
        if not reason and require_notes and sum(len(one.split()) for one in sentences) < MIN_NOTE_WORDS:
            reason, detail, faulty = f"notes have fewer than {MIN_NOTE_WORDS} words", "", False
        if reason:
            ledger.drop(TABLE, record["row"], file, reason, detail, faulty=faulty)
            continue
        source = (file, record["license"] or NOT_STATED, record["doi"] or record["url"])
        name, day = record["filename"], record["offset"]
        mask = masks.get(name)
        candidates.append(
            Candidate(
                image_id=name,
                patient_id=record["patientid"],
                study_id=f"{record['patientid']}_day{day}" if day else name,
                split=splits[record["patientid"]],
                view=VIEWS[record["view"].upper()],
                path=root / file,
                source=_SEPARATOR.join(part.replace("|", "/") for part in source),
                file=TABLE,
                rows=(record["row"],),
                stored="_".join(name.rsplit(".", 1)),  # a.png and a.jpg are two images
                labels=labels_from_finding(record["finding"], hierarchy),
                findings=notes,
                sentences=sentences,
                mask=partial(_read_mask, mask) if mask is not None else None,
                mask_stamp=zlib.crc32(mask.read_bytes(), MASK_RULE) if mask is not None else 0,
            )
        )
    silent = sum(not candidate.sentences for candidate in candidates)
    if silent:
        ledger.notes.append(f"{silent} images have no notes; --require-notes leaves them out")
    licences = Counter(split_source(candidate.source).licence for candidate in candidates)
    if licences[NOT_STATED]:
        ledger.notes.append(f"{licences[NOT_STATED]} images have no stated licence and must not be passed on")
    return build_dataset(
        candidates,
        ledger,
        root=root,
        phantom=is_phantom(root),
        out=out,
        origin=Origin(
            name="covid_cxr",
            version="undated copy of the repository",
            source="COVID-19 Image Data Collection (J. P. Cohen et al.), ieee8023/covid-chestxray-dataset",
            licence="each image has its own, see the column source",
            restricted=not all(map(_ADAPTABLE.fullmatch, licences)),
        ),
        options={
            "views": views,
            "require_notes": require_notes,
            "labels": "parts of the finding",
            "masks": "lungs" if lung_masks else "none",
            "licences": dict(sorted(licences.items())),
            "valid_fraction": valid_fraction,
            "test_fraction": test_fraction,
            "seed": seed,
            "splits": "by patient",
        },
        settings=common,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.prepare_covid_cxr",
        description=__doc__.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    add_split_arguments(parser)
    parser.add_argument("--views", choices=VIEW_MODES, default="frontal", help="images to keep (default frontal)")
    parser.add_argument("--require-notes", action="store_true", help="leave out images without clinical notes")
    parser.add_argument("--lung-masks", default="", metavar="DIR", help="folder with a lung mask an image")
    return run_command(parser, prepare, argv)


def split_source(source: str) -> Source:
    """Take apart what the column ``source`` of this dataset holds.

    Raises:
        ValueError: it is not of this dataset.

    >>> split_source("images/a.jpg | CC BY 4.0 | 10.1056/x").licence
    'CC BY 4.0'
    """
    parts = [part.strip() for part in source.split("|")]
    if len(parts) != 3:
        raise ValueError(f"{source!r} is not file, licence and reference")
    return Source(*parts)


def may_be_shown(licence: str) -> bool:
    """Whether a licence lets anyone show a resized image anywhere, with its attribution.

    >>> [may_be_shown(licence) for licence in ("CC BY 3.0", "CC BY-SA", "CC BY-NC-SA 4.0", "CC BY-ND", NOT_STATED)]
    [True, True, False, False, False]
    """
    return _OPEN.fullmatch(licence) is not None


def parse_finding(text: str) -> list[tuple[str, ...]]:
    """Return the diagnoses of a finding as paths from the general to the special; none where it is unknown.

    Earlier releases name several diagnoses with commas between them.

    >>> parse_finding("Pneumonia/Viral/COVID-19"), parse_finding("COVID-19, ARDS"), parse_finding("todo")
    ([('Pneumonia', 'Viral', 'COVID-19')], [('COVID-19',), ('ARDS',)], [])
    """
    paths = [tuple(part.strip() for part in path.split("/") if part.strip()) for path in text.split(",")]
    return [path for path in paths if path and path[0].lower() not in _UNKNOWN_FINDINGS]


def labels_from_finding(finding: str, hierarchy: Sequence[tuple[str, ...]]) -> dict[str, float | None]:
    """Return a label for every part of the hierarchy.

    Args:
        finding: The finding of one image.
        hierarchy: All paths that occur, each with its beginnings.

    Returns:
        1 for the parts of the finding, ``None`` for what lies below its last part (and for everything where the
        finding is unknown), 0 for all else; sorted by name.

    >>> hierarchy = [("Pneumonia",), ("Pneumonia", "Viral"), ("Pneumonia", "Viral", "SARS"), ("Tuberculosis",)]
    >>> labels_from_finding("Pneumonia/Viral", hierarchy)
    {'Pneumonia': 1.0, 'SARS': None, 'Tuberculosis': 0.0, 'Viral': 1.0}
    """
    paths = parse_finding(finding)
    present = {part for path in paths for part in path}
    below = {node[-1] for node in hierarchy for path in paths if node[: len(path)] == path}
    names = sorted({node[-1] for node in hierarchy})
    if not paths:
        return dict.fromkeys(names)
    return {name: 1.0 if name in present else None if name in below else 0.0 for name in names}


def _hierarchy(records: Iterable[dict[str, str]]) -> list[tuple[str, ...]]:
    paths = {path for record in records for path in parse_finding(record["finding"])}
    return sorted({path[:end] for path in paths for end in range(1, len(path) + 1)})


def _find_masks(folder: Path, images: Iterable[str], ledger: Ledger) -> dict[str, Path]:
    """Return the lung masks by name of their image; those without a pixel are left out and counted.

    Raises:
        DatasetError: the folder has a mask for none of the images.
    """
    masks: dict[str, Path] = {}
    for name in filter(is_safe_name, images):
        places = (folder / name, folder / f"{Path(name).stem}.png")
        if (path := next((place for place in places if place.is_file()), None)) is not None:
            masks[name] = path
    if not masks:
        raise DatasetError(
            f"--lung-masks {folder}: holds no file called like an image of {TABLE} (film.jpg or film.png)"
        )
    blank = [name for name, path in masks.items() if _is_blank(path)]
    if blank:
        ledger.notes.append(
            f"{len(blank)} lung masks have no pixel, the first is that of {blank[0]}; they are left out"
        )
    return {name: path for name, path in masks.items() if name not in blank}


def _is_blank(path: Path) -> bool:
    """Whether no pixel of a mask is set; of one that cannot be read the conversion says so."""
    try:
        with Image.open(path) as picture:
            return picture.convert("L").getbbox() is None
    except DAMAGED:
        return False


def _read_mask(path: Path, height: int, width: int) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            grey = np.asarray(picture.convert("L"))
        # What else was drawn on the film, such as a device, is grey in some masks.
        mask = grey > grey.max() / 2
    except DAMAGED as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from None
    if mask.shape != (height, width):
        raise ValueError(f"{path.name} is {mask.shape[1]} x {mask.shape[0]}, its image {width} x {height}")
    return mask


def _problem(record: dict[str, str], views: str) -> tuple[str, str, bool]:
    """Return why a row is left out (reason, detail, whether that is a fault), or an empty reason."""
    for column in ("filename", "folder"):
        if not is_safe_name(record[column] or ("images" if column == "folder" else "")):
            return "id missing or malformed", f"{column} {record[column]!r}", True
    if not record["patientid"]:
        return "id missing or malformed", "no patientid, so the split by patient cannot be kept", True
    if record["modality"].lower() not in ("x-ray", "xray"):
        return f"modality {record['modality'] or 'not stated'}", "", False
    if record["view"].upper() not in VIEWS:
        return "unknown view", repr(record["view"]), True
    view = VIEWS[record["view"].upper()]
    if views == "frontal" and view not in ("PA", "AP"):
        return f"view {view or 'not stated'}", "", False
    return "", "", False


if __name__ == "__main__":
    sys.exit(main())
