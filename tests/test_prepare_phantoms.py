"""The prepare scripts on what ``make_phantoms`` writes."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_scripts import (
    prepare_chexpert,
    prepare_covidx,
    prepare_mimic_cxr,
    prepare_object_cxr,
    prepare_rsna,
    prepare_siim,
)
from data_scripts.make_phantoms import main as make_phantoms
from mgca_lib.data.reports import report_words
from mgca_lib.data.studies import load_studies
from mgca_lib.data.tasks import TASKS, task_targets

SCRIPTS = {
    "mimic_cxr": prepare_mimic_cxr,
    "chexpert": prepare_chexpert,
    "rsna": prepare_rsna,
    "covidx": prepare_covidx,
    "siim": prepare_siim,
    "object_cxr": prepare_object_cxr,
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    counts = ["mimic_cxr=24", "chexpert=24", "rsna=24", "covidx=24", "siim=24", "object_cxr=24"]
    arguments = ["--out", str(folder), "--profile", "smoke", "--seed", "0", "--size", "96", "--workers", "1"]
    assert make_phantoms([*arguments, "--counts", *counts]) == 0
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_phantoms_pass_through_strictly(raw, tmp_path, capsys, name):
    assert SCRIPTS[name].main(["--raw", str(raw), "--out", str(tmp_path / name), "--size", "96", "--strict"]) == 0
    assert capsys.readouterr().err == ""
    studies = load_studies(tmp_path / name)
    assert (studies.card.source, studies.card.restricted) == ("phantom", False)
    assert len(studies) == 24
    assert min(studies.card.counts.values()) > 0
    sizes = [Image.open(tmp_path / name / image).size for image in studies.table["image"]]
    assert {max(size) for size in sizes} == {96}
    if name in TASKS:
        targets = task_targets(studies, TASKS[name])
        assert np.isfinite(targets).all()
        assert len(np.unique(targets)) >= 2


def test_ground_truth_phrases_point_at_words_of_the_cleaned_report(raw, tmp_path):
    prepare_mimic_cxr.prepare(raw, tmp_path / "out", size=96)
    table = load_studies(tmp_path / "out").table.set_index("image_id")
    phrases = pd.read_parquet(raw / "mimic_cxr/ground_truth/phrases.parquet")
    assert len(phrases) > 20
    found = 0
    for phrase in phrases.itertuples():
        row = table.loc[phrase.dicom_id]
        runs = re.findall(r"\w+", " ".join(row[phrase.section].split()))
        assert runs[phrase.first_word : phrase.last_word + 1] == re.findall(r"\w+", phrase.phrase)
        words = report_words(findings=row["findings"], impression=row["impression"])
        span = range(phrase.first_word, phrase.last_word + 1)
        found += any(word.section == phrase.section and word.index in span for word in words)
    assert found >= 0.95 * len(phrases)  # one-word sentences leave the cleaned report
