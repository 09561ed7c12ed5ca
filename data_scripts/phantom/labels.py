"""CheXpert-style labels of a phantom: read from its report, or set by an expert who sees the film."""

from __future__ import annotations

from collections.abc import Sequence

from data_scripts.phantom import lexicon
from data_scripts.phantom.cases import Case
from data_scripts.phantom.reports import PhantomReport


def chexpert_labels(report: PhantomReport, devices: Sequence[str] = ()) -> dict[str, float]:
    """CheXpert-style labels read from a report, much as the CheXpert labeller sets them.

    Differs from it in two ways: a positive child sets Lung Opacity, and Support Devices comes from the film.

    1 mentioned as present, -1 mentioned with doubt, 0 denied, NaN not mentioned; present beats doubt beats
    denial. A positive child sets Lung Opacity (and an uncertain one makes it uncertain). No Finding is 1 if no
    class but Support Devices is present or in doubt, else NaN.

    Args:
        report: The report to label.
        devices: Devices on the film; any of `lexicon.SUPPORT_DEVICES` makes Support Devices 1.

    Returns:
        Class name -> value, in the order of `lexicon.CHEXPERT_CLASSES`.
    """
    rank = {0.0: 1, -1.0: 2, 1.0: 3}
    labels = dict.fromkeys(lexicon.CHEXPERT_CLASSES, float("nan"))

    def state(name: str, value: float) -> None:
        if rank[value] > rank.get(labels[name], 0):
            labels[name] = value

    for phrase in report.phrases:
        value = 0.0 if phrase.negated else -1.0 if phrase.uncertain else 1.0
        for name in phrase.classes:
            state(name, value)
    for name in report.incidental_classes:
        state(name, 1.0)
    for name in lexicon.OPACITY_CLASSES:
        if labels[name] in (1.0, -1.0):
            state("Lung Opacity", labels[name])
    if any(device in lexicon.SUPPORT_DEVICES for device in devices):
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
    if any(device in lexicon.SUPPORT_DEVICES for device in case.devices):
        present.add("Support Devices")
    return {name: float(name in present) for name in lexicon.CHEXPERT_CLASSES}
