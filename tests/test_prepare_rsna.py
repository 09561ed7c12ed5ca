"""RSNA preparation: DICOM, boxes, detailed classes, the published split."""

import shutil

import numpy as np
import pytest
from PIL import Image
from raw_trees import append, make_rsna, replace, write_dicom
from sklearn.model_selection import train_test_split

from data_scripts.images import read_image
from data_scripts.prepare_rsna import main, prepare, split_patients_as_published
from mgca_lib.data.studies import load_studies

OPTIONS = {"size": 20, "quiet": True, "workers": 2}


def test_a_release_becomes_a_prepared_dataset(tmp_path):
    raw = make_rsna(tmp_path / "raw")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    table = studies.table.set_index("image_id")
    assert (summary.rows_in, summary.rows_out, summary.dropped) == (12, 12, {})
    assert studies.card.counts == {"train": 8, "valid": 2, "test": 2}
    assert studies.card.restricted
    row = table.loc["p003"]
    assert (row["view"], row["width"], row["height"]) == ("AP", 16, 20)
    assert row["boxes"][0] == {"x": 2.0, "y": 4.0, "w": 8.0, "h": 6.0, "name": "Pneumonia"}  # half of 4, 8, 16, 12
    assert dict(row["labels"]) == {
        "Pneumonia": 1.0,
        "Normal": 0.0,
        "No Lung Opacity / Not Normal": 0.0,
        "Lung Opacity": 1.0,
    }
    assert len(table.loc["p000"]["boxes"]) == 0
    assert (table.loc["p000"]["view"], table.loc["p000"]["labels"]["Normal"]) == ("PA", 1.0)
    stored = np.asarray(Image.open(tmp_path / "out" / row["image"])).astype(float)
    original = read_image(raw / "stage_2_train_images/p003.dcm").reshape(20, 2, 16, 2).mean((1, 3))
    assert np.abs(stored - original).mean() < 2


def test_several_boxes_and_repeated_rows(tmp_path):
    raw = make_rsna(tmp_path / "raw")
    append(raw / "stage_2_train_labels.csv", "p001,0,0,32,40,1", "p001,4.0,8.0,16.0,12.0,1")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    boxes = load_studies(tmp_path / "out").table.set_index("image_id").loc["p001"]["boxes"]
    assert [(box["x"], box["y"], box["w"], box["h"]) for box in boxes] == [(2, 4, 8, 6), (0, 0, 16, 20)]
    assert (summary.rows_in, summary.rows_out, summary.dropped) == (14, 13, {"duplicate row": 1})


@pytest.mark.parametrize("size", [16, 17, 19, 31, 33, 100])
def test_a_box_of_the_whole_image_stays_inside_at_any_size(tmp_path, size):
    raw = make_rsna(tmp_path / "raw", patients=4)
    replace(raw / "stage_2_train_labels.csv", "4.0,8.0,16.0,12.0", "0,0,32,40")
    prepare(raw, tmp_path / "out", **OPTIONS | {"size": size})
    row = load_studies(tmp_path / "out").table.set_index("image_id").loc["p001"]
    box = row["boxes"][0]
    assert (box["x"] + box["w"], box["y"] + box["h"]) == pytest.approx((row["width"], row["height"]))


def test_without_detailed_classes(tmp_path):
    summary = prepare(make_rsna(tmp_path / "raw", detailed=False), tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    assert "stage_2_detailed_class_info.csv" in summary.notes[0]
    assert np.isnan(studies.labels(["Normal"])).all()
    assert studies.labels(["Pneumonia"]).sum() == 6


def test_faulty_patients_are_dropped_with_all_their_rows(tmp_path):
    raw = make_rsna(tmp_path / "raw")
    append(raw / "stage_2_train_labels.csv", "p001,nan,1,2,3,1", "p003,20,8,16,12,1", "p002,,,,,1")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.dropped == {"box missing": 2, "box outside the image": 2, "Target both 0 and 1": 2}
    assert summary.rows_in == summary.rows_out + 6 == 15
    assert not {"p001", "p002", "p003"} & set(load_studies(tmp_path / "out").table["image_id"])


def test_a_lateral_view_is_left_out(tmp_path):
    raw = make_rsna(tmp_path / "raw")
    write_dicom(raw / "stage_2_train_images/p004.dcm", np.ones((8, 8), dtype=np.uint8), view="LATERAL")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.dropped == {"view LATERAL": 1}
    assert (summary.converted, summary.reused) == (12, 0)


def test_the_split_is_that_of_the_published_code():
    patients = [f"id{number}" for number in range(200)]
    split = split_patients_as_published(patients)
    train, rest = train_test_split(np.arange(200), test_size=0.3, random_state=0)
    valid, test = train_test_split(rest, test_size=0.5, random_state=0)
    for name, rows in (("train", train), ("valid", valid), ("test", test)):
        assert {patients[row] for row in rows} == {patient for patient in patients if split[patient] == name}
    assert set(split_patients_as_published(["a", "b", "c"]).values()) == {"train"}


def test_a_dropped_patient_does_not_move_the_others(tmp_path):
    raw = make_rsna(tmp_path / "raw", patients=20)
    prepare(raw, tmp_path / "whole", **OPTIONS)
    (raw / "stage_2_train_images/p005.dcm").unlink()
    prepare(raw, tmp_path / "part", **OPTIONS)
    whole, part = (load_studies(tmp_path / name).table.set_index("image_id")["split"] for name in ("whole", "part"))
    assert dict(part) == dict(whole.drop("p005"))


def test_found_below_the_named_folder(tmp_path, capsys):
    make_rsna(tmp_path / "raw/rsna")
    assert main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--size", "20"]) == 0
    assert "rsna: 12 images" in capsys.readouterr().out
    shutil.copytree(tmp_path / "raw/rsna", tmp_path / "raw/rsna-copy")
    assert main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 2
    assert "more than once" in capsys.readouterr().err
