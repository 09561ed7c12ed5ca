"""NIH ChestX-ray14: labels, boxes, official lists, splits by patient, parts of the release, malformed inputs."""

import shutil
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_trees import append, replace, write_csv, write_picture

import data_scripts.conversion
from data_scripts.access import OPEN_ACCESS
from data_scripts.conversion import _convert_one
from data_scripts.prepare_nih import NIH_LABELS, labels_from_findings, main, prepare
from mgca_lib.data.studies import load_studies

OPTIONS = {"size": 32, "quiet": True, "workers": 2}
TABLE, BOXES, TRAIN_LIST, TEST_LIST = (
    "Data_Entry_2017_v2020.csv",
    "BBox_List_2017.csv",
    "train_val_list.txt",
    "test_list.txt",
)
# The headers as the owner wrote them: names with brackets that the commas inside cut in two.
HEADER = (
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender", "View Position"),
    *("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"),
)
BOX_HEADER = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", "")
FINDINGS = ("No Finding", "Edema|Effusion", "Pneumonia", "Pleural_Thickening")
SIDE = 64  # of the miniature's images; the release has 1024


def index(number):
    """Name of image ``number``: two films of each patient."""
    return f"{number // 2 + 1:08d}_{number % 2:03d}.png"


def record(number, **changes):
    values = {
        "Image Index": index(number),
        "Finding Labels": FINDINGS[number % len(FINDINGS)],
        "Follow-up #": number % 2,
        "Patient ID": number // 2 + 1,
        "Patient Age": 58,
        "Patient Gender": "M",
        "View Position": ("PA", "AP")[number % 2],
        "OriginalImage[Width": 2682,
        "Height]": 2749,
        "OriginalImagePixelSpacing[x": 0.143,
        "y]": 0.143,
    }
    return tuple((values | changes)[column] for column in HEADER)


def make_nih(root, *, films=24, lists=True, boxes=True, folder="images", table=TABLE):
    """Write the release: film ``number`` is line ``number + 2``; films 16 to 23 are in the test list, 2 has boxes."""
    write_csv(root / table, HEADER, [record(number) for number in range(films)])
    for number in range(films):
        write_picture(root / folder / index(number), width=SIDE, height=SIDE, seed=number)
    if lists:
        for name, part in ((TRAIN_LIST, range(16)), (TEST_LIST, range(16, films))):
            (root / name).write_text("".join(index(number) + "\n" for number in part))
    if boxes:
        rows = [
            (index(2), "Pneumonia", 256.0, 512.0, 128.0, 64.0, "", "", ""),
            (index(2), "Infiltrate", 0.0, 0.0, 1024.0, 1024.0, "", "", ""),
        ]
        write_csv(root / BOXES, BOX_HEADER, rows)
    return root


def test_a_release_becomes_a_prepared_dataset(tmp_path):
    summary = prepare(make_nih(tmp_path / "raw"), tmp_path / "out", **OPTIONS)
    assert (summary.rows_in, summary.rows_out, summary.dropped) == (24, 24, {})
    studies = load_studies(tmp_path / "out")
    assert studies.card.name == "nih"
    assert not studies.card.restricted
    for words in ("NIH Clinical Center", "nihcc.app.box.com/v/ChestXray-NIHCC", "Wang et al."):
        assert words in studies.card.source
    assert studies.label_names == NIH_LABELS
    table = studies.table.set_index("image_id")
    row = table.loc["00000002_001.png"]
    assert (row["patient_id"], row["study_id"], row["view"]) == ("00000002", "00000002_001", "AP")
    assert (row["findings"], row["impression"], len(row["sentences"])) == ("", "", 0)
    assert row["source"] == "images/00000002_001.png"
    assert (tmp_path / "out" / row["image"]).is_file()
    assert table["view"].tolist() == ["PA", "AP"] * 12


