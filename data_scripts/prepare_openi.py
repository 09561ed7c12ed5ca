"""Prepare the Indiana University chest X-rays (Open-i): images with findings, impression and cleaned sentences.

``python -m data_scripts.prepare_openi --raw openi --out prepared/openi`` reads what the National Library of Medicine
offers to anyone: the reports (``NLMCXR_reports/ecgen-radiology/1.xml`` ... or the archive ``NLMCXR_reports.tgz`` as it
is) and the images (``NLMCXR_png/CXR1_1_IM-0001-3001.png`` ...). The images of the Kaggle copy
(``images/images_normalized/1_IM-0001-3001.dcm.png`` ...) do as well. Files are found by name, wherever they lie below
``--raw``.

Views: ``indiana_projections.csv`` of the Kaggle copy (columns uid, filename, projection) says which image is frontal
and which lateral. An image that it does not list, or every image when there is no such table, has the view that the
caption of the examination names, if it names one view only; captions hardly ever do. ``--views frontal`` (the default)
needs the table and keeps the images known to be frontal; ``--views all`` keeps every image. PA and AP are told apart by
the caption.

Text: the sections FINDINGS and IMPRESSION. The de-identification mark ``XXXX`` is removed, together with the letters
joined to it ("x-XXXX"). Kept are reports of which at least 3 words are left after cleaning.

Labels: the 14 CheXpert labels, from the MeSH terms that people chose for each report (the table ``MESH_LABELS`` in
``openi_reports.py``); a label that no term names is 0. Reports without such terms have unknown labels.

Splits: 70 % of the patients for training, 10 % for validation and 20 % for the test, drawn with ``--seed``. Each
report is of another patient.
"""

import argparse
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from data_scripts.candidates import Candidate
from data_scripts.command_line import Settings, add_common_arguments, add_split_arguments, run_command
from data_scripts.ledger import Ledger, Summary
from data_scripts.openi_reports import (
    Report,
    ReportError,
    ReportImage,
    labels_from_terms,
    parse_report,
    projection_from_caption,
    remove_marks,
    view_from_caption,
)
from data_scripts.preparation import Origin, build_dataset, check_folder, is_phantom, read_table
from data_scripts.selection import draw_splits
from mgca_lib.data.reports import clean_sentences
from mgca_lib.data.studies import DatasetError

ARCHIVE = "NLMCXR_reports.tgz"
PROJECTIONS = "indiana_projections.csv"
VIEW_MODES = ("frontal", "all")
MIN_REPORT_WORDS = 3
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_IMAGE_ID = re.compile(r"(?P<uid>CXR\d+)_(?:\d+_)?IM-\d+(?:-\d+)+")
# The part that the two names of an image share: CXR1_1_IM-0001-3001.png and 1_IM-0001-3001.dcm.png.
_SHARED_NAME = re.compile(r"\d+_IM-\d+(?:-\d+)+")


