"""CheXpert-style labels of a phantom: read from its report, or set by an expert who sees the film."""

from __future__ import annotations

import re
from collections.abc import Iterable

from data_scripts.phantom import lexicon
from data_scripts.phantom.cases import Case
from data_scripts.phantom.reports import PhantomReport, Phrase

_RANK = {0.0: 1, -1.0: 2, 1.0: 3}
# Which words the second labeller stumbles over is this generator's choice, not taken from NegBio's rules.
_MISSED_DOUBTS = re.compile(r"\b(?:suspected|suspicious|suggestion|concern|concerning|reflect)\b", re.IGNORECASE)
_UNKNOWN_WORD = re.compile(r"\binfiltrates?\b", re.IGNORECASE)


def chexpert_labels(report: PhantomReport) -> dict[str, float]:
    """CheXpert-style labels read from a report, much as the CheXpert labeller sets them.

    1 mentioned as present, -1 mentioned with doubt, 0 denied, NaN not mentioned; present beats doubt beats denial.
    Phrases that say "opacity" or "infiltrate" set Lung Opacity, and no others do: as in the published labeller, its
    children do not. Support Devices is 1 if the report names a device. No Finding is 1 if no class but Support
    Devices is present or in doubt, else NaN.

    Sentences about mediastinal contours alone ("the mediastinum is not widened") set nothing here; the published
    labeller would count them for Enlarged Cardiomediastinum.

    Args:
        report: The report to label.

    Returns:
        Class name -> value, in the order of `lexicon.CHEXPERT_CLASSES`.
    """
    return _labels(report, ((phrase, _value(phrase)) for phrase in report.phrases))


def negbio_labels(report: PhantomReport) -> dict[str, float]:
    """Labels of the same report by a second labeller, in the stead of NegBio.

    On MIMIC-CXR-JPG the two labellers agree on the great majority of labels and part mostly over doubt. So does this
    one: it takes some hedges ("suspected", "could reflect", "suggestion of") for a plain statement, and does not
    know the word "infiltrate".
    """

    def read() -> Iterable[tuple[Phrase, float]]:
        for phrase in report.phrases:
            if not _UNKNOWN_WORD.search(phrase.phrase):
                doubted = phrase.uncertain and not _MISSED_DOUBTS.search(_sentence(report, phrase))
                yield phrase, -1.0 if doubted else abs(_value(phrase))

    return _labels(report, read())


def _value(phrase: Phrase) -> float:
    return 0.0 if phrase.negated else -1.0 if phrase.uncertain else 1.0


def _sentence(report: PhantomReport, phrase: Phrase) -> str:
    text = report.impression if phrase.section == "impression" else report.findings
    words = list(re.finditer(r"\w+", text))
    first = words[phrase.first_word].start()
    return re.split(r"\.\s", text[:first])[-1] + re.split(r"\.(?:\s|$)", text[first:])[0]


def _labels(report: PhantomReport, mentions: Iterable[tuple[Phrase, float]]) -> dict[str, float]:
    labels = dict.fromkeys(lexicon.CHEXPERT_CLASSES, float("nan"))
    stated = [(name, value) for phrase, value in mentions for name in phrase.classes]
    for name, value in [*stated, *((name, 1.0) for name in report.incidental_classes)]:
        if _RANK[value] > _RANK.get(labels[name], 0):
            labels[name] = value
    if report.devices:
        labels["Support Devices"] = 1.0
    disease = [name for name in lexicon.CHEXPERT_CLASSES if name not in ("No Finding", "Support Devices")]
    if not any(labels[name] in (1.0, -1.0) for name in disease):
        labels["No Finding"] = 1.0
    return labels


def expert_labels(case: Case) -> dict[str, float]:
    """CheXpert labels set by an expert who sees the film: 1 present, 0 absent, never uncertain or missing.

    Parents follow their children as in the CheXpert hierarchy: Enlarged Cardiomediastinum from Cardiomegaly, and
    Lung Opacity from Lung Lesion, Edema, Consolidation, Pneumonia and Atelectasis. COVID-like opacities are
    Pneumonia, old rib fractures are Fracture, thickened pleura is Pleural Other. No Finding is 1 if no class but
    Support Devices is.

    >>> from data_scripts.phantom.cases import Case, Finding
    >>> labels = expert_labels(Case("M", 50, "AP", (Finding("cardiomegaly", "", "", "mild"),)))
    >>> [name for name, value in labels.items() if value == 1]
    ['Enlarged Cardiomediastinum', 'Cardiomegaly']
    """
    present: set[str] = set()
    for finding in case.findings:
        present.update(lexicon.CLASSES_OF_FINDING[finding.name])
        if finding.name == "covid-like opacities":
            present.add("Pneumonia")
    for kind, name in lexicon.INCIDENTAL_CLASSES.items():
        if any(incidental.endswith(kind) for incidental in case.incidentals):
            present.add(name)
    if "Cardiomegaly" in present:
        present.add("Enlarged Cardiomediastinum")
    if present & set(lexicon.OPACITY_CLASSES):
        present.add("Lung Opacity")
    if not present:
        present.add("No Finding")
    if case.devices:
        present.add("Support Devices")
    return {name: float(name in present) for name in lexicon.CHEXPERT_CLASSES}
