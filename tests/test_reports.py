"""Sectioning and cleaning of reports; expected texts were written down by hand."""

import re

import pytest

from mgca_lib.data.reports import clean_sentences, report_words, split_sections

# name, report, findings, impression
SECTIONED = [
    (
        "plain",
        "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  Cough.\n \n"
        " FINDINGS: \n \n The lungs are\n clear.\n \n IMPRESSION: \n \n No acute process.\n",
        "The lungs are clear.",
        "No acute process.",
    ),
    ("same line", " FINDINGS:  Clear lungs.\n\n IMPRESSION:  Normal chest.", "Clear lungs.", "Normal chest."),
    ("impression only", " HISTORY: Fever.\n\n IMPRESSION: No pneumonia.\n", "", "No pneumonia."),
    ("findings only", " INDICATION: Fever.\n\n FINDINGS: No pneumonia.\n", "No pneumonia.", ""),
    ("conclusion", " FINDINGS: Small effusion.\n CONCLUSION: Effusion.\n", "Small effusion.", "Effusion."),
    ("both in one", " TECHNIQUE: AP.\n FINDINGS AND IMPRESSION: Clear lungs.\n", "Clear lungs.", ""),
    ("slash", " FINDINGS/IMPRESSION:\n Clear lungs.\n", "Clear lungs.", ""),
    ("impression first", " IMPRESSION AND FINDINGS: Clear lungs.", "Clear lungs.", ""),
    ("mixed case", " Findings: Clear lungs.\n Impression: Normal chest.\n", "Clear lungs.", "Normal chest."),
    ("singular, plural", " FINDING: Clear lungs.\n IMPRESSIONS: Normal chest.\n", "Clear lungs.", "Normal chest."),
    ("no colon", " FINDINGS\n Clear lungs.\n\n IMPRESSION\n Normal chest.\n", "Clear lungs.", "Normal chest."),
    (
        "title opens findings",
        " CHEST, PA AND LATERAL:\n\n Lungs are clear.\n\n IMPRESSION: Normal chest.\n",
        "Lungs are clear.",
        "Normal chest.",
    ),
    (
        "title with time",
        " AP CHEST, 5:31 A.M., ___:\n\n Lines unchanged.  No edema.\n",
        "Lines unchanged. No edema.",
        "",
    ),
    (
        "title beside findings",
        " CHEST RADIOGRAPH:  ___ and others\n\n FINDINGS: Lungs are clear.\n",
        "Lungs are clear.",
        "",
    ),
    (
        "title inside impression",
        " IMPRESSION:\n\n AP CHEST: No pneumonia seen.\n",
        "",
        "AP CHEST: No pneumonia seen.",
    ),
    (
        "organ headers",
        " FINDINGS:\n LUNGS: Clear.\n HEART: Normal size.\n\n IMPRESSION: Normal chest.\n",
        "LUNGS: Clear. HEART: Normal size.",
        "Normal chest.",
    ),
    (
        "sections after impression",
        " IMPRESSION: New nodule.\n\n RECOMMENDATION(S):  CT of the chest.\n\n NOTIFICATION:  Called at 3:20 p.m.\n",
        "",
        "New nodule.",
    ),
    (
        "wet read",
        " WET READ: ___ ___ 3:20 PM\n  Fluid overload.\n______________________________\n"
        "                                 FINAL REPORT\n INDICATION: Dyspnea.\n\n IMPRESSION: Mild edema.\n",
        "",
        "Mild edema.",
    ),
    (
        "addendum",
        " FINDINGS: Clear lungs.\n\n IMPRESSION: Normal chest.\n\n ADDENDUM: Read again by ___.\n",
        "Clear lungs.",
        "Normal chest.",
    ),
    (
        "addendum with a title",
        " IMPRESSION: Normal chest.\n\n                 FINAL ADDENDUM\n ADDENDUM:  Read again by ___.\n",
        "",
        "Normal chest.",
    ),
    ("inline", " COMPARISON: None. FINDINGS: Clear lungs. IMPRESSION: Normal chest.", "Clear lungs.", "Normal chest."),
    (
        "list and time in text",
        " IMPRESSION:\n\n 1.  Tube at 5:31 is low.\n 2.  No edema.\n",
        "",
        "1. Tube at 5:31 is low. 2. No edema.",
    ),
    (
        "windows line ends",
        " FINDINGS:\r\n Clear\r\n lungs.\r\n\r\n IMPRESSION: Fine chest.\r\n",
        "Clear lungs.",
        "Fine chest.",
    ),
    ("twice", " FINDINGS: Chest clear.\n\n FINDINGS: Abdomen fine.\n", "Chest clear. Abdomen fine.", ""),
    ("the word in a sentence", " FINDINGS: These findings: none.\n", "These findings: none.", ""),
    ("no headers", " The lungs are clear.\n\n Heart is normal.\n", "", ""),
    ("empty", "", "", ""),
]


