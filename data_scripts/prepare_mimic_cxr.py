"""Prepare MIMIC-CXR-JPG: frontal images with findings, impression and cleaned sentences.

``python -m data_scripts.prepare_mimic_cxr --raw mimic-cxr-jpg/2.0.0 --out prepared/mimic_cxr`` reads the release as
PhysioNet ships it (2.0.0 or 2.1.0): the metadata, split and chexpert tables (``.csv`` or ``.csv.gz``) and
``files/p10/p10000032/s50414267/<dicom_id>.jpg``. The JPEG release has no reports; they come from MIMIC-CXR, either as
``mimic-cxr-reports.zip``, which is read as it is, or unpacked (``mimic-cxr-reports/files/...``, or ``.txt`` files
among the images). Both are found beside the tables; elsewhere, name them with ``--reports``.

Kept are AP and PA views of studies whose cleaned report has at least 3 words. The official splits stay apart:
train, validate (here "valid") and test. Upstream MGCA merges validate and test for model selection.
"""

import argparse
import re
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data_scripts.candidates import FRONTAL_VIEWS, Candidate
from data_scripts.command_line import Settings, add_common_arguments, run_command
from data_scripts.ledger import Ledger, Summary
from data_scripts.preparation import (
    Origin,
    build_dataset,
    find_root,
    find_table,
    is_phantom,
    is_safe_name,
    read_labels,
    read_table,
)
from mgca_lib.data.reports import clean_sentences, split_sections
from mgca_lib.data.studies import DatasetError
from mgca_lib.data.tasks import CHEXPERT_LABELS

MIN_REPORT_WORDS = 3
SPLIT_NAMES = {"train": "train", "validate": "valid", "test": "test"}
_REPORT_NAME = re.compile(r"(?:^|/)s(\d+)\.txt$")


