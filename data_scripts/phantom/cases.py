"""Who is on the film and what is wrong with them, before a single pixel is drawn.

A `Case` is everything that a report may speak of. Finding names are drawn jointly with a Gaussian
copula: every hospital keeps its prevalence exactly, while findings that belong together (an enlarged
heart, edema and effusions in heart failure; pneumonia and consolidation in infection) come together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from data_scripts.phantom.hospitals import Hospital

FINDINGS = (
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "pleural effusion",
    "pneumothorax",
    "pneumonia",
    "nodule",
    "covid-like opacities",
    "foreign object",
)
SIDES = ("left", "right", "bilateral", "")
ZONES = (
    "upper",
    "middle",
    "lower",
    "apical",
    "basal",
    "perihilar",
    "peripheral",
    "retrocardiac",
    "diffuse",
    "",
)
SEVERITIES = ("mild", "moderate", "severe")
# Longest diameter of a nodule in cm; above 3 cm it is a mass.
NODULE_DIAMETERS = {"mild": (0.8, 1.6), "moderate": (1.6, 2.9), "severe": (3.2, 6.5)}
TUBE_HEIGHTS = (2.0, 6.5)
DEVICES = (
    "endotracheal tube",
    "nasogastric tube",
    "central venous catheter",
    "chest tube",
    "pacemaker",
    "sternal wires",
    "ecg leads",
)
IMPLANTS = ("pacemaker", "sternal wires")
_IN_THE_LUNG = ("atelectasis", "consolidation", "pneumonia", "nodule", "covid-like opacities")
# Neither heals nor moves from one film of a patient to the next.
LASTING = ("cardiomegaly", "nodule")
FOREIGN_OBJECTS = ("coin", "button", "necklace", "safety pin", "hair clip", "earring", "key")
HABITUS = ("thin", "average", "heavy", "obese")
INSPIRATION = ("low", "normal", "hyperinflated")
RIBS = {"fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8}
# Old and healed, so they stay on every later film of the patient.
RIB_FRACTURES = tuple(f"{side} {rib} rib fracture" for side in ("left", "right") for rib in RIBS)
PLEURAL_THICKENINGS = (
    "biapical pleural thickening",
    "left apical pleural thickening",
    "right apical pleural thickening",
    "left lateral pleural thickening",
    "right lateral pleural thickening",
)
INCIDENTALS = (
    "tortuous aorta",
    "aortic calcification",
    "scoliosis",
    "degenerative spine",
    *RIB_FRACTURES,
    *PLEURAL_THICKENINGS,
)

# Loadings of each finding on three latent factors: heart failure, infection, bed rest.
_LOADINGS = {
    "atelectasis": (0.15, 0.05, 0.55),
    "cardiomegaly": (0.70, 0.00, 0.00),
    "consolidation": (0.00, 0.60, 0.20),
    "edema": (0.75, -0.05, 0.15),
    "pleural effusion": (0.55, 0.20, 0.35),
    "pneumothorax": (-0.15, -0.10, 0.15),
    "pneumonia": (-0.05, 0.60, 0.05),
    "nodule": (-0.15, -0.05, 0.00),
    "covid-like opacities": (-0.20, -0.30, 0.05),
    "foreign object": (0.00, 0.00, 0.00),
}


@dataclass(frozen=True)
class Finding:
    """One finding of a case.

    Attributes:
        name: One of `FINDINGS`.
        side: The patient's side, one of `SIDES`; the patient's left is on the image's right.
        zone: One of `ZONES`.
        severity: One of `SEVERITIES`.
        kind: Variety: "plate-like" or "volume loss" (atelectasis), "interstitial" or "alveolar"
            (edema), "layering" (effusion of a supine patient), "nodule" or "mass", one of
            `FOREIGN_OBJECTS`, or "".
        diameter: Longest diameter in cm of a nodule or mass; 0 for all else, and where nobody stated it
            (see `nodule_diameter`).
    """

    name: str
    side: str
    zone: str
    severity: str
    kind: str = ""
    diameter: float = 0.0


def nodule_diameter(finding: Finding) -> float:
    """Longest diameter of a nodule or mass in cm: as stated, else the middle of its severity's range.

    >>> nodule_diameter(Finding("nodule", "left", "upper", "mild", "nodule"))
    1.2
    """
    return finding.diameter or round(sum(NODULE_DIAMETERS[finding.severity]) / 2, 2)


@dataclass(frozen=True)
class Case:
    """One patient on one film.

    Attributes:
        sex: "M" or "F".
        age: Years.
        view: "PA" (standing, from behind) or "AP" (bedside, from the front).
        findings: At most one `Finding` per name, in the order of `FINDINGS`.
        devices: Subset of `DEVICES`, in that order.
        habitus: One of `HABITUS`.
        inspiration: One of `INSPIRATION`; "low" means low lung volumes.
        rotation: Turn of the trunk in degrees; positive moves the front to the patient's left.
        supine: True if the patient lies; only with AP.
        incidentals: Subset of `INCIDENTALS`; not findings, have no mask. At most one of `RIB_FRACTURES` and
            one of `PLEURAL_THICKENINGS`; their names say where they are.
        patient: Seed of what is the same on every film of the patient: measures of the body, ribs, vessels and spine,
            place and shape of findings but foreign objects, of tubes, lines and implants, and of incidentals. None
            draws it with the film.
        tube_height: Tip of an endotracheal tube above the carina in cm, to one decimal.
        lateral: True if the study has a lateral film as well; only with PA.
    """

    sex: str
    age: int
    view: str
    findings: tuple[Finding, ...] = ()
    devices: tuple[str, ...] = ()
    habitus: str = "average"
    inspiration: str = "normal"
    rotation: float = 0.0
    supine: bool = False
    incidentals: tuple[str, ...] = ()
    patient: int | None = None
    tube_height: float = 4.0
    lateral: bool = False


def sample_case(rng: np.random.Generator, hospital: Hospital, *, findings: Sequence[str] | None = None) -> Case:
    """Draw one case of a hospital.

    Args:
        rng: Source of every choice; the same state gives the same case.
        hospital: Population to draw from.
        findings: Finding names to force; exactly these are present. None draws them by prevalence.

    Returns:
        A case whose findings have side, zone, severity and kind. It has no `patient` and no lateral film: both
        belong to a layout.

    Raises:
        ValueError: If a forced name is not in `FINDINGS` or is given twice.

    >>> from data_scripts.phantom.hospitals import HOSPITALS
    >>> case = sample_case(np.random.default_rng(0), HOSPITALS["rsna"], findings=["pneumonia"])
    >>> [finding.name for finding in case.findings]
    ['pneumonia']
    """
    if findings is not None:
        unknown = [name for name in findings if name not in FINDINGS]
        if unknown:
            raise ValueError(f"unknown finding {unknown[0]!r}; choose from {', '.join(FINDINGS)}")
        if len(set(findings)) != len(findings):
            raise ValueError(f"a finding is forced twice: {', '.join(findings)}")
    view = "AP" if rng.random() < hospital.ap_fraction else "PA"
    sex = "F" if rng.random() < hospital.female_fraction else "M"
    age = int(np.clip(round(rng.normal(*hospital.age)), 18, 96))
    drawn = _draw_names(rng, hospital)
    names = drawn if findings is None else tuple(name for name in FINDINGS if name in findings)
    supine = view == "AP" and rng.random() < 0.4
    drawn_findings = seen_together([_draw_finding(rng, name, view=view, supine=supine) for name in names])
    return Case(
        sex=sex,
        age=age,
        view=view,
        findings=drawn_findings,
        devices=_draw_devices(rng, hospital, names, view=view, age=age),
        habitus=str(rng.choice(HABITUS, p=(0.16, 0.46, 0.26, 0.12))),
        inspiration=str(rng.choice(INSPIRATION, p=(0.30, 0.63, 0.07) if view == "AP" else (0.08, 0.80, 0.12))),
        rotation=float(np.clip(rng.normal(0.0, 4.0 if view == "AP" else 1.8), -10.0, 10.0)),
        supine=supine,
        incidentals=_draw_incidentals(rng, age),
        tube_height=round(float(rng.uniform(*TUBE_HEIGHTS)), 1),
    )


def seen_together(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Make fluid or air that would hide another finding of the lung less: severe becomes moderate.

    A severe effusion hides the base of its lung, unless it lies behind it; a severe pneumothorax leaves no lung at the
    chest wall. What cannot be seen has no place on a film whose report may speak of it.

    >>> effusion = Finding("pleural effusion", "right", "basal", "severe")
    >>> plate = Finding("atelectasis", "right", "basal", "mild", "plate-like")
    >>> [finding.severity for finding in seen_together([plate, effusion])]
    ['mild', 'moderate']
    """
    return tuple(
        replace(finding, severity="moderate")
        if finding.severity == "severe" and any(_hides(finding, other) for other in findings)
        else finding
        for finding in findings
    )


