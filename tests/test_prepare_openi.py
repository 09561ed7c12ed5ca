"""Open-i preparation: XML reports, MeSH labels, views, marks of removed words, every layout of the files."""

import shutil
import tarfile
from collections import defaultdict

import pandas as pd
import pytest
from raw_trees import append, replace, write_csv, write_picture

import data_scripts.conversion
from data_scripts.access import OPEN_ACCESS
from data_scripts.conversion import _convert_one
from data_scripts.openi_reports import (
    MESH_LABELS,
    ReportError,
    labels_from_terms,
    parse_report,
    projection_from_caption,
    remove_marks,
    view_from_caption,
)
from data_scripts.prepare_openi import ARCHIVE, PROJECTIONS, main, prepare
from mgca_lib.data.reports import clean_sentences
from mgca_lib.data.studies import load_studies
from mgca_lib.data.tasks import CHEXPERT_LABELS

OPTIONS = {"size": 32, "quiet": True, "workers": 2}
REPORTS = "NLMCXR_reports/ecgen-radiology"
IMAGES = "NLMCXR_png"
FINDINGS = "The heart is of XXXX size in film {number}. Lungs are free of x-XXXX opacities, no effusion."
IMPRESSION = "1. Quiet chest. 2. No XXXX-scale change since XXXX."
CAPTION = "PA and lateral chest x-XXXX dated XXXX."
TERMS = ("normal", "Opacity/lung/base/left", "Cardiomegaly/mild", "Scoliosis", "No Indexing")

DOCUMENT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="CXR{number}"/>
   <pmcId id="{number}"/>
   <docSource>CXR</docSource>
   <MedlineCitation Owner="Indiana University" Status="supplied by publisher">
      <Article PubModel="Electronic">
         <Abstract>
            <AbstractText Label="COMPARISON">None.</AbstractText>
            <AbstractText Label="INDICATION">Cough and XXXX</AbstractText>
            <AbstractText Label="FINDINGS">{findings}</AbstractText>
            <AbstractText Label="IMPRESSION">{impression}</AbstractText>
         </Abstract>
      </Article>
   </MedlineCitation>
   <MeSH>
{mesh}   </MeSH>
{images}</eCitation>
"""
IMAGE = """   <parentImage id="{image}">
      <figureId>F1</figureId>
      <caption>{caption}</caption>
      <panel type="single"><url>/radiology/{image}.jpg</url></panel>
   </parentImage>
"""


def image_names(number, *, count=2):
    """Ids of the images of a report; the first is frontal. Report 1 has the longer form, as in the original."""
    prefix = f"CXR{number}_{number}_" if number == 1 else f"CXR{number}_"
    return [f"{prefix}IM-{number:04d}-{view}001" for view in range(1, count + 1)]


def document(number, *, findings=None, impression=IMPRESSION, terms=None, images=None, caption=CAPTION):
    """Return one report in the original's format."""
    terms = (TERMS[number % len(TERMS)],) if terms is None else terms
    images = image_names(number) if images is None else images
    return DOCUMENT.format(
        number=number,
        findings=FINDINGS.format(number=number) if findings is None else findings,
        impression=impression,
        mesh="".join(f"      <major>{term}</major>\n" for term in terms) + "      <automatic>noise</automatic>\n",
        images="".join(IMAGE.format(image=image, caption=caption) for image in images),
    )


def make_openi(root, *, reports=10, projections=True):
    """Write reports 1 ... N with a frontal and a lateral image each."""
    rows = []
    for number in range(1, reports + 1):
        path = root / REPORTS / f"{number}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document(number), encoding="utf-8")
        for view, image in zip(("Frontal", "Lateral"), image_names(number), strict=True):
            write_picture(root / IMAGES / f"{image}.png", seed=len(rows))
            rows.append((number, kaggle_name(image), view))
    if projections:
        write_csv(root / PROJECTIONS, ("uid", "filename", "projection"), rows)
    return root