def prepare(
    raw: str | Path,
    out: str | Path,
    *,
    reports: str | Path | None = None,
    use_last_paragraph: bool = False,
    **settings: object,
) -> Summary:
    """Turn MIMIC-CXR-JPG and its reports into a prepared dataset.

    Args:
        raw: Folder with ``mimic-cxr-*-metadata.csv[.gz]`` and ``files/``, or a folder above it.
        out: Folder of the prepared dataset.
        reports: Folder or zip file with the reports; ``None`` looks beside the tables.
        use_last_paragraph: Take the last paragraph as findings where findings and impression are both missing
            (upstream leaves such studies out).
        settings: See :class:`data_scripts.command_line.Settings`.

    Returns:
        Counts, printable.

    Raises:
        DatasetError: the raw dataset cannot be used at all; the message is one line.
    """
    common = Settings(**settings)
    root = find_root(
        raw,
        "mimic-cxr-*-metadata.csv*",
        inside=(
            "mimic_cxr",
            "mimic-cxr-jpg*",
            "mimic-cxr-jpg*/[0-9]*",
            "files/mimic-cxr-jpg/*",
            "physionet.org/files/mimic-cxr-jpg/*",
        ),
        what="MIMIC-CXR-JPG",
    )
    metadata_path = find_table(root, "mimic-cxr-*-metadata.csv")
    metadata = read_table(metadata_path, ["dicom_id", "subject_id", "study_id", "ViewPosition"])
    splits = _read_splits(find_table(root, "mimic-cxr-*-split.csv"))
    labels_path = find_table(root, "mimic-cxr-*-chexpert.csv")
    labels = read_table(labels_path, ["subject_id", "study_id", *CHEXPERT_LABELS])
    if not (root / "files").is_dir():
        raise DatasetError(f"{root / 'files'}: no such folder; it holds the images of MIMIC-CXR-JPG")
    ledger = Ledger(rows_in=len(metadata))
    label_row = {}
    for record in labels.to_dict("records"):
        if label_row.setdefault(record["study_id"], record) is not record:
            raise DatasetError(f"{labels_path}: row {record['row']}: study {record['study_id']} appears twice")
    candidates: list[Candidate] = []
    unlabelled: set[str] = set()
    texts: dict[str, dict[str, object]] = {}
    with _Reports(root, reports) as shelf:
        for record in tqdm(metadata.to_dict("records"), desc="reports", disable=True if common.quiet else None):
            image, subject, study = record["dicom_id"], record["subject_id"], record["study_id"]
            source = f"files/p{subject[:2]}/p{subject}/s{study}/{image}.jpg"
            try:
                _check_ids(record)
                split = _split_of(image, splits)
                scores = _labels_of(study, label_row, labels_path.name)
                if study not in texts:
                    texts[study] = _read_report(shelf, subject, study, use_last_paragraph=use_last_paragraph)
            except _Left as left:
                ledger.drop(metadata_path.name, record["row"], source, left.reason, left.detail, faulty=left.faulty)
                continue
            if study not in label_row:
                unlabelled.add(study)
            candidates.append(
                Candidate(
                    image_id=image,
                    patient_id=subject,
                    study_id=study,
                    split=split,
                    view=record["ViewPosition"],
                    path=root / source,
                    source=source,
                    file=metadata_path.name,
                    rows=(record["row"],),
                    stored=f"p{subject[:2]}/p{subject}/s{study}/{image}",
                    labels=scores,
                    **texts[study],
                )
            )
    if unlabelled:
        ledger.notes.append(f"{len(unlabelled)} studies have no row in {labels_path.name}; their labels are unknown")
    return build_dataset(
        candidates,
        ledger,
        root=root,
        phantom=is_phantom(root),
        out=out,
        origin=Origin(
            name="mimic_cxr",
            version="2.1.0" if any(root.glob("mimic-cxr-2.1.0-*")) else "2.0.0",
            source="MIMIC-CXR-JPG and the reports of MIMIC-CXR, PhysioNet",
            licence="PhysioNet Credentialed Health Data License 1.5.0",
        ),
        options={
            "views": list(FRONTAL_VIEWS),
            "use_last_paragraph": use_last_paragraph,
            "min_report_words": MIN_REPORT_WORDS,
            "splits": "official; validate is valid, test is kept apart",
        },
        settings=common,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.prepare_mimic_cxr",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    parser.add_argument("--reports", metavar="PATH", help="folder or zip file with the reports (s<study>.txt)")
    parser.add_argument(
        "--use-last-paragraph",
        action="store_true",
        help="take the last paragraph as findings where findings and impression are both missing",
    )
    return run_command(parser, prepare, argv)


class _Reports:
    """Finds the text of a study, in folders or in a zip file."""

    def __init__(self, root: Path, named: str | Path | None) -> None:
        self._zip: zipfile.ZipFile | None = None
        self._members: dict[str, str] = {}
        self._folders: list[Path] = []
        if named is not None and not Path(named).exists():
            raise DatasetError(f"{named}: no such file or folder; --reports wants a folder or mimic-cxr-reports.zip")
        packed = Path(named) if named is not None else root / "mimic-cxr-reports.zip"
        self.where = Path(named) if named is not None else root
        if packed.is_dir():
            packed = packed / "mimic-cxr-reports.zip"
        if named is not None and Path(named).is_dir():
            self._folders = [Path(named, "mimic-cxr-reports/files"), Path(named, "files"), Path(named)]
        elif named is None:
            self._folders = [root / "mimic-cxr-reports/files", root / "mimic-cxr-reports", root / "files"]
        self._folders = [folder for folder in self._folders if folder.is_dir()]
        if packed.is_file():
            self._open(packed)

    def _open(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DatasetError(f"{path}: is not a readable zip file ({error}); load it again") from None
        for member in self._zip.namelist():
            if match := _REPORT_NAME.search(member):
                self._members[match[1]] = member
        if not self._members:
            raise DatasetError(f"{path}: holds no reports (s<study>.txt)")
        self.where = path

    def __enter__(self) -> "_Reports":
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def read(self, subject: str, study: str) -> bytes | None:
        """Return the report's bytes, or ``None`` when there is none.

        Raises:
            OSError: it cannot be read.
            zipfile.BadZipFile: its part of the zip file is damaged.
        """
        for folder in self._folders:
            for path in (folder / f"p{subject[:2]}" / f"p{subject}" / f"s{study}.txt", folder / f"s{study}.txt"):
                if path.is_file():
                    return path.read_bytes()
        if self._zip is not None and study in self._members:
            return self._zip.read(self._members[study])
        return None


class _Left(Exception):
    """The row at hand is left out."""

    def __init__(self, reason: str, detail: str = "", *, faulty: bool = True) -> None:
        self.reason, self.detail, self.faulty = reason, detail, faulty


def _check_ids(record: dict[str, str]) -> None:
    image, subject, study = record["dicom_id"], record["subject_id"], record["study_id"]
    if not is_safe_name(image) or not subject.isdigit() or not study.isdigit():
        raise _Left("id missing or malformed", f"dicom_id {image!r}, subject_id {subject!r}, study_id {study!r}")
    if record["ViewPosition"] not in FRONTAL_VIEWS:
        raise _Left(f"view {record['ViewPosition'] or 'not stated'}", faulty=False)


def _split_of(image: str, splits: dict[str, str]) -> str:
    if image not in splits:
        raise _Left("not in the split table")
    if splits[image] not in SPLIT_NAMES:
        raise _Left("unknown split", repr(splits[image]))
    return SPLIT_NAMES[splits[image]]


def _labels_of(study: str, rows: dict[str, dict[str, str]], file: str) -> dict[str, float | None]:
    if study not in rows:
        return dict.fromkeys(CHEXPERT_LABELS)
    try:
        return read_labels(rows[study])
    except ValueError as error:
        raise _Left("label out of range", f"{file}, row {rows[study]['row']}: {error}") from None


def _read_report(shelf: _Reports, subject: str, study: str, *, use_last_paragraph: bool) -> dict[str, object]:
    """Return the text fields of a candidate."""
    name = f"s{study}.txt in {shelf.where.name}"
    try:
        content = shelf.read(subject, study)
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise _Left("report unreadable", f"{name}: {error}") from None
    if content is None:
        raise _Left("report missing", f"no {name}")
    text = _decode(content)
    if "\0" in text:
        raise _Left("report unreadable", f"{name}: is not text")
    if text.strip().lower() in ("", "nan", "none", "null"):
        raise _Left("report empty", name)
    sections = split_sections(text)
    findings, impression = sections.findings, sections.impression
    if not findings and not impression:
        if not use_last_paragraph:
            raise _Left("report has neither findings nor impression", name)
        findings = sections.last_paragraph
    sentences = clean_sentences(findings=findings, impression=impression)
    if sum(len(sentence.split()) for sentence in sentences) < MIN_REPORT_WORDS:
        raise _Left(f"report has fewer than {MIN_REPORT_WORDS} words", name)
    return {"findings": findings, "impression": impression, "sentences": sentences}


def _decode(content: bytes) -> str:
    """Decode UTF-8, UTF-16 with byte-order mark, or else Latin-1, which any editor of the last decades wrote."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _read_splits(path: Path) -> dict[str, str]:
    table = read_table(path, ["dicom_id", "split"])
    splits: dict[str, str] = {}
    for image, split, row in zip(table["dicom_id"], table["split"], table["row"], strict=True):
        if splits.setdefault(image, split) != split:
            raise DatasetError(f"{path}: row {row}: image {image} is in split {split!r} and in {splits[image]!r}")
    return splits


if __name__ == "__main__":
    sys.exit(main())