def test_labels_of_the_table(tmp_path):
    prepare(make_nih(tmp_path / "raw"), tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    found = studies.labels(NIH_LABELS)
    assert found.sum(axis=1).tolist() == [0, 2, 1, 1] * 6
    for column, name in enumerate(NIH_LABELS):
        line = {"Edema": 1, "Effusion": 1, "Pneumonia": 2, "Pleural_Thickening": 3}.get(name)
        np.testing.assert_array_equal(found[:, column], np.arange(24) % 4 == line)


@pytest.mark.parametrize(
    "text", ["", "Edema|", "Edema|No Finding", "edema", "Pneumonia,Edema", "Fracture", "No finding"]
)
def test_findings_that_are_none(text):
    with pytest.raises(ValueError, match="is none of the 14 findings|blank"):
        labels_from_findings(text)


@pytest.mark.parametrize("size", [SIDE, 16])
def test_boxes_follow_the_image_to_its_stored_size(tmp_path, size):
    prepare(make_nih(tmp_path / "raw"), tmp_path / "out", **OPTIONS | {"size": size})
    boxes = load_studies(tmp_path / "out").table.set_index("image_id")["boxes"]
    assert boxes.map(len).sum() == 2
    pneumonia, infiltration = boxes["00000002_000.png"]
    assert [pneumonia[key] for key in ("x", "y", "w", "h", "name")] == [
        size / 4,
        size / 2,
        size / 8,
        size / 16,
        "Pneumonia",
    ]
    assert [infiltration[key] for key in ("x", "y", "w", "h", "name")] == [0, 0, size, size, "Infiltration"]


def test_boxes_of_the_released_size_are_taken_as_they_are(tmp_path):
    raw = make_nih(tmp_path / "raw")
    write_picture(raw / "images" / index(2), width=1024, height=1024)
    prepare(raw, tmp_path / "out", **OPTIONS | {"size": 1024})
    boxes = load_studies(tmp_path / "out").table.set_index("image_id")["boxes"]
    assert [boxes["00000002_000.png"][0][key] for key in "xywh"] == [256, 512, 128, 64]


def test_official_lists_decide_and_validation_shares_no_patient(tmp_path):
    prepare(make_nih(tmp_path / "raw"), tmp_path / "out", valid_fraction=0.25, **OPTIONS)
    studies = load_studies(tmp_path / "out")
    assert studies.card.counts == {"train": 12, "valid": 4, "test": 8}
    assert studies.split("test").table["image_id"].tolist() == [index(number) for number in range(16, 24)]
    assert "test_list.txt" in studies.card.options["splits"]
    splits = defaultdict(set)
    for patient, split in studies.table[["patient_id", "split"]].itertuples(index=False):
        splits[patient].add(split)
    assert all(len(one) == 1 for one in splits.values())


def test_without_lists_the_splits_are_drawn_by_patient(tmp_path):
    raw = make_nih(tmp_path / "raw", films=40, lists=False)
    prepare(raw, tmp_path / "out", **OPTIONS)
    counts = load_studies(tmp_path / "out").card.counts
    assert counts == {"train": 28, "valid": 4, "test": 8}  # of 20 patients with two films each
    prepare(raw, tmp_path / "other", seed=1, **OPTIONS)
    tests = [load_studies(tmp_path / name).split("test").table["image_id"].tolist() for name in ("out", "other")]
    assert tests[0] != tests[1]


def test_a_patient_of_both_lists_stays_in_the_test(tmp_path):
    raw = make_nih(tmp_path / "raw")
    replace(raw / TRAIN_LIST, index(15) + "\n", "")
    append(raw / TEST_LIST, index(15))
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.dropped == {"patient is also in a held-out split": 1}
    assert "00000008_000.png" not in set(load_studies(tmp_path / "out").table["image_id"])


@pytest.mark.parametrize("folder", ["images", "images_001", "images_012/images"])
def test_places_of_the_images(tmp_path, folder):
    assert prepare(make_nih(tmp_path / "raw", folder=folder), tmp_path / "out", **OPTIONS).rows_out == 24


def test_images_in_several_folders_and_twice(tmp_path):
    raw = make_nih(tmp_path / "raw", folder="images_002/images")
    (raw / "images_001").mkdir()
    shutil.move(raw / "images_002/images" / index(0), raw / "images_001")
    shutil.copy(raw / "images_002/images" / index(1), raw / "images_001")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.rows_out == 24
    assert summary.notes == ("1 image files have the name of another one; the first was taken",)
    sources = load_studies(tmp_path / "out").table["source"].tolist()
    assert sources[:3] == [f"images_001/{index(0)}", f"images_001/{index(1)}", f"images_002/images/{index(2)}"]


def test_resized_copies_as_jpeg(tmp_path):
    raw = make_nih(tmp_path / "raw")
    for path in (raw / "images").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    prepare(raw, tmp_path / "out", **OPTIONS)
    row = load_studies(tmp_path / "out").table.iloc[2]
    assert (row["image_id"], row["source"]) == ("00000002_000.png", "images/00000002_000.jpg")
    assert row["boxes"][0]["x"] == 8


@pytest.mark.parametrize(
    ("tables", "version"),
    [
        (["Data_Entry_2017.csv"], "Data_Entry_2017"),
        (["Data_Entry_2017.csv", TABLE], "Data_Entry_2017_v2020"),
    ],
)
def test_both_versions_of_the_table(tmp_path, tables, version):
    raw = make_nih(tmp_path / "raw")
    (raw / TABLE).rename(raw / "kept")
    for name in tables:
        shutil.copy(raw / "kept", raw / name)
    if len(tables) == 2:  # the earlier one would fail
        (raw / tables[0]).write_text("nonsense\n")
    prepare(raw, tmp_path / "out", **OPTIONS)
    assert load_studies(tmp_path / "out").card.version == version


def test_a_part_of_the_release(tmp_path):
    raw = make_nih(tmp_path / "raw")
    for number in (4, 5, 17):
        (raw / "images" / index(number)).unlink()
    assert prepare(raw, tmp_path / "whole", **OPTIONS).dropped == {"image file missing": 3}
    summary = prepare(raw, tmp_path / "part", partial=True, **OPTIONS)
    assert summary.dropped == {"image not in this part of the release": 3}
    assert summary.by_design == {"image not in this part of the release"}
    assert main(["--raw", str(raw), "--out", str(tmp_path / "a"), "--partial", "--strict", "--quiet"]) == 0
    assert main(["--raw", str(raw), "--out", str(tmp_path / "b"), "--strict", "--quiet"]) == 1


def test_without_boxes_and_with_boxes_of_strangers(tmp_path):
    summary = prepare(make_nih(tmp_path / "a", boxes=False), tmp_path / "out", **OPTIONS)
    assert summary.notes == ("there is no BBox_List_2017.csv, so no image has boxes",)
    raw = make_nih(tmp_path / "b")
    append(raw / BOXES, "00099999_000.png,Mass,1,1,2,2,,,")
    summary = prepare(raw, tmp_path / "strange", **OPTIONS)
    assert "1 images of BBox_List_2017.csv are not in the table" in summary.notes[0]


def test_the_folder_above_and_the_phantom_mark(tmp_path):
    raw = make_nih(tmp_path / "raw/ChestX-ray14")
    (raw / "PHANTOM.json").write_text("{}")
    prepare(tmp_path / "raw", tmp_path / "out", **OPTIONS)
    card = load_studies(tmp_path / "out").card
    assert (card.source, card.restricted) == ("phantom", False)


def test_restart_after_an_interrupt(tmp_path, monkeypatch, capsys):
    raw = make_nih(tmp_path / "raw")
    arguments = ["--raw", str(raw), "--out", str(tmp_path / "out"), "--size", "32", "--workers", "1"]
    done = []

    def interrupted(candidate, journal):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(candidate)
        return _convert_one(candidate, journal)

    with monkeypatch.context() as patch:
        patch.setattr(data_scripts.conversion, "_convert_one", interrupted)
        assert main(arguments) == 130
    assert not (tmp_path / "out/card.json").exists()
    capsys.readouterr()
    assert main(arguments) == 0
    assert ", 3 reused" in capsys.readouterr().out
    prepare(raw, tmp_path / "undisturbed", **OPTIONS)
    contents = [
        {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / "out", tmp_path / "undisturbed")
    ]
    assert contents[0] == contents[1]


def test_how_to_get_it_is_written_down():
    access = OPEN_ACCESS["nih"]
    assert access.script == "data_scripts/prepare_nih.py"
    assert "nihcc.app.box.com" in access.where
    assert "Data_Entry_2017_v2020.csv" in access.download


def drop_column(path, name):
    pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=name).to_csv(path, index=False)


