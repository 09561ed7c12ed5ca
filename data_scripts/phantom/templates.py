"""Sentences of chest radiology: templates into which `reports.py` puts the words of `lexicon.py`.

Fields: ``{p}`` the phrase and ``{q}`` a second one, ``{a}`` and ``{b}`` their articles, ``{is}`` and ``{has}`` verbs
that agree with ``{p}``, ``{t}`` a tail, ``{since}`` a comparison, ``{worsened}`` and ``{improved}`` one of `VERBS`;
``{list}`` in `DENIAL_LISTS` what is denied, ``{size}`` in `TAILS` a diameter.
"""

from __future__ import annotations

from typing import NamedTuple

from data_scripts.phantom.consistency import Said

TOPIC = {
    "atelectasis": "lungs",
    "consolidation": "lungs",
    "edema": "lungs",
    "pneumonia": "lungs",
    "nodule": "lungs",
    "covid-like opacities": "lungs",
    "pleural effusion": "pleura",
    "pneumothorax": "pleura",
    "cardiomegaly": "heart",
    "foreign object": "devices",
}

# What must not be denied while another finding is on the film: the words would contradict the image.
DENIAL_BLOCKED_BY = {
    "consolidation": {"consolidation", "pneumonia", "covid-like opacities"},
    "pneumonia": {"pneumonia", "consolidation", "covid-like opacities"},
    "pleural effusion": {"pleural effusion"},
    "pneumothorax": {"pneumothorax"},
    "edema": {"edema", "covid-like opacities"},
    "nodule": {"nodule"},
    "cardiomegaly": {"cardiomegaly"},
    "atelectasis": {"atelectasis"},
}

PLAIN = (
    "There {is} {a}{p}{t}.",
    "There {is} {a}{p}{t}.",
    "{a}{p} {is} present{t}.",
    "{a}{p} {is} noted{t}.",
    "{a}{p} {is} seen{t}.",
    "{a}{p} {is} demonstrated{t}.",
    "Note is made of {a}{p}{t}.",
    "There is evidence of {a}{p}{t}.",
    "{a}{p} {is} identified{t}.",
)
TELEGRAPHIC = ("{p}{t}.", "{p}{t}.", "{p} noted.", "{p} seen.")
UNCERTAIN = (
    "Possible {p}.",
    "{a}{p} cannot be excluded.",
    "There may be {a}{p}.",
    "{a}{p} {is} suspected.",
    "Questionable {p}.",
    "Suspected {p}.",
    "{a}{p} would be difficult to exclude.",
    "Cannot rule out {a}{p}.",
    "There is suggestion of {a}{p}.",
    "{a}{p} {is} not excluded.",
    "Appearances may represent {a}{p}.",
    "{a}{p} {is} possible.",
    "Findings could reflect {a}{p}.",
)
NEW = (
    "Interval development of {a}{p}.",
    "{a}{p} {is} new {since}.",
    "New {p}.",
    "There {is} now {a}{p}.",
    "{a}{p} {has} developed in the interval.",
    "{a}{p} {is} seen, not present on the prior study.",
)
UNCHANGED = (
    "The {p} {is} unchanged {since}.",
    "Unchanged {p}.",
    "Again seen {is} {a}{p}.",
    "The {p} {is} stable {since}.",
    "Persistent {p}.",
    "Stable {p}.",
    "Redemonstrated {is} {a}{p}, not significantly changed.",
    "{a}{p} {is} again noted and similar to the prior exam.",
    "No significant change in the {p}.",
)
WORSE = (
    "The {p} {has} {worsened} {since}.",
    "Interval worsening of the {p}.",
    "The {p} {has} {worsened} in the interval.",
    "Worsening {p}.",
    "{a}{p} {is} worse {since}.",
    "Interval progression of the {p}.",
)
BETTER = (
    "The {p} {has} {improved} {since}.",
    "Interval improvement of the {p}.",
    "The {p} {has} {improved} in the interval.",
    "Improving {p}.",
    "{a}{p} {is} less pronounced {since}.",
    "{a}{p} persists but {has} {improved}.",
)
LARGER = (
    "The {p} {has} {worsened} {since}.",
    "Interval increase in size of the {p}.",
    "The {p} {has} {worsened} in the interval.",
    "Interval enlargement of the {p}.",
    "{a}{p} {is} larger {since}.",
)
SMALLER = (
    "The {p} {has} {improved} {since}.",
    "Interval decrease in size of the {p}.",
    "The {p} {has} {improved} in the interval.",
    "{a}{p} {is} smaller {since}.",
    "{a}{p} persists but {has} {improved}.",
)
RESOLVED = (
    "Previously seen {p} {has} resolved.",
    "The previous {p} {has} resolved.",
    "Interval resolution of the {p}.",
    "The {p} {is} no longer seen.",
)
CLEARED = (*RESOLVED, "Prior {p} {has} cleared.")
"""What may be said of something in the lung that is gone; air and fluid around it do not clear."""

