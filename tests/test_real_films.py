"""Real films on this computer: sample sets in their owners' layout, licences, and the folders they may lie in."""

import csv
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from raw_trees import write_csv, write_picture

from data_scripts.prepare_nih import NIH_LABELS
from data_scripts.real_films import (
    attribution,
    find_real_films,
    lay_out_covid,
    lay_out_nih,
    prepare_real_films,
    showable,
)
from mgca_lib.data.studies import DatasetError, load_studies

NIH_COLUMNS = ("image", "patient", "view", "finding", "split_hint", "followup", "orig_file")
COVID_COLUMNS = ("image", "group", "view", "finding", "offset_days", "doi", "url", "licence", "lung_mask")
LICENCES = ("CC BY 3.0", "CC BY-NC-SA 4.0", "CC BY 4.0")


def make_samples(folder, *, films=12):
    """Write both sample sets; film ``number`` of the collection has a mask if even, a recommended note if below 4."""
    nih, covid = folder / "nih_cxr14_subset", folder / "cohen_covid"
    rows = []
    for number in range(films):
        name = f"{number // 2 + 1:08d}_{number % 2:03d}"
        finding = ("No Finding", "Pneumonia|Edema")[number % 2]
        split = ("train", "val", "test")[number // 2 % 3]
        rows.append(
            (
                f"images/{name}.jpg",
                f"nih-{name[:8]}",
                ("PA", "AP")[number % 2],
                finding,
                split,
                number % 2,
                f"{name}.png",
            )
        )
        write_picture(nih / f"images/{name}.jpg", width=40, height=40, seed=number)
    write_csv(nih / "metadata.csv", NIH_COLUMNS, rows)
    write_csv(
        nih / "boxes.csv",
        ("image", "label", "x1", "y1", "x2", "y2", "origin"),
        [(rows[1][0], "Pneumonia", 0.25, 0.5, 0.5, 0.75, "")],
    )
    rows, pairs = [], []
    for number in range(films):
        licence = LICENCES[number % 3]
        name = f"images/{'nc' if 'NC' in licence else 'open'}/film{number}.jpg"
        mask = "" if number % 2 else f"lung_masks/film{number}.png"
        view = ("PA", "AP Supine", "?")[number % 3]
        finding = ("COVID-19", "Streptococcus", "")[number % 3]
        doi = "10.6084/m9.figshare.12275009" if number % 3 == 0 else f"10.1000/{number}" if number % 3 == 1 else ""
        rows.append(
            (name, f"cohen-{number // 2}", view, finding, number, doi, f"https://example.org/{number}", licence, mask)
        )
        write_picture(covid / name, width=48, height=40, seed=number)
        if mask:
            write_picture(covid / mask, width=48, height=40, seed=number)
        pairs.append((name, f"Patchy opacity in film {number}.", int(number < 4)))
    write_csv(covid / "metadata.csv", COVID_COLUMNS, rows)
    write_csv(covid / "pairs_recommended.csv", ("image", "text", "text_describes_image"), pairs[:8])
    return folder


def test_samples_travel_the_road_of_the_releases(tmp_path):
    folder = find_real_films(str(make_samples(tmp_path / "films")), tmp_path)
    summaries = prepare_real_films(folder, tmp_path / "raw", tmp_path / "prepared", size=40)
    assert {name: (one.rows_out, one.dropped) for name, one in summaries.items()} == {
        "nih": (12, {}),
        "covid_cxr": (12, {}),
    }
    nih = load_studies(tmp_path / "prepared/nih")
    assert nih.labels(["Pneumonia", "Edema", "Effusion"]).tolist() == [[0, 0, 0], [1, 1, 0]] * 6
    assert nih.split("test").table["patient_id"].unique().tolist() == ["00000003", "00000006"]  # as hinted
    (box,) = nih.table["boxes"][1]
    assert [box[key] for key in ("x", "y", "w", "h", "name")] == [10, 20, 10, 10, "Pneumonia"]
    covid = load_studies(tmp_path / "prepared/covid_cxr")
    assert (covid.table["mask"] != "").tolist() == [True, False] * 6
    assert [len(one) > 0 for one in covid.table["sentences"]] == [True] * 4 + [False] * 8
    assert covid.table["patient_id"].tolist() == [f"cohen-{number // 2}" for number in range(12)]
    assert covid.table["view"].tolist() == ["PA", "AP", ""] * 4
    assert not covid.card.restricted
    again = prepare_real_films(folder, tmp_path / "raw", tmp_path / "prepared", size=40)
    assert [one.converted for one in again.values()] == [0, 0]


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (("images/none.jpg", "Mass", 0, 0, 1, 1), "row 3: .*'images/none.jpg'.*metadata.csv"),
        (("images/00000001_001.jpg", "Mass", 0, "", 1, 1), "row 3: could not convert string to float"),
    ],
)
def test_a_bad_box_is_named(tmp_path, cells, problem):
    nih = make_samples(tmp_path / "films") / "nih_cxr14_subset"
    with (nih / "boxes.csv").open("a", newline="") as stream:
        csv.writer(stream).writerow((*cells, ""))
    with pytest.raises(DatasetError, match=rf"boxes.csv: {problem}"):
        lay_out_nih(nih, tmp_path / "raw")