def kaggle_name(image):
    """The name that the Kaggle copy gives to an image."""
    number = image.split("_")[0].removeprefix("CXR")
    return f"{number}_{image.split('_')[-1]}.dcm.png"


def rewrite(root, number, **changes):
    (root / REPORTS / f"{number}.xml").write_text(document(number, **changes), encoding="utf-8")


def line_of(text, wanted):
    """Line of a text as an editor counts."""
    return next(index for index, line in enumerate(text.splitlines(), start=1) if wanted in line)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_release_becomes_a_prepared_dataset(tmp_path):
    summary = prepare(make_openi(tmp_path / "raw"), tmp_path / "out", **OPTIONS)
    assert (summary.rows_in, summary.rows_out, summary.dropped) == (20, 10, {"view lateral": 10})
    studies = load_studies(tmp_path / "out")
    assert studies.card.counts == {"train": 7, "valid": 1, "test": 2}
    assert (studies.card.restricted, studies.card.licence) == (True, "CC BY-NC-ND 4.0")
    table = studies.table.set_index("image_id")
    assert list(table.index) == [image_names(number)[0] for number in range(1, 11)]  # 10.xml after 9.xml
    row = table.loc["CXR1_1_IM-0001-1001"]
    assert (row["patient_id"], row["study_id"], row["view"]) == ("CXR1", "CXR1", "PA")
    assert row["source"] == "NLMCXR_png/CXR1_1_IM-0001-1001.png"
    assert row["findings"] == "The heart is of size in film 1. Lungs are free of opacities, no effusion."
    assert row["impression"] == "1. Quiet chest. 2. No change since."
    assert list(row["sentences"]) == [
        "quiet chest",
        "no change since",
        "the heart is of size in film",  # "1." is a list marker to the cleaning
        "lungs are free of opacities no effusion",
    ]
    assert [name for name, value in row["labels"].items() if value] == ["Lung Opacity"]


def test_sentences_are_the_cleaned_stored_text(tmp_path):
    prepare(make_openi(tmp_path / "raw"), tmp_path / "out", **OPTIONS)
    for row in load_studies(tmp_path / "out").table.itertuples():
        assert list(row.sentences) == clean_sentences(findings=row.findings, impression=row.impression)
        assert "xxxx" not in " ".join(row.sentences)


@pytest.mark.parametrize("section", ["findings", "impression"])
def test_a_report_with_one_section_is_kept(tmp_path, section):
    raw = make_openi(tmp_path / "raw")
    rewrite(raw, 3, **{section: ""})
    assert prepare(raw, tmp_path / "out", **OPTIONS).rows_out == 10
    row = load_studies(tmp_path / "out").table.set_index("image_id").loc[image_names(3)[0]]
    assert row[section] == ""
    assert len(row["sentences"]) == 2


def test_all_views(tmp_path):
    raw = make_openi(tmp_path / "raw")
    rewrite(raw, 2, caption="Chest, two views")
    lines = (raw / PROJECTIONS).read_text().splitlines(keepends=True)
    (raw / PROJECTIONS).write_text("".join(lines[:-2]))  # report 10 is not listed
    summary = prepare(raw, tmp_path / "out", views="all", **OPTIONS)
    assert (summary.rows_in, summary.rows_out) == (20, 20)
    assert summary.notes[0] == "2 of 20 images have no stated view"
    view = load_studies(tmp_path / "out").table.set_index("image_id")["view"]
    assert view[image_names(1)].tolist() == ["PA", "lateral"]
    assert view[image_names(2)].tolist() == ["", "lateral"]  # frontal, but neither PA nor AP
    assert view[image_names(10)].tolist() == ["", ""]