SINCE = (
    "since the prior study",
    "compared to the prior study",
    "compared with the prior radiograph",
    "from the prior exam",
    "as compared to ___",
    "since ___",
    "when compared to the previous examination",
    "compared to the study of ___",
)
PAIRED = (
    "There {is} {a}{p} and {b}{q}.",
    "There {is} {a}{p} with {b}{q}.",
    "{a}{p} and {b}{q} are present.",
    "{a}{p} and {b}{q} are noted.",
    "{a}{p}, along with {b}{q}, {is} seen.",
)
ASSOCIATED = (
    frozenset({"pleural effusion", "atelectasis"}),
    frozenset({"pleural effusion", "consolidation"}),
    frozenset({"pleural effusion", "pneumonia"}),
    frozenset({"pleural effusion", "edema"}),
    frozenset({"atelectasis", "pneumothorax"}),
    frozenset({"atelectasis", "consolidation"}),
)
"""Findings that a reader joins by "with"."""

IMPRESSION_PAIRED = (
    "{p} and {q}.",
    "{p} with {q}.",
    "{p}, with {q}.",
    "{p} as well as {q}.",
    "{a}{p} and {b}{q}.",
)
INTERPRETED = ("pneumonia", "consolidation", "atelectasis")
INTERPRETATIONS = (
    "{a}{p}, which may represent {q}.",
    "{a}{p} may represent {q}.",
    "{a}{p} could reflect {q}.",
    "{a}{p}, possibly {q}.",
    "{a}{p} {is} seen, and {q} cannot be excluded.",
)
CONCERNS = (
    "{a}{p} {is} concerning for possible {q}.",
    "There {is} {a}{p}, question of {q}.",
)
"""Further interpretations that fit infection, not atelectasis."""
IMPRESSION_PLAIN = (
    "{p}.",
    "{p}.",
    "{p}{t}.",
    "{a}{p}.",
    "Findings consistent with {a}{p}.",
    "Radiographic findings in keeping with {a}{p}.",
    "Findings compatible with {a}{p}.",
)
DENIAL_LISTS = (
    "There is no {list}.",
    "No {list}.",
    "No {list} is seen.",
    "There is no evidence of {list}.",
    "No {list} is identified.",
    "No evidence of {list}.",
    "Negative for {list}.",
    "There is no radiographic evidence of {list}.",
)


class Tail(NamedTuple):
    """Words that may follow a phrase.

    Attributes:
        text: The words, with the space or comma before them; ``{size}`` is a diameter.
        severities: Severities that they fit.
        zone: Only for findings of this zone; "" fits all.
        unless: Not after a phrase that holds one of these words.
        needs: Conditions on the film, keys of `consistency.CONDITIONS`.
    """

    text: str
    severities: tuple[str, ...] = ("mild", "moderate", "severe")
    zone: str = ""
    unless: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


_LESSER = ("mild", "moderate")
_GREATER = ("moderate", "severe")

