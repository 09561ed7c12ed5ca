"""CheXpert preparation: paths, uncertain labels, splits by patient, the 5x200 set."""

import shutil
from collections import defaultdict

import numpy as np
import pytest
from raw_trees import CHEXPERT_LABELS, append, chexpert_path, make_chexpert, write_csv, write_picture

from data_scripts.prepare_chexpert import COMPETITION_LABELS, draw_validation, main, map_labels, prepare
from mgca_lib.data.studies import load_studies

OPTIONS = {"size": 32, "quiet": True, "workers": 2}


def test_a_release_becomes_a_prepared_dataset(tmp_path):
    raw = make_chexpert(tmp_path / "raw")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    assert (summary.rows_in, summary.rows_out) == (20, 19)
    assert summary.dropped == {"view lateral": 1}
    assert studies.card.counts == {"train": 13, "valid": 2, "test": 4}  # 1 of 8 patients, with two images
    assert studies.card.restricted
    row = studies.table.set_index("image_id").loc["patient00002_study2_view1_frontal"]
    assert (row["patient_id"], row["study_id"], row["view"]) == ("patient00002", "patient00002_study2", "PA")
    assert row["source"] == "CheXpert-v1.0/train/patient00002/study2/view1_frontal.jpg"
    test = studies.split("test").table
    assert set(test["patient_id"]) == {"patient05001", "patient05002"}


def test_validation_never_shares_a_patient(tmp_path):
    prepare(make_chexpert(tmp_path / "raw", train=40), tmp_path / "out", **OPTIONS)
    splits = defaultdict(set)
    for patient, split in load_studies(tmp_path / "out").table[["patient_id", "split"]].itertuples(index=False):
        splits[split].add(patient)
    assert len(splits["valid"]) == 3  # 15 % of 20
    assert not splits["train"] & splits["valid"]


def test_draw_stops_at_the_wanted_number_of_images():
    patients = [f"p{number:03d}" for number in range(100) for _ in range(3)]
    assert len(draw_validation(patients, 10)) == 4  # 3, 6, 9, 12 images
    assert len(draw_validation(patients, 9)) == 3
    assert len(draw_validation(patients, 5000)) == 15
    assert len(draw_validation(patients, 1)) == 1
    assert draw_validation(patients, 10) == draw_validation(patients[::-1], 10)
    assert draw_validation(["a", "a"], 1) == set()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [  # uncertain Atelectasis, Cardiomegaly, Consolidation, Edema, Pleural Effusion, Fracture; positive; blank
        ("upstream", [1, 0, 0, 1, 1, -1, 1, 0]),
        ("ones", [1, 1, 1, 1, 1, 1, 1, 0]),
        ("zeros", [0, 0, 0, 0, 0, 0, 1, 0]),
        ("ignore", [None, None, None, None, None, None, 1, 0]),
        ("keep", [-1, -1, -1, -1, -1, -1, 1, 0]),
    ],
)
def test_uncertain_labels(mode, expected):
    labels = dict.fromkeys((*COMPETITION_LABELS, "Fracture"), -1.0) | {"Pneumonia": 1.0, "Lung Lesion": None}
    assert list(map_labels(labels, mode).values()) == expected


def test_uncertain_mode_reaches_the_table(tmp_path):
    raw = make_chexpert(tmp_path / "raw")
    for mode, atelectasis, cardiomegaly in (("upstream", 1, 0), ("zeros", 0, 0), ("ignore", np.nan, np.nan)):
        prepare(raw, tmp_path / mode, uncertain=mode, **OPTIONS)
        studies = load_studies(tmp_path / mode)
        table = studies.table.set_index("image_id")
        rows = [table.index.get_loc(f"patient0000{p}_study1_view1_frontal") for p in (1, 2)]
        found = studies.labels(["Atelectasis", "Cardiomegaly"])[rows]
        np.testing.assert_array_equal([found[0, 0], found[1, 1]], [atelectasis, cardiomegaly])
        assert studies.card.options["uncertain"] == mode


@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", "CheXpert-v1.0-small/", "", "/data/CheXpert-v1.0/", "./"])
def test_path_prefixes(tmp_path, prefix):
    assert prepare(make_chexpert(tmp_path / "raw", prefix=prefix), tmp_path / "out", **OPTIONS).rows_out == 19


@pytest.mark.parametrize("below", ["CheXpert-v1.0", "CheXpert-v1.0-small", "chexpert/CheXpert-v1.0"])
def test_the_release_is_found_below_the_named_folder(tmp_path, below):
    make_chexpert(tmp_path / "raw" / below)
    prepare(tmp_path / "raw", tmp_path / "out", **OPTIONS)
    assert load_studies(tmp_path / "out").card.version == ("v1.0-small" if "small" in below else "v1.0")