def test_without_a_table_of_views(tmp_path, capsys):
    raw = make_openi(tmp_path / "raw", projections=False)
    rewrite(raw, 4, images=image_names(4)[:1], caption="AP portable chest")
    assert main(["--raw", str(raw), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert PROJECTIONS in error
    assert "--views all" in error
    prepare(raw, tmp_path / "out", views="all", **OPTIONS)
    view = load_studies(tmp_path / "out").table.set_index("image_id")["view"]
    assert (view[image_names(4)[0]], view[image_names(5)[0]]) == ("AP", "")


def test_the_table_of_views_wins_over_the_caption(tmp_path):
    raw = make_openi(tmp_path / "raw")
    rewrite(raw, 4, caption="AP portable chest")  # of both images
    assert prepare(raw, tmp_path / "out", **OPTIONS).rows_out == 10
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    assert table.loc[image_names(4)[0], "view"] == "AP"
    assert image_names(4)[1] not in table.index


def unpacked_flat(raw):
    for path in (raw / REPORTS).iterdir():
        shutil.move(path, raw / path.name)
    (raw / "._1.xml").write_bytes(b"\0")  # as macOS leaves it


def packed(raw):
    with tarfile.open(raw / ARCHIVE, "w:gz") as archive:
        archive.add(raw / REPORTS, "ecgen-radiology")
        archive.add(raw / REPORTS / "1.xml", "ecgen-radiology/._1.xml")
    shutil.rmtree(raw / "NLMCXR_reports")


def from_kaggle(raw):
    for path in (raw / IMAGES).iterdir():
        target = raw / "images/images_normalized" / kaggle_name(path.stem)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, target)


def linked(raw):
    """The images lie on another disk, and one link leads back."""
    shutil.move(raw / IMAGES, raw.parent / "elsewhere")
    (raw / IMAGES).symlink_to(raw.parent / "elsewhere")
    (raw.parent / "elsewhere/back").symlink_to(raw)


@pytest.mark.parametrize("change", [unpacked_flat, packed, from_kaggle, linked])
def test_layouts(tmp_path, change):
    raw = make_openi(tmp_path / "raw")
    prepare(raw, tmp_path / "expected", **OPTIONS)
    change(raw)
    assert prepare(raw, tmp_path / "out", **OPTIONS).dropped == {"view lateral": 10}
    columns = ["image_id", "split", "view", "image", "findings", "impression"]
    expected, found = (load_studies(tmp_path / name).table[columns] for name in ("expected", "out"))
    pd.testing.assert_frame_equal(found, expected)


def test_splits_depend_on_the_seed_alone(tmp_path):
    raw = make_openi(tmp_path / "raw", reports=30)
    groups = {}
    for name, options in {
        "a": {"seed": 1},
        "b": {"seed": 1, "views": "all"},
        "c": {"seed": 2},
        "d": {"seed": 1, "valid_fraction": 0.3, "test_fraction": 0.0},
    }.items():
        prepare(raw, tmp_path / name, **options, **OPTIONS)
        groups[name] = defaultdict(set)
        for row in load_studies(tmp_path / name).table.itertuples():
            groups[name][row.split].add(row.patient_id)
    assert {split: len(group) for split, group in groups["a"].items()} == {"train": 21, "valid": 3, "test": 6}
    assert groups["a"] == groups["b"] != groups["c"]
    assert {split: len(group) for split, group in groups["d"].items()} == {"train": 21, "valid": 9}
    assert sum(len(group) for group in groups["a"].values()) == len(set.union(*groups["a"].values())) == 30


def test_stop_and_go_on(tmp_path, monkeypatch, capsys):
    raw = make_openi(tmp_path / "raw")
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


def test_notes_say_what_was_not_used(tmp_path):
    raw = make_openi(tmp_path / "raw")
    write_picture(raw / IMAGES / "CXR99_IM-0099-1001.png")
    write_picture(raw / IMAGES / "logo.png")  # not of the collection
    rewrite(raw, 7, images=[])
    summary = prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.dropped == {"view lateral": 9, "report without images": 1}
    assert summary.by_design == {"view lateral", "report without images"}
    assert summary.notes == (
        "3 image files are named by no report",  # that one and the two of report 7
        "2 reports have no MeSH terms of findings; their labels are unknown",  # 4 and 9: No Indexing
    )


def test_where_it_comes_from_is_listed():
    access = OPEN_ACCESS["openi"]
    assert access.script == f"{main.__module__.replace('.', '/')}.py"
    assert ARCHIVE in access.download
    assert PROJECTIONS in access.download


def test_parse_report():
    text = document(12, images=image_names(12, count=3), terms=["Opacity/lung", " Spine/degenerative "])
    report = parse_report(text.replace('Label="FINDINGS"', 'Label="Findings"').encode())
    assert (report.uid, report.terms) == ("CXR12", ("Opacity/lung", "Spine/degenerative"))
    assert report.findings == FINDINGS.format(number=12)
    assert report.impression == IMPRESSION
    assert [image.image_id for image in report.images] == image_names(12, count=3)
    assert {image.caption for image in report.images} == {CAPTION}
    assert [image.line for image in report.images] == [
        line_of(text, f'id="{name}"') for name in image_names(12, count=3)
    ]


def test_parse_report_joins_what_is_split_and_keeps_entities_of_xml():
    text = document(1, findings="Heart &lt; 50 &#37;,\n      lungs <b>clear</b> &amp; wide.")
    text = text.replace("         </Abstract>", '<AbstractText Label="IMPRESSION"> Again. </AbstractText></Abstract>')
    report = parse_report(text.replace("utf-8", "utf-16").encode("utf-16"))
    assert report.findings == "Heart < 50 %, lungs clear & wide."
    assert report.impression == f"{IMPRESSION} Again."


def test_entities_are_never_expanded(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    bomb = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "x" * 10}">' for i in range(12))
    external = f'<!ENTITY e11 SYSTEM "{(tmp_path / "secret.txt").as_uri()}">'
    for declared in (bomb, external, ""):
        doctype = f"<!DOCTYPE eCitation [{declared}]>\n<eCitation>"
        text = document(1, findings="&e11;" if declared else "clear").replace("<eCitation>", doctype, 1)
        with pytest.raises(ReportError, match="declares a document type") as caught:
            parse_report(text.encode())
        assert caught.value.line == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Normal chest x-XXXX.", "Normal chest."),
        ("XXXX XXXX male, XXXX.", "male,."),
        ("A XXXX-year-old with XXXX's disease", "A with disease"),
        ("3-5XXXX/2 days (XXXX) ago", "days ago"),
        ("XXXX<XXXX>word stays", "stays"),
        ("compared to XXXX.There is", "compared to.There is"),
        ("no mark, xx and XXX stay", "no mark, xx and XXX stay"),
        ("XXXX", ""),
        ("", ""),
    ],
)
def test_remove_marks(text, expected):
    assert remove_marks(text) == expected