def test_layout_is_the_owners(tmp_path):
    samples = make_samples(tmp_path / "films")
    raw = lay_out_nih(samples / "nih_cxr14_subset", tmp_path / "nih")
    with (raw / "BBox_List_2017.csv").open(newline="") as stream:
        header, row = csv.reader(stream)
    assert header[:6] == ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]"]
    assert row[:2] + [float(cell) for cell in row[2:]] == ["00000001_001.png", "Pneumonia", 256, 512, 256, 256]
    table = pd.read_csv(raw / "Data_Entry_2017_v2020.csv")
    assert table.loc[3, ["Image Index", "Patient ID", "Follow-up #"]].tolist() == ["00000002_001.png", 2, 1]
    lists = [(raw / name).read_text().split() for name in ("train_val_list.txt", "test_list.txt")]
    assert [len(one) for one in lists] == [8, 4]
    assert not {name[:8] for name in lists[0]} & {name[:8] for name in lists[1]}
    raw = lay_out_covid(samples / "cohen_covid", tmp_path / "covid")
    table = pd.read_csv(raw / "metadata.csv", keep_default_na=False)
    assert table["license"].tolist() == [LICENCES[number % 3] for number in range(12)]
    assert sorted(path.name for path in (raw / "lung_masks").iterdir()) == sorted(
        f"film{n}.png" for n in range(0, 12, 2)
    )


def test_only_open_films_may_be_shown(tmp_path):
    folder = make_samples(tmp_path / "films")
    prepare_real_films(folder, tmp_path / "raw", tmp_path / "prepared", size=40)
    covid = load_studies(tmp_path / "prepared/covid_cxr")
    shown = showable(covid)
    assert shown.table["image_id"].tolist() == [f"film{n}.jpg" for n in range(12) if n % 3 != 1]
    text = attribution(shown, [0, 1])
    for part in ("J. P. Cohen", "CC BY 3.0, CC BY 4.0", "Winther", "doi 10.6084/m9.figshare.12275009", "example.org/2"):
        assert part in text
    with pytest.raises(ValueError, match=r"film1\.jpg: its licence, CC BY-NC-SA 4\.0"):
        attribution(covid, [0, 1])
    with pytest.raises(DatasetError, match="open licence holds no image"):
        showable(covid.select([1, 4]))


