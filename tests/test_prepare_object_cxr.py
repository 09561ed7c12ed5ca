"""object-CXR preparation: three kinds of annotation, tight and upstream boxes, the published split, malformed input."""

import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_trees import append, replace, write_csv, write_dicom, write_picture
from scipy.spatial import KDTree
from sklearn.model_selection import train_test_split

from data_scripts.images import read_image
from data_scripts.prepare_object_cxr import main, prepare, split_train, upstream_box
from mgca_lib.data.studies import load_studies

OPTIONS = {"size": 24, "quiet": True, "workers": 2}
# Images are 40 wide and 48 high, stored at half of that; these are rectangle, ellipse, polygon, two objects, none.
ANNOTATIONS = (
    "0 4 8 24 20",
    "1 10 12 14 32",
    "2 6 10 26 6 18 30",
    "0 0 0 40 48;2 2 2 4 2 4 6 2 6",
    "",
)
HALVED = (
    [(2, 4, 10, 6)],
    [(5, 6, 2, 10)],
    [(3, 3, 10, 12)],
    [(0, 0, 20, 24), (1, 1, 1, 2)],
    [],
)


def make_object_cxr(root, *, train=20, dev=5, test_name="dev"):
    """Write object-CXR: image ``number`` of a table is line ``number + 2`` and has ``ANNOTATIONS[number % 5]``."""
    for name, count, first in (("train", train, 1), (test_name, dev, 9001)):
        rows = []
        for number in range(count):
            image = f"{first + number:05d}.jpg"
            write_picture(root / name / image, width=40, height=48, seed=first + number)
            rows.append((image, ANNOTATIONS[number % 5]))
        write_csv(root / f"{name}.csv", ("image_name", "annotation"), rows)
    return root


def boxes_of(row):
    assert {box["name"] for box in row["boxes"]} <= {"Foreign object"}
    return [tuple(box[key] for key in "xywh") for box in row["boxes"]]


@pytest.mark.parametrize("test_name", ["dev", "test"])
def test_a_release_becomes_a_prepared_dataset(tmp_path, test_name):
    raw = make_object_cxr(tmp_path / "raw", test_name=test_name)
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    table = studies.table.set_index("image_id")
    assert (summary.rows_in, summary.rows_out, summary.dropped) == (25, 25, {})
    assert studies.card.counts == {"train": 18, "valid": 2, "test": 5}
    assert (studies.card.restricted, studies.card.options["boxes"]) == (True, "tight")
    for first, count in ((1, 20), (9001, 5)):
        for number in range(count):
            row = table.loc[f"{first + number:05d}"]
            assert boxes_of(row) == HALVED[number % 5]
            assert dict(row["labels"]) == {"Foreign object": float(number % 5 != 4)}
            assert (row["width"], row["height"], row["mask"], row["view"]) == (20, 24, "", "")
    row = table.loc["09001"]
    assert (row["split"], row["source"]) == ("test", f"{test_name}/09001.jpg")
    stored = np.asarray(Image.open(tmp_path / "out" / row["image"])).astype(float)
    original = read_image(raw / test_name / "09001.jpg").reshape(24, 2, 20, 2).mean((1, 3))
    assert np.abs(stored - original).mean() < 2


