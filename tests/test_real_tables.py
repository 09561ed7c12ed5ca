"""The readers on the tables and reports of the real releases, as their owners ship them.

The package ``torchxrayvision`` brings these files along. It is no dependency: ``pip install --no-deps torchxrayvision``
is enough for these tests, which are skipped without it. Nothing of the files is copied into the repository. Expected
numbers are those that the owners publish, or were counted in the files without the readers.
"""

import csv
import gzip
import importlib.util
import io
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_scripts import prepare_chexpert, prepare_covid_cxr, prepare_nih, prepare_openi, prepare_rsna
from data_scripts.ledger import Ledger
from data_scripts.openi_reports import labels_from_terms, parse_report, remove_marks
from data_scripts.preparation import read_table
from data_scripts.run_length import NO_RUNS, decode_runs, encode_runs
from mgca_lib.data.denial import denied_words
from mgca_lib.data.reports import clean_sentences
from mgca_lib.data.studies import load_studies
from mgca_lib.data.tasks import CHEXPERT_LABELS

STORED = 256  # side of prepared images, pixels


@pytest.fixture(scope="module")
def tables() -> Path:
    """The folder of the package's data; the package itself is not imported."""
    found = importlib.util.find_spec("torchxrayvision")
    if found is None:
        pytest.skip("no real tables: pip install --no-deps torchxrayvision")
    return Path(found.origin).parent / "data"