TAILS: dict[str, tuple[Tail, ...]] = {
    "consolidation": (
        Tail(" with air bronchograms", _GREATER),
        Tail(", with ill-defined margins"),
    ),
    "edema": (
        Tail(" with cephalization of the pulmonary vessels", needs=("upright",)),
        Tail(", with indistinct vascular markings"),
        Tail(" and vascular engorgement"),
    ),
    "pleural effusion": (
        Tail(" with blunting of the costophrenic angle", _LESSER, needs=("upright",)),
        Tail(", partially obscuring the hemidiaphragm", _GREATER),
        Tail(", tracking along the lateral chest wall", _GREATER, needs=("upright",)),
        Tail(", layering posteriorly", needs=("supine",), unless=("layering",)),
        Tail(", with hazy opacification of the hemithorax", _GREATER, needs=("supine",)),
    ),
    "pneumothorax": (
        Tail(" without mediastinal shift", _LESSER, needs=("unshifted",)),
        Tail(", without evidence of tension", _LESSER, needs=("unshifted",)),
        Tail(", with a visible pleural line", _LESSER),
        Tail(" without displacement of the mediastinum", _LESSER, needs=("unshifted",)),
    ),
    "pneumonia": (Tail(", with ill-defined margins"),),
    "nodule": (
        Tail(", not clearly calcified"),
        Tail(" with smooth margins", unless=("lobulated",)),
        Tail(", of uncertain etiology"),
        Tail(", measuring {size}", unless=("mm", "cm", "subcentimeter")),
        Tail(", measuring approximately {size}", unless=("mm", "cm", "subcentimeter")),
    ),
    "covid-like opacities": (
        Tail(", with relative sparing of the perihilar regions", zone="peripheral"),
        Tail(", in a subpleural distribution", zone="peripheral"),
        Tail(", with relative sparing of the upper lungs", zone="basal"),
    ),
    "foreign object": (
        Tail(", likely external to the patient"),
        Tail(", presumably outside the patient"),
    ),
}
SIZED = ("pleural effusion", "pneumothorax", "nodule")
VERBS = {
    True: (("increased", "increased in size", "enlarged"), ("decreased", "decreased in size")),
    False: (("worsened", "progressed", "increased"), ("improved", "decreased", "slightly improved")),
}
DIFFERENTIALS = (
    ("pneumonia", "Superimposed {p} cannot be excluded."),
    ("superimposed pneumonia", "{p} is not excluded."),
    ("pneumonia", "In the appropriate clinical setting, {p} could be considered."),
    ("infection", "Underlying {p} is difficult to exclude."),
    ("pneumonia", "Early {p} may have this appearance."),
)
DIFFERENTIAL_TARGETS = ("atelectasis", "consolidation")
VIRAL = (
    ("viral pneumonia", "The pattern is suspicious for {p}."),
    ("COVID-19 pneumonia", "Findings may represent {p}."),
    ("atypical infection", "This may reflect {p}."),
    ("atypical pneumonia", "The distribution raises concern for {p}."),
    ("multifocal viral pneumonia", "Findings are concerning for {p}."),
)
IMPRESSION_NORMAL = (
    Said("No acute cardiopulmonary process."),
    Said("No acute cardiopulmonary abnormality."),
    Said("No radiographic evidence of acute cardiopulmonary disease."),
    Said("Normal chest radiograph.", ("spotless",)),
    Said("No acute intrathoracic process."),
    Said("No acute cardiopulmonary findings."),
    Said("Unremarkable chest radiographic examination.", ("spotless",)),
    Said("No evidence of acute cardiopulmonary process."),
    Said("No acute findings in the chest."),
)
NO_CHANGE = ("No significant interval change.", "No relevant change from the prior study.")
LEADS = {
    True: (
        "Comparison is made to the prior study from ___.",
        "Compared to the previous radiograph of ___, patient positioning is similar.",
        "In comparison with the study of ___, the technique is similar.",
    ),
    False: (
        "Comparison is made to the prior study from ___.",
        "In comparison with the study of ___, the technique differs.",
        "Comparison to the radiograph of ___ is limited by differences in positioning.",
    ),
}
"""First sentences of a comparison, by whether both films were taken in the same way."""

FOLLOW_UPS: dict[str, tuple[Said, ...]] = {
    "nodule": (
        Said("Chest CT is recommended for further evaluation."),
        Said("Recommend nonemergent CT of the chest for characterization."),
        Said("CT of the chest is advised for characterization."),
    ),
    "pneumonia": (
        Said("Follow up radiographs after treatment are recommended to ensure resolution."),
        Said("Recommend follow-up in ___ weeks to document clearing."),
        Said("Repeat radiographs after therapy are suggested."),
    ),
    "consolidation": (
        Said("Follow up to resolution is recommended."),
        Said("Dedicated PA and lateral views would be helpful.", ("bedside",)),
    ),
    "pneumothorax": (
        Said("Findings were communicated to ___ by telephone at ___ on ___.", ("urgent",)),
        Said("These findings were discussed with ___ at the time of discovery.", ("urgent",)),
        Said("Attention on follow-up radiographs is advised."),
        Said("Short-term follow-up radiograph is recommended."),
    ),
    "foreign object": (Said("Correlate with direct inspection."), Said("Clinical correlation is advised.")),
    "edema": (Said("Correlate with volume status."), Said("Recommend repeat radiograph after diuresis.")),
    "": (Said("Clinical correlation is recommended."), Said("Attention on follow-up is advised.")),
}