def test_the_version_is_known_from_within_the_release(tmp_path, monkeypatch):
    monkeypatch.chdir(make_chexpert(tmp_path / "CheXpert-v1.0-small"))
    prepare(".", tmp_path / "out", **OPTIONS)
    assert load_studies(tmp_path / "out").card.version == "v1.0-small"


def test_release_in_batches(tmp_path):
    raw = make_chexpert(tmp_path / "raw")
    (raw / "CheXpert-v1.0 batch 1 (validate & csv)").mkdir()
    shutil.move(raw / "valid", raw / "CheXpert-v1.0 batch 1 (validate & csv)/valid")
    for number in range(8):
        batch = raw / f"CheXpert-v1.0 batch {2 + number % 2} (train {1 + number % 2})"
        batch.mkdir(exist_ok=True)
        shutil.move(raw / f"train/patient{number + 1:05d}", batch)
    assert prepare(raw, tmp_path / "out", **OPTIONS).rows_out == 19


def test_a_release_beside_a_phantom_mark_stays_restricted(tmp_path):
    """The mark of phantoms that lay there before says nothing about a release that was put in their place."""
    make_chexpert(tmp_path / "chexpert/CheXpert-v1.0-small", prefix="CheXpert-v1.0-small/")
    (tmp_path / "chexpert/PHANTOM.json").write_text("{}")
    prepare(tmp_path / "chexpert", tmp_path / "out", **OPTIONS)
    card = load_studies(tmp_path / "out").card
    assert card.restricted
    assert card.source == "CheXpert, Stanford ML Group"
    (tmp_path / "chexpert/CheXpert-v1.0-small/PHANTOM.json").write_text("{}")
    prepare(tmp_path / "chexpert", tmp_path / "marked", **OPTIONS)
    assert load_studies(tmp_path / "marked").card.source == "phantom"


def test_a_patient_of_the_test_set_leaves_training(tmp_path):
    raw = make_chexpert(tmp_path / "raw")
    path = "train/patient05001/study9/view1_frontal.jpg"
    write_picture(raw / path)
    append(raw / "train.csv", f"CheXpert-v1.0/{path},Male,50,Frontal,AP" + "," * 14)
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.dropped == {"view lateral": 1, "patient is also in a held-out split": 1}
    assert summary.images["test"] == 4


def make_5x200(root, *, alone, others):
    """Write a release with ``alone`` images that show one competition label alone, and ``others`` that show two."""
    rows = []
    for number in range(5 * alone + others):
        labels = dict.fromkeys(CHEXPERT_LABELS, "")
        if number < 5 * alone:
            labels[COMPETITION_LABELS[number % 5]] = "1.0"
            labels["No Finding"] = ("", "1.0")[number % 2]
        else:
            labels |= {"Edema": "1.0", "Fracture": ("1.0", "-1.0")[number % 2]}
        rows.append((chexpert_path(number), "Male", "50", "Frontal", "AP", *labels.values()))
    columns = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)
    write_csv(root / "train.csv", columns, rows)
    write_csv(root / "valid.csv", columns, [(chexpert_path(90_000, "valid"), "F", "1", "Frontal", "PA", *["0.0"] * 14)])
    write_picture(root / chexpert_path(0), width=20, height=20)
    write_picture(root / chexpert_path(90_000, "valid"), width=20, height=20)
    return root


@pytest.mark.parametrize(
    ("alone", "others", "mode", "excluded"),
    [
        (201, 9100, "auto", 1000),
        (201, 500, "auto", 0),
        (199, 9100, "auto", 0),
        (201, 500, "yes", 1000),
        (201, 9100, "no", 0),
    ],
)
def test_5x200_is_left_out_when_there_is_enough(tmp_path, monkeypatch, alone, others, mode, excluded):
    seen = {}

    def remember(candidates, ledger, **keywords):
        seen.update(keywords, candidates=candidates, ledger=ledger)

    monkeypatch.setattr("data_scripts.prepare_chexpert.build_dataset", remember)
    prepare(make_5x200(tmp_path, alone=alone, others=others), tmp_path / "out", exclude_5x200=mode)
    drops = seen["ledger"].drops
    assert len(drops) == seen["options"]["excluded_5x200"] == excluded
    assert len(seen["candidates"]) + excluded == 5 * alone + others + 1
    if excluded:
        rows = [drop.row - 2 for drop in drops]
        assert [sum(row % 5 == label for row in rows) for label in range(5)] == [200] * 5
        assert max(rows) < 5 * alone
        assert not any(drop.faulty for drop in drops)


def test_5x200_that_cannot_be_made(tmp_path, capsys):
    make_chexpert(tmp_path / "raw")
    assert main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--exclude-5x200", "yes"]) == 2
    assert "a 5x200 set needs 200" in capsys.readouterr().err