@pytest.mark.parametrize(
    ("terms", "positive"),
    [
        (["normal"], {"No Finding"}),
        (["Opacity/lung/base/left", "Cardiomegaly/mild"], {"Lung Opacity", "Cardiomegaly"}),
        (["Opacity/retrocardiac"], set()),
        (["Cardiac Shadow/enlarged/mild"], {"Cardiomegaly"}),
        (["Cardiac Shadow/borderline"], set()),
        (["Mediastinum/right/enlarged/mild"], {"Enlarged Cardiomediastinum"}),
        (["Mediastinum/paratracheal/enlarged "], {"Enlarged Cardiomediastinum"}),
        (["Hydropneumothorax/left"], {"Pneumothorax", "Pleural Effusion"}),
        (["Nodule/lung/lingula", "Mass/breast/large"], {"Lung Lesion"}),
        (["Mass/breast/large"], set()),
        (["Thickening/pleura/apex/bilateral"], {"Pleural Other"}),
        (["Thickening/bronchovascular"], set()),
        (["Fractures, Bone/ribs/right"], {"Fracture"}),
        (["PULMONARY EDEMA/interstitial"], {"Edema"}),
        (["Catheters, Indwelling/right", "normal"], {"Support Devices", "No Finding"}),
        (["Technical Quality of Image Unsatisfactory ", "Pneumonia"], {"Pneumonia"}),
        (["Opacityx/lung"], set()),
    ],
)
def test_labels_from_terms(terms, positive):
    assert labels_from_terms(terms) == {name: float(name in positive) for name in CHEXPERT_LABELS}


