"""COVID-19 image data collection: views, hierarchical findings, notes, licences, splits by patient."""

import shutil
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from raw_trees import append, replace, write_csv, write_picture

import data_scripts.conversion
from data_scripts.access import OPEN_ACCESS
from data_scripts.conversion import _convert_one
from data_scripts.prepare_covid_cxr import (
    NOT_STATED,
    TABLE,
    Source,
    labels_from_finding,
    main,
    parse_finding,
    prepare,
    split_source,
)
from mgca_lib.data.reports import clean_sentences
from mgca_lib.data.studies import load_studies

OPTIONS = {"size": 32, "quiet": True, "workers": 2}
COLUMNS = (
    *("patientid", "offset", "sex", "age", "finding", "RT_PCR_positive", "survival", "view", "modality", "date"),
    *("location", "folder", "filename", "doi", "url", "license", "clinical_notes", "other_notes", ""),
)
FINDINGS = ("Pneumonia/Viral/COVID-19", "Pneumonia/Viral", "Pneumonia/Bacterial", "No Finding", "todo")
VIEWS = ("PA", "AP", "AP Supine", "AP Erect")
NOTES = "Patchy opacities in both lower zones of film {number}, no effusion."


def record(number, **changes):
    """Return row ``number``; patient ``number // 2`` has two films of the same day."""
    values = {
        "patientid": f"{number // 2 + 1}",
        "offset": f"{number // 2}",
        "sex": "F",
        "age": "51",
        "finding": FINDINGS[number // 2 % len(FINDINGS)],
        "view": VIEWS[number % len(VIEWS)],
        "modality": "X-ray",
        "folder": "images",
        "filename": f"film {number}.{('png', 'jpg')[number % 2]}",
        "doi": f"10.1000/{number}" if number % 2 else "",
        "url": f"https://example.org/case/{number}",
        "license": ("CC BY-NC-SA 4.0", "")[number % 2],
        "clinical_notes": NOTES.format(number=number) if number % 3 else "",
    }
    return tuple((values | changes).get(column, "") for column in COLUMNS)


def make_covid(root, *, films=20, rows=None):
    """Write the collection: film ``number`` is line ``number + 2``, the last line a CT slice without a file."""
    rows = [record(number) for number in range(films)] if rows is None else rows
    slice_ = record(999, modality="CT", view="Axial", folder="volumes", filename="slice.nii.gz")
    write_csv(root / TABLE, COLUMNS, [*rows, slice_])
    for number, row in enumerate(rows):
        write_picture(root / "images" / row[COLUMNS.index("filename")], seed=number)
    return root


def test_a_release_becomes_a_prepared_dataset(tmp_path):
    summary = prepare(make_covid(tmp_path / "raw"), tmp_path / "out", **OPTIONS)
    assert (summary.rows_in, summary.rows_out, summary.dropped) == (21, 20, {"modality CT": 1})
    assert summary.by_design == {"modality CT"}
    assert summary.notes == (
        "7 images have no notes; --require-notes leaves them out",  # films 0, 3, 6, ...
        "10 images have no stated licence and must not be passed on",
    )
    studies = load_studies(tmp_path / "out")
    assert studies.card.restricted
    assert studies.card.options["licences"] == {"CC BY-NC-SA 4.0": 10, NOT_STATED: 10}
    table = studies.table.set_index("image_id")
    row = table.loc["film 2.png"]
    assert (row["patient_id"], row["study_id"], row["view"]) == ("2", "2_day1", "AP")
    assert (row["findings"], row["impression"]) == (NOTES.format(number=2), "")
    assert list(row["sentences"]) == clean_sentences(findings=NOTES.format(number=2), impression="")
    assert (table.loc["film 3.jpg", "findings"], list(table.loc["film 3.jpg", "sentences"])) == ("", [])
    assert table["view"].tolist() == ["PA", "AP", "AP", "AP"] * 5
    assert (tmp_path / "out" / row["image"]).is_file()


def add_mask(folder, number, *, width=48, height=40):
    """Write the lung mask of film ``number``: its left half; return the mask."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, : width // 2] = 255
    folder.mkdir(exist_ok=True)
    Image.fromarray(mask).save(folder / f"film {number}.png")
    return mask


def test_lung_masks_lie_on_their_images(tmp_path):
    raw = make_covid(tmp_path / "raw")
    for number in (2, 3):
        add_mask(tmp_path / "masks", number)
    prepare(raw, tmp_path / "out", lung_masks=tmp_path / "masks", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    table = studies.table.set_index("image_id")
    assert (table["mask"] != "").sum() == 2
    for name in ("film 2.png", "film 3.jpg"):
        row = table.loc[name]
        mask = np.asarray(Image.open(tmp_path / "out" / row["mask"]))
        assert mask.shape == (row["height"], row["width"])
        np.testing.assert_array_equal(mask > 0, [np.arange(row["width"]) < row["width"] // 2] * row["height"])
    assert studies.card.options["masks"] == "lungs"
    add_mask(tmp_path / "masks", 2, width=40, height=48)  # changed: another mask is another image to convert
    summary = prepare(raw, tmp_path / "out", lung_masks=tmp_path / "masks", **OPTIONS)
    assert summary.dropped["mask malformed"] == 1
    assert summary.reused == 19
    (tmp_path / "masks/film 2.png").write_bytes(b"<html>")
    assert prepare(raw, tmp_path / "out", lung_masks=tmp_path / "masks", **OPTIONS).dropped["mask malformed"] == 1


def test_lung_masks_as_v7_labs_ships_them(tmp_path):
    """PNG files called like the images; other drawings are grey (127), and films without lungs have a black mask."""
    raw, folder = make_covid(tmp_path / "raw"), tmp_path / "masks"
    drawn = add_mask(folder, 3)
    expected = drawn > 0
    drawn[30:, 10:34] = 127
    expected[30:, 10:34] = False
    Image.fromarray(drawn).save(folder / "film 3.jpg", "PNG")
    Image.fromarray(np.zeros_like(drawn)).save(folder / "film 5.jpg", "PNG")
    summary = prepare(raw, tmp_path / "out", lung_masks=folder, **OPTIONS | {"size": 48})
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    assert table.index[table["mask"] != ""].tolist() == ["film 3.jpg"]
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out" / table.loc["film 3.jpg", "mask"])) > 0, expected
    )
    assert "1 lung masks have no pixel, the first is that of film 5.jpg; they are left out" in summary.notes


def test_lung_masks_that_are_not_there(tmp_path, capsys):
    raw = make_covid(tmp_path / "raw")
    (tmp_path / "other").mkdir()
    Image.new("L", (48, 40), 255).save(tmp_path / "other/another film.png")
    assert main(["--raw", str(raw), "--out", str(tmp_path / "out"), "--lung-masks", str(tmp_path / "other")]) == 2
    assert f"--lung-masks {tmp_path / 'other'}: holds no file" in capsys.readouterr().err
    assert main(["--raw", str(raw), "--out", str(tmp_path / "out"), "--lung-masks", str(tmp_path / "masks")]) == 2
    assert "--lung-masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("licences", "restricted"),
    [
        (["CC BY 4.0", "CC BY-NC-SA", "CC0", "CC BY-SA 3.0"], False),
        (["CC BY 4.0", ""], True),
        (["CC BY 4.0", "CC BY-NC-ND 4.0"], True),
        (["CC BY 4.0", "ask the authors"], True),
    ],
)
def test_restricted_as_soon_as_one_image_is(tmp_path, licences, restricted):
    rows = [record(number, license=licences[number % len(licences)]) for number in range(8)]
    prepare(make_covid(tmp_path / "raw", rows=rows), tmp_path / "out", **OPTIONS)
    assert load_studies(tmp_path / "out").card.restricted is restricted


def test_licence_and_reference_of_every_image_are_kept(tmp_path):
    prepare(make_covid(tmp_path / "raw"), tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    assert split_source(table.loc["film 2.png", "source"]) == Source(
        "images/film 2.png", "CC BY-NC-SA 4.0", "https://example.org/case/2"
    )
    assert split_source(table.loc["film 3.jpg", "source"]) == Source("images/film 3.jpg", NOT_STATED, "10.1000/3")


def test_a_licence_with_a_separator_stays_one_field(tmp_path):
    rows = [record(number, license="CC BY | see paper", doi="", url="") for number in range(4)]
    prepare(make_covid(tmp_path / "raw", rows=rows), tmp_path / "out", **OPTIONS)
    source = load_studies(tmp_path / "out").table["source"][0]
    assert split_source(source) == Source("images/film 0.png", "CC BY / see paper", "")
    for other in ("images/a.png", "a | b", "a | b | c | d"):
        with pytest.raises(ValueError, match="is not file, licence and reference"):
            split_source(other)


def test_labels_of_the_table(tmp_path):
    prepare(make_covid(tmp_path / "raw"), tmp_path / "out", **OPTIONS)
    studies = load_studies(tmp_path / "out")
    assert studies.label_names == ("Bacterial", "COVID-19", "No Finding", "Pneumonia", "Viral")
    unknown = np.nan
    expected = [  # of patients 1 to 5
        [0, 1, 0, 1, 1],
        [0, unknown, 0, 1, 1],
        [1, 0, 0, 1, 0],
        [0, 0, 1, 0, 0],
        [unknown] * 5,
    ]
    np.testing.assert_array_equal(studies.labels(studies.label_names)[:10:2], expected)


@pytest.mark.parametrize(
    ("finding", "expected"),
    [  # ARDS, Bacterial, COVID-19, MRSA, No Finding, Pneumonia, Staphylococcus, Viral
        ("Pneumonia/Viral/COVID-19", [0, 0, 1, 0, 0, 1, 0, 1]),
        ("Pneumonia", [0, None, None, None, 0, 1, None, None]),
        ("Pneumonia/Bacterial", [0, 1, 0, None, 0, 1, None, 0]),
        ("Pneumonia/Bacterial/Staphylococcus/MRSA", [0, 1, 0, 1, 0, 1, 1, 0]),
        ("No Finding", [0, 0, 0, 0, 1, 0, 0, 0]),
        ("ARDS, Pneumonia/Viral", [1, 0, None, 0, 0, 1, 0, 1]),
        (" Pneumonia / Viral ", [0, 0, None, 0, 0, 1, 0, 1]),
        ("todo", [None] * 8),
        ("Unknown", [None] * 8),
        ("", [None] * 8),
    ],
)
def test_labels_from_finding(finding, expected):
    paths = ["ARDS", "No Finding", "Pneumonia/Viral/COVID-19", "Pneumonia/Bacterial/Staphylococcus/MRSA"]
    hierarchy = [tuple(path.split("/")[:end]) for path in paths for end in range(1, path.count("/") + 2)]
    assert list(labels_from_finding(finding, hierarchy).values()) == expected


def test_where_it_comes_from_is_listed():
    access = OPEN_ACCESS["covid_cxr"]
    assert access.script == f"{main.__module__.replace('.', '/')}.py"


def test_parse_finding():
    assert parse_finding("Pneumonia//Viral/") == [("Pneumonia", "Viral")]
    assert parse_finding("COVID-19, todo,") == [("COVID-19",)]


def test_all_views(tmp_path):
    rows = [record(number, view=view) for number, view in enumerate(("PA", "L", "", "ap supine", "APS", "Lateral"))]
    raw = make_covid(tmp_path / "raw", rows=rows)
    summary = prepare(raw, tmp_path / "frontal", **OPTIONS)
    assert summary.dropped == {"modality CT": 1, "view lateral": 2, "view not stated": 1}
    prepare(raw, tmp_path / "all", views="all", **OPTIONS)
    assert load_studies(tmp_path / "all").table["view"].tolist() == ["PA", "lateral", "", "AP", "AP", "lateral"]


def test_required_notes(tmp_path):
    rows = [
        record(n, clinical_notes=text) for n, text in enumerate(("", "Fever.", "Two words", "Fever for days. Cough"))
    ]
    raw = make_covid(tmp_path / "raw", rows=rows)
    summary = prepare(raw, tmp_path / "out", require_notes=True, **OPTIONS)
    assert summary.dropped == {"modality CT": 1, "notes have fewer than 3 words": 3}
    assert "notes have fewer than 3 words" in summary.by_design
    assert load_studies(tmp_path / "out").table["image_id"].tolist() == ["film 3.jpg"]


def test_splits_are_by_patient_and_depend_on_the_seed_alone(tmp_path):
    raw = make_covid(tmp_path / "raw", films=60)
    groups = {}
    for name, options in {"a": {"seed": 5}, "b": {"seed": 5, "require_notes": True}, "c": {"seed": 6}}.items():
        prepare(raw, tmp_path / name, **options, **OPTIONS)
        groups[name] = defaultdict(set)
        for row in load_studies(tmp_path / name).table.itertuples():
            groups[name][row.split].add(row.patient_id)
    # 31 patients with that of the CT slice, who is in one of the splits too.
    assert abs(len(groups["a"]["test"]) - 6) <= 1
    assert abs(len(groups["a"]["valid"]) - 3) <= 1
    assert sum(len(group) for group in groups["a"].values()) == len(set.union(*groups["a"].values())) == 30
    assert groups["a"] == groups["b"] != groups["c"]


@pytest.mark.parametrize("old", ["clinical notes", "notes"])
def test_column_names_of_earlier_releases(tmp_path, old):
    raw = make_covid(tmp_path / "raw")
    replace(raw / TABLE, "clinical_notes", old)
    replace(raw / TABLE, ",url,", ", url,")
    prepare(raw, tmp_path / "out", **OPTIONS)
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    assert table.loc["film 2.png", "findings"] == NOTES.format(number=2)
    assert split_source(table.loc["film 2.png", "source"]).reference == "https://example.org/case/2"


def test_the_collection_is_found_below_the_named_folder(tmp_path):
    make_covid(tmp_path / "raw/covid-chestxray-dataset-master")
    assert prepare(tmp_path / "raw", tmp_path / "out", **OPTIONS).rows_out == 20


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stop_and_go_on(tmp_path, monkeypatch, capsys):
    raw = make_covid(tmp_path / "raw")
    arguments = ["--raw", str(raw), "--out", str(tmp_path / "out"), "--size", "32", "--workers", "1"]
    done = []

    def interrupted(candidate, journal):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(candidate)
        return _convert_one(candidate, journal)

    with monkeypatch.context() as patch:
        patch.setattr(data_scripts.conversion, "_convert_one", interrupted)
        assert main(arguments) == 130
    assert not (tmp_path / "out/card.json").exists()
    assert main(arguments) == 0
    assert ", 4 reused" in capsys.readouterr().out
    prepare(raw, tmp_path / "undisturbed", size=32, workers=3, quiet=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_real_films(tmp_path, shared_dir):
    """The shared subset, whose table is brought back into the columns of the collection."""
    folder = shared_dir / "realdata/cohen_covid"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    real = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    names = real["image"].str.replace("/", "_")
    assert names.is_unique
    rows = []
    for film, name in zip(real.itertuples(), names, strict=True):
        (tmp_path / "raw/images").mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / film.image, tmp_path / "raw/images" / name)
        values = {"patientid": film.patient, "offset": film.offset_days, "finding": film.finding, "view": film.view}
        values |= {"filename": name, "doi": film.doi, "url": film.url, "license": film.licence}
        rows.append(record(0, **values, clinical_notes=film.text))
    write_csv(tmp_path / "raw" / TABLE, COLUMNS, rows)
    summary = prepare(tmp_path / "raw", tmp_path / "out", size=64, quiet=True, workers=2)
    views = Counter(real["view"])
    frontal = views["PA"] + views["AP"] + views["AP Supine"]
    assert summary.rows_in == len(real)
    assert summary.rows_out == frontal > 300
    assert summary.dropped == {"view not stated": views[""], "unknown view": views["?"]}
    studies = load_studies(tmp_path / "out")
    kept = real.set_index(names).loc[studies.table["image_id"]]
    assert [split_source(source).licence for source in studies.table["source"]] == kept["licence"].tolist()
    assert studies.table["findings"].tolist() == [" ".join(text.split()) for text in kept["text"]]
    covid = studies.labels(["COVID-19"])[:, 0]
    np.testing.assert_array_equal(covid == 1, kept["finding"].str.contains("COVID-19"))
    np.testing.assert_array_equal(np.isnan(covid), kept["finding"] == "")
    paired = prepare(tmp_path / "raw", tmp_path / "out", size=64, quiet=True, workers=2, require_notes=True)
    assert 200 < paired.rows_out <= (real["text"] != "").sum()
    assert (paired.converted, paired.reused) == (0, paired.rows_out)


def set_cell(raw, line, column, value):
    """Set a cell; ``line`` as an editor counts."""
    table = pd.read_csv(raw / TABLE, dtype=str, keep_default_na=False)
    table.loc[line - 2, column] = value
    table.rename(columns={table.columns[-1]: ""}).to_csv(raw / TABLE, index=False)


def drop_column(raw, name):
    pd.read_csv(raw / TABLE, dtype=str, keep_default_na=False).drop(columns=name).to_csv(raw / TABLE, index=False)


def image(raw, number):
    return raw / "images" / f"film {number}.{('png', 'jpg')[number % 2]}"


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


# what is wrong, damage(raw folder), what the message names
FATAL = [
    ("no such folder", shutil.rmtree, ["no such folder"]),
    ("a file, not a folder", lambda r: (shutil.rmtree(r), r.write_text("x")), ["is a file"]),
    ("no table", lambda r: (r / TABLE).unlink(), [TABLE, "so it is not"]),
    ("no images", lambda r: shutil.rmtree(r / "images"), ["images: no such folder"]),
    ("table empty", lambda r: (r / TABLE).write_bytes(b""), [TABLE, "is empty"]),
    ("table without rows", lambda r: (r / TABLE).write_text(",".join(COLUMNS) + "\n"), [TABLE, "no rows"]),
    ("table in UTF-16", lambda r: (r / TABLE).write_bytes("patientid\n1".encode("utf-16")), [TABLE, "UTF-8"]),
    ("table in Latin-1", lambda r: (r / TABLE).write_bytes("patientid\nMünchen".encode("latin-1")), [TABLE, "UTF-8"]),
    ("table binary", lambda r: (r / TABLE).write_bytes(bytes(range(256)) * 9), [TABLE]),
    ("table is a web page", lambda r: (r / TABLE).write_text("<html>\n<p>404</p>"), [TABLE, "'patientid' is missing"]),
    ("row too long", lambda r: append(r / TABLE, "1,2,3" + ",x" * 40), [TABLE]),
    ("no patientid", lambda r: drop_column(r, "patientid"), [TABLE, "'patientid'"]),
    ("no finding", lambda r: drop_column(r, "finding"), [TABLE, "'finding'"]),
    ("no view", lambda r: drop_column(r, "view"), [TABLE, "'view'"]),
    ("no modality", lambda r: drop_column(r, "modality"), [TABLE, "'modality'"]),
    ("no filename", lambda r: drop_column(r, "filename"), [TABLE, "'filename'"]),
    ("no license", lambda r: drop_column(r, "license"), [TABLE, "'license'"]),
    (
        "no row with a finding",
        lambda r: write_csv(r / TABLE, COLUMNS, [record(number, finding="todo") for number in range(20)]),
        [TABLE, "no row has a finding"],
    ),
    (
        "nothing but CT",
        lambda r: write_csv(r / TABLE, COLUMNS, [record(number, modality="CT") for number in range(20)]),
        ["all 20 rows were dropped", "modality CT"],
    ),
    (
        "no image file",
        lambda r: [path.unlink() for path in (r / "images").iterdir()],
        ["all 21 rows were dropped", "image file missing: 20"],
    ),
]
# what is wrong, damage(raw folder), reason, line of the row that is left out
DROPS = [
    ("patient missing", lambda r: set_cell(r, 4, "patientid", ""), "id missing or malformed", 4),
    ("file name missing", lambda r: set_cell(r, 4, "filename", " "), "id missing or malformed", 4),
    ("file name leaves the folder", lambda r: set_cell(r, 4, "filename", "../x.png"), "id missing or malformed", 4),
    ("file name is absolute", lambda r: set_cell(r, 4, "filename", "/etc/x.png"), "id missing or malformed", 4),
    ("file name hidden", lambda r: set_cell(r, 4, "filename", ".film.png"), "id missing or malformed", 4),
    ("folder leaves the collection", lambda r: set_cell(r, 4, "folder", ".."), "id missing or malformed", 4),
    ("folder unknown", lambda r: set_cell(r, 4, "folder", "pictures"), "image file missing", 4),
    ("view unknown", lambda r: set_cell(r, 4, "view", "Oblique"), "unknown view", 4),
    ("view of a CT", lambda r: set_cell(r, 4, "view", "Axial"), "unknown view", 4),
    ("view a question mark", lambda r: set_cell(r, 4, "view", "?"), "unknown view", 4),
    ("file named twice", lambda r: set_cell(r, 4, "filename", "film 0.png"), "duplicate id", 4),
    ("file named twice but for case", lambda r: set_cell(r, 4, "filename", "FILM 0.PNG"), "duplicate id", 4),
    ("image missing", lambda r: image(r, 2).unlink(), "image file missing", 4),
    ("image empty", lambda r: image(r, 2).write_bytes(b""), "image unreadable", 4),
    ("image cut off", lambda r: cut(image(r, 2)), "image unreadable", 4),
    ("image is a web page", lambda r: image(r, 2).write_text("<html>404</html>"), "image unreadable", 4),
    ("image is a folder", lambda r: (image(r, 2).unlink(), image(r, 2).mkdir()), "image unreadable", 4),
    ("row of commas and an id", lambda r: append(r / TABLE, "77" + "," * 18), "id missing or malformed", 23),
    ("row cut off", lambda r: append(r / TABLE, "77,3,M"), "id missing or malformed", 23),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_covid(tmp_path_factory.mktemp("whole") / "raw")


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


def test_undamaged_data_pass_strictly(whole, tmp_path, capsys):
    assert run(whole, tmp_path / "out", capsys, "--strict")[0] == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--views", "oblique"], "--views"),
        (["--seed", "-1"], "--seed -1"),
        (["--test-fraction", "-0.1"], "--test-fraction"),
        (["--valid-fraction", "half"], "--valid-fraction"),
        (["--valid-fraction", "0.9", "--test-fraction", "0.2"], "nothing is left for training"),
    ],
)
def test_bad_arguments(whole, tmp_path, capsys, options, named):
    code, _, error = run(whole, tmp_path / "out", capsys, *options)
    assert code == 2
    assert named in error
    assert not (tmp_path / "out").exists()