@pytest.mark.parametrize("inner", ["", "realdata"])
def test_where_films_are_looked_for(tmp_path, monkeypatch, inner):
    project = tmp_path / "project"
    monkeypatch.delenv("MGCA_SHARED", raising=False)
    assert find_real_films("", project) is None
    make_samples(tmp_path / "shared" / inner)
    assert find_real_films("", project) == tmp_path / "shared" / inner
    monkeypatch.setenv("MGCA_SHARED", str(tmp_path / "elsewhere"))
    assert find_real_films("", project) is None
    make_samples(tmp_path / "elsewhere" / inner)
    assert find_real_films("", project) == tmp_path / "elsewhere" / inner
    assert find_real_films(str(tmp_path / "shared"), project) == tmp_path / "shared" / inner


def test_a_named_folder_must_hold_films(tmp_path):
    for name in ("nowhere", "."):
        with pytest.raises(DatasetError, match=r"REAL_DATA = .*nih_cxr14_subset, ChestX-ray14"):
            find_real_films(str(tmp_path / name), tmp_path)


def test_releases_as_their_owners_ship_them(tmp_path):
    samples = make_samples(tmp_path / "films")
    lay_out_nih(samples / "nih_cxr14_subset", tmp_path / "own/ChestX-ray14")
    lay_out_covid(samples / "cohen_covid", tmp_path / "own/covid-chestxray-dataset-master")
    (tmp_path / "own/ChestX-ray14/images/00000001_000.jpg").unlink()  # a part of the release is enough
    folder = find_real_films(str(tmp_path / "own"), tmp_path)
    summaries = prepare_real_films(folder, tmp_path / "raw", tmp_path / "prepared", size=40, limit=3)
    assert summaries["nih"].images == {"train": 3, "valid": 2, "test": 3}
    assert "image not in this part of the release" in summaries["nih"].by_design
    assert summaries["covid_cxr"].dropped["view not stated"] == 4
    assert not (tmp_path / "raw").exists()


def test_one_of_the_two_is_enough(tmp_path):
    make_samples(tmp_path / "films")
    (tmp_path / "films/cohen_covid").rename(tmp_path / "away")
    folder = find_real_films(str(tmp_path / "films"), tmp_path)
    assert list(prepare_real_films(folder, tmp_path / "raw", tmp_path / "prepared", size=40)) == ["nih"]


def test_a_listed_film_that_is_missing_is_named(tmp_path):
    samples = make_samples(tmp_path / "films")
    (samples / "cohen_covid/images/open/film0.jpg").unlink()
    with pytest.raises(DatasetError, match=r"film0\.jpg: no such file"):
        lay_out_covid(samples / "cohen_covid", tmp_path / "raw")


def test_the_real_samples(tmp_path, shared_dir):
    folder = find_real_films(str(shared_dir), tmp_path)
    summaries = prepare_real_films(folder, tmp_path / "raw", tmp_path / "prepared", size=32)
    assert {name: one.rows_out for name, one in summaries.items()} == {"nih": 1002, "covid_cxr": 360}
    assert all(one.dropped == {} for one in summaries.values())
    nih, covid = (load_studies(tmp_path / "prepared" / name) for name in summaries)
    real = pd.read_csv(shared_dir / "realdata/nih_cxr14_subset/metadata.csv", keep_default_na=False)
    assert nih.table["image_id"].tolist() == real["orig_file"].tolist()
    for name in NIH_LABELS:
        found = real["finding"].map(lambda text, name=name: name in text.split("|"))
        np.testing.assert_array_equal(nih.labels([name])[:, 0] == 1, found)
    assert nih.table["boxes"].map(len).sum() == 49
    assert nih.table["patient_id"].nunique() == 684
    assert not nih.card.restricted
    assert ((covid.table["mask"] != "").sum(), covid.table["sentences"].map(len).gt(0).sum()) == (192, 229)
    real = pd.read_csv(shared_dir / "realdata/cohen_covid/metadata.csv", keep_default_na=False)
    assert len(showable(covid)) == (real["licence_class"] == "open").sum()
    assert Counter(covid.table["patient_id"]) == Counter(real["group"])