def _hides(cover: Finding, other: Finding) -> bool:
    if other.name not in _IN_THE_LUNG or "bilateral" not in (cover.side, other.side) and cover.side != other.side:
        return False
    if cover.name == "pleural effusion":
        return cover.kind != "layering" and other.zone in ("basal", "lower", "retrocardiac")
    return cover.name == "pneumothorax" and (other.name == "nodule" or other.zone == "peripheral")


def _draw_names(rng: np.random.Generator, hospital: Hospital) -> tuple[str, ...]:
    factors = rng.standard_normal(3)
    own = rng.standard_normal(len(FINDINGS))
    present = []
    for name, noise in zip(FINDINGS, own, strict=True):
        loading = np.array(_LOADINGS[name])
        latent = float(loading @ factors + np.sqrt(1.0 - loading @ loading) * noise)
        probability = hospital.prevalence.get(name, 0.0)
        if probability > 0.0 and latent > NormalDist().inv_cdf(1.0 - probability):
            present.append(name)
    return tuple(present)


def _pick(rng: np.random.Generator, options: dict[str, float]) -> str:
    weights = np.array(list(options.values()))
    return str(rng.choice(list(options), p=weights / weights.sum()))


def _draw_finding(rng: np.random.Generator, name: str, *, view: str, supine: bool) -> Finding:
    # A third is severe, far more than on any ward: a choice for teaching and testing, where every grade must be seen.
    severity = _pick(rng, {"mild": 0.25, "moderate": 0.42, "severe": 0.33})
    one_side = _pick(rng, {"right": 0.53, "left": 0.47})
    if name == "atelectasis":
        side = _pick(rng, {"left": 0.40, "right": 0.34, "bilateral": 0.26})
        kind = "volume loss" if severity == "severe" or rng.random() < 0.25 else "plate-like"
        if side == "left" and kind == "volume loss" and rng.random() < 0.3:
            return Finding(name, side, "retrocardiac", severity, kind)
        return Finding(name, side, "basal", severity, kind)
    if name == "cardiomegaly":
        return Finding(name, "", "", severity)
    if name in ("consolidation", "pneumonia"):
        share = 0.12 if name == "consolidation" else 0.25
        side = "bilateral" if rng.random() < share else one_side
        zones = {"upper": 0.22, "middle": 0.25, "lower": 0.43}
        if side == "left":
            zones["retrocardiac"] = 0.15
        if side == "bilateral":
            zones = {"lower": 0.45, "diffuse": 0.35, "upper": 0.10, "perihilar": 0.10}
        if name == "pneumonia":
            zones["peripheral"] = 0.08
        return Finding(name, side, _pick(rng, zones), severity)
    if name == "edema":
        kind = {"mild": "interstitial", "severe": "alveolar"}.get(severity)
        kind = kind or _pick(rng, {"interstitial": 0.5, "alveolar": 0.5})
        return Finding(name, "bilateral", "perihilar" if kind == "alveolar" else "diffuse", severity, kind)
    if name == "pleural effusion":
        side = _pick(rng, {"right": 0.32, "left": 0.28, "bilateral": 0.40})
        return Finding(name, side, "basal", severity, "layering" if supine else "")
    if name == "pneumothorax":
        return Finding(name, one_side, "apical", severity)
    if name == "nodule":
        zone = _pick(rng, {"upper": 0.42, "middle": 0.30, "lower": 0.28})
        kind = "mass" if severity == "severe" else "nodule"
        diameter = round(float(rng.uniform(*NODULE_DIAMETERS[severity])), 1)
        return Finding(name, one_side, zone, severity, kind, diameter)
    if name == "covid-like opacities":
        side = "bilateral" if rng.random() < 0.85 else one_side
        return Finding(name, side, _pick(rng, {"peripheral": 0.65, "basal": 0.35}), severity)
    kind = _pick(rng, dict.fromkeys(FOREIGN_OBJECTS, 1.0))
    if kind == "necklace":
        return Finding(name, "", "upper", severity, kind)
    zone = "apical" if kind in ("hair clip", "earring") else _pick(rng, {"upper": 1, "middle": 1, "lower": 1})
    return Finding(name, one_side, zone, severity, kind)