def test_dev_is_the_test_split_where_both_are_there(tmp_path):
    raw = make_object_cxr(tmp_path / "raw")
    shutil.copytree(raw / "dev", raw / "test")
    shutil.copy(raw / "train.csv", raw / "test.csv")
    prepare(raw, tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table
    assert set(table["source"][table["split"] == "test"]) == {f"dev/0900{number}.jpg" for number in range(1, 6)}


def test_corners_in_any_order_and_decimals_are_read(tmp_path):
    raw = make_object_cxr(tmp_path / "raw")
    replace(raw / "train.csv", ANNOTATIONS[0], "0 24 20 4 8")
    replace(raw / "train.csv", ANNOTATIONS[1], " 1  10.5 12 14.5 32.0 ")
    prepare(raw, tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    assert boxes_of(table.loc["00001"]) == HALVED[0]
    assert boxes_of(table.loc["00002"]) == [(5.25, 6, 2, 10)]


@pytest.mark.parametrize("size", [16, 17, 19, 31, 33, 100])
def test_a_box_of_the_whole_image_stays_inside_at_any_size(tmp_path, size):
    prepare(make_object_cxr(tmp_path / "raw", train=5), tmp_path / "out", **OPTIONS | {"size": size})
    row = load_studies(tmp_path / "out").table.set_index("image_id").loc["00004"]
    x, y, w, h = boxes_of(row)[0]
    assert (x, y, x + w, y + h) == pytest.approx((0, 0, row["width"], row["height"]))


def test_the_split_is_that_of_the_published_code():
    images = [f"{number:05d}.jpg" for number in range(101)]
    split = split_train(images)
    train, valid = train_test_split(np.arange(101), test_size=0.1, random_state=0)
    assert {images[row] for row in train} == {image for image in images if split[image] == "train"}
    assert {images[row] for row in valid} == {image for image in images if split[image] == "valid"}
    assert split_train(["a"]) == {"a": "train"}


def test_a_dropped_image_does_not_move_the_others(tmp_path):
    raw = make_object_cxr(tmp_path / "raw")
    prepare(raw, tmp_path / "whole", **OPTIONS)
    (raw / "train/00004.jpg").unlink()
    replace(raw / "train.csv", ANNOTATIONS[0], "0 4 8 24")
    append(raw / "train.csv", "00002.jpg,1 10 12 14 32")
    prepare(raw, tmp_path / "part", **OPTIONS)
    whole, part = (load_studies(tmp_path / name).table.set_index("image_id")["split"] for name in ("whole", "part"))
    assert dict(part) == dict(whole.drop(["00004", "00001"]))


def distance_to_outline(points, corners):
    """Distance of ``(N, 2)`` points to a closed polygon's outline, segment by segment."""
    nearest = np.full(len(points), np.inf)
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = end - start
        share = np.clip((points - start) @ along / max(along @ along, 1e-12), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(points - (start + share[:, None] * along), axis=1))
    return nearest


def depth_in_band(corners):
    """Return a function: distance of points to the border of the band of 100 pixels around the outline.

    The border is sampled: the points of circles around the outline that are 100 pixels away from all of it.
    """
    ends = np.roll(corners, -1, axis=0)
    outline = np.concatenate([np.linspace(*pair, 80) for pair in zip(corners, ends, strict=True)])
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    circles = (outline[:, None] + 100 * np.stack([np.cos(angle), np.sin(angle)], axis=1)).reshape(-1, 2)
    normals = (ends - corners)[:, ::-1] * (1, -1) / np.linalg.norm(ends - corners, axis=1, keepdims=True)
    sides = [
        np.linspace(start + side * normal, end + side * normal, 80)
        for start, end, normal in zip(corners, ends, normals, strict=True)
        for side in (100, -100)
    ]
    points = np.concatenate([circles, *sides])
    tree = KDTree(points[distance_to_outline(points, corners) > 100 - 1e-6])
    return lambda queries: np.where(distance_to_outline(queries, corners) <= 100, tree.query(queries)[0], -1.0)


@pytest.mark.parametrize(
    "corners",
    [
        [(0, 0), (120, 0), (0, 160)],
        [(0, 0), (30, 0), (30, 200), (0, 200)],
        [(10, 10), (300, 20), (290, 60), (60, 50), (50, 280), (15, 270)],
        [(0, 0), (400, 0), (400, 60), (0, 40)],
    ],
    ids=["triangle", "bar", "angle", "wedge"],
)
def test_an_upstream_box_is_centred_on_a_deep_point_and_covers_the_tight_one(corners):
    corners = np.array(corners, float)
    x, y, w, h = upstream_box(corners)
    pole = np.array([x + w / 2, y + h / 2])
    depth = depth_in_band(corners)
    grid = np.stack(np.meshgrid(*np.arange(-100, 600, 6)[None].repeat(2, 0)), axis=-1).reshape(-1, 2)
    assert depth(pole[None])[0] > depth(grid).max() - 4  # upstream's own search may be 10 pixels off
    low, high = corners.min(0), corners.max(0)
    reach = np.maximum(pole - low, high - pole)
    np.testing.assert_allclose((x, y, w, h), (*(pole - reach), *(2 * reach)))
    assert x <= low[0] + 1e-9
    assert y <= low[1] + 1e-9
    assert x + w >= high[0] - 1e-9
    assert y + h >= high[1] - 1e-9


def test_the_upstream_box_of_a_small_square_is_tight():
    # The band around it is a larger square with rounded corners: its deepest point is the middle.
    box = upstream_box(np.array([(200, 300), (240, 300), (240, 340), (200, 340)], float))
    np.testing.assert_allclose(box, (200, 300, 40, 40), atol=6)  # a pole 1.5 pixels off moves each side by 3


def test_the_upstream_box_of_a_wide_ring_nearly_doubles():
    # The band of an outline farther across than 200 pixels has a hole, so the pole lies on the outline itself.
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    corners = 500 + 400 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    _, _, w, h = upstream_box(corners)
    assert w * h > 2 * 800 * 800


def test_upstream_boxes_differ_for_polygons_only_and_stay_in_the_image(tmp_path):
    raw = make_object_cxr(tmp_path / "raw")
    for number in range(5):
        write_picture(raw / f"train/{number + 1:05d}.jpg", width=1000, height=800, seed=number)
    ring = "2 100 100 900 100 900 700 100 700"
    wedge = "2 100 500 900 760 300 760"  # deepest near its lower edge, so that the box would leave the image
    replace(raw / "train.csv", ANNOTATIONS[2], f"{ring};1 20 40 60 80;{wedge}")
    prepare(raw, tmp_path / "tight", **OPTIONS | {"size": 100})
    prepare(raw, tmp_path / "upstream", boxes="upstream", **OPTIONS | {"size": 100})
    tight, upstream = (load_studies(tmp_path / name).table.set_index("image_id") for name in ("tight", "upstream"))
    for name in ("00001", "00002", "00005"):
        assert boxes_of(tight.loc[name]) == boxes_of(upstream.loc[name])
    (x, y, w, h), ellipse, cut_off = boxes_of(upstream.loc["00003"])
    whole = upstream_box(np.reshape(wedge.split()[1:], (-1, 2)).astype(float))
    assert whole[1] + whole[3] > 840
    assert cut_off[1] + cut_off[3] == pytest.approx(80)
    assert ellipse == pytest.approx((2, 4, 4, 4))
    assert boxes_of(tight.loc["00003"])[0] == pytest.approx((10, 10, 80, 60))
    assert (x, y, x + w, y + h) != pytest.approx((10, 10, 90, 70))
    assert x <= 10
    assert y <= 10
    assert x + w >= 90
    assert y + h >= 70
    assert min(x, y) >= 0
    assert x + w <= 100
    assert y + h <= 80


def test_an_upstream_box_does_not_hide_a_corner_outside(tmp_path):
    raw = make_object_cxr(tmp_path / "raw")
    replace(raw / "train.csv", ANNOTATIONS[2], "2 6 10 41 6 18 30")
    summary = prepare(raw, tmp_path / "out", boxes="upstream", **OPTIONS)
    assert summary.dropped == {"box outside the image": 1}


def test_a_second_run_reuses_the_images_for_other_boxes(tmp_path):
    raw, out = make_object_cxr(tmp_path / "raw"), tmp_path / "out"
    prepare(raw, out, **OPTIONS)
    (out / load_studies(out).table["image"].iat[3]).write_bytes(b"half an image")
    summary = prepare(raw, out, boxes="upstream", **OPTIONS)
    assert (summary.converted, summary.reused) == (1, 24)
    assert load_studies(out).card.options["boxes"] == "upstream"


def test_found_below_the_named_folder(tmp_path, capsys):
    make_object_cxr(tmp_path / "raw/object_cxr")
    assert main(["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--size", "24"]) == 0
    assert "object_cxr: 25 images" in capsys.readouterr().out


def write(path, content):
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def set_row(raw, annotation, name="train.csv"):
    """Give the image of line 3 another annotation."""
    replace(raw / name, f",{ANNOTATIONS[1]}\n", f",{annotation}\n")


# what is wrong, damage(raw folder), what the message names
FATAL = [
    ("no such folder", shutil.rmtree, ["no such folder"]),
    ("no train.csv", lambda r: (r / "train.csv").unlink(), ["holds no train.csv"]),
    ("no dev.csv", lambda r: (r / "dev.csv").unlink(), ["dev.csv", "no such file"]),
    ("train.csv empty", lambda r: write(r / "train.csv", b""), ["train.csv", "is empty"]),
    ("dev.csv without rows", lambda r: write(r / "dev.csv", b"image_name,annotation\n"), ["dev.csv", "no rows"]),
    ("no image_name", lambda r: replace(r / "train.csv", "image_name", "Path"), ["train.csv", "'image_name'"]),
    ("no annotation", lambda r: replace(r / "dev.csv", "annotation", "boxes"), ["dev.csv", "'annotation'"]),
    ("train.csv in UTF-16", lambda r: write(r / "train.csv", "image_name,a".encode("utf-16")), ["train.csv", "UTF-8"]),
    ("numbers apart by commas", lambda r: append(r / "train.csv", "1.jpg,0,1,2,3,4"), ["train.csv", "line 22"]),
    ("no train folder", lambda r: shutil.rmtree(r / "train"), ["train", "no such folder"]),
    ("no dev folder", lambda r: (r / "dev").rename(r / "valid"), ["dev", "no such folder"]),
    (
        "image folders empty",
        lambda r: [path.unlink() for path in r.glob("*/*.jpg")],
        ["all 25 rows were dropped", "image file missing", "row 2"],
    ),
    (
        "names with their folder",
        lambda r: [
            (r / f).write_text((r / f).read_text().replace("\n0", "\ntrain/0")) for f in ("train.csv", "dev.csv")
        ],
        ["all 25 rows were dropped", "id missing or malformed"],
    ),
]

# what is wrong, damage(raw folder), reason, file and line that are named
DROPS = [
    ("type 3", lambda r: set_row(r, "3 1 2 3 4"), "unknown annotation type", "train.csv", 3),
    ("type -1", lambda r: set_row(r, "-1"), "unknown annotation type", "train.csv", 3),
    ("type in words", lambda r: set_row(r, "ellipse 1 2 3 4"), "unknown annotation type", "train.csv", 3),
    ("no type", lambda r: set_row(r, "10 12 14 32"), "unknown annotation type", "train.csv", 3),
    ("objects apart by |", lambda r: set_row(r, "0 1 2 3 4|0 1 2 3 4"), "annotation malformed", "train.csv", 3),
    ("second object empty", lambda r: set_row(r, "0 1 2 3 4;"), "annotation malformed", "train.csv", 3),
    ("first object empty", lambda r: set_row(r, ";0 1 2 3 4"), "annotation malformed", "train.csv", 3),
    ("type alone", lambda r: set_row(r, "0"), "annotation malformed", "train.csv", 3),
    ("rectangle of 3 numbers", lambda r: set_row(r, "0 1 2 3"), "annotation malformed", "train.csv", 3),
    ("rectangle of 3 points", lambda r: set_row(r, "0 1 2 3 4 5 6"), "annotation malformed", "train.csv", 3),
    ("ellipse of 5 numbers", lambda r: set_row(r, "1 1 2 3 4 5"), "annotation malformed", "train.csv", 3),
    ("polygon of 2 corners", lambda r: set_row(r, "2 1 2 3 4"), "annotation malformed", "train.csv", 3),
    ("polygon of 3.5 corners", lambda r: set_row(r, "2 1 2 3 4 5 6 7"), "annotation malformed", "train.csv", 3),
    ("NaN", lambda r: set_row(r, "0 1 2 nan 4"), "box not a number", "train.csv", 3),
    ("infinite", lambda r: set_row(r, "1 1 2 3 inf"), "box not a number", "train.csv", 3),
    ("a word", lambda r: set_row(r, "2 1 2 3 4 5 six"), "box not a number", "train.csv", 3),
    ("one bad object of two", lambda r: set_row(r, "0 1 2 3 4;1 1 2 x 4"), "box not a number", "train.csv", 3),
    ("no width", lambda r: set_row(r, "0 5 2 5 9"), "box without area", "train.csv", 3),
    ("no height", lambda r: set_row(r, "1 1 7 5 7"), "box without area", "train.csv", 3),
    ("polygon on a line", lambda r: set_row(r, "2 3 1 3 5 3 9"), "box without area", "train.csv", 3),
    ("right of the image", lambda r: set_row(r, "0 30 2 41 9"), "box outside the image", "train.csv", 3),
    ("below the image", lambda r: set_row(r, "1 3 2 9 48.5"), "box outside the image", "train.csv", 3),
    ("left of the image", lambda r: set_row(r, "2 -1 2 9 4 5 9"), "box outside the image", "train.csv", 3),
    ("test box outside", lambda r: set_row(r, "0 3 -2 9 4", "dev.csv"), "box outside the image", "dev.csv", 3),
    ("image missing", lambda r: (r / "train/00002.jpg").unlink(), "image file missing", "train.csv", 3),
    ("test image missing", lambda r: (r / "dev/09002.jpg").unlink(), "image file missing", "dev.csv", 3),
    ("image empty", lambda r: write(r / "train/00002.jpg", b""), "image unreadable", "train.csv", 3),
    ("image cut off", lambda r: cut(r / "train/00002.jpg"), "image unreadable", "train.csv", 3),
    ("image is text", lambda r: write(r / "train/00002.jpg", b"<html>"), "image unreadable", "train.csv", 3),
    (
        "image is a folder",
        lambda r: ((r / "dev/09002.jpg").unlink(), (r / "dev/09002.jpg").mkdir()),
        "image unreadable",
        "dev.csv",
        3,
    ),
    (
        "DICOM of two frames",
        lambda r: write_dicom(r / "train/00002.jpg", np.zeros((4, 4), np.uint8), NumberOfFrames=2),
        "image unreadable",
        "train.csv",
        3,
    ),
    ("row twice", lambda r: append(r / "train.csv", "00001.jpg,0 4 8 24 20"), "duplicate row", "train.csv", 22),
    ("empty row twice", lambda r: append(r / "train.csv", "00005.jpg,"), "duplicate row", "train.csv", 22),
    ("two annotations", lambda r: append(r / "train.csv", "00001.jpg,"), "duplicate id", "train.csv", 22),
    ("no name", lambda r: append(r / "train.csv", ",0 4 8 24 20"), "id missing or malformed", "train.csv", 22),
    ("name with a path", lambda r: append(r / "dev.csv", "../1.jpg,"), "id missing or malformed", "dev.csv", 7),
    ("hidden file", lambda r: append(r / "dev.csv", ".jpg,"), "id missing or malformed", "dev.csv", 7),
    (
        "image in both tables",
        lambda r: (append(r / "train.csv", "09001.jpg,"), shutil.copy(r / "dev/09001.jpg", r / "train")),
        "patient is also in a held-out split",
        "train.csv",
        22,
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
    return make_object_cxr(tmp_path_factory.mktemp("whole") / "raw")


@pytest.mark.parametrize("boxes", ["tight", "upstream"])
def test_undamaged_data_pass_strictly(whole, tmp_path, capsys, boxes):
    assert run(whole, tmp_path / "out", capsys, "--strict", "--boxes", boxes)[0] == 0


def test_unknown_boxes_are_refused(whole, tmp_path, capsys):
    code, _, error = run(whole, tmp_path / "out", capsys, "--boxes", "loose")
    assert code == 2
    assert "--boxes" in error
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize(
    ("damage", "reason", "file", "line"), [case[1:] for case in DROPS], ids=[case[0] for case in DROPS]
)
def test_drop(whole, tmp_path, capsys, damage, reason, file, line):
    raw = shutil.copytree(whole, tmp_path / "raw")
    damage(raw)
    code, printed, error = run(raw, tmp_path / "out", capsys, "--boxes", "upstream")
    assert (code, error) == (0, "")
    assert f"- {reason} " in printed
    dropped = pd.read_csv(tmp_path / "out/dropped.csv", keep_default_na=False)
    faults = dropped[dropped["faulty"].astype(str) == "True"]
    assert faults[["file", "row", "reason"]].values.tolist() == [[file, line, reason]]
    code, _, error = run(raw, tmp_path / "strict", capsys, "--strict")
    assert code == 1
    assert error.startswith("strict: ")
    assert error.count("\n") == 1
    for part in (file, f"row {line}:", reason):
        assert part in error
    assert not (tmp_path / "strict/card.json").exists()