def set_cell(path, line, column, value):
    """Set a cell; ``line`` as an editor counts."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[line - 2, column] = value
    table.to_csv(path, index=False)


def box(root, *cells):
    """Put ``cells`` into the first row of the box list."""
    write_csv(root / BOXES, BOX_HEADER, [(*cells, "", "", "")])


def image(root, number):
    return root / "images" / index(number)


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


# what is wrong, damage(raw folder), what the message names
FATAL = [
    ("no such folder", shutil.rmtree, ["no such folder"]),
    ("a file, not a folder", lambda r: (shutil.rmtree(r), r.write_text("x")), ["is a file"]),
    ("no table", lambda r: (r / TABLE).unlink(), ["holds no Data_Entry_2017*.csv"]),
    ("table of another name", lambda r: (r / TABLE).rename(r / "Data_Entry_2017 (1).csv"), ["called neither"]),
    ("no images", lambda r: shutil.rmtree(r / "images"), ["images: no such folder"]),
    ("table empty", lambda r: (r / TABLE).write_bytes(b""), [TABLE, "is empty"]),
    ("table without rows", lambda r: (r / TABLE).write_text(",".join(HEADER) + "\n"), [TABLE, "no rows"]),
    ("table in UTF-16", lambda r: (r / TABLE).write_bytes("Image Index\n1".encode("utf-16")), [TABLE, "UTF-8"]),
    ("table binary", lambda r: (r / TABLE).write_bytes(bytes(range(256)) * 9), [TABLE]),
    ("table is a web page", lambda r: (r / TABLE).write_text("<html>\n<p>404</p>"), [TABLE, "'Image Index'"]),
    ("row too long", lambda r: append(r / TABLE, "1,2,3" + ",x" * 40), [TABLE]),
    ("no Image Index", lambda r: drop_column(r / TABLE, "Image Index"), [TABLE, "'Image Index'"]),
    ("no Finding Labels", lambda r: drop_column(r / TABLE, "Finding Labels"), [TABLE, "'Finding Labels'"]),
    ("no Patient ID", lambda r: drop_column(r / TABLE, "Patient ID"), [TABLE, "'Patient ID'"]),
    ("no View Position", lambda r: drop_column(r / TABLE, "View Position"), [TABLE, "'View Position'"]),
    ("no Follow-up", lambda r: drop_column(r / TABLE, "Follow-up #"), [TABLE, "'Follow-up #'"]),
    ("box list empty", lambda r: (r / BOXES).write_bytes(b""), [BOXES, "is empty"]),
    ("box list of other columns", lambda r: (r / BOXES).write_text("a,b\n1,2\n"), [BOXES, "'Image Index'"]),
    ("box list is a folder", lambda r: ((r / BOXES).unlink(), (r / BOXES).mkdir()), [BOXES]),
    ("one list alone", lambda r: (r / TEST_LIST).unlink(), [TEST_LIST, TRAIN_LIST, "both or none"]),
    ("test list alone", lambda r: (r / TRAIN_LIST).unlink(), [TRAIN_LIST, TEST_LIST, "both or none"]),
    ("list empty", lambda r: (r / TEST_LIST).write_text("\n\n"), [TEST_LIST, "is empty"]),
    ("list in UTF-16", lambda r: (r / TEST_LIST).write_bytes("a.png".encode("utf-16")), [TEST_LIST, "UTF-8"]),
    ("image in both lists", lambda r: append(r / TEST_LIST, index(0)), [TEST_LIST, "row 9", index(0)]),
    (
        "no image file",
        lambda r: [path.unlink() for path in (r / "images").iterdir()],
        ["all 24 rows were dropped", "image file missing"],
    ),
]
# what is wrong, damage(raw folder), reason, line of the row that is left out
DROPS = [
    ("image missing", lambda r: image(r, 2).unlink(), "image file missing", 4),
    ("image empty", lambda r: image(r, 2).write_bytes(b""), "image unreadable", 4),
    ("image cut off", lambda r: cut(image(r, 2)), "image unreadable", 4),
    ("image is a web page", lambda r: image(r, 2).write_text("<html>404</html>"), "image unreadable", 4),
    ("image is a folder", lambda r: (image(r, 2).unlink(), image(r, 2).mkdir()), "image unreadable", 4),
    ("index missing", lambda r: set_cell(r / TABLE, 4, "Image Index", ""), "id missing or malformed", 4),
    ("index of another form", lambda r: set_cell(r / TABLE, 4, "Image Index", "2_0.png"), "id missing or malformed", 4),
    ("index leads out", lambda r: set_cell(r / TABLE, 4, "Image Index", "../x.png"), "id missing or malformed", 4),
    ("patient missing", lambda r: set_cell(r / TABLE, 4, "Patient ID", ""), "id missing or malformed", 4),
    ("patient of another image", lambda r: set_cell(r / TABLE, 4, "Patient ID", "3"), "id missing or malformed", 4),
    ("patient a fraction", lambda r: set_cell(r / TABLE, 4, "Patient ID", "2.0"), "id missing or malformed", 4),
    ("image listed twice", lambda r: set_cell(r / TABLE, 4, "Image Index", index(3)), "duplicate id", 5),
    ("view lateral", lambda r: set_cell(r / TABLE, 4, "View Position", "LL"), "unknown view", 4),
    ("view missing", lambda r: set_cell(r / TABLE, 4, "View Position", ""), "unknown view", 4),
    ("finding unknown", lambda r: set_cell(r / TABLE, 4, "Finding Labels", "Fracture"), "unknown finding", 4),
    ("finding missing", lambda r: set_cell(r / TABLE, 4, "Finding Labels", ""), "unknown finding", 4),
    ("no finding and one", lambda r: set_cell(r / TABLE, 4, "Finding Labels", "No Finding|Mass"), "unknown finding", 4),
    ("in no list", lambda r: replace(r / TRAIN_LIST, index(2) + "\n", ""), "not in the split lists", 4),
    ("row cut off", lambda r: append(r / TABLE, "00000030_000.png,Mass"), "id missing or malformed", 26),
    ("box no number", lambda r: box(r, index(2), "Mass", "left", 1, 2, 3), "box malformed", 4),
    ("box NaN", lambda r: box(r, index(2), "Mass", "nan", 1, 2, 3), "box malformed", 4),
    ("box without a side", lambda r: box(r, index(2), "Mass", 1, 1, 2, ""), "box malformed", 4),
    ("box flat", lambda r: box(r, index(2), "Mass", 1, 1, 0, 3), "box malformed", 4),
    ("box negative", lambda r: box(r, index(2), "Mass", -1, 1, 2, 3), "box malformed", 4),
    ("box outside", lambda r: box(r, index(2), "Mass", 1000, 1, 25, 3), "box malformed", 4),
    ("box of an unknown finding", lambda r: box(r, index(2), "Tumour", 1, 1, 2, 3), "box malformed", 4),
    (
        "box on a cropped copy",
        lambda r: write_picture(image(r, 2), width=SIDE, height=SIDE - 8),
        "box malformed",
        4,
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_nih(tmp_path_factory.mktemp("whole") / "raw")


def run(raw, out, capsys, *options):
    capsys.readouterr()
    code = main(["--raw", str(raw), "--out", str(out), "--size", "16", "--workers", "1", "--quiet", *options])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize(("damage", "named"), [case[1:] for case in FATAL], ids=[case[0] for case in FATAL])
def test_fatal(whole, tmp_path, capsys, damage, named):
    raw = shutil.copytree(whole, tmp_path / "raw")
    damage(raw)
    code, _, error = run(raw, tmp_path / "out", capsys)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in named:
        assert part in error
    assert not (tmp_path / "out/card.json").exists()


@pytest.mark.parametrize(("damage", "reason", "line"), [case[1:] for case in DROPS], ids=[case[0] for case in DROPS])
def test_drop(whole, tmp_path, capsys, damage, reason, line):
    raw = shutil.copytree(whole, tmp_path / "raw")
    damage(raw)
    code, printed, error = run(raw, tmp_path / "out", capsys)
    assert (code, error) == (0, "")
    assert f"- {reason} " in printed
    dropped = pd.read_csv(tmp_path / "out/dropped.csv", keep_default_na=False)
    faults = dropped[dropped["faulty"].astype(str) == "True"]
    assert faults[["file", "row", "reason"]].values.tolist() == [[TABLE, line, reason]]
    options = load_studies(tmp_path / "out").card.options
    assert options["rows_in"] == options["rows_out"] + len(dropped)
    code, _, error = run(raw, tmp_path / "strict", capsys, "--strict")
    assert code == 1
    assert error.count("\n") == 1
    for part in (TABLE, f"row {line}:", reason):
        assert part in error
    assert not (tmp_path / "strict/card.json").exists()


def test_a_malformed_box_names_its_own_row(whole, tmp_path, capsys):
    raw = shutil.copytree(whole, tmp_path / "raw")
    append(raw / BOXES, f"{index(5)},Mass,1,1,9999,1,,,")
    assert f"{BOXES}, row 4" in run(raw, tmp_path / "out", capsys, "--strict")[2]


def test_undamaged_data_pass_strictly(whole, tmp_path, capsys):
    assert run(whole, tmp_path / "out", capsys, "--strict")[0] == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--seed", "-1"], "--seed -1"),
        (["--valid-fraction", "1"], "--valid-fraction"),
        (["--test-fraction", "half"], "--test-fraction"),
        (["--size", "8"], "--size 8"),
        (["--limit", "0"], "--limit 0"),
    ],
)
def test_bad_arguments(whole, tmp_path, capsys, options, named):
    code, _, error = run(whole, tmp_path / "out", capsys, *options)
    assert code == 2
    assert named in error
    assert not (tmp_path / "out").exists()
