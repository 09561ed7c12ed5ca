"""SIIM preparation: DICOM tree, run-length masks in the stored geometry, patients, restart, malformed input."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_trees import append, replace, write_csv, write_dicom
from sklearn.model_selection import train_test_split

from data_scripts.prepare_siim import main, prepare
from mgca_lib.data.studies import load_studies

TABLE, TREE = "train-rle.csv", "dicom-images-train"
OPTIONS = {"size": 20, "quiet": True, "workers": 2}
# Rows 8 to 19 of columns 4 to 19 of an image of 40 rows: 4 columns and 8 pixels come first, 28 lie between two runs.
RUNS = "168 12" + 15 * " 28 12"


def image_path(root, number):
    return root / TREE / f"study{number}" / f"series{number}" / f"1.2.{number:03d}.dcm"


def make_siim(root, *, images=20, column=" EncodedPixels", blank=" "):
    """Write SIIM stage 1: image ``number`` is line ``number + 2``; odd images have the lesion ``RUNS``."""
    rows = []
    for number in range(images):
        path = image_path(root, number)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 32)).astype(np.uint8)
        write_dicom(path, pixels, view=("PA", "AP")[number % 2], PatientID=f"p{number}")
        rows.append((path.stem, blank + (RUNS if number % 2 else "-1")))
    write_csv(root / TABLE, ("ImageId", column), rows)
    return root


def read_mask(out, name):
    return np.asarray(Image.open(out / name))


def contents(folder):
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("blank", ["", " "])
@pytest.mark.parametrize("column", ["EncodedPixels", " EncodedPixels"])
def test_a_release_becomes_a_prepared_dataset(tmp_path, column, blank):
    summary = prepare(make_siim(tmp_path / "raw", column=column, blank=blank), tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    table = studies.table.set_index("image_id")
    assert (summary.rows_in, summary.rows_out, summary.dropped, summary.notes) == (20, 20, {}, ())
    assert studies.card.counts == {"train": 14, "valid": 3, "test": 3}
    assert studies.card.restricted
    row = table.loc["1.2.003"]
    assert (row["view"], row["width"], row["height"]) == ("AP", 16, 20)
    assert (row["patient_id"], row["study_id"]) == ("p3", "study3")
    assert row["source"] == f"{TREE}/study3/series3/1.2.003.dcm"
    expected = np.zeros((20, 16), np.uint8)
    expected[4:10, 2:10] = 255  # half of rows 8 to 20 and of columns 4 to 20
    np.testing.assert_array_equal(read_mask(tmp_path / "out", row["mask"]), expected)
    assert (table.loc["1.2.002"]["mask"], len(row["boxes"])) == ("", 0)
    np.testing.assert_array_equal(studies.labels(["Pneumothorax"])[:, 0], np.arange(20) % 2)


@pytest.mark.parametrize("size", [16, 17, 19, 33, 40, 100])
def test_mask_and_image_have_the_same_shape_at_any_size(tmp_path, size):
    prepare(make_siim(tmp_path / "raw", images=4), tmp_path / "out", **OPTIONS | {"size": size})
    for row in load_studies(tmp_path / "out").table.itertuples():
        image = Image.open(tmp_path / "out" / row.image)
        assert image.size == (row.width, row.height)
        if row.mask:
            mask = read_mask(tmp_path / "out", row.mask)
            assert mask.shape == (row.height, row.width)
            assert set(np.unique(mask)) == {0, 255}
            # 12 of 40 rows, 16 of 32 columns; the border moves by half a pixel at most
            assert np.any(mask, axis=1).sum() == pytest.approx(0.3 * row.height, abs=1)
            assert np.any(mask, axis=0).sum() == pytest.approx(0.5 * row.width, abs=1)


def test_lesions_of_an_image_are_joined(tmp_path):
    raw = make_siim(tmp_path / "raw")
    # Rows 0 and 1 of the first two columns; and a part of the first lesion again.
    append(raw / TABLE, "1.2.003, 0 2 38 2", "1.2.003, 168 12 28 12")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    expected = np.zeros((20, 16), np.uint8)
    expected[4:10, 2:10] = expected[0, 0] = 255
    np.testing.assert_array_equal(read_mask(tmp_path / "out", table.loc["1.2.003"]["mask"]), expected)
    assert (summary.rows_in, summary.rows_out, len(table)) == (22, 22, 20)


def test_a_stored_pixel_is_set_from_half_of_it_on(tmp_path):
    raw = make_siim(tmp_path / "raw")
    replace(raw / TABLE, f"1.2.003, {RUNS}", "1.2.003, 0 2")  # 2 of the 4 pixels of the first stored pixel
    replace(raw / TABLE, f"1.2.005, {RUNS}", "1.2.005, 0 1")  # 1 of 4
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    half, quarter = (read_mask(tmp_path / "out", table.loc[name]["mask"]) for name in ("1.2.003", "1.2.005"))
    assert half[0, 0] == half.sum() == 255
    assert not quarter.any()
    assert table.loc["1.2.005"]["labels"]["Pneumothorax"] == 1.0
    assert len(summary.notes) == 1
    assert summary.notes[0].startswith("1 mask")


def test_the_split_is_by_patient(tmp_path):
    raw = make_siim(tmp_path / "raw", images=30)
    for number in range(0, 30, 3):  # ten patients with two films, ten with one
        pixels = np.zeros((40, 32), np.uint8)
        write_dicom(image_path(raw, number), pixels, PatientID=f"p{number + 1}")
    prepare(raw, tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table
    assert table.groupby("patient_id").size().value_counts().to_dict() == {2: 10, 1: 10}
    patients = list(dict.fromkeys(f"p{number + 1 if number % 3 == 0 else number}" for number in range(30)))
    train, rest = train_test_split(patients, test_size=0.3, random_state=0)
    valid, test = train_test_split(rest, test_size=0.5, random_state=0)
    for name, expected in (("train", train), ("valid", valid), ("test", test)):
        assert set(table["patient_id"][table["split"] == name]) == set(expected)


def test_several_lesions_do_not_move_the_split(tmp_path):
    raw = make_siim(tmp_path / "raw")
    prepare(raw, tmp_path / "one", **OPTIONS)
    append(raw / TABLE, "1.2.003, 0 2", "1.2.003, 5 2", "1.2.007, 0 1")
    prepare(raw, tmp_path / "more", **OPTIONS)
    one, more = (dict(load_studies(tmp_path / name).table[["image_id", "split"]].values) for name in ("one", "more"))
    assert one == more


@pytest.mark.parametrize("patient", ["", "ANONYMOUS"])
def test_without_patients_each_image_is_one(tmp_path, patient):
    raw = make_siim(tmp_path / "raw")
    for number in range(20):
        write_dicom(image_path(raw, number), np.zeros((40, 32), np.uint8), PatientID=patient)
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    assert (studies.table["patient_id"] == studies.table["image_id"]).all()
    assert studies.card.counts == {"train": 14, "valid": 3, "test": 3}
    assert len(summary.notes) == bool(patient)
    assert all("PatientID 'ANONYMOUS'" in note for note in summary.notes)


def test_images_without_a_row_are_counted_but_no_fault(tmp_path):
    raw = make_siim(tmp_path / "raw")
    write_dicom(raw / TREE / "a/b/9.9.dcm", np.zeros((8, 8), np.uint8))
    summary = prepare(raw, tmp_path / "out", **OPTIONS, strict=True)
    reason = "image without a row in train-rle.csv"
    assert (summary.rows_in, summary.rows_out, summary.dropped) == (21, 20, {reason: 1})
    assert summary.by_design == {reason}
    dropped = pd.read_csv(tmp_path / "out/dropped.csv")
    assert dropped[["file", "row", "source"]].values.tolist() == [[TREE, 0, f"{TREE}/a/b/9.9.dcm"]]


def test_a_file_name_in_another_encoding_is_listed(tmp_path):
    raw = make_siim(tmp_path / "raw")
    (image_path(raw, 0).parent / os.fsdecode(b"k\xf6pie.dcm")).write_bytes(b"")  # Latin-1
    assert prepare(raw, tmp_path / "out", **OPTIONS).rows_out == 20
    assert "k\\udcf6pie.dcm" in (tmp_path / "out/dropped.csv").read_text(encoding="utf-8")


def test_a_lateral_view_and_its_mask_are_left_out(tmp_path):
    raw = make_siim(tmp_path / "raw")
    write_dicom(image_path(raw, 3), np.ones((40, 32), np.uint8), view="LATERAL", PatientID="p3")
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.dropped == {"view LATERAL": 1}
    assert len(list((tmp_path / "out/masks").iterdir())) == 9
    assert not (tmp_path / "out/masks/1.2.003.png").exists()


def test_a_second_run_reuses_and_repairs(tmp_path):
    raw, out = make_siim(tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out, **OPTIONS)
    before = contents(out)
    assert (again := prepare(raw, out, **OPTIONS)).reused == 20
    assert (again.converted, contents(out)) == (0, before)
    (out / "masks/1.2.003.png").unlink()
    (out / "masks/1.2.005.png").write_bytes(b"half a mask")
    (out / "masks/stray.png").write_bytes(b"of another release")
    repaired = prepare(raw, out, **OPTIONS)
    assert (repaired.converted, repaired.reused, contents(out)) == (2, 18, before)


def test_a_changed_table_changes_the_masks(tmp_path):
    raw, out = make_siim(tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out, **OPTIONS)
    replace(raw / TABLE, f"1.2.003, {RUNS}", "1.2.003, 0 80")
    replace(raw / TABLE, f"1.2.005, {RUNS}", "1.2.005, -1")
    summary = prepare(raw, out, **OPTIONS)
    prepare(raw, tmp_path / "afresh", **OPTIONS)
    assert (summary.converted, summary.reused) == (2, 18)
    assert contents(out) == contents(tmp_path / "afresh")
    table = load_studies(out).table.set_index("image_id")
    expected = np.zeros((20, 16), np.uint8)
    expected[:, 0] = 255  # 80 pixels are two columns of 40
    np.testing.assert_array_equal(read_mask(out, table.loc["1.2.003"]["mask"]), expected)
    assert table.loc["1.2.005"]["mask"] == ""


def test_found_below_the_named_folder(tmp_path, capsys):
    make_siim(tmp_path / "raw/siim")
    assert main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--size", "20"]) == 0
    assert "siim: 20 images" in capsys.readouterr().out


def write(path, content):
    path.write_bytes(content)


def set_runs(raw, line, runs):
    lines = (raw / TABLE).read_text().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].split(",")[0] + f", {runs}\n"
    (raw / TABLE).write_text("".join(lines))


def cut(path, part):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])


def flatten(raw):
    for path in list((raw / TREE).glob("*/*/*.dcm")):
        path.rename(raw / TREE / path.name)


# what is wrong, damage(raw folder), what the message names
FATAL = [
    ("no such folder", shutil.rmtree, ["no such folder"]),
    ("another dataset", lambda r: (r / TABLE).rename(r / "stage_2_train_labels.csv"), [f"holds no {TABLE}"]),
    ("table empty", lambda r: write(r / TABLE, b""), [TABLE, "is empty"]),
    ("table without rows", lambda r: write(r / TABLE, b"ImageId, EncodedPixels\n"), [TABLE, "no rows"]),
    ("no ImageId column", lambda r: replace(r / TABLE, "ImageId", "Image"), [TABLE, "'ImageId'"]),
    ("no EncodedPixels column", lambda r: replace(r / TABLE, " EncodedPixels", "rle"), [TABLE, "'EncodedPixels'"]),
    ("table in UTF-16", lambda r: write(r / TABLE, "ImageId,a\n1,2".encode("utf-16")), [TABLE, "UTF-8"]),
    ("table is a folder", lambda r: ((r / TABLE).unlink(), (r / TABLE).mkdir()), [TABLE]),
    ("runs apart by commas", lambda r: append(r / TABLE, "1.2.001,1,2,3,4"), [TABLE, "line 22"]),
    ("no image folder", lambda r: shutil.rmtree(r / TREE), [TREE, "no such folder"]),
    (
        "image folder empty",
        lambda r: (shutil.rmtree(r / TREE), (r / TREE).mkdir()),
        [TREE, "<study>/<series>/<image>.dcm"],
    ),
    ("images without their folders", flatten, [TREE, "<study>/<series>/<image>.dcm"]),
    (
        "images of another release",
        lambda r: [path.rename(path.with_name("x" + path.name)) for path in (r / TREE).glob("*/*/*.dcm")],
        ["all 40 rows were dropped", "image file missing", "row 2"],
    ),
]

# what is wrong, damage(raw folder), reason, lines that are named
DROPS = [
    ("a number without its pair", lambda r: set_runs(r, 5, "1 2 3"), "mask malformed", [5]),
    ("a single number", lambda r: set_runs(r, 5, "7"), "mask malformed", [5]),
    ("first offset negative", lambda r: set_runs(r, 5, "-5 2"), "mask malformed", [5]),
    ("runs overlap", lambda r: set_runs(r, 5, "10 5 -2 5"), "mask malformed", [5]),
    ("length negative", lambda r: set_runs(r, 5, "10 -5"), "mask malformed", [5]),
    ("length zero", lambda r: set_runs(r, 5, "10 0"), "mask malformed", [5]),
    ("run past the end", lambda r: set_runs(r, 5, "1279 2"), "mask malformed", [5]),
    ("starts that are absolute", lambda r: set_runs(r, 5, "600 9 640 9 680 9"), "mask malformed", [5]),
    ("a mask of a larger image", lambda r: set_runs(r, 5, "387620 23 996 33"), "mask malformed", [5]),
    ("an endless number", lambda r: set_runs(r, 5, "9" * 400 + " 1"), "mask malformed", [5]),
    ("decimals", lambda r: set_runs(r, 5, "10.0 5.0"), "mask malformed", [5]),
    ("a word", lambda r: set_runs(r, 5, "none"), "mask malformed", [5]),
    ("NaN", lambda r: set_runs(r, 5, "nan"), "mask malformed", [5]),
    ("blank", lambda r: set_runs(r, 5, ""), "mask malformed", [5]),
    ("-1 twice in a row", lambda r: set_runs(r, 5, "-1 -1"), "mask malformed", [5]),
    ("-1.0", lambda r: set_runs(r, 5, "-1.0"), "mask malformed", [5]),
    ("one of two lesions", lambda r: append(r / TABLE, "1.2.003, 1 2 3"), "mask malformed", [5, 22]),
    ("-1 and a lesion", lambda r: append(r / TABLE, "1.2.003, -1"), "mask both -1 and run lengths", [5, 22]),
    ("a lesion and -1", lambda r: append(r / TABLE, "1.2.002, 1 2"), "mask both -1 and run lengths", [4, 22]),
    ("a lesion twice", lambda r: append(r / TABLE, f"1.2.003, {RUNS}"), "duplicate row", [22]),
    ("-1 in two rows", lambda r: append(r / TABLE, "1.2.002,-1"), "duplicate row", [22]),
    ("no id", lambda r: append(r / TABLE, ", 1 2"), "id missing or malformed", [22]),
    ("id with a path", lambda r: append(r / TABLE, "../1.2.003, 1 2"), "id missing or malformed", [22]),
    ("image missing", lambda r: image_path(r, 3).unlink(), "image file missing", [5]),
    ("image empty", lambda r: write(image_path(r, 3), b""), "image unreadable", [5]),
    ("image is no DICOM", lambda r: write(image_path(r, 3), b"no dicom" * 99), "image unreadable", [5]),
    ("image cut in its header", lambda r: cut(image_path(r, 3), 0.2), "image unreadable", [5]),
    ("image cut in its pixels", lambda r: cut(image_path(r, 3), 0.9), "image unreadable", [5]),
    (
        "image of two frames",
        lambda r: write_dicom(image_path(r, 3), np.zeros((4, 4), np.uint8), NumberOfFrames=2),
        "image unreadable",
        [5],
    ),
    (
        "image twice in the tree",
        lambda r: shutil.copytree(r / TREE / "study3", r / TREE / "copy"),
        "image twice in the tree",
        [5],
    ),
    (
        "image transposed",
        lambda r: write_dicom(image_path(r, 3), np.zeros((8, 8), np.uint8), PatientID="p3"),
        "mask malformed",
        [5],
    ),
]


def run(raw, out, capsys, *options):
    capsys.readouterr()
    code = main(["--raw", str(raw), "--out", str(out), "--size", "16", "--workers", "1", *options])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_siim(tmp_path_factory.mktemp("whole") / "raw")


def test_undamaged_data_pass_strictly(whole, tmp_path, capsys):
    assert run(whole, tmp_path / "out", capsys, "--strict")[0] == 0


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


@pytest.mark.parametrize(("damage", "reason", "lines"), [case[1:] for case in DROPS], ids=[case[0] for case in DROPS])
def test_drop(whole, tmp_path, capsys, damage, reason, lines):
    raw = shutil.copytree(whole, tmp_path / "raw")
    damage(raw)
    code, printed, error = run(raw, tmp_path / "out", capsys)
    assert (code, error) == (0, "")
    assert f"- {reason} " in printed
    dropped = pd.read_csv(tmp_path / "out/dropped.csv", keep_default_na=False)
    faults = dropped[dropped["faulty"].astype(str) == "True"]
    assert faults[["file", "row", "reason"]].values.tolist() == [[TABLE, line, reason] for line in lines]
    if reason == "mask malformed":
        assert all(f"row {lines[-1]}: " in detail for detail in faults["detail"])
    code, _, error = run(raw, tmp_path / "strict", capsys, "--strict")
    assert code == 1
    assert error.startswith("strict: ")
    assert error.count("\n") == 1
    for part in (TABLE, f"row {lines[0]}:", reason):
        assert part in error
    assert not (tmp_path / "strict/card.json").exists()


def test_a_dropped_image_does_not_move_the_others(whole, tmp_path):
    raw = shutil.copytree(whole, tmp_path / "raw")
    prepare(raw, tmp_path / "whole", **OPTIONS)
    image_path(raw, 3).unlink()
    set_runs(raw, 9, "1 2 3")
    prepare(raw, tmp_path / "part", **OPTIONS)
    whole_split, part = (
        load_studies(tmp_path / name).table.set_index("image_id")["split"] for name in ("whole", "part")
    )
    assert dict(part) == dict(whole_split.drop(["1.2.003", "1.2.007"]))
