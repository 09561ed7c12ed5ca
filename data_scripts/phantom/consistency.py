"""What may be said of a film: conditions that a sentence of `lexicon.py` or `templates.py` can ask of a case.

A reader mentions what catches the eye and passes over much, but never says of a large effusion that the lungs are well
expanded. Sentences that could contradict a film carry the names of conditions in `CONDITIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from data_scripts.phantom.cases import Case, Finding

STANDARD_TUBE = (3.0, 6.0)
"""Heights of an endotracheal tube's tip above the carina, in cm, that are called standard."""

LOW_TUBE = 2.5
"""An endotracheal tube below this height in cm may be called low; above the end of `STANDARD_TUBE` it is high."""

SPINE = ("scoliosis", "degenerative spine")


class Said(NamedTuple):
    """A sentence and the conditions (keys of `CONDITIONS`) that a film must meet for it."""

    text: str
    needs: tuple[str, ...] = ()


def fits(needs: Sequence[str], case: Case) -> bool:
    """True if the film meets all of some conditions, keys of `CONDITIONS`."""
    return all(CONDITIONS[need](case) for need in needs)


def fitting(options: Sequence[Said], case: Case) -> list[str]:
    """Texts of the sentences that do not contradict the film, in their order."""
    return [option.text for option in options if fits(option.needs, case)]


def has_volume_loss(finding: Finding) -> bool:
    """True for a collapsed lobe or lung base, as against a plate of atelectasis."""
    return finding.name == "atelectasis" and (finding.kind == "volume loss" or finding.severity == "severe")


def _shifts(finding: Finding) -> bool:
    """True if the mediastinum may move: much fluid or air on one side, or a lobe that lost its volume."""
    sized = finding.name in ("pleural effusion", "pneumothorax") and finding.severity == "severe"
    return sized or (has_volume_loss(finding) and finding.severity != "mild")


def _unshifted(case: Case) -> bool:
    return not any(map(_shifts, case.findings))


def _covers_hila(finding: Finding) -> bool:
    return finding.name == "edema" or finding.zone in ("perihilar", "diffuse")


def _unhindered(case: Case) -> bool:
    """True if both lungs fill their half of the chest."""
    return not any(
        has_volume_loss(f) or f.name == "pneumothorax" or (f.name == "pleural effusion" and f.severity != "mild")
        for f in case.findings
    )


def _clear(case: Case) -> bool:
    """True if nothing is in the lungs and at most a little fluid or air around them."""
    return all(
        f.name in ("cardiomegaly", "foreign object")
        or (f.name in ("pleural effusion", "pneumothorax") and f.severity == "mild")
        for f in case.findings
    )


def _expanded(case: Case) -> bool:
    return case.inspiration == "normal" and _unhindered(case)


def _mediastinum(case: Case) -> bool:
    return "tortuous aorta" not in case.incidentals and _unshifted(case)


def _no_calcified_aorta(case: Case) -> bool:
    return "aortic calcification" not in case.incidentals


def _hila(case: Case) -> bool:
    return _unshifted(case) and not any(map(_covers_hila, case.findings))


def _aortic_knob(case: Case) -> bool:
    covered = any(
        f.side in ("left", "bilateral") and f.zone in ("upper", "perihilar", "diffuse") for f in case.findings
    )
    return _mediastinum(case) and _no_calcified_aorta(case) and not covered


def _trachea(case: Case) -> bool:
    straight = "scoliosis" not in case.incidentals and "tortuous aorta" not in case.incidentals
    return straight and abs(case.rotation) < 4.0 and _unshifted(case)


def _hides_heart(finding: Finding) -> bool:
    """True for much fluid or a collapsed base on the heart's side."""
    dense = finding.name == "pleural effusion" or has_volume_loss(finding)
    return dense and finding.severity == "severe" and finding.side in ("left", "bilateral")


def _heart_border(case: Case) -> bool:
    return not any(map(_hides_heart, case.findings))


def _left_border_hidden(case: Case) -> bool:
    """True if fluid or collapse lies beside the heart; what is behind it leaves its border to be seen."""
    return any(_hides_heart(f) and f.zone != "retrocardiac" for f in case.findings)


def _bones(case: Case) -> bool:
    marked = any(name in SPINE or name.endswith("fracture") for name in case.incidentals)
    return not marked and "sternal wires" not in case.devices


def _soft_tissues(case: Case) -> bool:
    foreign = any(f.name == "foreign object" for f in case.findings)
    return not foreign and not {"pacemaker", "chest tube"} & set(case.devices)


def _spotless(case: Case) -> bool:
    return not (case.findings or case.devices or case.incidentals) and case.inspiration == "normal"


def _urgent(case: Case) -> bool:
    return any(f.name == "pneumothorax" and f.severity != "mild" for f in case.findings)


CONDITIONS: dict[str, Callable[[Case], bool]] = {
    "clear": _clear,
    "unhindered": _unhindered,
    "expanded": _expanded,
    "mediastinum": _mediastinum,
    "no calcified aorta": _no_calcified_aorta,
    "hila": _hila,
    "aortic knob": _aortic_knob,
    "trachea": _trachea,
    "heart border": _heart_border,
    "left border hidden": _left_border_hidden,
    "bones": _bones,
    "abdomen": lambda case: "nasogastric tube" not in case.devices,
    "soft tissues": _soft_tissues,
    "upright": lambda case: not case.supine,
    "supine": lambda case: case.supine,
    "bedside": lambda case: case.view == "AP",
    "lateral": lambda case: case.view == "PA" and case.lateral,
    "frontal only": lambda case: case.view == "PA" and not case.lateral,
    "spotless": _spotless,
    "urgent": _urgent,
    "unshifted": _unshifted,
    "lines": lambda case: bool(set(case.devices) - {"pacemaker", "sternal wires", "ecg leads"}),
    "tube standard": lambda case: STANDARD_TUBE[0] <= case.tube_height <= STANDARD_TUBE[1],
    "tube low": lambda case: case.tube_height < LOW_TUBE,
    "tube high": lambda case: case.tube_height > STANDARD_TUBE[1],
}


def same_outline(case: Case, previous: Case) -> bool:
    """True if nothing that shapes or covers the heart, the hila or the mediastinum differs between two films."""

    def shaping(film: Case) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = {
            (f.name, f.side, f.zone, f.severity)
            for f in film.findings
            if f.name == "cardiomegaly" or _covers_hila(f) or _shifts(f)
        }
        return found | {(name,) for name in film.incidentals if name == "tortuous aorta"}

    return shaping(case) == shaping(previous)


def tube_rise(case: Case, previous: Case) -> float:
    """How much higher the tip of the endotracheal tube stands than on the earlier film, in cm to one decimal."""
    return round(case.tube_height - previous.tube_height, 1)


def same_technique(case: Case, previous: Case) -> bool:
    """True if both films were taken in the same way."""
    return (case.view, case.supine) == (previous.view, previous.supine)
