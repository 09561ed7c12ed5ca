"""Malformed raw data: one clear line that names file and row, the right exit code, never a traceback.

Each case damages a small raw dataset in one way. "fatal" ends with exit code 2. "drop" is counted under the given
reason with exit code 0, and with ``--strict`` the same data end with exit code 1 and name the offender.
"""

import gzip
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_trees import (
    append,
    chexpert_path,
    make_chexpert,
    make_covidx,
    make_mimic,
    make_rsna,
    mimic_image,
    mimic_report,
    replace,
    write_dicom,
    write_picture,
)

from data_scripts import prepare_chexpert, prepare_covidx, prepare_mimic_cxr, prepare_rsna

SCRIPTS = {
    "mimic_cxr": (prepare_mimic_cxr, make_mimic),
    "chexpert": (prepare_chexpert, make_chexpert),
    "rsna": (prepare_rsna, make_rsna),
    "covidx": (prepare_covidx, make_covidx),
}
METADATA, SPLIT, LABELS = (f"mimic-cxr-2.0.0-{name}.csv" for name in ("metadata", "split", "chexpert"))
RSNA_LABELS, RSNA_CLASSES, RSNA_IMAGES = (
    "stage_2_train_labels.csv",
    "stage_2_detailed_class_info.csv",
    "stage_2_train_images",
)
TRAIN_LIST, TEST_LIST = "train_COVIDx9A.txt", "test_COVIDx9A.txt"


def write(path, content):
    path.write_bytes(content)


def cut(path, part=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def header_only(path):
    path.write_text(path.read_text().splitlines(keepends=True)[0])


def drop_column(path, name):
    pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=name).to_csv(path, index=False)


def keep_only(path, pattern):
    """Keep the header and the lines that hold ``pattern``."""
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *(line for line in lines[1:] if pattern in line)]))