@pytest.mark.parametrize("terms", [[], ["No Indexing"], ["Technical Quality of Image Unsatisfactory "]])
def test_labels_of_a_report_that_was_not_indexed_are_unknown(terms):
    assert labels_from_terms(terms) == dict.fromkeys(CHEXPERT_LABELS)


def test_every_label_has_a_term():
    assert {name for _, _, names in MESH_LABELS for name in names} == set(CHEXPERT_LABELS)
    assert all(text == text.lower() for heading, qualifier, _ in MESH_LABELS for text in (heading, qualifier))


@pytest.mark.parametrize(
    ("caption", "view", "projection"),
    [
        ("Xray Chest PA and Lateral", "", "PA"),
        ("CHEST 2V FRONTAL/LATERAL XXXX, XXXX XXXX PM", "", ""),
        ("AP portable chest", "frontal", "AP"),
        ("CHEST SINGLE VIEW FRONTAL", "frontal", ""),
        ("Posteroanterior chest", "frontal", "PA"),
        ("PA or AP chest", "frontal", ""),
        ("Lateral view of the chest", "lateral", ""),
        ("Chest XXXX and lateral", "", ""),
        ("XXXX lateral chest", "", ""),
        ("Chest, 2 views, supine and crosstable lateral", "", ""),
        ("Two views lateral chest", "", ""),
        ("chest 2v lateral", "", ""),
        ("Chest radiograph", "", ""),
        ("Collateral apparatus", "", ""),
        ("", "", ""),
    ],
)
def test_views_from_captions(caption, view, projection):
    assert (view_from_caption(caption), projection_from_caption(caption)) == (view, projection)


def edit(raw, number, old, new):
    replace(raw / REPORTS / f"{number}.xml", old, new)


def write_report(raw, number, content):
    (raw / REPORTS / f"{number}.xml").write_bytes(content)


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def archive_instead(raw, content):
    shutil.rmtree(raw / "NLMCXR_reports")
    (raw / ARCHIVE).write_bytes(content)


