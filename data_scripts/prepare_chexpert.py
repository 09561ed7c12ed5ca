"""Prepare CheXpert: frontal images with the 14 labels, for the linear probe.

``python -m data_scripts.prepare_chexpert --raw CheXpert-v1.0 --out prepared/chexpert`` reads CheXpert-v1.0 or
CheXpert-v1.0-small: ``train.csv``, ``valid.csv`` and the images that their ``Path`` column names, whatever folder
name the path begins with. The later release in batches ("CheXpert-v1.0 batch 2 (train 1)" and so on, beside
``train.csv``) works too.

Splits: ``valid.csv``, which radiologists labelled, is the test split. The validation split is drawn from
``train.csv`` by patient, with seed 0: patients in random order until they hold ``--valid-images`` images (5,000, the
size of the paper), but never more than 15 % of the patients (so that a small set keeps its training data), and at
least one. Upstream draws 5,000 images at random, so that a patient can be in both.

The 1,000 images of a "5x200" set for zero-shot classification, 200 for each of the five competition labels, are left
out of ``train.csv`` as upstream does. The release holds no such list, so one is drawn here, with seed 0, from the
images where that label is 1 and none of the others, "No Finding" excepted, is 1 or uncertain; its images are not those
of any published list. With ``--exclude-5x200 auto`` (the default) this happens only when every label has 200 such
images and the 1,000 make up at most a tenth of the frontal training images.

Uncertain labels (-1), ``--uncertain``:

- ``upstream`` (default): 1 for Atelectasis, Edema and Pleural Effusion; 0 for Cardiomegaly and Consolidation; the
  other nine labels, which MGCA does not use, stay -1
- ``ones``, ``zeros``: 1 or 0 for all labels
- ``ignore``: unknown (null) for all labels
- ``keep``: -1 for all labels

Blank labels ("not mentioned") are 0 in every mode, and valid.csv is treated as train.csv.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_scripts.candidates import FRONTAL_VIEWS, Candidate
from data_scripts.command_line import Settings, add_common_arguments, run_command
from data_scripts.ledger import Ledger, Summary
from data_scripts.preparation import Origin, build_dataset, find_root, is_phantom, read_labels, read_table
from mgca_lib.data.studies import DatasetError
from mgca_lib.data.tasks import CHEXPERT_LABELS, TASKS

COMPETITION_LABELS = TASKS["chexpert"].classes
UPSTREAM_UNCERTAIN = {
    "Atelectasis": 1.0,
    "Cardiomegaly": 0.0,
    "Consolidation": 0.0,
    "Edema": 1.0,
    "Pleural Effusion": 1.0,
}
UNCERTAIN_MODES = ("upstream", "ones", "zeros", "ignore", "keep")
EXCLUDE_MODES = ("auto", "yes", "no")
MAX_VALID_PATIENTS = 0.15
IMAGES_PER_LABEL = 200
SEED = 0

_PATH = re.compile(r"(?:^|/)(?P<part>train|valid)/(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<view>[^/]+)\.\w+$")


def prepare(
    raw: str | Path,
    out: str | Path,
    *,
    uncertain: str = "upstream",
    valid_images: int = 5000,
    exclude_5x200: str = "auto",
    **settings: object,
) -> Summary:
    """Turn CheXpert into a prepared dataset.

    Args:
        raw: Folder with ``train.csv`` and ``valid.csv``, or a folder above it.
        out: Folder of the prepared dataset.
        uncertain: What becomes of uncertain labels, one of ``UNCERTAIN_MODES``.
        valid_images: Size of the validation split, in images; at most 15 % of the patients are taken.
        exclude_5x200: ``"auto"``, ``"yes"`` or ``"no"``; see the module's description.
        settings: See :class:`data_scripts.command_line.Settings`.

    Returns:
        Counts, printable.

    Raises:
        DatasetError: the raw dataset cannot be used at all; the message is one line.
    """
    common = Settings(**settings)
    if uncertain not in UNCERTAIN_MODES:
        raise DatasetError(f"--uncertain {uncertain}: use one of {', '.join(UNCERTAIN_MODES)}")
    if exclude_5x200 not in EXCLUDE_MODES:
        raise DatasetError(f"--exclude-5x200 {exclude_5x200}: use one of {', '.join(EXCLUDE_MODES)}")
    if valid_images < 1:
        raise DatasetError(f"--valid-images {valid_images}: use at least 1")
    root = find_root(
        raw,
        "train.csv",
        inside=("CheXpert-v1.0*", "chexpert", "chexpert/CheXpert-v1.0*"),
        what="CheXpert (the folder with train.csv and valid.csv)",
    )
    ledger = Ledger()
    train = _read(root, "train", ledger)
    test = _read(root, "valid", ledger)
    train, excluded = _exclude_5x200(train, ledger, exclude_5x200)
    test_patients = {candidate.patient_id for candidate in test}
    eligible = [candidate.patient_id for candidate in train if candidate.patient_id not in test_patients]
    valid_patients = draw_validation(eligible, valid_images)
    for candidate in train:
        if candidate.patient_id in valid_patients:
            candidate.split = "valid"
    candidates = [*test, *train]  # of an image in both tables, the first stays
    for candidate in candidates:
        candidate.labels = map_labels(candidate.labels, uncertain)
    return build_dataset(
        candidates,
        ledger,
        root=root,
        phantom=is_phantom(root),
        out=out,
        origin=Origin(
            name="chexpert",
            version="v1.0-small" if "small" in root.resolve().name else "v1.0",
            source="CheXpert, Stanford ML Group",
            licence="Stanford University School of Medicine CheXpert Dataset Research Use Agreement",
        ),
        options={
            "views": "frontal",
            "uncertain": uncertain,
            "blank": 0,
            "valid_images": valid_images,
            "valid_patients_at_most": MAX_VALID_PATIENTS,
            "excluded_5x200": excluded,
            "seed": SEED,
            "splits": "valid.csv is test; valid is drawn from train.csv by patient",
        },
        settings=common,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.prepare_chexpert",
        description=__doc__.replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_arguments(parser)
    parser.add_argument("--uncertain", choices=UNCERTAIN_MODES, default="upstream", help="mapping of uncertain labels")
    parser.add_argument("--valid-images", type=int, default=5000, metavar="N", help="size of the validation split")
    parser.add_argument("--exclude-5x200", choices=EXCLUDE_MODES, default="auto", help="leave out a 5x200 set")
    return run_command(parser, prepare, argv)


def map_labels(labels: Mapping[str, float | None], uncertain: str) -> dict[str, float | None]:
    """Map uncertain labels as ``uncertain`` says, and blanks to 0.

    >>> map_labels({"Edema": -1.0, "Consolidation": -1.0, "Fracture": None}, "upstream")
    {'Edema': 1.0, 'Consolidation': 0.0, 'Fracture': 0.0}
    """
    choice: dict[str, float | None] = {"ones": 1.0, "zeros": 0.0, "ignore": None, "keep": -1.0}
    mapped: dict[str, float | None] = {}
    for name, value in labels.items():
        if value is None:
            mapped[name] = 0.0
        elif value == -1.0:
            mapped[name] = UPSTREAM_UNCERTAIN.get(name, -1.0) if uncertain == "upstream" else choice[uncertain]
        else:
            mapped[name] = value
    return mapped


def draw_validation(patients: Sequence[str], valid_images: int) -> set[str]:
    """Draw patients for validation.

    Args:
        patients: Patient of every image that may be drawn.
        valid_images: How many images they should hold together.

    Returns:
        Patients in random order until they hold ``valid_images`` images, at most 15 % of all and at least one; none
        when there is only one patient.
    """
    names, counts = np.unique(np.array(patients, dtype=object), return_counts=True)
    if len(names) < 2:
        return set()
    order = np.random.default_rng(SEED).permutation(len(names))
    enough = int(np.searchsorted(np.cumsum(counts[order]), valid_images)) + 1
    at_most = max(1, int(MAX_VALID_PATIENTS * len(names)))
    return {str(names[index]) for index in order[: min(enough, at_most)]}


def _read(root: Path, part: str, ledger: Ledger) -> list[Candidate]:
    """Read ``train.csv`` or ``valid.csv``; candidates carry the labels as they stand."""
    file = f"{part}.csv"
    table = read_table(root / file, ["Path", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS])
    ledger.rows_in += len(table)
    folders = _image_folders(root)
    candidates = []
    for record in table.to_dict("records"):
        row, source = record["row"], record["Path"] or "(no path)"
        match = _PATH.search(record["Path"].replace("\\", "/"))
        if match is None or ".." in record["Path"]:
            ledger.drop(file, row, source, "path malformed", "expected .../train/patient00001/study1/view1_frontal.jpg")
            continue
        if record["Frontal/Lateral"] == "Lateral":
            ledger.drop(file, row, source, "view lateral", faulty=False)
            continue
        if record["Frontal/Lateral"] != "Frontal":
            ledger.drop(file, row, source, "view neither Frontal nor Lateral", repr(record["Frontal/Lateral"]))
            continue
        try:
            labels = read_labels(record)
        except ValueError as error:
            ledger.drop(file, row, source, "label out of range", str(error))
            continue
        relative = match.group().lstrip("/")
        identity = "_".join((match["patient"], match["study"], match["view"]))
        candidates.append(
            Candidate(
                image_id=identity,
                patient_id=match["patient"],
                study_id=f"{match['patient']}_{match['study']}",
                split="train" if part == "train" else "test",
                view=record["AP/PA"] if record["AP/PA"] in FRONTAL_VIEWS else "",
                path=_locate(relative, match["part"], folders),
                source=source,
                file=file,
                rows=(row,),
                stored=f"{match['patient']}/{match['study']}/{match['view']}",
                labels=labels,
            )
        )
    return candidates


def _image_folders(root: Path) -> dict[str, list[Path]]:
    """Return where the folders of patients of each part can be."""
    folders = {part: [root / part] for part in ("train", "valid")}
    for part, word in (("train", "train"), ("valid", "valid")):
        batches = [item for place in (root, root.parent) for item in sorted(place.glob("CheXpert-v1.0 batch*"))]
        for batch in batches:
            if word in batch.name.lower():
                folders[part] += [batch, batch / part]
    return folders


def _locate(relative: str, part: str, folders: Mapping[str, Sequence[Path]]) -> Path:
    """Return the first place where the image exists, or the place where it belongs."""
    inner = relative.split("/", 1)[1]
    places = [folder / inner for folder in folders[part]]
    if len(places) == 1:
        return places[0]
    return next((place for place in places if place.is_file()), places[0])


def _exclude_5x200(candidates: list[Candidate], ledger: Ledger, mode: str) -> tuple[list[Candidate], int]:
    """Leave the 5x200 set out; return what is left and the number left out."""
    if mode == "no":
        return candidates, 0
    rng = np.random.default_rng(SEED)
    chosen: set[str] = set()
    for label in COMPETITION_LABELS:
        alone = sorted({candidate.image_id for candidate in candidates if _only(label, candidate.labels)})
        if len(alone) < IMAGES_PER_LABEL:
            if mode == "yes":
                raise DatasetError(
                    f"{candidates[0].file if candidates else 'train.csv'}: {len(alone)} images show {label} alone, "
                    f"a 5x200 set needs {IMAGES_PER_LABEL}; use --exclude-5x200 no"
                )
            return candidates, 0
        chosen.update(str(name) for name in rng.choice(alone, IMAGES_PER_LABEL, replace=False))
    if mode == "auto" and len(chosen) > 0.1 * len(candidates):
        return candidates, 0
    kept = []
    for candidate in candidates:
        if candidate.image_id in chosen:
            ledger.drop_candidate(candidate, "kept for a 5x200 set", faulty=False)
        else:
            kept.append(candidate)
    return kept, len(chosen)


def _only(label: str, labels: Mapping[str, float | None]) -> bool:
    others = (value for name, value in labels.items() if name not in (label, "No Finding"))
    return labels[label] == 1.0 and all(value in (0.0, None) for value in others)


if __name__ == "__main__":
    sys.exit(main())
