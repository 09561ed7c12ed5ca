"""The raw layouts: files, columns and values as their owners document them, ground truth, and equal bytes."""

import csv
import gzip
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image

from data_scripts.make_phantoms import PROFILES, PhantomError, main, make_phantoms
from data_scripts.phantom.cases import FINDINGS, IMPLANTS, LASTING, Case, Finding, sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.labels import chexpert_labels, negbio_labels
from data_scripts.phantom.layouts import chexpert, covidx, mimic_cxr, object_cxr, rsna, siim
from data_scripts.phantom.layouts.common import Film, Settings, follow_up, mask_parts, write_csv, write_film
from data_scripts.phantom.render import render_case
from data_scripts.phantom.reports import PhantomReport, Phrase
from data_scripts.run_length import decode_runs

COUNTS = {"mimic_cxr": 24, "chexpert": 14, "rsna": 10, "covidx": 12, "siim": 7, "object_cxr": 8}
SIZE = 96
MIMIC_CLASSES = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
CHEXPERT_HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def tree_hash(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("raw")
    make_phantoms(out, profile="smoke", seed=5, size=SIZE, counts=COUNTS, workers=1)
    return out


def mimic_table(raw: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(raw / f"mimic_cxr/mimic-cxr-2.0.0-{name}.csv.gz")


def test_same_bytes_for_any_number_of_workers(raw, tmp_path):
    make_phantoms(tmp_path, profile="smoke", seed=5, size=SIZE, counts=COUNTS, workers=2)
    assert tree_hash(tmp_path) == tree_hash(raw)


def test_another_seed_gives_other_images_and_reports(raw, tmp_path):
    make_phantoms(tmp_path, datasets=["mimic_cxr"], seed=6, size=SIZE, counts={"mimic_cxr": 3})
    assert not set(tree_hash(tmp_path).values()) & set(tree_hash(raw).values())


def test_finished_datasets_are_left_alone(raw, capsys):
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    make_phantoms(raw, profile="smoke", seed=5, size=SIZE, counts=COUNTS)
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == before
    assert capsys.readouterr().out.count("already there") == len(COUNTS)


def test_unfinished_work_is_thrown_away(tmp_path):
    (tmp_path / ".rsna.partial").mkdir()
    (tmp_path / ".rsna.partial" / "rubbish").write_text("x")
    (tmp_path / "rsna").mkdir()
    make_phantoms(tmp_path, datasets=["rsna"], size=64, counts={"rsna": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rsna"]
    assert not (tmp_path / "rsna" / "rubbish").exists()


def test_each_dataset_has_a_card(raw):
    for name, count in COUNTS.items():
        card = json.loads((raw / name / "PHANTOM.json").read_text())
        assert card["source"] == "phantom"
        assert card["restricted"] is False
        assert (card["name"], card["hospital"], card["seed"], card["size"]) == (name, name, 5, SIZE)
        assert sum(card["counts"].values()) == count


def test_mimic_tables_have_the_original_columns(raw):
    folder = raw / "mimic_cxr"
    with gzip.open(folder / "mimic-cxr-2.0.0-metadata.csv.gz", "rt") as stream:
        assert stream.readline().strip() == (
            "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,"
            "StudyTime,ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,"
            "PatientOrientationCodeSequence_CodeMeaning"
        )
    with gzip.open(folder / "mimic-cxr-2.0.0-split.csv.gz", "rt") as stream:
        assert stream.readline().strip() == "dicom_id,study_id,subject_id,split"
    for labeler in ("chexpert", "negbio"):
        with gzip.open(folder / f"mimic-cxr-2.0.0-{labeler}.csv.gz", "rt") as stream:
            assert stream.readline().strip() == f"subject_id,study_id,{MIMIC_CLASSES}"
            cells = {cell for row in csv.reader(stream) for cell in row[2:]}
        assert cells <= {"1.0", "0.0", "-1.0", ""}


def test_mimic_tree_matches_its_tables(raw):
    folder = raw / "mimic_cxr"
    metadata = mimic_table(raw, "metadata")
    named = set()
    for row in metadata.itertuples():
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}", row.dicom_id)
        study = f"files/p{str(row.subject_id)[:2]}/p{row.subject_id}/s{row.study_id}"
        named.add(f"{study}/{row.dicom_id}.jpg")
        with Image.open(folder / study / f"{row.dicom_id}.jpg") as picture:
            assert picture.mode == "L"
            assert picture.size == (row.Columns, row.Rows)
            assert max(picture.size) == SIZE
        assert (folder / "mimic-cxr-reports" / f"{study}.txt").read_text().lstrip().startswith("FINAL REPORT")
    assert named == {str(path.relative_to(folder)) for path in (folder / "files").rglob("*.jpg")}
    reports = list((folder / "mimic-cxr-reports").rglob("*.txt"))
    assert len(reports) == metadata["study_id"].nunique() == len(mimic_table(raw, "chexpert"))


def test_mimic_splits_never_share_a_patient_and_have_the_asked_sizes(raw):
    split = mimic_table(raw, "split")
    assert (split.groupby("subject_id")["split"].nunique() == 1).all()
    frontal = mimic_table(raw, "metadata").merge(split[["dicom_id", "split"]], on="dicom_id")
    frontal = frontal[frontal["ViewPosition"].isin(["PA", "AP"])]
    assert frontal["split"].value_counts().to_dict() == {"train": 16, "test": 5, "validate": 3}


def plan_mimic(counts: dict[str, int]) -> list:
    return mimic_cxr._plan(Settings(seed=1, size=256, counts=counts))


def test_mimic_studies_are_as_varied_as_the_original():
    studies = plan_mimic({"train": 500, "validate": 20, "test": 40})
    images = Counter(image.view for study in studies for image in study.images)
    assert images["AP"] + images["PA"] == 560
    assert images["LATERAL"] > 30
    assert sum(len([i for i in s.images if i.view != "LATERAL"]) == 2 for s in studies) > 20
    visits = Counter(study.subject_id for study in studies)
    assert max(visits.values()) >= 3
    assert 0.5 < len(visits) / len(studies) < 0.9
    assert len({study.study_id for study in studies}) == len(studies)
    by_patient: dict[int, list] = {}
    for study in studies:
        by_patient.setdefault(study.subject_id, []).append(study)
    for visits_of_one in by_patient.values():
        assert len({(s.case.sex, s.case.age, s.case.habitus) for s in visits_of_one}) == 1
        dates = [study.date for study in visits_of_one]
        assert dates == sorted(dates)


def test_mimic_studies_of_a_patient_show_one_body():
    studies = plan_mimic({"train": 300, "validate": 3, "test": 3})
    patients: dict[int, set] = {}
    for study in studies:
        patients.setdefault(study.subject_id, set()).add(study.case.patient)
        films = [image.film for image in study.images if image.film.case]
        assert {film.case.patient for film in films} == {study.case.patient}
        assert len({film.study for film in films}) == 1
        assert len({film.seed for film in films}) == len(films)
    assert all(len(seeds) == 1 for seeds in patients.values())
    assert None not in set.union(*patients.values())
    assert len(set.union(*patients.values())) == len(patients) < len(studies)


def test_mimic_says_lateral_only_where_there_is_a_lateral_film(raw):
    metadata = mimic_table(raw, "metadata")
    procedures = set()
    for _, study in metadata.groupby("study_id"):
        procedure, views = study["PerformedProcedureStepDescription"].iloc[0], set(study["ViewPosition"])
        assert procedure.endswith("LAT)") == ("LATERAL" in views)
        assert procedure.startswith("CHEST (PA") == ("PA" in views)
        procedures.add(procedure)
    assert procedures == {"CHEST (PORTABLE AP)", "CHEST (PA)", "CHEST (PA AND LAT)"}
    for study in plan_mimic({"train": 200, "validate": 3, "test": 3}):
        assert study.case.lateral == any(image.view == "LATERAL" for image in study.images)


def test_negbio_agrees_with_chexpert_on_most_labels_but_not_on_all():
    reports = [study.report for study in plan_mimic({"train": 300, "validate": 3, "test": 3})]
    same, differ = 0, Counter()
    for report in reports:
        one, other = chexpert_labels(report), negbio_labels(report)
        for name, value in one.items():
            if value == other[name] or (np.isnan(value) and np.isnan(other[name])):
                same += 1
            else:
                differ[value, other[name]] += 1
    assert 0.003 < differ.total() / (same + differ.total()) < 0.05
    assert differ[-1.0, 1.0] > 0


@pytest.mark.parametrize(
    ("text", "chexpert_value", "negbio_value"),
    [
        ("Pneumonia is suspected. Heart is normal.", -1.0, 1.0),
        ("Edema is suspected. Possible pneumonia.", -1.0, -1.0),
        ("Possible infiltrate.", -1.0, float("nan")),
    ],
)
def test_negbio_reads_the_phrases_own_sentence(text, chexpert_value, negbio_value):
    words = re.findall(r"\w+", text)
    (place,) = [i for i, word in enumerate(words) if word.lower() in ("pneumonia", "infiltrate")]
    phrase = Phrase("findings", place, place, words[place], 0, "pneumonia", False, True, ("Pneumonia",))
    report = PhantomReport("", text, "", (phrase,))
    np.testing.assert_equal(chexpert_labels(report)["Pneumonia"], chexpert_value)
    np.testing.assert_equal(negbio_labels(report)["Pneumonia"], negbio_value)


def test_every_class_has_positives_in_every_smoke_split():
    studies = plan_mimic(PROFILES["smoke"]["mimic_cxr"])
    for split in ("train", "validate", "test"):
        names = {f.name for study in studies if study.split == split for f in study.case.findings}
        assert len(names & set(FINDINGS)) >= (10 if split != "validate" else 5)
    for split in chexpert.SPLITS:
        rows = chexpert._plan(Settings(seed=1, size=256, counts=PROFILES["smoke"]["chexpert"]), split)
        for name in ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"):
            values = [row.labels[name] for row in rows]
            assert values.count(1.0) >= 2, (split, name)
            assert len(values) - values.count(1.0) >= 2


def test_ground_truth_spans_and_masks(raw):
    folder = raw / "mimic_cxr"
    truth = folder / "ground_truth"
    phrases = pd.read_parquet(truth / "phrases.parquet")
    metadata = mimic_table(raw, "metadata").set_index("dicom_id")
    assert list(phrases.columns) == [
        *("dicom_id", "study_id", "section", "first_word", "last_word", "phrase", "finding", "side", "zone"),
        *("severity", "negated", "uncertain", "mask", "x", "y", "w", "h"),
    ]
    assert phrases["negated"].any()
    assert (~phrases["negated"]).any()
    for row in phrases.itertuples():
        image = metadata.loc[row.dicom_id]
        assert image["ViewPosition"] in ("PA", "AP")
        study = f"files/p{str(image['subject_id'])[:2]}/p{image['subject_id']}/s{row.study_id}"
        report = " ".join((folder / "mimic-cxr-reports" / f"{study}.txt").read_text().split())
        section = report.split(f"{row.section.upper()}: ")[-1].split(" IMPRESSION:")[0]
        words = re.findall(r"\w+", section)[row.first_word : row.last_word + 1]
        assert words == re.findall(r"\w+", row.phrase)
        if row.negated:
            assert row.mask == ""
            assert pd.isna(row.x)
            continue
        with Image.open(truth / row.mask) as picture:
            mask = np.asarray(picture)
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.shape == (image["Rows"], image["Columns"])
        rows, columns = np.where(mask == 255)
        assert (row.x, row.y) == (columns.min(), rows.min())
        assert (row.x + row.w - 1, row.y + row.h - 1) == (columns.max(), rows.max())


def test_cases_hold_every_finding_and_say_which_were_mentioned(raw):
    truth = raw / "mimic_cxr" / "ground_truth"
    cases = pd.read_parquet(truth / "cases.parquet")
    phrases = pd.read_parquet(truth / "phrases.parquet")
    assert not cases.duplicated(["dicom_id", "finding"]).any()
    assert set(cases["finding"]) <= set(FINDINGS)
    spoken = phrases[~phrases["negated"]]
    assert set(zip(spoken["dicom_id"], spoken["mask"], strict=True)) <= set(
        zip(cases["dicom_id"], cases["mask"], strict=True)
    )
    seen = cases[cases["mentioned"] & (cases["mask"] != "")]
    assert set(seen["mask"]) == set(spoken["mask"])
    assert {path.name for path in (truth / "masks").iterdir()} == {Path(mask).name for mask in cases["mask"] if mask}


@pytest.mark.parametrize(("side", "low", "high"), [("left", 0.55, 1.0), ("right", 0.0, 0.45)])
def test_the_patients_left_is_on_the_right_of_the_image(tmp_path, side, low, high):
    case = Case("F", 50, "PA", (Finding("consolidation", side, "lower", "severe"),))
    film = Film("film.png", case, "mimic_cxr", (1, 2), 96, aspect=0.83, masks=("mask.png",))
    written = write_film(tmp_path, film)
    x, _, width, _ = written.boxes[0]
    assert low < (x + width / 2) / written.width < high
    write_film(tmp_path, replace(film, path="clear.png", case=replace(case, findings=()), masks=()))
    change = np.abs(
        np.asarray(Image.open(tmp_path / "film.png"), float) - np.asarray(Image.open(tmp_path / "clear.png"), float)
    )
    mask = np.asarray(Image.open(tmp_path / "mask.png")) == 255
    assert change[mask].mean() > 4 * change[~mask].mean()


def test_chexpert_tables_and_tree(raw):
    root = raw / "chexpert"
    patients = {}
    for split, values in (("train", {"1.0", "0.0", "-1.0", ""}), ("valid", {"1.0", "0.0"})):
        with (root / "CheXpert-v1.0" / f"{split}.csv").open() as stream:
            assert stream.readline().strip() == CHEXPERT_HEADER
            rows = list(csv.reader(stream))
        for path, sex, age, frontal, view, *labels in rows:
            match = re.fullmatch(
                rf"CheXpert-v1\.0/{split}/(patient\d{{5}})/study\d+/view\d+_(frontal|lateral)\.jpg", path
            )
            patients.setdefault(split, set()).add(match[1])
            assert (root / path).is_file()
            assert sex in ("Female", "Male")
            assert 18 <= int(age) <= 96
            assert frontal == match[2].capitalize()
            assert view == "" if frontal == "Lateral" else view in ("AP", "PA")
            assert len(labels) == 14
            assert set(labels) <= values
        assert sum(row[3] == "Frontal" for row in rows) == {"train": 9, "valid": 5}[split]
    assert not patients["train"] & patients["valid"]


def test_rsna_dicom_labels_and_classes(raw):
    root = raw / "rsna"
    labels = pd.read_csv(root / "stage_2_train_labels.csv")
    classes = pd.read_csv(root / "stage_2_detailed_class_info.csv")
    assert list(labels.columns) == ["patientId", "x", "y", "width", "height", "Target"]
    assert list(classes.columns) == ["patientId", "class"]
    assert list(labels["patientId"]) == list(classes["patientId"])
    files = {path.stem: path for path in (root / "stage_2_train_images").glob("*.dcm")}
    assert set(files) == set(labels["patientId"])
    assert len(files) == 10
    boxes = ["x", "y", "width", "height"]
    assert labels[labels["Target"] == 0][boxes].isna().all(axis=None)
    positive = labels[labels["Target"] == 1]
    assert len(positive) >= 4
    assert (classes["class"][labels["Target"] == 1] == "Lung Opacity").all()
    assert set(classes["class"][labels["Target"] == 0]) <= {"Normal", "No Lung Opacity / Not Normal"}
    assert ((positive["x"] + positive["width"] <= SIZE) & (positive["y"] + positive["height"] <= SIZE)).all()
    for name, path in files.items():
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", name)
        dataset = pydicom.dcmread(path)
        assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.50"
        assert dataset.PhotometricInterpretation == "MONOCHROME2"
        assert (dataset.BitsAllocated, dataset.BitsStored, dataset.Modality) == (8, 8, "CR")
        assert (dataset.PatientID, dataset.PatientSex in "MF", dataset.ViewPosition in ("AP", "PA")) == (
            name,
            True,
            True,
        )
        assert 18 <= int(dataset.PatientAge) <= 96
        pixels = dataset.pixel_array
        assert pixels.shape == (SIZE, SIZE)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 20


def test_rsna_has_a_row_for_each_box(raw):
    labels = pd.read_csv(raw / "rsna/stage_2_train_labels.csv")
    assert labels.groupby("patientId")["Target"].nunique().eq(1).all()
    mask = np.zeros((20, 30), bool)
    mask[2:10, 3:9] = mask[5:9, 20:28] = mask[15, 15] = True
    assert mask_parts(mask) == ((3, 2, 6, 8), (20, 5, 8, 4))  # the single pixel is too small for a box
    assert mask_parts(np.zeros((4, 4), bool)) == ()


def test_rsna_normal_films_show_neither_findings_nor_devices(raw):
    films = {film.tags["PatientID"]: film.case for film in rsna._plan(Settings(5, SIZE, {"train": COUNTS["rsna"]}))}
    classes = pd.read_csv(raw / "rsna/stage_2_detailed_class_info.csv").set_index("patientId")["class"]
    for patient, name in classes.items():
        case = films[patient]
        assert name != "Normal" or not (case.findings or case.devices)
    healthy = Case("F", 40, "PA", incidentals=("aortic calcification",))
    assert rsna._is_normal(healthy)
    for change in ({"devices": ("pacemaker",)}, {"incidentals": ("left fifth rib fracture",)}):
        assert not rsna._is_normal(replace(healthy, **change))


def test_rsna_boxes_do_not_nest(tmp_path):
    names = ("pneumonia", "consolidation")
    case = Case("M", 50, "PA", tuple(Finding(name, "right", "lower", "severe") for name in names))
    nested = 0
    for seed in range(6):
        masks = tuple(f"{seed}-{name}.png" for name in names)
        written = write_film(tmp_path, Film(f"{seed}.png", case, "rsna", (seed,), SIZE, masks=masks))
        apart = [box for parts in written.parts for box in parts[:4]]
        nested += len(rsna._boxes(case, written)) < len(apart)
        boxes = rsna._boxes(case, written)
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                assert rsna._shared(one, other) <= 0.6 * min(one[2] * one[3], other[2] * other[3])
        covered = np.zeros((SIZE, SIZE), bool)
        for x, y, width, height in boxes:
            covered[y : y + height, x : x + width] = True
        assert all(covered[y : y + height, x : x + width].all() for x, y, width, height in apart)
    assert nested


def test_dicom_files_of_the_challenges_are_alike_but_for_their_identifiers(raw):
    identifiers = []
    for path in [*raw.glob("rsna/**/*.dcm"), *raw.glob("siim/**/*.dcm")]:
        dataset = pydicom.dcmread(path)
        identifiers += [dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID]
        age = dataset.get_item("PatientAge").value
        assert re.fullmatch(r"\d\d ?", age.decode() if isinstance(age, bytes) else age)
        row, column = dataset.PixelSpacing
        assert row == column
        assert 300 < row * dataset.Rows < 420  # millimetres: a chest
    assert len(set(identifiers)) == len(identifiers) == 3 * (COUNTS["rsna"] + COUNTS["siim"])


def test_covidx_lists_and_folders(raw):
    root = raw / "covidx"
    patients = {}
    for split, count in (("train", 8), ("test", 4)):
        lines = [line.split(" ") for line in (root / f"{split}_COVIDx9A.txt").read_text().splitlines()]
        assert len(lines) == count
        for patient, name, label, source in lines:
            assert label in ("normal", "pneumonia", "COVID-19")
            assert source in ("rsna", "cohen", "fig1", "actmed", "sirm", "ricord", "bimcv")
            with Image.open(root / split / name) as picture:
                assert picture.format == ("PNG" if name.endswith(".png") else "JPEG")
            patients.setdefault(split, set()).add(patient)
        assert {line[1] for line in lines} == {path.name for path in (root / split).iterdir()}
    assert not patients["train"] & patients["test"]


def test_covidx_classes_are_balanced_and_mixed_in_format():
    lines = covidx._plan(Settings(seed=1, size=256, counts={"train": 600, "test": 6}), "train")
    shares = Counter(line.label for line in lines)
    assert all(170 < shares[name] < 230 for name in covidx.CLASSES)
    assert {Path(line.name).suffix for line in lines} == {".png", ".jpg", ".jpeg"}
    assert {line.film.colour for line in lines} == {True, False}
    clear = [line for line in lines if line.label == "COVID-19" and not line.film.case.findings]
    assert 1 <= len(clear) < 30
    assert len({line.name for line in lines}) == 600


def test_covidx_normal_films_are_clear_and_formats_do_not_tell():
    lines = covidx._plan(Settings(seed=2, size=256, counts={"train": 3000, "test": 6}), "train")
    for line in lines:
        if line.label == "normal":
            assert not line.film.case.findings
    for share in (
        lambda line: line.name.endswith(".png"),
        lambda line: line.film.colour,
        lambda line: bool(line.film.case.devices),
    ):
        shares = [np.mean([share(line) for line in lines if line.label == label]) for label in covidx.CLASSES]
        assert max(shares) - min(shares) < 0.1
        assert min(shares) > 0.05


def test_covidx_films_of_a_patient_show_one_patient():
    lines = covidx._plan(Settings(seed=2, size=256, counts={"train": 600, "test": 6}), "train")
    by_patient: dict[str, list[Case]] = {}
    for line in lines:
        by_patient.setdefault(line.patient, []).append(line.film.case)
    twice = [cases for cases in by_patient.values() if len(cases) == 2]
    assert len(twice) > 20
    for one, other in twice:
        for name in ("sex", "age", "habitus", "incidentals", "patient"):
            assert getattr(one, name) == getattr(other, name)
        assert [name for name in one.devices if name in IMPLANTS] == [n for n in other.devices if n in IMPLANTS]
        assert [f for f in one.findings if f.name in LASTING] == [f for f in other.findings if f.name in LASTING]
    assert len({cases[0].patient for cases in by_patient.values()}) == len(by_patient)


def test_patients_of_other_layouts_have_seeds_of_their_own():
    chest = chexpert._plan(Settings(1, 256, {"train": 60, "valid": 20}), "train")
    patients = {(row.film.path.split("/")[2], row.case.patient) for row in chest}
    assert len({name for name, _ in patients}) == len({seed for _, seed in patients}) == len(patients)
    assert all(row.case.lateral for row in chest if row.view == "lateral")
    films = siim._plan(Settings(1, 256, {"train": 60}))
    seeds = {(film.tags["PatientID"], film.case.patient) for film in films}
    assert len({name for name, _ in seeds}) == len({seed for _, seed in seeds}) == len(seeds)
    assert not {seed for _, seed in seeds} & {seed for _, seed in patients}


def test_siim_tree_and_run_lengths(raw):
    root = raw / "siim"
    assert {path.name for path in root.iterdir()} == {"PHANTOM.json", "dicom-images-train", "train-rle.csv"}
    header, *lines = (root / "train-rle.csv").read_text().splitlines()
    assert header == "ImageId, EncodedPixels"
    files = {path.stem: path for path in (root / "dicom-images-train").glob("*/*/*.dcm")}
    assert {line.split(",")[0] for line in lines} == set(files)
    assert len(files) == COUNTS["siim"]
    for number, film in enumerate(siim._plan(Settings(seed=5, size=SIZE, counts={"train": COUNTS["siim"]}))):
        (path,) = (root / "dicom-images-train").glob(f"*/*/*.{number + 2}.3.dcm")
        dataset = pydicom.dcmread(path)
        place = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, f"{dataset.SOPInstanceUID}.dcm")
        assert path.relative_to(root / "dicom-images-train").parts == place
        assert (dataset.PatientID, dataset.ViewPosition) == (film.tags["PatientID"], film.case.view)
        rendered = render_case(
            film.case, HOSPITALS["siim"], np.random.default_rng(np.random.SeedSequence(film.seed)), size=SIZE
        )
        expected = np.zeros((SIZE, SIZE), bool)
        for finding, mask in zip(film.case.findings, rendered.finding_masks, strict=True):
            if finding.name == "pneumothorax":
                expected |= mask
        texts = [line.split(",")[1] for line in lines if line.startswith(f"{path.stem},")]
        assert all(text.startswith(" ") for text in texts)
        assert (texts == [" -1"]) == (not expected.any())
        decoded = [decode_runs(text, height=SIZE, width=SIZE) for text in texts]
        np.testing.assert_array_equal(np.any(decoded, axis=0), expected)
        assert np.sum(decoded) == expected.sum()  # the lesions of an image do not overlap
    assert sum(" -1" not in line for line in lines) >= 3


def test_siim_has_enough_pneumothoraces_and_patients_with_two_films():
    films = siim._plan(Settings(seed=1, size=256, counts={"train": 900}))
    share = np.mean([any(f.name == "pneumothorax" for f in film.case.findings) for film in films])
    assert share == pytest.approx(0.35, abs=0.06)
    films_of = Counter(film.tags["PatientID"] for film in films)
    assert set(films_of.values()) == {1, 2}
    assert 0.08 < np.mean([count == 2 for count in films_of.values()]) < 0.22


def test_object_cxr_tables_and_folders(raw, tmp_path):
    root = raw / "object_cxr"
    assert {path.name for path in root.iterdir()} == {"PHANTOM.json", "train", "dev", "train.csv", "dev.csv"}
    counts = {"train": 6, "dev": 2}
    for split, count in counts.items():
        header, *lines = (root / f"{split}.csv").read_text().splitlines()
        assert header == "image_name,annotation"
        films = object_cxr._plan(Settings(seed=5, size=SIZE, counts=counts), split)
        assert len(lines) == len(films) == count
        assert {line.split(",")[0] for line in lines} == {path.name for path in (root / split).iterdir()}
        for line, film in zip(lines, films, strict=True):
            name, annotation = line.split(",")
            assert re.fullmatch(r"\d{5}\.jpg", name)
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / "masks").mkdir(exist_ok=True)
            written = write_film(tmp_path, film)
            boxes = [
                box for f, box in zip(film.case.findings, written.boxes, strict=True) if f.name == "foreign object"
            ]
            assert bool(annotation) == bool(boxes and boxes[0])
            if not annotation:
                continue
            kind, *numbers = (int(part) for part in annotation.split())
            points = np.array(numbers).reshape(-1, 2)
            assert len(points) == 2 if kind < 2 else len(points) >= 3
            x, y, width, height = boxes[0]
            assert (*points.min(0), *points.max(0)) == (x, y, x + width, y + height)
        assert sum(line.split(",")[1] != "" for line in lines) >= 2


def test_object_cxr_outline_is_the_hull_of_the_mask(tmp_path):
    mask = np.zeros((12, 14), np.uint8)
    mask[2, 3:9] = mask[2:8, 3] = 255  # an L: the hull cuts its open corner
    Image.fromarray(mask).save(tmp_path / "mask.png")
    numbers = object_cxr._outline(tmp_path / "mask.png")
    corners = {tuple(point) for point in np.reshape(numbers, (-1, 2)).tolist()}
    assert corners == {(3, 2), (9, 2), (9, 3), (4, 8), (3, 8)}


def test_object_cxr_is_half_positive_and_uses_all_three_shapes():
    films = object_cxr._plan(Settings(seed=1, size=256, counts={"train": 600, "dev": 300}), "train")
    kinds = Counter(f.kind for film in films for f in film.case.findings if f.name == "foreign object")
    assert set(kinds) == set(object_cxr.SHAPES)
    assert {object_cxr.SHAPES[kind] for kind in kinds} == {0, 1, 2}
    assert 0.44 < kinds.total() / 600 < 0.56
    assert len({film.path for film in films}) == 600
    dev = object_cxr._plan(Settings(seed=1, size=256, counts={"train": 600, "dev": 300}), "dev")
    assert (films[-1].path, dev[0].path) == ("train/00600.jpg", "dev/00601.jpg")


def test_follow_up_keeps_the_patient_and_what_does_not_heal():
    rng = np.random.default_rng(0)
    for _ in range(200):
        first = replace(sample_case(rng, HOSPITALS["mimic_cxr"]), patient=int(rng.integers(1000)))
        second = follow_up(first, HOSPITALS["mimic_cxr"], rng)
        for name in ("sex", "age", "habitus", "incidentals", "patient"):
            assert getattr(first, name) == getattr(second, name)
        for name in ("cardiomegaly", "nodule"):
            kept = [f for f in second.findings if f.name == name]
            assert [f for f in first.findings if f.name == name] in (kept, [])
        names = [finding.name for finding in second.findings]
        assert names == [name for name in FINDINGS if name in names]
        assert {"pacemaker", "sternal wires"} & set(first.devices) <= set(second.devices)


def test_csv_gzip_holds_no_time_stamp(tmp_path):
    write_csv(tmp_path / "t.csv.gz", ("a", "b"), [(1, None), ("x,y", float("nan"))])
    data = (tmp_path / "t.csv.gz").read_bytes()
    assert data[4:8] == bytes(4)
    assert gzip.decompress(data) == b'a,b\n1,\n"x,y",\n'


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"profile": "huge"}, "unknown profile 'huge'"),
        ({"datasets": ["padchest"]}, "unknown dataset 'padchest'"),
        ({"seed": -1}, "seed is -1"),
        ({"size": 8}, "size is 8"),
        ({"workers": 0}, "workers is 0"),
        ({"counts": {"mimic": 3}}, "unknown dataset 'mimic'"),
        ({"counts": {"mimic_cxr": 2}}, "counts asks for 2 mimic_cxr"),
        ({"counts": {"rsna": 2}, "datasets": ["covidx"]}, "counts names rsna"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, settings, message):
    with pytest.raises(PhantomError, match=message) as error:
        make_phantoms(tmp_path / "out", **settings)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_is_refused(raw, tmp_path, capsys):
    (tmp_path / "rsna").mkdir()
    (tmp_path / "rsna" / "thesis.tex").write_text("precious")
    assert main(["--out", str(tmp_path), "--datasets", "rsna", "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds no phantom dataset" in error
    assert (tmp_path / "rsna" / "thesis.tex").read_text() == "precious"
    assert main(["--out", str(raw), "--datasets", "rsna", "--seed", "6", "--workers", "1"]) == 2
    assert "was made with seed 5, not 6" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert main(["--out", str(tmp_path / "file"), "--datasets", "covidx", "--workers", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupt_is_one_line_and_leaves_nothing_half_done(tmp_path, monkeypatch, capsys):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ["--out", str(tmp_path), "--datasets", "rsna", "--counts", "rsna=2", "--size", "64", "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("data_scripts.phantom.layouts.rsna.write", interrupt)
        assert main(arguments) == 130
    error = capsys.readouterr().err
    assert error.startswith("stopped; the same command")
    assert error.count("\n") == 1
    assert not (tmp_path / "rsna").exists()
    assert main(arguments) == 0


@pytest.mark.parametrize("arguments", [["--counts", "mimic_cxr"], ["--counts", "mimic_cxr=many"], ["--profile", "x"]])
def test_command_line_refuses_what_it_cannot_read(tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["--out", str(tmp_path), *arguments])
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err