def unpack(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(source) as packed, target.open("wb") as plain:
        shutil.copyfileobj(packed, plain)
    return target


@pytest.fixture(scope="module")
def openi(tables) -> dict[str, bytes]:
    """The XML files of the Indiana University reports, by name."""
    with tarfile.open(tables / "NLMCXR_reports.tgz") as archive:
        members = [member for member in archive if member.name.endswith(".xml")]
        return {member.name: archive.extractfile(member).read() for member in members}


def test_all_reports_of_openi_are_read(openi):
    """3,955 reports, 7,470 images (Demner-Fushman et al. 2016); 104 reports have no image."""
    reports = [parse_report(content) for content in openi.values()]
    assert len(reports) == len({report.uid for report in reports}) == 3955
    images = [image.image_id for report in reports for image in report.images]
    assert len(images) == len(set(images)) == 7470
    assert sum(not report.images for report in reports) == 104
    raw = [set(re.findall(r'<parentImage id="([^"]+)"', content.decode())) for content in openi.values()]
    assert [{image.image_id for image in report.images} for report in reports] == raw


def test_no_mark_of_openi_is_left_and_nothing_else_is_taken(openi):
    """A mark takes the letters joined to it along, and no other word."""
    marked = 0
    for content in openi.values():
        report = parse_report(content)
        for text in (report.findings, report.impression):
            if text and "XXXX" in text:
                kept = remove_marks(text)
                words = [word for word in text.split() if "XXXX" not in word]
                assert "XXXX" not in kept
                assert Counter(re.findall(r"\w+", " ".join(words))) - Counter(re.findall(r"\w+", kept)) == Counter()
                marked += 1
    assert marked > 1000


def test_most_findings_that_openi_names_are_denied(openi):
    """Marked by rules and counted here; the shares are those that notebooks/RESULTS.md gives.

    The 35 mentions of a pneumothorax that are not denied were read: all but a few fragments of sentences state one.
    """
    counted = {"pneumothora": Counter(), "effusion": Counter(), "consolidation": Counter(), "nodule": Counter()}
    for content in openi.values():
        report = parse_report(content)
        sections = {name: remove_marks(getattr(report, name) or "") for name in ("findings", "impression")}
        for sentence in clean_sentences(**sections):
            for word, denied in zip(sentence.split(), denied_words(sentence), strict=True):
                for root in counted:
                    if word.startswith(root):
                        counted[root][denied] += 1
    shares = {root: round(100 * count[True] / count.total()) for root, count in counted.items()}
    assert shares == {"pneumothora": 99, "effusion": 91, "consolidation": 97, "nodule": 54}


def test_labels_of_openi_are_those_of_its_major_terms(openi):
    """Counted in the text of the files: how many reports have a major term that begins with the heading."""
    headings = {
        "No Finding": "normal",
        "Pneumonia": "Pneumonia",
        "Consolidation": "Consolidation",
        "Atelectasis": "Pulmonary Atelectasis",
        "Fracture": "Fractures, Bone",
    }
    counted, labelled = Counter(), Counter()
    for content in openi.values():
        majors = re.findall(r"<major>([^<]*)</major>", content.decode())
        for label, heading in headings.items():
            counted[label] += any(major.split("/")[0].lower() == heading.lower() for major in majors)
        labels = labels_from_terms(parse_report(content).terms)
        labelled.update(name for name in headings if labels[name] == 1)
    assert counted == labelled
    assert min(counted.values()) >= 30


def test_openi_is_prepared_from_its_archive(tables, openi, tmp_path):
    """The archive as it is, and blank images for 60 of its 7,470: the others are reported, one row each."""
    raw = tmp_path / "raw"
    (raw / "NLMCXR_png").mkdir(parents=True)
    shutil.copy(tables / "NLMCXR_reports.tgz", raw)
    names = [name for content in openi.values() for name in re.findall(r'<parentImage id="([^"]+)"', content.decode())]
    for number, name in enumerate(sorted(names)[:60]):
        Image.new("L", (40, 50), number + 40).save(raw / "NLMCXR_png" / f"{name}.png")
    summary = prepare_openi.prepare(raw, tmp_path / "out", views="all", workers=1, quiet=True)
    assert summary.rows_in == 7470 + 104
    assert summary.rows_out + sum(summary.dropped.values()) == summary.rows_in
    studies = load_studies(tmp_path / "out")
    assert len(studies) == summary.rows_out > 50
    reports = [parse_report(content) for content in openi.values()]
    stored = set(studies.table["study_id"])
    marked = [one for one in reports if one.uid in stored and "XXXX" in f"{one.findings} {one.impression}"]
    assert len(marked) > 5, "reports without marks would prove nothing"
    for section in ("findings", "impression"):
        assert not any("XXXX" in text for text in studies.table[section])


def test_runs_of_siim(tables, tmp_path):
    """12,047 images, 2,669 with a pneumothorax in 3,576 rows: the training table of stage 2.

    A mask has as many pixels as its lengths add up to, begins where its first offset says, and survives its own code.
    """
    table = read_table(
        unpack(tables / "siim-pneumothorax-train-rle.csv.gz", tmp_path / "train-rle.csv"), ["ImageId", "EncodedPixels"]
    )
    runs = table[table["EncodedPixels"] != NO_RUNS]
    assert (len(table), table["ImageId"].nunique()) == (12954, 12047)
    assert (len(runs), runs["ImageId"].nunique()) == (3576, 2669)
    for text in runs["EncodedPixels"].iloc[::30]:
        mask = decode_runs(text, height=1024, width=1024)
        numbers = np.array(text.split(), dtype=int)
        assert mask.sum() == numbers[1::2].sum()
        first = numbers[0]
        assert mask[first % 1024, first // 1024]
        assert not mask.ravel(order="F")[:first].any()
        assert np.array_equal(decode_runs(encode_runs(mask), height=1024, width=1024), mask)


def test_boxes_of_rsna(tables):
    """26,684 patients, 6,012 with pneumonia, 9,555 boxes (Shih et al. 2019)."""
    with zipfile.ZipFile(tables / "kaggle_stage_2_train_labels.csv.zip") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".csv") and "/" not in name)
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open(name), encoding="utf-8")))
    assert len(rows) == 30227
    by_patient: dict[str, list] = {}
    for number, row in enumerate(rows):
        by_patient.setdefault(row["patientId"], []).append(row | {"row": number + 2})
    read = [prepare_rsna._read_boxes(own) for own in by_patient.values()]
    assert len(read) == 26684
    assert sum(target for target, _ in read) == 6012
    boxes = [box for _, own in read for box in own]
    assert len(boxes) == 9555
    assert all(box["x"] + box["w"] <= 1024 and box["y"] + box["h"] <= 1024 for box in boxes)


