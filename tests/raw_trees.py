"""Tiny raw datasets in the four original layouts, for the tests of the prepare scripts."""

import csv
import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

CHEXPERT_LABELS = [
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
]
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 COMPARISON:  None.

 FINDINGS:

 The lungs are clear.  Heart size is
 normal.

 IMPRESSION:

 No acute process in study {number}.
"""


def write_picture(path, *, width=48, height=40, seed=0):
    """Write a picture of smooth noise; the suffix says the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6)).astype(np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)


def write_csv(path, columns, rows):
    """Write a csv file, compressed when the name ends in .gz."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    content = stream.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def replace(path, old, new, count=1):
    """Replace text in a file and insist that it was there."""
    text = Path(path).read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path}"
    Path(path).write_text(text.replace(old, new, count), encoding="utf-8")


def append(path, *lines):
    """Append lines to a text file."""
    with Path(path).open("a", encoding="utf-8") as stream:
        stream.write("".join(line + "\n" for line in lines))


def mimic_ids(number):
    """Return (dicom, subject, study) of image ``number``; each image has its own patient."""
    return f"d{number:04d}", f"{10_000_000 + number * 1_000_003}", f"{50_000_000 + number}"


def mimic_image(root, number):
    """Path of image ``number``."""
    dicom, subject, study = mimic_ids(number)
    return Path(root) / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"


def mimic_report(root, number, layout="mimic-cxr-reports/files"):
    """Path of the report of image ``number``."""
    _, subject, study = mimic_ids(number)
    return Path(root) / layout / f"p{subject[:2]}/p{subject}/s{study}.txt"


def make_mimic(root, *, images=8, gz=False, reports="mimic-cxr-reports/files"):
    """Write a MIMIC-CXR-JPG tree: images 0, 1, ... are AP, PA, AP, ...; 5 is validate, 6 test, 7 lateral.

    Line ``number + 2`` of every table speaks of image ``number``. ``reports`` is a folder, or "zip".
    """
    root = Path(root)
    suffix = ".csv.gz" if gz else ".csv"
    metadata, splits, labels = [], [], []
    for number in range(images):
        dicom, subject, study = mimic_ids(number)
        view = "LATERAL" if number == 7 else ("AP", "PA")[number % 2]
        metadata.append((dicom, subject, study, "CHEST", view, 40, 48))
        splits.append((dicom, study, subject, {5: "validate", 6: "test"}.get(number, "train")))
        labels.append((subject, study, "1.0", "", "0.0", *[""] * 5, "-1.0", *[""] * 5))
        write_picture(mimic_image(root, number), seed=number)
    write_csv(
        root / f"mimic-cxr-2.0.0-metadata{suffix}",
        ("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"),
        metadata,
    )
    write_csv(root / f"mimic-cxr-2.0.0-split{suffix}", ("dicom_id", "study_id", "subject_id", "split"), splits)
    write_csv(root / f"mimic-cxr-2.0.0-chexpert{suffix}", ("subject_id", "study_id", *CHEXPERT_LABELS), labels)
    if reports == "zip":
        with zipfile.ZipFile(root / "mimic-cxr-reports.zip", "w") as archive:
            for number in range(images):
                name = mimic_report("", number, "files").as_posix()
                archive.writestr(name, REPORT.format(number=number))
    else:
        for number in range(images):
            path = mimic_report(root, number, reports)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(REPORT.format(number=number), encoding="utf-8")
    return root


def chexpert_path(number, part="train", view="view1_frontal"):
    """Path of an image below the release folder: two studies a patient."""
    return f"{part}/patient{number // 2 + 1:05d}/study{number % 2 + 1}/{view}.jpg"


def make_chexpert(root, *, train=16, valid=4, prefix="CheXpert-v1.0/"):
    """Write a CheXpert release: image ``number`` is line ``number + 2``; the last training image is lateral.

    Labels of the training images, in turn: uncertain Atelectasis, Edema positive, uncertain Cardiomegaly, all blank.
    """
    root = Path(root)
    for part, count, first in (("train", train, 0), ("valid", valid, 10_000)):
        rows = []
        for number in range(count):
            lateral = part == "train" and number == train - 1
            path = chexpert_path(first + number, part, "view2_lateral" if lateral else "view1_frontal")
            values = dict.fromkeys(CHEXPERT_LABELS, "0.0" if part == "valid" else "")
            values |= [{"Atelectasis": "-1.0"}, {"Edema": "1.0"}, {"Cardiomegaly": "-1.0"}, {}][number % 4]
            if part == "valid":
                values = {name: value.replace("-1.0", "1.0") for name, value in values.items()}
            view = ("Lateral", "") if lateral else ("Frontal", ("AP", "PA")[number % 2])
            rows.append((prefix + path, "Female", "60", *view, *values.values()))
            write_picture(root / path, seed=first + number)
        write_csv(root / f"{part}.csv", ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS), rows)
    return root


def write_dicom(path, pixels, *, view="PA", **tags):
    """Write an uncompressed DICOM file; ``tags`` override what the pixels say."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.ascontiguousarray(pixels)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = pixels.dtype.itemsize * 8
    values = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": "1.2.3.4",
        "Modality": "DX",
        "PatientID": path.stem,
        "ViewPosition": view,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 3 if pixels.ndim == 3 else 1,
        "PhotometricInterpretation": "RGB" if pixels.ndim == 3 else "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": tags.get("BitsStored", bits) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    if pixels.ndim == 3:
        values["PlanarConfiguration"] = 0
    for name, value in (values | tags).items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def make_rsna(root, *, patients=12, detailed=True):
    """Write RSNA stage 2: patient ``number`` is line ``number + 2``; odd patients have one box 4, 8, 16, 12."""
    root = Path(root)
    labels, classes = [], []
    for number in range(patients):
        patient = f"p{number:03d}"
        box = (4.0, 8.0, 16.0, 12.0) if number % 2 else ("",) * 4
        labels.append((patient, *box, number % 2))
        classes.append(
            (patient, "Lung Opacity" if number % 2 else ("Normal", "No Lung Opacity / Not Normal")[number % 4 // 2])
        )
        pixels = np.random.default_rng(number).integers(0, 256, (40, 32)).astype(np.uint8)
        write_dicom(root / "stage_2_train_images" / f"{patient}.dcm", pixels, view=("PA", "AP")[number % 2])
    write_csv(root / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), labels)
    if detailed:
        write_csv(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    return root


def make_covidx(root, *, train=20, test=6):
    """Write COVIDx v9A: image ``number`` of a list is line ``number + 1``; classes alternate."""
    root = Path(root)
    classes = ("normal", "pneumonia", "COVID-19")
    for part, count in (("train", train), ("test", test)):
        lines = []
        for number in range(count):
            name = f"{part}{number}.{('png', 'jpg')[number % 2]}"
            lines.append(f"{part}-p{number} {name} {classes[number % 3]} rsna\n")
            write_picture(root / part / name, seed=number)
        (root / f"{part}_COVIDx9A.txt").write_text("".join(lines), encoding="utf-8")
    return root