def prepare(
    raw: str | Path,
    out: str | Path,
    *,
    views: str = "frontal",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    **settings: object,
) -> Summary:
    """Turn the Open-i chest X-rays and reports into a prepared dataset.

    Args:
        raw: Folder with the reports and the images, at any depth.
        out: Folder of the prepared dataset, not inside ``raw``.
        views: ``"frontal"`` or ``"all"``; see the module's description.
        valid_fraction: Share of the patients for validation.
        test_fraction: Share of the patients for the test.
        seed: Seed of the split.
        settings: See :class:`data_scripts.command_line.Settings`.

    Returns:
        Counts, printable; a row is an image that a report names, or a report that names none or cannot be read.

    Raises:
        DatasetError: the raw dataset cannot be used at all; the message is one line.
    """
    common = Settings(**settings)
    if views not in VIEW_MODES:
        raise DatasetError(f"--views {views}: use one of {', '.join(VIEW_MODES)}")
    root = check_folder(raw, what="the Open-i reports and images")
    if Path(out).resolve().is_relative_to(root.resolve()):
        raise DatasetError(f"{out}: lies inside {root}, where raw images are looked for; name a folder outside")
    files = _find_files(root)
    projections = _read_projections(files.projections)
    if views == "frontal" and not projections:
        raise DatasetError(
            f"{root}: holds no {PROJECTIONS}, so which images are frontal is not known; "
            "put that table of the Kaggle copy there, or keep all images with --views all"
        )
    ledger = Ledger()
    reports = [
        (name, report)
        for name, content in tqdm(_read_reports(root, files), desc="reports", disable=True if common.quiet else None)
        if (report := _parse(name, content, ledger)) is not None
    ]
    splits = draw_splits([report.uid for _, report in reports], valid=valid_fraction, test=test_fraction, seed=seed)
    candidates: list[Candidate] = []
    for name, report in reports:
        text = _text_of(report)
        for image in report.images:
            view = _view_of(image, projections)
            reason, detail, faulty = _problem(report, image, text, view, views)
            if reason:
                ledger.drop(name, image.line, image.image_id or "(no id)", reason, detail, faulty=faulty)
                continue
            path = files.images.get(_shared_name(image.image_id), root / f"{image.image_id}.png")
            candidates.append(
                Candidate(
                    image_id=image.image_id,
                    patient_id=report.uid,
                    study_id=report.uid,
                    split=splits[report.uid],
                    view=projection_from_caption(image.caption) if view == "frontal" else view,
                    path=path,
                    source=path.relative_to(root).as_posix(),
                    file=name,
                    rows=(image.line,),
                    stored=image.image_id,
                    labels=labels_from_terms(report.terms),
                    **text,
                )
            )
    _add_notes(ledger, reports, files, projections)
    return build_dataset(
        candidates,
        ledger,
        root=root,
        phantom=is_phantom(root),
        out=out,
        origin=Origin(
            name="openi",
            version="ecgen-radiology",
            source="Indiana University Chest X-ray Collection, Open-i, National Library of Medicine",
            licence="CC BY-NC-ND 4.0",
        ),
        options={
            "views": views,
            "labels": "major MeSH terms",
            "deidentification_marks": "removed",
            "min_report_words": MIN_REPORT_WORDS,
            "valid_fraction": valid_fraction,
            "test_fraction": test_fraction,
            "seed": seed,
            "splits": "by patient; each report is of another patient",
        },
        settings=common,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.prepare_openi",
        description=__doc__.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    add_split_arguments(parser)
    parser.add_argument("--views", choices=VIEW_MODES, default="frontal", help="images to keep (default frontal)")
    return run_command(parser, prepare, argv)


@dataclass
class _Files:
    """What lies below the raw folder; images by the part of their names that all copies share."""

    reports: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    projections: list[Path] = field(default_factory=list)
    images: dict[str, Path] = field(default_factory=dict)


def _find_files(root: Path) -> _Files:
    files = _Files()
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link can lead back to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith("."):
                continue  # what macOS leaves in archives
            if name == ARCHIVE:
                files.archives.append(path)
            elif name == PROJECTIONS:
                files.projections.append(path)
            elif path.suffix.lower() == ".xml":
                files.reports.append(path)
            elif path.suffix.lower() in _IMAGE_SUFFIXES and (shared := _shared_name(name)):
                files.images.setdefault(shared, path)
    if not files.reports and not files.archives:
        raise DatasetError(f"{root}: holds neither reports (*.xml) nor {ARCHIVE}, so it is not Open-i")
    if not files.images:
        raise DatasetError(f"{root}: holds no Open-i image (CXR1_1_IM-0001-3001.png or 1_IM-0001-3001.dcm.png)")
    for kind in (files.archives, files.projections):
        if len(kind) > 1:
            raise DatasetError(f"{root}: holds {kind[0].name} more than once ({kind[0]}, {kind[1]}); keep one")
    files.reports.sort(key=lambda path: (path.parent, _number(path.name), path.name))
    return files


def _read_reports(root: Path, files: _Files) -> Iterator[tuple[str, bytes | str]]:
    """Yield name and content of every report, or in place of the content why it cannot be read.

    Unpacked reports come before the archive.
    """
    for path in files.reports:
        name = path.relative_to(root).as_posix()
        try:
            yield name, path.read_bytes()
        except OSError as error:
            yield name, error.strerror or str(error)
    if files.reports:
        return
    (archive,) = files.archives
    try:
        with tarfile.open(archive, "r:gz") as members:
            found = [member for member in members.getmembers() if member.isfile() and member.name.endswith(".xml")]
            found = [member for member in found if not Path(member.name).name.startswith(".")]
            for member in sorted(found, key=lambda member: (_number(member.name), member.name)):
                yield member.name, members.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{archive}: is not a readable archive ({error}); load it again") from None
    if not found:
        raise DatasetError(f"{archive}: holds no reports (*.xml)")


def _parse(name: str, content: bytes | str, ledger: Ledger) -> Report | None:
    """Read a report and count its rows; a report that cannot be used, or names no image, is one row."""
    try:
        if isinstance(content, str):
            raise ReportError(f"report unreadable: {content}")
        report = parse_report(content)
    except ReportError as error:
        reason, _, detail = str(error).partition(": ")
        ledger.rows_in += 1
        ledger.drop(name, error.line, name, reason, detail)
        return None
    ledger.rows_in += max(1, len(report.images))
    if not report.images:
        ledger.drop(name, 1, report.uid, "report without images", faulty=False)
    return report


def _read_projections(paths: Sequence[Path]) -> dict[str, str]:
    """Return the view of every listed image, by the shared part of its name."""
    projections: dict[str, str] = {}
    for path in paths:
        for record in read_table(path, ["filename", "projection"]).to_dict("records"):
            shared, view = _shared_name(record["filename"]), record["projection"].lower()
            where = f"{path}: row {record['row']}"
            if not shared:
                raise DatasetError(f"{where}: {record['filename']!r} is not a name like 1_IM-0001-3001.dcm.png")
            if view not in ("frontal", "lateral"):
                raise DatasetError(f"{where}: projection {record['projection']!r} is neither Frontal nor Lateral")
            if projections.setdefault(shared, view) != view:
                raise DatasetError(f"{where}: {record['filename']} is both frontal and lateral")
    return projections


def _view_of(image: ReportImage, projections: Mapping[str, str]) -> str:
    return projections.get(_shared_name(image.image_id)) or view_from_caption(image.caption)


def _text_of(report: Report) -> dict[str, object]:
    """Return the text fields of a candidate."""
    findings, impression = remove_marks(report.findings), remove_marks(report.impression)
    sentences = clean_sentences(findings=findings, impression=impression)
    return {"findings": findings, "impression": impression, "sentences": sentences}


def _problem(
    report: Report, image: ReportImage, text: Mapping[str, object], view: str, views: str
) -> tuple[str, str, bool]:
    """Return why an image is left out (reason, detail, whether that is a fault), or an empty reason."""
    match = _IMAGE_ID.fullmatch(image.image_id)
    if match is None:
        return "id missing or malformed", f"parentImage id {image.image_id!r}", True
    if match["uid"] != report.uid:
        return "image of another report", f"the report is {report.uid}", True
    if views == "frontal" and view != "frontal":
        return f"view {view or 'not stated'}", "", False
    if not report.findings and not report.impression:
        return "report has neither findings nor impression", report.uid, True
    if sum(len(sentence.split()) for sentence in text["sentences"]) < MIN_REPORT_WORDS:
        return f"report has fewer than {MIN_REPORT_WORDS} words", report.uid, True
    return "", "", False


def _add_notes(
    ledger: Ledger, reports: Sequence[tuple[str, Report]], files: _Files, projections: Mapping[str, str]
) -> None:
    images = {_shared_name(image.image_id): image for _, report in reports for image in report.images}
    if unknown := sum(not _view_of(image, projections) for image in images.values()):
        ledger.notes.append(f"{unknown} of {len(images)} images have no stated view")
    if unnamed := len(files.images.keys() - images.keys()):
        ledger.notes.append(f"{unnamed} image files are named by no report")
    if unlabelled := sum(None in labels_from_terms(report.terms).values() for _, report in reports):
        ledger.notes.append(f"{unlabelled} reports have no MeSH terms of findings; their labels are unknown")


def _shared_name(text: str) -> str:
    match = _SHARED_NAME.search(text)
    return match.group() if match else ""


def _number(name: str) -> int:
    """First number in a file name, so that 2.xml comes before 10.xml."""
    digits = re.search(r"\d+", Path(name).name)
    return int(digits.group()) if digits else 0


if __name__ == "__main__":
    sys.exit(main())
