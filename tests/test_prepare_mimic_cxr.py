"""MIMIC-CXR preparation on every layout of images, tables and reports."""

import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_trees import (
    REPORT,
    append,
    make_mimic,
    mimic_ids,
    mimic_image,
    mimic_report,
    replace,
    write_picture,
)

from data_scripts.images import read_image
from data_scripts.prepare_mimic_cxr import main, prepare
from mgca_lib.data.studies import DatasetError, load_studies

OPTIONS = {"size": 32, "quiet": True, "workers": 2}


def test_a_release_becomes_a_prepared_dataset(tmp_path):
    raw = make_mimic(tmp_path / "raw")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    table = studies.table.set_index("image_id")
    assert (summary.rows_in, summary.rows_out) == (8, 7)
    assert summary.dropped == {"view LATERAL": 1}
    assert studies.card.counts == {"train": 5, "valid": 1, "test": 1}
    assert table["split"]["d0005"] == "valid"
    assert table["split"]["d0006"] == "test"
    dicom, subject, study = mimic_ids(3)
    row = table.loc[dicom]
    assert (row["patient_id"], row["study_id"], row["view"]) == (subject, study, "PA")
    assert (row["width"], row["height"]) == (32, 27)
    assert row["findings"] == "The lungs are clear. Heart size is normal."
    assert row["impression"] == "No acute process in study 3."
    assert list(row["sentences"]) == [
        "no acute process in study",
        "the lungs are clear",
        "heart size is normal",
    ]
    assert row["labels"]["No Finding"] == 1.0
    assert row["labels"]["Cardiomegaly"] == 0.0
    assert row["labels"]["Atelectasis"] == -1.0
    assert pd.isna(row["labels"]["Edema"])
    assert row["source"] == mimic_image("", 3).as_posix()
    stored = np.asarray(Image.open(tmp_path / "out" / row["image"])).astype(int)
    original = Image.fromarray(read_image(mimic_image(raw, 3))).resize((32, 27), Image.Resampling.BOX)
    assert np.abs(stored - np.asarray(original)).mean() < 4


def test_real_data_are_restricted_and_phantoms_are_not(tmp_path):
    raw = make_mimic(tmp_path / "all/mimic_cxr")
    (tmp_path / "all/PHANTOM.json").write_text("{}")  # above the dataset: says nothing about it
    assert prepare(raw, tmp_path / "real", **OPTIONS).restricted
    card = load_studies(tmp_path / "real").card
    assert card.restricted
    assert "PhysioNet" in card.licence
    (raw / "PHANTOM.json").write_text("{}")
    prepare(raw, tmp_path / "phantom", **OPTIONS)
    card = load_studies(tmp_path / "phantom").card
    assert (card.restricted, card.source) == (False, "phantom")


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("reports", ["mimic-cxr-reports/files", "files", "zip"])
def test_every_layout_gives_the_same_table(tmp_path, gz, reports):
    prepare(make_mimic(tmp_path / "plain"), tmp_path / "expected", **OPTIONS)
    prepare(make_mimic(tmp_path / "raw", gz=gz, reports=reports), tmp_path / "out", **OPTIONS)
    expected = load_studies(tmp_path / "expected")
    assert load_studies(tmp_path / "out").card.table_sha256 == expected.card.table_sha256


@pytest.mark.parametrize("named", ["folder", "files folder", "flat folder", "zip", "folder with zip"])
def test_reports_elsewhere(tmp_path, named):
    raw = make_mimic(tmp_path / "raw", reports="mimic-cxr-reports/files")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(raw / "mimic-cxr-reports", elsewhere)
    path = {"folder": elsewhere, "files folder": elsewhere / "files", "flat folder": tmp_path / "flat"}.get(named)
    if named == "flat folder":
        path.mkdir()
        for report in elsewhere.rglob("s*.txt"):
            shutil.copy(report, path)
    if "zip" in named:
        (tmp_path / "packed").mkdir()
        path = tmp_path / "packed/mimic-cxr-reports.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for report in elsewhere.rglob("s*.txt"):
                archive.write(report, report.relative_to(elsewhere))
        path = path.parent if "folder" in named else path
    summary = prepare(raw, tmp_path / "out", reports=path, **OPTIONS)
    assert summary.rows_out == 7


@pytest.mark.parametrize("below", ["mimic_cxr", "mimic-cxr-jpg/2.0.0", "physionet.org/files/mimic-cxr-jpg/2.1.0"])
def test_the_release_is_found_below_the_named_folder(tmp_path, below):
    make_mimic(tmp_path / "raw" / below)
    assert prepare(tmp_path / "raw", tmp_path / "out", **OPTIONS).rows_out == 7


def test_reports_that_cannot_be_used_are_counted(tmp_path):
    raw = make_mimic(tmp_path / "raw")
    mimic_report(raw, 0).write_text(" INDICATION: Cough.\n\n The lungs are clear today.\n")
    mimic_report(raw, 1).write_text("")
    mimic_report(raw, 2).unlink()
    mimic_report(raw, 3).write_text(" IMPRESSION: Normal chest.\n")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.dropped == {
        "view LATERAL": 1,
        "report has neither findings nor impression": 1,
        "report empty": 1,
        "report missing": 1,
        "report has fewer than 3 words": 1,
    }
    dropped = pd.read_csv(tmp_path / "out/dropped.csv")
    assert sorted(dropped["row"]) == [2, 3, 4, 5, 9]
    assert dropped["faulty"].sum() == 4


