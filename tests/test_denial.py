"""Denials in reports, against sentences marked by hand and against the truth of the phantom's reports."""

import re

import numpy as np
import pytest

from data_scripts.phantom.cases import sample_case
from data_scripts.phantom.hospitals import HOSPITALS
from data_scripts.phantom.reports import write_report
from mgca_lib.data.denial import denied_in_report, denied_words
from mgca_lib.data.reports import clean_sentences, report_words

# Denied words stand in capitals.
MARKED = [
    "NO PLEURAL EFFUSION OR PNEUMOTHORAX",
    "there is NO EVIDENCE OF FOCAL CONSOLIDATION",
    "the lungs are clear WITHOUT FOCAL CONSOLIDATION PLEURAL EFFUSION OR PNEUMOTHORAX",
    "NEGATIVE FOR FOCAL AIRSPACE DISEASE",
    "lungs are FREE OF INFILTRATES",
    "the lungs are CLEAR OF FOCAL AIRSPACE DISEASE PNEUMOTHORAX OR PLEURAL EFFUSION",
    "PNEUMOTHORAX IS NOT SEEN",
    "THE LEFT EFFUSION HAS RESOLVED",
    "PREVIOUSLY SEEN NODULE IS NO LONGER VISIBLE",
    "THE OPACITY IS NOT CLEARLY SEEN ON THIS FILM",
    "stable cardiomegaly WITHOUT PULMONARY EDEMA",
    "low lung volumes with NO FOCAL CONSOLIDATION",
    "small effusion but NO PNEUMOTHORAX",
    "NO EFFUSION but a pneumothorax",
    "cardiomegaly however NO ACUTE FINDINGS",
    "there is a small left effusion NO RIGHT EFFUSION AND NO PNEUMOTHORAX",
    "NEITHER EFFUSION NOR PNEUMOTHORAX",
    "left apical pneumothorax WITHOUT TENSION",
    "the interval RESOLUTION OF THE EDEMA",
    # nothing denied
    "small left pleural effusion",
    "the heart is normal in size",
    "the lungs are clear",
    "superimposed pneumonia is not excluded",
    "a subtle infiltrate cannot be excluded",
    "additional fractures cannot entirely be excluded",
    "cannot rule out bilateral pleural effusions",
    "no change in the left effusion",
    "no significant interval change in moderate left pneumothorax",
    "the effusion has not changed",
    "a nodule not seen on prior exams",
    "severe edema not present on the prior study",
    "nodular opacity noted",  # "no" and "not" begin it
    "",
]


@pytest.mark.parametrize("marked", MARKED)
def test_sentences_marked_by_hand(marked):
    flags = denied_words(marked.lower())
    words = marked.split()
    shown = " ".join(word.upper() if flag else word.lower() for word, flag in zip(words, flags, strict=True))
    assert shown == marked


def test_reports_are_read_sentence_by_sentence():
    assert denied_in_report(["no effusion", "left nodule", "edema has resolved"]) == [
        *(True, True),
        *(False, False),
        *(True, True, True),
    ]
    assert denied_in_report([]) == []


def test_against_what_the_phantom_s_writer_meant():
    """Whoever writes knows what is denied. Of the heart reports say that it is normal, which is no denial here."""
    stated, denied = [], []
    for seed in range(400):
        rng = np.random.default_rng([11, seed])
        before, case = (sample_case(rng, HOSPITALS["mimic_cxr"]) for _ in range(2))
        report = write_report(case, rng, previous=before if seed % 3 == 0 else None)
        sections = {"findings": report.findings, "impression": report.impression}
        flags = dict(
            zip(
                [(word.section, word.index) for word in report_words(**sections)],
                denied_in_report(clean_sentences(**sections)),
                strict=True,
            )
        )
        for phrase in report.phrases:
            places = [(phrase.section, index) for index in range(phrase.first_word, phrase.last_word + 1)]
            own = [flags[place] for place in places if place in flags]
            if own and not re.search("heart|cardi|mediastin", phrase.phrase.lower()):
                (denied if phrase.negated else stated).append((all(own), any(own), phrase.phrase))
    assert min(len(stated), len(denied)) > 500
    assert [phrase for _, some, phrase in stated if some] == []
    missed = [phrase for every, _, phrase in denied if not every]
    assert len(missed) < 0.01 * len(denied), missed