def _draw_devices(
    rng: np.random.Generator, hospital: Hospital, names: Sequence[str], *, view: str, age: int
) -> tuple[str, ...]:
    bedside = view == "AP"
    any_line = rng.random() < hospital.device_probability * (1.0 if bedside else 0.25)
    draw = rng.random(len(DEVICES))
    drained = "pneumothorax" in names or "pleural effusion" in names
    probability = {
        "endotracheal tube": 0.45 if any_line and bedside else 0.0,
        "nasogastric tube": 0.50 if any_line and bedside else 0.0,
        "central venous catheter": 0.65 if any_line else 0.0,
        "chest tube": (0.30 if drained else 0.10) if any_line and bedside else 0.0,
        "pacemaker": 0.09 if age > 60 else 0.01,
        "sternal wires": 0.11 if age > 55 else 0.01,
        "ecg leads": 0.45 if bedside else 0.02,
    }
    present = {name for name, chance in zip(DEVICES, draw, strict=True) if chance < probability[name]}
    if "endotracheal tube" in present and rng.random() < 0.85:
        present.add("nasogastric tube")
    return tuple(name for name in DEVICES if name in present)


def _draw_incidentals(rng: np.random.Generator, age: int) -> tuple[str, ...]:
    elder = float(np.clip((age - 45) / 35, 0.0, 1.0))
    probability = {
        "tortuous aorta": 0.35 * elder,
        "aortic calcification": 0.35 * elder,
        "scoliosis": 0.08,
        "degenerative spine": 0.45 * elder,
    }
    draw = rng.random(len(probability))
    drawn = [name for name, chance in zip(probability, draw, strict=True) if chance < probability[name]]
    for names, share in ((RIB_FRACTURES, 0.025 + 0.02 * elder), (PLEURAL_THICKENINGS, 0.025 + 0.03 * elder)):
        chance, which = rng.random(), int(rng.integers(len(names)))
        if chance < share:
            drawn.append(names[which])
    return tuple(drawn)
