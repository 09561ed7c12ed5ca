"""Denials in reports, against sentences marked by hand and against the truth of the phantom's reports."""

import pytest

from mgca_lib.data.denial import denied_in_report, denied_words

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