def archive_cut(raw):
    packed(raw)
    cut(raw / ARCHIVE, (raw / ARCHIVE).stat().st_size // 2)


def archive_without_reports(raw):
    shutil.rmtree(raw / "NLMCXR_reports")
    with tarfile.open(raw / ARCHIVE, "w:gz") as archive:
        archive.add(raw / PROJECTIONS, "readme.txt")


# what is wrong, damage(raw folder), what the message names
FATAL = [
    ("no such folder", shutil.rmtree, ["no such folder"]),
    ("a file, not a folder", lambda r: (shutil.rmtree(r), r.write_text("x")), ["is a file"]),
    ("no reports", lambda r: shutil.rmtree(r / "NLMCXR_reports"), ["neither reports", ARCHIVE]),
    ("no images", lambda r: shutil.rmtree(r / IMAGES), ["no Open-i image"]),
    ("no table of views", lambda r: (r / PROJECTIONS).unlink(), [PROJECTIONS, "--views all"]),
    ("two tables of views", lambda r: shutil.copy(r / PROJECTIONS, r / IMAGES), [PROJECTIONS, "more than once"]),
    ("empty table of views", lambda r: (r / PROJECTIONS).write_bytes(b""), [PROJECTIONS, "is empty"]),
    ("no projection column", lambda r: replace(r / PROJECTIONS, "projection", "view"), [PROJECTIONS, "'projection'"]),
    ("unknown projection", lambda r: replace(r / PROJECTIONS, "Lateral", "Oblique"), ["row 3", "'Oblique'"]),
    ("blank projection", lambda r: replace(r / PROJECTIONS, "Lateral", ""), ["row 3", "''"]),
    ("unknown image name", lambda r: replace(r / PROJECTIONS, "2_IM-0002-1001", "frontal"), ["row 4", "frontal.dcm"]),
    (
        "image of both views",
        lambda r: append(r / PROJECTIONS, "1,1_IM-0001-1001.dcm.png,Lateral"),
        [PROJECTIONS, "row 22", "both frontal and lateral"],
    ),
    ("archive of zeros", lambda r: archive_instead(r, bytes(999)), [ARCHIVE]),
    ("archive that is none", lambda r: archive_instead(r, b"<html>try later</html>"), [ARCHIVE, "not a readable"]),
    ("archive cut off", archive_cut, [ARCHIVE, "not a readable archive"]),
    ("archive without reports", archive_without_reports, [ARCHIVE, "holds no reports"]),
    (
        "every report unreadable",
        lambda r: [path.write_bytes(b"") for path in (r / REPORTS).iterdir()],
        ["all 10 rows were dropped", "report unreadable"],
    ),
]
# what is wrong, damage(raw folder), reason, (file, line) of each row that is left out
NINE = f"{REPORTS}/9.xml"
LINES = [line_of(document(9), f'id="{name}"') for name in image_names(9)]
FRONTAL = [(NINE, LINES[0])]
DROPS = [
    ("report empty", lambda r: write_report(r, 9, b""), "report unreadable", [(NINE, 1)]),
    ("report binary", lambda r: write_report(r, 9, bytes(range(256))), "report unreadable", [(NINE, 1)]),
    ("report is a web page", lambda r: write_report(r, 9, b"<html>no</html>"), "not an Open-i report", [(NINE, 1)]),
    ("report cut off", lambda r: cut(r / NINE, 700), "report unreadable", [(NINE, document(9)[:700].count("\n") + 1)]),
    ("tag not closed", lambda r: edit(r, 9, "</Abstract>", ""), "report unreadable", [(NINE, 15)]),
    ("bare ampersand", lambda r: edit(r, 9, "Cough and", "Cough & cold"), "report unreadable", [(NINE, 11)]),
    ("unknown entity", lambda r: edit(r, 9, "Cough and", "&cough;"), "report unreadable", [(NINE, 11)]),
    ("unknown encoding", lambda r: edit(r, 9, "utf-8", "utf-9"), "report unreadable", [(NINE, 1)]),
    (
        "wrong encoding",
        lambda r: write_report(r, 9, document(9).replace("C", "\xc7").encode("latin-1")),
        "report unreadable",
        [(NINE, line_of(document(9), "C"))],
    ),
    (
        "document type declared",
        lambda r: edit(r, 9, "<eCitation>", '<!DOCTYPE eCitation SYSTEM "a.dtd"><eCitation>'),
        "report unreadable",
        [(NINE, 2)],
    ),
    ("report without id", lambda r: edit(r, 9, '<uId id="CXR9"/>', ""), "not an Open-i report", [(NINE, 1)]),
    ("report with a blank id", lambda r: edit(r, 9, '"CXR9"', '" "'), "not an Open-i report", [(NINE, 1)]),
    (
        "no sections",
        lambda r: write_report(r, 9, document(9).replace("Label=", "Name=").encode()),
        "not an Open-i report",
        [(NINE, 1)],
    ),
    (
        "report is a link to nothing",
        lambda r: ((r / NINE).unlink(), (r / NINE).symlink_to("no")),
        "report unreadable",
        [(NINE, 1)],
    ),
    (
        "both sections empty",
        lambda r: rewrite(r, 9, findings="", impression=" "),
        "report has neither findings nor impression",
        FRONTAL,
    ),
    (
        "marks alone",
        lambda r: rewrite(r, 9, findings="XXXX XXXX.", impression="XXXX"),
        "report has fewer than 3 words",
        FRONTAL,
    ),
    ("image id blank", lambda r: edit(r, 9, 'id="CXR9_IM-0009-1001"', 'id=""'), "id missing or malformed", FRONTAL),
    (
        "image without id",
        lambda r: edit(r, 9, 'parentImage id="CXR9_IM-0009-1001"', "parentImage"),
        "id missing or malformed",
        FRONTAL,
    ),
    (
        "image id leaves the folder",
        lambda r: edit(r, 9, 'id="CXR9_IM-0009-1001"', 'id="../CXR9_IM-0009-1001"'),
        "id missing or malformed",
        FRONTAL,
    ),
    (
        "image of another report",
        lambda r: edit(r, 9, 'id="CXR9_IM-0009-1001"', 'id="CXR8_IM-0008-1001"'),
        "image of another report",
        FRONTAL,
    ),
    (
        "image named twice",
        lambda r: edit(r, 9, 'id="CXR9_IM-0009-2001"', 'id="CXR9_IM-0009-1001"'),
        "duplicate id",
        [(NINE, LINES[1])],
    ),
    (
        "report twice",
        lambda r: shutil.copy(r / NINE, r / REPORTS / "9999.xml"),
        "duplicate id",
        [(f"{REPORTS}/9999.xml", LINES[0])],
    ),
    ("image missing", lambda r: (r / IMAGES / "CXR9_IM-0009-1001.png").unlink(), "image file missing", FRONTAL),
    (
        "image empty",
        lambda r: (r / IMAGES / "CXR9_IM-0009-1001.png").write_bytes(b""),
        "image unreadable",
        FRONTAL,
    ),
    ("image cut off", lambda r: cut(r / IMAGES / "CXR9_IM-0009-1001.png", 200), "image unreadable", FRONTAL),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_openi(tmp_path_factory.mktemp("whole") / "raw")


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


@pytest.mark.parametrize(("damage", "reason", "rows"), [case[1:] for case in DROPS], ids=[case[0] for case in DROPS])
def test_drop(whole, tmp_path, capsys, damage, reason, rows):
    raw = shutil.copytree(whole, tmp_path / "raw")
    damage(raw)
    code, printed, error = run(raw, tmp_path / "out", capsys)
    assert (code, error) == (0, "")
    assert f"- {reason} " in printed
    dropped = pd.read_csv(tmp_path / "out/dropped.csv", keep_default_na=False)
    faults = dropped[dropped["faulty"].astype(str) == "True"]
    assert list(faults[["file", "row"]].itertuples(index=False, name=None)) == rows
    assert set(faults["reason"]) == {reason}
    options = load_studies(tmp_path / "out").card.options
    assert options["rows_in"] == options["rows_out"] + len(dropped)
    code, _, error = run(raw, tmp_path / "strict", capsys, "--strict")
    assert code == 1
    assert error.count("\n") == 1
    for part in (rows[0][0], f"row {rows[0][1]}:", reason):
        assert part in error
    assert not (tmp_path / "strict/card.json").exists()


def test_undamaged_data_pass_strictly(whole, tmp_path, capsys):
    assert run(whole, tmp_path / "out", capsys, "--strict")[0] == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--views", "oblique"], "--views"),
        (["--seed", "-1"], "--seed -1"),
        (["--seed", "one"], "--seed"),
        (["--valid-fraction", "1"], "--valid-fraction 1.0"),
        (["--test-fraction", "nan"], "--test-fraction nan"),
        (["--valid-fraction", "0.5", "--test-fraction", "0.5"], "nothing is left for training"),
    ],
)
def test_bad_arguments(whole, tmp_path, capsys, options, named):
    code, _, error = run(whole, tmp_path / "out", capsys, *options)
    assert code == 2
    assert named in error
    assert not (tmp_path / "out").exists()


def test_output_inside_the_raw_folder_is_refused(whole, capsys):
    code, _, error = run(whole, whole / "prepared", capsys)
    assert code == 2
    assert "name a folder outside" in error
    assert not (whole / "prepared").exists()