def test_nih_is_prepared_from_its_tables(tables, tmp_path):
    """112,120 images, 984 boxes on 880 of them (Wang et al. 2017); 30 of those are there, in half the released size."""
    raw = tmp_path / "raw"
    entries = unpack(tables / "Data_Entry_2017_v2020.csv.gz", raw / "Data_Entry_2017_v2020.csv")
    boxes = pd.read_csv(unpack(tables / "BBox_List_2017.csv.gz", raw / "BBox_List_2017.csv"), index_col=False)
    assert (len(boxes), boxes["Image Index"].nunique()) == (984, 880)
    (raw / "images").mkdir()
    names = sorted(boxes["Image Index"].unique())[:30]
    for name in names:
        Image.new("L", (512, 512), 99).save(raw / "images" / name)
    summary = prepare_nih.prepare(raw, tmp_path / "out", partial=True, workers=1, quiet=True)
    assert summary.rows_in == 112120
    assert summary.rows_out == 30
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    assert sorted(table.index) == names
    for name, own in boxes.groupby("Image Index"):
        if name in table.index:
            expected = own[["Bbox [x", "y", "w", "h]"]].to_numpy() * STORED / 1024
            found = [[box[side] for side in "xywh"] for box in table.loc[name, "boxes"]]
            np.testing.assert_allclose(found, expected, atol=1e-3)
    findings = pd.read_csv(entries, usecols=["Image Index", "Finding Labels"]).set_index("Image Index")
    for name in names:
        own = findings.loc[name, "Finding Labels"].split("|")
        assert [label for label in prepare_nih.NIH_LABELS if table.loc[name, "labels"][label] == 1] == sorted(
            own, key=prepare_nih.NIH_LABELS.index
        )


def test_lung_masks_of_v7_labs(tables, tmp_path):
    """They are PNG files called like the images, whatever those are; lungs are 255 there, other drawings 127."""
    with zipfile.ZipFile(tables / "semantic_masks_v7labs_lungs.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "semantic_masks_v7labs_lungs"
    names = ("f6d980a0.jpg", "f64132c8.jpg", "case_76_1-3.png", "16745_2_2.PNG")  # two with grey, one plain, one black
    images = tmp_path / "raw/images"
    images.mkdir(parents=True)
    columns = ("patientid", "finding", "view", "modality", "filename", "license")
    rows = [(number, "No Finding", "PA", "X-ray", name, "") for number, name in enumerate(names)]
    shares = {}
    for name in names:
        mask = np.asarray(Image.open(folder / name))
        shares[name] = (mask == 255).mean()
        Image.new("L", mask.shape[::-1], 99).save(images / name)
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(tmp_path / "raw/metadata.csv", index=False)
    prepare_covid_cxr.prepare(tmp_path / "raw", tmp_path / "out", lung_masks=folder, workers=1, quiet=True)
    for row in load_studies(tmp_path / "out").table.to_dict("records"):
        if shares[row["image_id"]] == 0:
            assert row["mask"] == ""
        else:
            stored = np.asarray(Image.open(tmp_path / "out" / row["mask"])) > 0
            assert stored.mean() == pytest.approx(shares[row["image_id"]], abs=0.005)


@pytest.mark.slow
def test_rows_of_chexpert(tables, tmp_path):
    """223,414 training images of 64,540 patients, 191,027 of them frontal (Irvin et al. 2019)."""
    path = unpack(tables / "chexpert_train.csv.gz", tmp_path / "train.csv")
    ledger = Ledger()
    candidates = prepare_chexpert._read(tmp_path, "train", ledger)
    assert ledger.rows_in == 223414
    raw = pd.read_csv(path)
    frontal = raw[raw["Frontal/Lateral"] == "Frontal"]
    assert len(candidates) == len(frontal) == 191027
    assert raw["Path"].str.extract(r"(patient\d+)")[0].nunique() == 64540
    for label in CHEXPERT_LABELS:
        found = Counter(candidate.labels[label] for candidate in candidates)
        assert [found[value] for value in (1.0, 0.0, -1.0)] == [int((frontal[label] == v).sum()) for v in (1, 0, -1)]