def swap(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def set_cell(path, line, column, value):
    """Set a cell of a csv file; ``line`` as an editor counts."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[line - 2, column] = value
    table.to_csv(path, index=False)


def multi_frame(path):
    frames = [Image.fromarray(np.full((8, 8), value, dtype=np.uint8)) for value in (0, 9)]
    frames[0].save(path.with_suffix(".tif"), save_all=True, append_images=frames[1:])
    path.with_suffix(".tif").rename(path)


# dataset, what is wrong, damage(raw folder), what the message names
FATAL = [
    ("mimic_cxr", "no such folder", shutil.rmtree, ["no such folder"]),
    (
        "mimic_cxr",
        "another dataset",
        lambda r: (shutil.rmtree(r), make_covidx(r)),
        ["holds no mimic-cxr-*-metadata.csv"],
    ),
    ("mimic_cxr", "metadata empty", lambda r: write(r / METADATA, b""), [METADATA, "is empty"]),
    ("mimic_cxr", "metadata without rows", lambda r: header_only(r / METADATA), [METADATA, "no rows"]),
    (
        "mimic_cxr",
        "metadata column missing",
        lambda r: drop_column(r / METADATA, "ViewPosition"),
        [METADATA, "'ViewPosition'"],
    ),
    (
        "mimic_cxr",
        "metadata in UTF-16",
        lambda r: write(r / METADATA, "dicom_id,a\n1,2".encode("utf-16")),
        [METADATA, "UTF-8"],
    ),
    ("mimic_cxr", "metadata binary", lambda r: write(r / METADATA, bytes(range(256)) * 9), [METADATA]),
    ("mimic_cxr", "split table missing", lambda r: (r / SPLIT).unlink(), ["mimic-cxr-*-split.csv", "no such file"]),
    ("mimic_cxr", "split table empty", lambda r: write(r / SPLIT, b""), [SPLIT, "is empty"]),
    ("mimic_cxr", "split column missing", lambda r: drop_column(r / SPLIT, "split"), [SPLIT, "'split'"]),
    (
        "mimic_cxr",
        "image in two splits",
        lambda r: append(r / SPLIT, "d0001,50000001,11000003,test"),
        [SPLIT, "row 10", "d0001"],
    ),
    ("mimic_cxr", "labels missing", lambda r: (r / LABELS).unlink(), ["mimic-cxr-*-chexpert.csv"]),
    ("mimic_cxr", "label column missing", lambda r: drop_column(r / LABELS, "Edema"), [LABELS, "'Edema'"]),
    (
        "mimic_cxr",
        "study labelled twice",
        lambda r: append(r / LABELS, "11000003,50000001" + "," * 14),
        [LABELS, "row 10", "50000001"],
    ),
    ("mimic_cxr", "no files folder", lambda r: shutil.rmtree(r / "files"), ["files", "no such folder"]),
    (
        "mimic_cxr",
        "compressed table cut off",
        lambda r: (
            write(r / (METADATA + ".gz"), gzip.compress((r / METADATA).read_bytes())),
            (r / METADATA).unlink(),
            cut(r / (METADATA + ".gz")),
        ),
        [METADATA + ".gz"],
    ),
    (
        "mimic_cxr",
        "zip of reports cut off",
        lambda r: (shutil.rmtree(r / "mimic-cxr-reports"), write(r / "mimic-cxr-reports.zip", b"PK\3\4half")),
        ["mimic-cxr-reports.zip", "zip"],
    ),
    (
        "mimic_cxr",
        "two metadata tables",
        lambda r: shutil.copy(r / METADATA, r / "mimic-cxr-2.1.0-metadata.csv"),
        [METADATA, "keep one"],
    ),
    (
        "mimic_cxr",
        "no report at all",
        lambda r: shutil.rmtree(r / "mimic-cxr-reports"),
        ["all 8 rows were dropped", "report missing", METADATA, "row 2"],
    ),
    (
        "mimic_cxr",
        "only lateral views",
        lambda r: keep_only(r / METADATA, "LATERAL"),
        ["all 1 rows were dropped", METADATA, "row 2"],
    ),
    ("chexpert", "no such folder", shutil.rmtree, ["no such folder"]),
    ("chexpert", "no train.csv", lambda r: (r / "train.csv").unlink(), ["holds no train.csv"]),
    ("chexpert", "no valid.csv", lambda r: (r / "valid.csv").unlink(), ["valid.csv", "no such file"]),
    ("chexpert", "train.csv empty", lambda r: write(r / "train.csv", b""), ["train.csv", "is empty"]),
    ("chexpert", "valid.csv without rows", lambda r: header_only(r / "valid.csv"), ["valid.csv", "no rows"]),
    ("chexpert", "no Path column", lambda r: drop_column(r / "train.csv", "Path"), ["train.csv", "'Path'"]),
    (
        "chexpert",
        "no label column",
        lambda r: drop_column(r / "valid.csv", "Support Devices"),
        ["valid.csv", "'Support Devices'"],
    ),
    (
        "chexpert",
        "train.csv in Latin-1",
        lambda r: write(r / "train.csv", (r / "train.csv").read_bytes().replace(b"Female", b"\xe9", 1)),
        ["train.csv", "UTF-8"],
    ),
    (
        "chexpert",
        "train.csv is a folder",
        lambda r: ((r / "train.csv").unlink(), (r / "train.csv").mkdir()),
        ["train.csv"],
    ),
    ("chexpert", "too many cells", lambda r: append(r / "train.csv", "a,b" + "," * 40), ["train.csv", "line 18"]),
    (
        "chexpert",
        "no images at all",
        lambda r: (shutil.rmtree(r / "train"), shutil.rmtree(r / "valid")),
        ["all 20 rows were dropped", "image file missing", "row 2"],
    ),
    ("rsna", "no such folder", shutil.rmtree, ["no such folder"]),
    ("rsna", "no label table", lambda r: (r / RSNA_LABELS).unlink(), ["holds no " + RSNA_LABELS]),
    ("rsna", "label table empty", lambda r: write(r / RSNA_LABELS, b""), [RSNA_LABELS, "is empty"]),
    ("rsna", "no Target column", lambda r: drop_column(r / RSNA_LABELS, "Target"), [RSNA_LABELS, "'Target'"]),
    ("rsna", "no class column", lambda r: drop_column(r / RSNA_CLASSES, "class"), [RSNA_CLASSES, "'class'"]),
    ("rsna", "no image folder", lambda r: shutil.rmtree(r / RSNA_IMAGES), [RSNA_IMAGES, "no such folder"]),
    (
        "rsna",
        "image folder empty",
        lambda r: (shutil.rmtree(r / RSNA_IMAGES), (r / RSNA_IMAGES).mkdir()),
        ["all 12 rows", "image file missing"],
    ),
    ("covidx", "no such folder", shutil.rmtree, ["no such folder"]),
    ("covidx", "no training list", lambda r: (r / TRAIN_LIST).unlink(), ["holds no train*.txt"]),
    ("covidx", "no test list", lambda r: (r / TEST_LIST).unlink(), [TEST_LIST, "no such file"]),
    ("covidx", "training list empty", lambda r: write(r / TRAIN_LIST, b"\n\n"), [TRAIN_LIST, "is empty"]),
    (
        "covidx",
        "list in UTF-16",
        lambda r: write(r / TRAIN_LIST, "a b.png normal".encode("utf-16")),
        [TRAIN_LIST, "UTF-8"],
    ),
    ("covidx", "no image folder", lambda r: shutil.rmtree(r / "train"), ["train", "no such folder"]),
    (
        "covidx",
        "two-class lists",
        lambda r: [
            swap(r / f, f" {c} ", " negative ")
            for f in (TRAIN_LIST, TEST_LIST)
            for c in ("normal", "pneumonia", "COVID-19")
        ],
        ["all 26 rows were dropped", "unknown class", "row 1"],
    ),
]

# dataset, what is wrong, damage(raw folder), reason, file and line that are named
DROPS = [
    ("mimic_cxr", "image missing", lambda r: mimic_image(r, 1).unlink(), "image file missing", METADATA, 3),
    ("mimic_cxr", "image empty", lambda r: write(mimic_image(r, 1), b""), "image unreadable", METADATA, 3),
    ("mimic_cxr", "image cut off", lambda r: cut(mimic_image(r, 2)), "image unreadable", METADATA, 4),
    ("mimic_cxr", "image is text", lambda r: write(mimic_image(r, 2), b"<html>"), "image unreadable", METADATA, 4),
    ("mimic_cxr", "image of two frames", lambda r: multi_frame(mimic_image(r, 2)), "image unreadable", METADATA, 4),
    (
        "mimic_cxr",
        "image is a folder",
        lambda r: (mimic_image(r, 2).unlink(), mimic_image(r, 2).mkdir()),
        "image unreadable",
        METADATA,
        4,
    ),
    ("mimic_cxr", "report missing", lambda r: mimic_report(r, 3).unlink(), "report missing", METADATA, 5),
    ("mimic_cxr", "report empty", lambda r: write(mimic_report(r, 3), b""), "report empty", METADATA, 5),
    ("mimic_cxr", "report blank", lambda r: write(mimic_report(r, 3), b" \n\t\n"), "report empty", METADATA, 5),
    ("mimic_cxr", "report is NaN", lambda r: write(mimic_report(r, 3), b"nan\n"), "report empty", METADATA, 5),
    (
        "mimic_cxr",
        "report is binary",
        lambda r: write(mimic_report(r, 3), b"\0\1\2" * 30),
        "report unreadable",
        METADATA,
        5,
    ),
    (
        "mimic_cxr",
        "report without sections",
        lambda r: write(mimic_report(r, 3), b" Lungs are clear.\n"),
        "report has neither findings nor impression",
        METADATA,
        5,
    ),
    (
        "mimic_cxr",
        "report of two words",
        lambda r: write(mimic_report(r, 3), b" IMPRESSION: Clear lungs.\n"),
        "report has fewer than 3 words",
        METADATA,
        5,
    ),
    (
        "mimic_cxr",
        "sections empty",
        lambda r: write(mimic_report(r, 3), b" FINDINGS:\n\n IMPRESSION:\n"),
        "report has neither findings nor impression",
        METADATA,
        5,
    ),
    (
        "mimic_cxr",
        "image listed twice",
        lambda r: append(r / METADATA, "d0001,11000003,50000001,CHEST,PA,40,48"),
        "duplicate id",
        METADATA,
        10,
    ),
    (
        "mimic_cxr",
        "image in no split",
        lambda r: swap(r / SPLIT, "d0001", "d9999"),
        "not in the split table",
        METADATA,
        3,
    ),
    ("mimic_cxr", "unknown split", lambda r: replace(r / SPLIT, "validate", "holdout"), "unknown split", METADATA, 7),
    (
        "mimic_cxr",
        "label out of range",
        lambda r: set_cell(r / LABELS, 3, "Edema", "2.0"),
        "label out of range",
        METADATA,
        3,
    ),
    (
        "mimic_cxr",
        "label is a word",
        lambda r: set_cell(r / LABELS, 3, "Edema", "yes"),
        "label out of range",
        METADATA,
        3,
    ),
    (
        "mimic_cxr",
        "no image id",
        lambda r: set_cell(r / METADATA, 3, "dicom_id", ""),
        "id missing or malformed",
        METADATA,
        3,
    ),
    (
        "mimic_cxr",
        "patient id with a path",
        lambda r: set_cell(r / METADATA, 3, "subject_id", "../../etc"),
        "id missing or malformed",
        METADATA,
        3,
    ),
    ("mimic_cxr", "short row", lambda r: append(r / METADATA, "d0099"), "id missing or malformed", METADATA, 10),
    (
        "mimic_cxr",
        "patient in two splits",
        lambda r: (
            append(r / METADATA, f"d0100,{mimic_image('', 6).parts[2][1:]},50000100,CHEST,PA,40,48"),
            append(r / SPLIT, "d0100,50000100,1,train"),
            shutil.copy(mimic_report(r, 0), mimic_report(r, 6).with_name("s50000100.txt")),
        ),
        "patient is also in a held-out split",
        METADATA,
        10,
    ),
    ("chexpert", "image missing", lambda r: (r / chexpert_path(4)).unlink(), "image file missing", "train.csv", 6),
    ("chexpert", "image cut off", lambda r: cut(r / chexpert_path(4)), "image unreadable", "train.csv", 6),
    (
        "chexpert",
        "test image missing",
        lambda r: (r / chexpert_path(10_001, "valid")).unlink(),
        "image file missing",
        "valid.csv",
        3,
    ),
    (
        "chexpert",
        "label out of range",
        lambda r: set_cell(r / "train.csv", 6, "Fracture", "3"),
        "label out of range",
        "train.csv",
        6,
    ),
    (
        "chexpert",
        "label is NaN in words",
        lambda r: set_cell(r / "train.csv", 6, "Fracture", "unknown"),
        "label out of range",
        "train.csv",
        6,
    ),
    ("chexpert", "path empty", lambda r: set_cell(r / "train.csv", 6, "Path", ""), "path malformed", "train.csv", 6),
    (
        "chexpert",
        "path of another form",
        lambda r: set_cell(r / "train.csv", 6, "Path", "images/1.jpg"),
        "path malformed",
        "train.csv",
        6,
    ),
    (
        "chexpert",
        "path leads out",
        lambda r: set_cell(r / "train.csv", 6, "Path", "../x/train/patient00001/study1/a.jpg"),
        "path malformed",
        "train.csv",
        6,
    ),
    (
        "chexpert",
        "neither frontal nor lateral",
        lambda r: set_cell(r / "train.csv", 6, "Frontal/Lateral", "Oblique"),
        "view neither Frontal nor Lateral",
        "train.csv",
        6,
    ),
    (
        "chexpert",
        "image listed twice",
        lambda r: append(r / "train.csv", f"x/{chexpert_path(0)},F,1,Frontal,AP" + "," * 14),
        "duplicate id",
        "train.csv",
        18,
    ),
    (
        "chexpert",
        "patient in two splits",
        lambda r: (
            set_cell(r / "train.csv", 6, "Path", "train/patient05001/study1/view3_frontal.jpg"),
            write_picture(r / "train/patient05001/study1/view3_frontal.jpg"),
        ),
        "patient is also in a held-out split",
        "train.csv",
        6,
    ),
    ("rsna", "image missing", lambda r: (r / RSNA_IMAGES / "p003.dcm").unlink(), "image file missing", RSNA_LABELS, 5),
    ("rsna", "image cut off", lambda r: cut(r / RSNA_IMAGES / "p003.dcm", 0.8), "image unreadable", RSNA_LABELS, 5),
    (
        "rsna",
        "image is no DICOM",
        lambda r: write(r / RSNA_IMAGES / "p003.dcm", b"no dicom" * 99),
        "image unreadable",
        RSNA_LABELS,
        5,
    ),
    ("rsna", "image empty", lambda r: write(r / RSNA_IMAGES / "p003.dcm", b""), "image unreadable", RSNA_LABELS, 5),
    (
        "rsna",
        "image of two frames",
        lambda r: write_dicom(r / RSNA_IMAGES / "p003.dcm", np.zeros((4, 4), dtype=np.uint8), NumberOfFrames=2),
        "image unreadable",
        RSNA_LABELS,
        5,
    ),
    ("rsna", "box outside", lambda r: set_cell(r / RSNA_LABELS, 5, "x", "30"), "box outside the image", RSNA_LABELS, 5),
    (
        "rsna",
        "box left of the image",
        lambda r: set_cell(r / RSNA_LABELS, 5, "x", "-1"),
        "box outside the image",
        RSNA_LABELS,
        5,
    ),
    ("rsna", "box NaN", lambda r: set_cell(r / RSNA_LABELS, 5, "width", "NaN"), "box missing", RSNA_LABELS, 5),
    ("rsna", "box blank", lambda r: set_cell(r / RSNA_LABELS, 5, "height", ""), "box missing", RSNA_LABELS, 5),
    (
        "rsna",
        "box infinite",
        lambda r: set_cell(r / RSNA_LABELS, 5, "width", "inf"),
        "box not a number",
        RSNA_LABELS,
        5,
    ),
    ("rsna", "box is a word", lambda r: set_cell(r / RSNA_LABELS, 5, "x", "left"), "box not a number", RSNA_LABELS, 5),
    (
        "rsna",
        "box without area",
        lambda r: set_cell(r / RSNA_LABELS, 5, "width", "0"),
        "box without area",
        RSNA_LABELS,
        5,
    ),
    (
        "rsna",
        "box without pneumonia",
        lambda r: set_cell(r / RSNA_LABELS, 5, "Target", "0"),
        "box without pneumonia",
        RSNA_LABELS,
        5,
    ),
    (
        "rsna",
        "target out of range",
        lambda r: set_cell(r / RSNA_LABELS, 5, "Target", "2"),
        "label out of range",
        RSNA_LABELS,
        5,
    ),
    (
        "rsna",
        "target blank",
        lambda r: set_cell(r / RSNA_LABELS, 5, "Target", ""),
        "label out of range",
        RSNA_LABELS,
        5,
    ),
    ("rsna", "row twice", lambda r: append(r / RSNA_LABELS, "p000,,,,,0"), "duplicate row", RSNA_LABELS, 14),
    (
        "rsna",
        "no patient id",
        lambda r: set_cell(r / RSNA_LABELS, 5, "patientId", ""),
        "id missing or malformed",
        RSNA_LABELS,
        5,
    ),
    (
        "rsna",
        "patient id with a path",
        lambda r: set_cell(r / RSNA_LABELS, 5, "patientId", "../p003"),
        "id missing or malformed",
        RSNA_LABELS,
        5,
    ),
    (
        "rsna",
        "unknown class",
        lambda r: set_cell(r / RSNA_CLASSES, 5, "class", "Opacity?"),
        "unknown class",
        RSNA_LABELS,
        5,
    ),
    (
        "rsna",
        "no class",
        lambda r: set_cell(r / RSNA_CLASSES, 5, "patientId", "p999"),
        "no detailed class",
        RSNA_LABELS,
        5,
    ),
    (
        "rsna",
        "two classes",
        lambda r: append(r / RSNA_CLASSES, "p003,Normal"),
        "several detailed classes",
        RSNA_LABELS,
        5,
    ),
    ("covidx", "image missing", lambda r: (r / "train/train3.jpg").unlink(), "image file missing", TRAIN_LIST, 4),
    ("covidx", "image cut off", lambda r: cut(r / "train/train2.png"), "image unreadable", TRAIN_LIST, 3),
    ("covidx", "test image missing", lambda r: (r / "test/test1.jpg").unlink(), "image file missing", TEST_LIST, 2),
    (
        "covidx",
        "unknown class",
        lambda r: replace(r / TRAIN_LIST, "train3.jpg normal", "train3.jpg bronchitis"),
        "unknown class",
        TRAIN_LIST,
        4,
    ),
    ("covidx", "class missing", lambda r: append(r / TRAIN_LIST, "p99 file.png"), "line malformed", TRAIN_LIST, 21),
    ("covidx", "one word", lambda r: append(r / TRAIN_LIST, "p99"), "line malformed", TRAIN_LIST, 21),
    (
        "covidx",
        "file name with a path",
        lambda r: append(r / TRAIN_LIST, "p99 ../../etc/passwd normal rsna"),
        "id missing or malformed",
        TRAIN_LIST,
        21,
    ),
    (
        "covidx",
        "file listed twice",
        lambda r: append(r / TRAIN_LIST, "train-p0 train0.png normal rsna"),
        "duplicate id",
        TRAIN_LIST,
        21,
    ),
    (
        "covidx",
        "patient in both lists",
        lambda r: replace(r / TRAIN_LIST, "train-p3 ", "test-p0 "),
        "patient is also in a held-out split",
        TRAIN_LIST,
        4,
    ),
]

BAD_ARGUMENTS = [
    ["--size", "0"],
    ["--size", "large"],
    ["--workers", "0"],
    ["--limit", "-1"],
    ["--image-format", "gif"],
    ["--no-such-option"],
]


def run(name, raw, out, capsys, *options):
    capsys.readouterr()
    code = SCRIPTS[name][0].main(["--raw", str(raw), "--out", str(out), "--size", "16", "--workers", "1", *options])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name, (_, make) in SCRIPTS.items():
        make(folder / name)
    return folder


@pytest.mark.parametrize(
    ("name", "damage", "named"), [(c[0], *c[2:]) for c in FATAL], ids=[f"{c[0]}: {c[1]}" for c in FATAL]
)
def test_fatal(whole, tmp_path, capsys, name, damage, named):
    raw = shutil.copytree(whole / name, tmp_path / "raw")
    damage(raw)
    code, _, error = run(name, raw, tmp_path / "out", capsys)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in named:
        assert part in error
    assert not (tmp_path / "out/card.json").exists()


@pytest.mark.parametrize(
    ("name", "damage", "reason", "file", "row"), [(c[0], *c[2:]) for c in DROPS], ids=[f"{c[0]}: {c[1]}" for c in DROPS]
)
def test_drop(whole, tmp_path, capsys, name, damage, reason, file, row):
    raw = shutil.copytree(whole / name, tmp_path / "raw")
    damage(raw)
    code, printed, error = run(name, raw, tmp_path / "out", capsys)
    assert (code, error) == (0, "")
    assert f"- {reason} " in printed
    dropped = pd.read_csv(tmp_path / "out/dropped.csv", keep_default_na=False)
    faults = dropped[dropped["faulty"].astype(str) == "True"]
    assert faults[["file", "row", "reason"]].values.tolist() == [[file, row, reason]]
    code, _, error = run(name, raw, tmp_path / "strict", capsys, "--strict")
    assert code == 1
    assert error.startswith("strict: ")
    assert error.count("\n") == 1
    for part in (file, f"row {row}:", reason):
        assert part in error
    assert not (tmp_path / "strict/card.json").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_undamaged_data_pass_strictly(whole, tmp_path, capsys, name):
    assert run(name, whole / name, tmp_path / "out", capsys, "--strict")[0] == 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_bad_arguments(whole, tmp_path, capsys, name):
    for options in BAD_ARGUMENTS:
        code, _, error = run(name, whole / name, tmp_path / "out", capsys, *options)
        assert code == 2
        assert options[0] in error
    assert not (tmp_path / "out").exists()


def test_the_table_is_long_enough():
    assert len(FATAL) + len(DROPS) >= 100
    assert {case[0] for case in FATAL} == {case[0] for case in DROPS} == set(SCRIPTS)
