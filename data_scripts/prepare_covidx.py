"""Prepare COVIDx v9A: images of three classes, normal, pneumonia and COVID-19.

``python -m data_scripts.prepare_covidx --raw covidx --out prepared/covidx`` reads ``train_COVIDx9A.txt`` and
``test_COVIDx9A.txt`` (lines "patient file class source"; the source may be missing, a file name may hold blanks) and
the images in ``train/`` and ``test/``. The packages of other versions lack some listed images; those are counted.
Where the v9A lists are missing, ``train.txt`` and ``test.txt`` of the package are read.

Split: the test list is the test split. The training list is divided by patient with seed 0: 90 % training and 10 %
validation, as the paper says, or with ``--split upstream`` 80 % and 20 %, as its code does (by image there). A
patient in both lists is a test patient: the images in the training list are dropped and counted.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_scripts.candidates import Candidate
from data_scripts.command_line import Settings, add_common_arguments, run_command
from data_scripts.ledger import Ledger, Summary
from data_scripts.preparation import Origin, build_dataset, find_root, is_phantom, read_lines
from data_scripts.selection import split_patients
from mgca_lib.data.studies import DatasetError
from mgca_lib.data.tasks import TASKS

CLASSES = TASKS["covidx"].classes
VALID_FRACTION = {"paper": 0.1, "upstream": 0.2}
SEED = 0
_LISTS = ("{part}_COVIDx9A.txt", "{part}.txt")


@dataclass(frozen=True)
class _Line:
    row: int
    patient: str
    file: str
    label: str


def prepare(raw: str | Path, out: str | Path, *, split: str = "paper", **settings: object) -> Summary:
    """Turn COVIDx v9A into a prepared dataset.

    Args:
        raw: Folder with the lists, ``train/`` and ``test/``, or the folder above it.
        out: Folder of the prepared dataset.
        split: ``"paper"`` (90 % and 10 % of the training patients) or ``"upstream"`` (80 % and 20 %).
        settings: See :class:`data_scripts.command_line.Settings`.

    Returns:
        Counts, printable.

    Raises:
        DatasetError: the raw dataset cannot be used at all; the message is one line.
    """
    common = Settings(**settings)
    if split not in VALID_FRACTION:
        raise DatasetError(f"--split {split}: use one of {', '.join(VALID_FRACTION)}")
    root = find_root(raw, "train*.txt", inside=("covidx*", "COVIDx*"), what="COVIDx (train_COVIDx9A.txt)")
    ledger = Ledger()
    train = _read_list(root, "train", ledger)
    test = _read_list(root, "test", ledger)
    test_patients = {candidate.patient_id for candidate in test}
    patients = {candidate.patient_id for candidate in train} - test_patients
    size = max(1, round(VALID_FRACTION[split] * len(patients))) if len(patients) > 1 else 0
    valid_patients, _ = split_patients(patients, [size], seed=SEED)
    for candidate in train:
        if candidate.patient_id in valid_patients:
            candidate.split = "valid"
    return build_dataset(
        [*test, *train],  # of a file in both lists, the first stays
        ledger,
        root=root,
        phantom=is_phantom(root),
        out=out,
        origin=Origin(
            name="covidx",
            version="v9A",
            source="COVIDx, assembled by COVID-Net from several public sources (RSNA, RICORD, BIMCV and others)",
            licence="each image keeps the licence of its source; some are non-commercial",
        ),
        options={"split": split, "valid_fraction": VALID_FRACTION[split], "seed": SEED},
        settings=common,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.prepare_covidx",
        description=__doc__.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--split", choices=tuple(VALID_FRACTION), default="paper", help="validation: 10%% (paper) or 20%% (upstream)"
    )
    return run_command(parser, prepare, argv)


def _read_list(root: Path, part: str, ledger: Ledger) -> list[Candidate]:
    """Read the training or the test list."""
    names = [name.format(part=part) for name in _LISTS]
    path = next((root / name for name in names if (root / name).is_file()), None)
    if path is None:
        raise DatasetError(f"{root / names[0]}: no such file (nor {names[1]})")
    if not (root / part).is_dir():
        raise DatasetError(f"{root / part}: no such folder; it holds the images of {path.name}")
    lines = read_lines(path)
    ledger.rows_in += len(lines)
    candidates = []
    for row, text in lines:
        try:
            line = _parse(row, text)
        except ValueError as error:
            reason, _, detail = str(error).partition(": ")
            ledger.drop(path.name, row, text if len(text) <= 100 else text[:97] + "...", reason, detail)
            continue
        source = f"{part}/{line.file}"
        candidates.append(
            Candidate(
                image_id=line.file,
                patient_id=line.patient,
                study_id=line.file,
                split=part,
                path=root / source,
                source=source,
                file=path.name,
                rows=(row,),
                stored="_".join(line.file.rsplit(".", 1)),  # a.png and a.jpg are two images
                labels={name: float(name == line.label) for name in CLASSES},
            )
        )
    return candidates


def _parse(row: int, text: str) -> _Line:
    """Take a line apart.

    Raises:
        ValueError: "reason: detail".
    """
    fields = text.split()
    known = {name.lower(): name for name in CLASSES}
    at = next((index for index in (-2, -1) if len(fields) + index >= 2 and fields[index].lower() in known), None)
    if at is None:
        if len(fields) < 3:
            raise ValueError(f"line malformed: expected patient, file, class and source, found {len(fields)} fields")
        label = fields[-2] if len(fields) > 3 else fields[-1]
        hint = "; this is a two-class (B) list, the v9A list has three" if label in ("positive", "negative") else ""
        raise ValueError(f"unknown class: {label!r} is not one of {', '.join(CLASSES)}{hint}")
    file = " ".join(fields[1:at])
    if "/" in file or "\\" in file or file.startswith("."):
        raise ValueError(f"id missing or malformed: {file!r} is not a file name")
    return _Line(row=row, patient=fields[0], file=file, label=known[fields[at].lower()])


if __name__ == "__main__":
    sys.exit(main())
