"""Tests of data_scripts.access."""

import importlib
from pathlib import Path

import pytest

from data_scripts.access import ACCESS, locate_raw
from data_scripts.make_phantoms import LAYOUTS
from mgca_lib.data.studies import DatasetError


def test_every_phantom_layout_has_an_original_and_a_script():
    assert list(ACCESS) == list(LAYOUTS)
    for name, access in ACCESS.items():
        module = importlib.import_module(access.script.removesuffix(".py").replace("/", "."))
        assert module.__name__ == f"data_scripts.prepare_{name}"


def test_a_named_folder_wins_over_the_default(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    folders = locate_raw(tmp_path / "raw", {"rsna": str(tmp_path / "mine"), "chexpert": ""}, phantoms=True)
    assert folders["rsna"] == tmp_path / "mine"
    assert folders["chexpert"] == tmp_path / "raw" / "chexpert"


def test_a_misspelt_folder_is_an_error_even_where_phantoms_may_stand_in(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"^RAW_RSNA = 'nowhere': no such folder"):
        locate_raw(tmp_path, {"rsna": "nowhere"}, phantoms=True)


def test_a_missing_original_says_what_to_download(tmp_path: Path):
    wanted = dict.fromkeys(ACCESS, "")
    with pytest.raises(DatasetError, match=r"^MIMIC-CXR-JPG .* set RAW_MIMIC .* mimic-cxr-reports\.zip .*physionet"):
        locate_raw(tmp_path, wanted, phantoms=False)
    (tmp_path / "mimic_cxr").mkdir()
    with pytest.raises(DatasetError, match=r"^CheXpert-v1\.0 is missing"):
        locate_raw(tmp_path, wanted, phantoms=False)
    for name in ACCESS:
        (tmp_path / name).mkdir(exist_ok=True)
    assert locate_raw(tmp_path, wanted, phantoms=False) == {name: tmp_path / name for name in ACCESS}


def test_only_what_is_wanted_must_be_there(tmp_path: Path):
    (tmp_path / "rsna").mkdir()
    assert locate_raw(tmp_path, {"rsna": ""}, phantoms=False) == {"rsna": tmp_path / "rsna"}


def test_an_unknown_dataset_is_named():
    with pytest.raises(DatasetError, match="no dataset called 'padchest'"):
        locate_raw("raw", {"padchest": "x"}, phantoms=True)