def test_last_paragraph_on_request(tmp_path):
    raw = make_mimic(tmp_path / "raw")
    mimic_report(raw, 0).write_text(" INDICATION: Cough.\n\n The lungs are clear today.\n")
    prepare(raw, tmp_path / "out", use_last_paragraph=True, **OPTIONS)
    studies = load_studies(tmp_path / "out")
    row = studies.table.set_index("image_id").loc["d0000"]
    assert (row["findings"], row["impression"]) == ("The lungs are clear today.", "")
    assert studies.card.options["use_last_paragraph"]


def test_two_images_of_a_study_share_its_report(tmp_path):
    raw = make_mimic(tmp_path / "raw")
    _, subject, study = mimic_ids(0)
    write_picture(mimic_image(raw, 0).with_name("second.jpg"))
    append(raw / "mimic-cxr-2.0.0-metadata.csv", f"second,{subject},{study},CHEST,PA,40,48")
    append(raw / "mimic-cxr-2.0.0-split.csv", f"second,{study},{subject},train")
    prepare(raw, tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table
    pair = table[table["study_id"] == study]
    assert list(pair["image_id"]) == ["d0000", "second"]
    assert pair["impression"].nunique() == 1


def test_a_study_without_labels_is_kept(tmp_path):
    raw = make_mimic(tmp_path / "raw")
    lines = (raw / "mimic-cxr-2.0.0-chexpert.csv").read_text().splitlines(keepends=True)
    (raw / "mimic-cxr-2.0.0-chexpert.csv").write_text("".join(lines[:1] + lines[2:]))
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.rows_out == 7
    assert "1 studies have no row" in summary.notes[0]
    studies = load_studies(tmp_path / "out")
    assert np.isnan(studies.labels(["Edema", "No Finding"])[0]).all()


def test_byte_order_mark_and_latin_1_report(tmp_path):
    raw = make_mimic(tmp_path / "raw")
    table = raw / "mimic-cxr-2.0.0-metadata.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    mimic_report(raw, 0).write_bytes(" FINDINGS: No caf\u00e9 sign seen.\n".encode("latin-1"))
    mimic_report(raw, 1).write_bytes(" FINDINGS: No caf\u00e9 sign seen.\n".encode("utf-16"))
    prepare(raw, tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table
    assert table["findings"].tolist()[:2] == ["No caf\u00e9 sign seen."] * 2
    assert list(table["sentences"][0]) == ["no caf sign seen"]


def test_limit_is_per_split_and_counted(tmp_path):
    summary = prepare(make_mimic(tmp_path / "raw"), tmp_path / "out", limit=2, **OPTIONS)
    assert summary.images == {"train": 2, "valid": 1, "test": 1}
    assert summary.dropped == {"view LATERAL": 1, "beyond --limit": 3}
    assert summary.rows_in == summary.rows_out + sum(summary.dropped.values())


def test_a_patient_in_two_splits_stays_in_the_held_out_one(tmp_path):
    raw = make_mimic(tmp_path / "raw")
    _, subject, _ = mimic_ids(6)
    _, other, study = mimic_ids(0)
    replace(raw / "mimic-cxr-2.0.0-metadata.csv", f"d0000,{other},", f"d0000,{subject},")
    summary = prepare(raw, tmp_path / "out", reports=raw / "mimic-cxr-reports", **OPTIONS)
    assert summary.dropped["report missing"] == 1  # the report lies in the other patient's folder
    target = mimic_report(raw, 6).with_name(f"s{study}.txt")
    target.write_text(REPORT.format(number=0))
    summary = prepare(raw, tmp_path / "out2", **OPTIONS)
    assert summary.dropped["patient is also in a held-out split"] == 1
    assert summary.images == {"train": 4, "valid": 1, "test": 1}


def test_command_line(tmp_path, capsys):
    raw = make_mimic(tmp_path / "raw")
    code = main(["--raw", str(raw), "--out", str(tmp_path / "out"), "--size", "32", "--image-format", "png", "--quiet"])
    printed = capsys.readouterr()
    assert code == 0
    assert "mimic_cxr: 7 images" in printed.out
    assert "view LATERAL (by design)" in printed.out
    assert printed.err == ""
    assert load_studies(tmp_path / "out").table["image"][0].endswith(".png")
    assert main(["--raw", str(raw), "--out", str(tmp_path / "strict"), "--strict"]) == 0
    assert main(["--help"]) == 0


def test_strict_names_the_first_offenders_and_writes_nothing(tmp_path, capsys):
    raw = make_mimic(tmp_path / "raw")
    mimic_report(raw, 1).unlink()
    assert main(["--raw", str(raw), "--out", str(tmp_path / "out"), "--strict"]) == 1
    message = capsys.readouterr().err
    assert "mimic-cxr-2.0.0-metadata.csv, row 3" in message
    assert "report missing" in message
    assert not (tmp_path / "out").exists()


def test_raw_folder_is_a_file(tmp_path):
    (tmp_path / "raw").write_text("")
    with pytest.raises(DatasetError, match="is a file"):
        prepare(tmp_path / "raw", tmp_path / "out", **OPTIONS)
