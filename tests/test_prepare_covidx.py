"""COVIDx preparation: lists, classes, splits by patient, files that a package lacks."""

import numpy as np
import pytest
from raw_trees import append, make_covidx, replace, write_picture

from data_scripts.prepare_covidx import CLASSES, main, prepare
from mgca_lib.data.studies import load_studies

OPTIONS = {"size": 32, "quiet": True, "workers": 2}


def test_a_release_becomes_a_prepared_dataset(tmp_path):
    summary = prepare(make_covidx(tmp_path / "raw"), tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    assert (summary.rows_in, summary.rows_out, summary.dropped) == (26, 26, {})
    assert studies.card.counts == {"train": 18, "valid": 2, "test": 6}
    assert studies.card.restricted
    row = studies.table.set_index("image_id").loc["train5.jpg"]
    assert (row["patient_id"], row["view"], row["source"]) == ("train-p5", "", "train/train5.jpg")
    assert dict(row["labels"]) == {"normal": 0.0, "pneumonia": 0.0, "COVID-19": 1.0}
    np.testing.assert_array_equal(studies.labels(CLASSES).sum(axis=1), 1)
    assert set(studies.split("test").table["source"]) == {f"test/test{n}.{('png', 'jpg')[n % 2]}" for n in range(6)}


@pytest.mark.parametrize(("split", "valid"), [("paper", 4), ("upstream", 8)])
def test_validation_fraction(tmp_path, split, valid):
    prepare(make_covidx(tmp_path / "raw", train=40), tmp_path / "out", split=split, **OPTIONS)
    card = load_studies(tmp_path / "out").card
    assert (card.counts["valid"], card.options["split"]) == (valid, split)


def test_validation_is_drawn_by_patient(tmp_path):
    raw = make_covidx(tmp_path / "raw", train=40)
    text = (raw / "train_COVIDx9A.txt").read_text()
    for number in range(40):
        text = text.replace(f"train-p{number} ", f"pair{number // 2} ")
    (raw / "train_COVIDx9A.txt").write_text(text)
    prepare(raw, tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table
    assert table[table["split"] == "valid"].groupby("patient_id").size().tolist() == [2, 2]


def test_patients_of_the_test_list_leave_training(tmp_path):
    raw = make_covidx(tmp_path / "raw")
    replace(raw / "train_COVIDx9A.txt", "train-p3 ", "test-p1 ")
    append(raw / "train_COVIDx9A.txt", "someone test2.png COVID-19 rsna")
    write_picture(raw / "train/test2.png")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.dropped == {"patient is also in a held-out split": 1, "duplicate id": 1}
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    assert summary.images["test"] == 6
    assert table.loc["test2.png"]["source"] == "test/test2.png"


def test_files_that_the_package_lacks_are_counted(tmp_path):
    raw = make_covidx(tmp_path / "raw")
    for name in ("train/train0.png", "train/train1.jpg", "test/test4.png"):
        (raw / name).unlink()
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.dropped == {"image file missing": 3}
    assert "- image file missing" in str(summary)


def test_lines_in_other_forms(tmp_path):
    raw = make_covidx(tmp_path / "raw")
    for name in ("no source.png", "blank in name.png", "same.png", "same.jpg"):
        write_picture(raw / "train" / name)
    append(
        raw / "train_COVIDx9A.txt",
        "",
        "a no source.png NORMAL",
        "b blank in name.png covid-19 cohen  ",
        "c same.png normal rsna",
        "c same.jpg normal rsna",
    )
    assert prepare(raw, tmp_path / "out", **OPTIONS).rows_out == 30
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    assert table.loc["no source.png"]["labels"]["normal"] == 1
    assert table.loc["blank in name.png"]["labels"]["COVID-19"] == 1


def test_package_lists_and_windows_line_ends(tmp_path):
    raw = make_covidx(tmp_path / "raw")
    for part in ("train", "test"):
        path = raw / f"{part}_COVIDx9A.txt"
        (raw / f"{part}.txt").write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        path.unlink()
    assert prepare(raw, tmp_path / "out", **OPTIONS).rows_out == 26


def test_two_class_list_is_refused_with_a_hint(tmp_path, capsys):
    raw = make_covidx(tmp_path / "raw")
    for part in ("train", "test"):
        path = raw / f"{part}_COVIDx9A.txt"
        text = path.read_text()
        for name in CLASSES:
            text = text.replace(f" {name} ", " positive ")
        path.write_text(text)
    assert main(["--raw", str(raw), "--out", str(tmp_path / "out")]) == 2
    assert "the v9A list has three" in capsys.readouterr().err