@pytest.mark.parametrize(
    ("text", "findings", "impression"), [case[1:] for case in SECTIONED], ids=[c[0] for c in SECTIONED]
)
def test_sections(text, findings, impression):
    sections = split_sections(text)
    assert sections.findings == findings
    assert sections.impression == impression


def test_comparison_and_last_paragraph():
    sections = split_sections(" COMPARISON:  ___, and\n outside films.\n\n First part.\n \n Lungs are\n clear.\n\n")
    assert sections.comparison == "___, and outside films. First part. Lungs are clear."
    assert sections.last_paragraph == "Lungs are clear."
    assert split_sections("FINAL REPORT\n One.\n\n Two\n words.").last_paragraph == "Two words."


def test_one_report_word_never_lands_in_two_sections():
    text = " FINDINGS AND IMPRESSION: Alpha beta.\n\n COMPARISON: Gamma.\n"
    sections = split_sections(text)
    assert [sections.findings, sections.impression, sections.comparison] == ["Alpha beta.", "", "Gamma."]


CLEANED = [
    ("lower case and punctuation", "Heart, size: NORMAL!", ["heart size normal"]),
    ("list markers", "1. No effusion. 2. Clear lungs", ["no effusion", "clear lungs"]),
    ("decimal loses its whole part", "A 3.5 cm mass is seen.", ["5 cm mass is seen"]),
    ("number before a full stop", "Reading of 12. No change seen.", ["reading of", "no change seen"]),
    ("digits in a word", "Fracture at t12. No other.", ["fracture at t12", "no other"]),
    ("hyphens split", "Low-lying x-ray tube", ["low lying x ray tube"]),
    ("non-ASCII letters vanish", "Caf\u00e9 sign \u2014 na\u00efve \u00e9 reader", ["caf sign nave reader"]),
    ("anonymised", "Dr. ___ was called at ___ hours.", ["___ was called at ___ hours"]),
    ("pieces of one word", "Normal. No change. Stable.", ["no change"]),
    ("white space", "No\n  acute\tprocess", ["no acute process"]),
    ("ellipsis", "No effusion... but edema.", ["no effusion", "but edema"]),
    ("nothing", " . . 1. ", []),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in CLEANED], ids=[c[0] for c in CLEANED])
def test_cleaning(text, expected):
    assert clean_sentences(findings=text, impression="") == expected
    assert clean_sentences(findings="", impression=text) == expected


def test_impression_comes_first_and_sections_never_share_a_sentence():
    assert clean_sentences(findings="Lungs clear", impression="No edema") == ["no edema", "lungs clear"]


def test_word_positions_point_into_the_section():
    findings = "1. The  Heart is\n big. Yes. A 2.5 cm na\u00efve nodule."
    impression = "Big heart. Done"
    runs = {
        "findings": re.findall(r"\w+", " ".join(findings.split())),
        "impression": re.findall(r"\w+", " ".join(impression.split())),
    }
    words = report_words(findings=findings, impression=impression)
    assert [(word.section, word.index, word.text, word.sentence) for word in words] == [
        ("impression", 0, "big", 0),
        ("impression", 1, "heart", 0),
        ("findings", 1, "the", 1),
        ("findings", 2, "heart", 1),
        ("findings", 3, "is", 1),
        ("findings", 4, "big", 1),
        ("findings", 8, "5", 2),
        ("findings", 9, "cm", 2),
        ("findings", 10, "nave", 2),
        ("findings", 11, "nodule", 2),
    ]
    for word in words:
        original = runs[word.section][word.index]
        assert original.lower().encode("ascii", "ignore").decode() == word.text


def test_sentences_are_the_words_joined():
    sections = {"findings": "Lungs are clear. 1. Heart. Big nodule at 3.5 cm.", "impression": "No edema. Fine film."}
    words = report_words(**sections)
    by_hand = [" ".join(w.text for w in words if w.sentence == n) for n in range(words[-1].sentence + 1)]
    assert (
        clean_sentences(**sections) == by_hand == ["no edema", "fine film", "lungs are clear", "big nodule at", "5 cm"]
    )
