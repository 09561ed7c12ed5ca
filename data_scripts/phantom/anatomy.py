"""A frontal chest as thicknesses of soft tissue, air and bone along each ray.

Everything is a solid or a thickness profile with a handful of measures (`Body`). The measures are
drawn from the case's sex, age, habitus, view and inspiration, never from its findings, except where
a finding is itself a change of shape: a larger heart, a raised diaphragm. What makes the patient (size,
bones, heart) and what makes the film (breath, arms, shoulders) come from two random streams, so that
every film of a patient may show the same body.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data_scripts.phantom.cases import RIBS, Case
from data_scripts.phantom.projection import Array, Frame, Solids, bounding_box, lookup, smoothstep, spread

SIDES = {"right": -1.0, "left": 1.0}
LUNG_DENSITY = 0.21
_HEIGHT_KNOTS = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1.0, 1.3])
_LATERAL_KNOTS = np.array([0.41, 0.51, 0.59, 0.685, 0.81, 0.885, 0.93, 0.975, 0.995, 1.0, 0.995, 0.96])
_MEDIAL_KNOTS = np.array([0.36, 0.28, 0.235, 0.19, 0.15, 0.13, 0.12, 0.11, 0.10, 0.10, 0.10, 0.10])
# Thickness of a lung from mediastinum (0) to chest wall (1), relative to the rib cage's depth.
_ACROSS = np.linspace(0.0, 1.0, 1025)
_PROFILE = np.sqrt(1.0 - _ACROSS**3.2) * np.sqrt(np.clip(_ACROSS / 0.33, 0.0, 1.0))
# The dome is flat on top: a little below its outline little lung is left before and behind it.
_SULCUS = np.linspace(0.0, 5.5, 2049)
_BEHIND_DOME = 1.0 - (_SULCUS / 5.5) ** 0.27


@dataclass(frozen=True)
class Body:
    """Measures of one chest; lengths in centimetres, sides in the order (right, left).

    Attributes:
        width: Half-width of the rib cage inside.
        height: Apex to the lower end of the lungs.
        depth: Half-depth of the rib cage inside.
        dome: Height coordinate of each diaphragm's top.
        floor: Mean height of both before anything raised one: what the heart rests on.
        wall: Thickness of the chest wall at the flank.
        fat: Extra thickness of the trunk from front to back.
        shoulder: Height coordinate of the shoulder joints.
        shoulder_width: Half-distance of the shoulder joints.
        arm_angle: Angle of the upper arms from the vertical, radians.
        neck: Half-width of the neck.
        heart: Scale of the heart.
        heart_axis: Angle of the heart's long axis below the horizontal, radians.
        aorta: Radius of the aortic knob.
        turn: Sine of the trunk's rotation; front moves to positive x.
        spine_bend: Amplitude and phase of scoliosis.
        breast: Greatest thickness of the breasts; 0 for none.
        breast_place: Centre |x|, centre y, radius.
        clavicle: Heights of the medial and lateral ends.
        scapula: |x| of the medial border.
        rib_spacing: Distance between ribs at the spine.
        rib_drop: Scale of the ribs' slope.
        bone: Scale of bone density.
        lateral: Lateral lung border at `_HEIGHT_KNOTS`, in units of `width`.
        medial: Medial lung border likewise.
        carina: Height coordinate of the tracheal bifurcation.
    """

    width: float
    height: float
    depth: float
    dome: tuple[float, float]
    floor: float
    wall: float
    fat: float
    shoulder: float
    shoulder_width: float
    arm_angle: tuple[float, float]
    neck: float
    heart: float
    heart_axis: float
    aorta: float
    turn: float
    spine_bend: tuple[float, float]
    breast: float
    breast_place: tuple[float, float, float]
    clavicle: tuple[float, float]
    scapula: float
    rib_spacing: float
    rib_drop: float
    bone: float
    lateral: tuple[Array, Array]
    medial: tuple[Array, Array]
    carina: float


def sample_body(case: Case, rng: np.random.Generator, pose: np.random.Generator) -> Body:
    """Draw the measures of a case's chest; the number of draws depends on nothing.

    Args:
        case: Sex, age, habitus, view, inspiration and findings.
        rng: Source of what stays with the patient.
        pose: Source of what changes from film to film: depth of the breath, arms, shoulders, shoulder blades.
    """
    bedside, male = case.view == "AP", case.sex == "M"
    findings = {finding.name: finding for finding in case.findings}
    scale = (1.0 if male else 0.92) * rng.normal(1.0, 0.03)
    plump = {"thin": -1.0, "average": 0.0, "heavy": 1.0, "obese": 2.0}[case.habitus]
    plump += rng.uniform(-0.4, 0.4)
    width = 13.8 * scale * rng.normal(1.0, 0.03) * (1.0 + 0.02 * plump)
    # Height of a full breath while standing; bones keep to it however deep the breath of a film is.
    full = (22.8 + rng.normal(0.0, 0.6)) * scale - 0.5 * plump
    breath = {"low": -4.3, "normal": 0.0, "hyperinflated": 3.2}[case.inspiration] + pose.normal(0.0, 0.5)
    right_dome = full + breath * scale - (1.0 if bedside else 0.0)
    left_dome = right_dome + rng.normal(0.9, 0.5)
    raise_by = _volume_loss(case)
    dome = (right_dome - raise_by[0], left_dome - raise_by[1])
    sulcus = rng.uniform(3.2, 5.0)
    height = (right_dome + left_dome) / 2 + sulcus * (0.8 if bedside else 1.0)
    heart = rng.normal(0.94, 0.05) * (1.18 if bedside else 1.0)
    heart *= 1.06 if case.inspiration == "low" else (0.88 if case.inspiration == "hyperinflated" else 1)
    growth = {"mild": 0.20, "moderate": 0.32, "severe": 0.45}
    size_draw = rng.uniform(-0.03, 0.05)
    if "cardiomegaly" in findings:
        heart = max(heart, 0.97) * (1.0 + growth[findings["cardiomegaly"].severity] + size_draw)
    # The chest wall stops even the largest heart.
    heart = min(heart, 1.1 + 0.4 * float(np.tanh(max(heart - 1.1, 0.0) / 0.45)))
    heart *= width / 13.8
    breast_draw = abs(rng.normal(2.8, 1.2)) + 0.8 * plump
    male_draw = rng.uniform(0.0, 0.6) + max(0.0, 0.5 * plump)
    jitter = rng.normal(0.0, 0.012, (4, len(_HEIGHT_KNOTS)))
    jitter[:, :2] *= 0.5
    elder = max(0.0, (case.age - 50) / 40)
    aorta = rng.normal(1.75, 0.15) * scale + 0.45 * elder
    aorta += 0.5 if "tortuous aorta" in case.incidentals else 0.0
    bend = rng.normal()
    scoliosis = float(np.sign(bend)) * (0.8 + 0.6 * abs(bend)) if "scoliosis" in case.incidentals else 0.25 * bend
    arms = np.deg2rad(pose.uniform(14, 30, 2) if bedside else pose.uniform(30, 58, 2))
    return Body(
        width=width,
        height=height,
        depth=9.2 * scale * rng.normal(1.0, 0.05) * (1.08 if case.inspiration != "low" else 0.98),
        dome=dome,
        floor=(right_dome + left_dome) / 2,
        wall=float(np.clip(2.4 + 0.9 * plump + rng.normal(0.0, 0.3), 1.2, 7.0)),
        fat=float(np.clip(2.2 + 1.4 * plump, 0.8, 6.0)),
        shoulder=rng.normal(3.2, 0.7) + pose.normal(0.0, 0.55) - (0.8 if bedside else -0.4),
        shoulder_width=width + 3.6 * scale + rng.normal(0.0, 0.6),
        arm_angle=(float(arms[0]), float(arms[1])),
        neck=(5.4 if male else 4.7) + 0.5 * plump,
        heart=heart,
        heart_axis=float(np.deg2rad(rng.normal(40.0, 6.0) - 5.0 * plump - (6 if bedside else 0))),
        aorta=aorta,
        turn=float(np.sin(np.deg2rad(case.rotation))),
        spine_bend=(scoliosis, rng.uniform(0.0, 6.28)),
        breast=float(np.clip(breast_draw, 0.6, 4.5)) if not male else male_draw,
        breast_place=(
            9.2 * scale + (1.5 if case.supine else 0.0) + rng.normal(0.0, 0.5),
            16.0 * scale + rng.normal(0.0, 1.3) + (0.0 if male else 0.5 * plump),
            (6.0 if not male else 5.0) * scale + 0.5 * plump,
        ),
        clavicle=(rng.normal(2.7, 0.5), rng.normal(0.6, 0.9) - (0.8 if bedside else 0.0)),
        scapula=width * (pose.normal(0.80, 0.05) if bedside else pose.normal(0.99, 0.05)),
        rib_spacing=(full + 0.45 + sulcus) / 11.0 * rng.normal(1.0, 0.02),
        rib_drop=rng.normal(1.0, 0.09) * (0.86 if case.supine else 1.0),
        bone=rng.normal(1.0, 0.12) * (1.0 - 0.25 * elder),
        lateral=(_LATERAL_KNOTS + jitter[0], _LATERAL_KNOTS + jitter[1]),
        medial=(_MEDIAL_KNOTS + 0.6 * jitter[2], _MEDIAL_KNOTS + 0.6 * jitter[3]),
        carina=0.37 * right_dome + rng.normal(0.0, 0.4),
    )


def _volume_loss(case: Case) -> tuple[float, float]:
    """Rise of the (right, left) diaphragm by atelectasis, in cm."""
    rise = {"right": 0.0, "left": 0.0}
    for finding in case.findings:
        if finding.name == "atelectasis":
            amount = {"mild": 0.4, "moderate": 1.0, "severe": 2.2}[finding.severity]
            amount *= 1.1 if finding.kind == "volume loss" else 0.2
            for side in rise:
                if finding.side in (side, "bilateral"):
                    rise[side] = amount
    return rise["right"], rise["left"]


@dataclass(frozen=True)
class Lung:
    """One lung on the pixel grid; arrays are float32 (size, size).

    Attributes:
        side: "right" or "left".
        across: 0 at the mediastinum, 1 at the chest wall.
        below: Depth below the diaphragm's outline in cm, negative above it.
        chord: Thickness of the lung if there were no mediastinum, cm.
        air: Thickness of the lung beside, before and behind the mediastinum, cm.
        field: 1 inside the lung field as seen on the film (above the diaphragm), bool.
    """

    side: str
    across: Array
    below: Array
    chord: Array
    air: Array
    field: Array


@dataclass(frozen=True)
class Anatomy:
    """The chest on the pixel grid, in centimetres along the ray.

    Attributes:
        soft: Thickness of the trunk as if it were solid soft tissue.
        airway: Air in trachea, bronchi, stomach and bowel.
        bone: Thickness of compact bone.
        vessels: Thickness of lung vessels.
        lungs: Right and left lung by name.
        heart: Where the heart's outline is, bool.
    """

    soft: Array
    airway: Array
    bone: Array
    vessels: Array
    lungs: dict[str, Lung]
    heart: Array


def lateral_border(body: Body, side: str, y: Array) -> Array:
    """|x| in cm of the inner chest wall at height `y`."""
    knots = body.lateral[0 if side == "right" else 1]
    return body.width * np.interp(np.asarray(y) / body.height, _HEIGHT_KNOTS, knots).astype(np.float32)


def medial_border(body: Body, side: str, y: Array) -> Array:
    """|x| in cm of the lung's medial edge at height `y`, before heart and vessels."""
    knots = body.medial[0 if side == "right" else 1]
    return body.width * np.interp(np.asarray(y) / body.height, _HEIGHT_KNOTS, knots).astype(np.float32)


def spine_centre(body: Body, y: Array) -> Array:
    """Middle of the spine (x, in cm) at height `y`."""
    amplitude, phase = body.spine_bend
    return amplitude * np.sin(0.2 * np.asarray(y) + phase) - 6.0 * body.turn


def build_anatomy(
    case: Case,
    body: Body,
    frame: Frame,
    x: Array,
    y: Array,
    rng: np.random.Generator,
    pose: np.random.Generator,
) -> Anatomy:
    """Project a body onto the detector.

    Args:
        case: Sex, age, view and incidentals.
        body: Measures, from `sample_body`.
        frame: Detector.
        x: Body coordinates of the pixels, cm, (size, size).
        y: Likewise.
        rng: Source of the details that stay with the patient: bones, calcified aorta, vessel trees, outline
            of the heart.
        pose: Source of those of the film: bowel gas, where the chin and the breasts lie.
    """
    coarse = frame.coarse()
    slow_x, slow_y = coarse.grid() if coarse.size < frame.size else (x, y)
    # A stream each, so that what one part draws (a calcified aorta, fewer vessels) moves no other part.
    ribs, girdle, aorta, blades, trees, outline = rng.spawn(6)
    mediastinum, heart = _mediastinum(body, coarse, slow_x, slow_y, outline)
    # The heart beats during the exposure: its borders are never razor-sharp.
    mediastinum = frame.enlarge(coarse.blur(mediastinum, 0.16 if coarse.size == frame.size else 0.10))
    lungs = {side: _lung(case, body, side, x, y, mediastinum) for side in SIDES}
    skeleton = Solids(frame)
    _ribs(case, body, skeleton, ribs)
    _shoulder_girdle(body, skeleton, girdle)
    if "aortic calcification" in case.incidentals:
        _aortic_calcification(body, skeleton, aorta)
    plates = _shoulder_blades(body, skeleton, blades)
    bone = skeleton.thickness() + plates
    # Where a rib runs along the ray its cortex is not as thick as the tube model says.
    bone = bone / (1.0 + 0.35 * bone)
    heart = frame.enlarge(heart) > 0.015
    rows, columns = bounding_box(heart)
    towards_left = smoothstep(-2.5, 2.5, x[rows, columns])
    below = (lungs[side].below[rows, columns] for side in ("right", "left"))
    heart[rows, columns] &= _blend(*below, towards_left) < 0.4
    soft = _trunk(case, body, slow_x, slow_y, pose)
    if coarse.size < frame.size:
        # The steps of large pixels must not show along the skin.
        soft = frame.enlarge(coarse.blur(soft, 0.6 * coarse.pixel))
    return Anatomy(
        soft=soft,
        airway=_airways(body, frame) + frame.enlarge(_abdomen(case, body, coarse, slow_x, slow_y, pose)),
        bone=body.bone * (bone + _spine(case, body, x, y)),
        vessels=_vessels(body, frame, trees, lungs),
        lungs=lungs,
        heart=heart,
    )


def _blend(first: Array, second: Array, share: Array) -> Array:
    return first + share * (second - first)


def _ellipse(x: Array, y: Array, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Array:
    """1 - r^2 of an ellipse, clipped at 0: the square of a solid ellipsoid's relative thickness."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    dx, dy = x - float(centre[0]), y - float(centre[1])
    along = dx * (cos / float(radii[0])) + dy * (sin / float(radii[0]))
    across = dy * (cos / float(radii[1])) - dx * (sin / float(radii[1]))
    along *= along
    across *= across
    along += across
    return np.maximum(np.float32(1.0) - along, np.float32(0.0))


def heart_centre(body: Body) -> tuple[float, float]:
    """Centre (x, y) of the left ventricle's ellipse in cm."""
    room = body.floor - body.carina + 1.6
    return 2.5 * body.heart + 3.0 * body.turn, body.floor - 3.9 * min(body.heart, room / 10.0)


def _mediastinum(body: Body, frame: Frame, x: Array, y: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Thickness of heart and great vessels in cm, and the heart: above 0.015 inside its outline."""
    # No outline is as smooth as the solids it is made of.
    x = x + np.float32(0.13) * frame.noise(rng, 2.0) + np.float32(0.07) * frame.noise(rng, 1.0)
    scale = body.heart
    cx, cy = heart_centre(body)
    shift = 3.0 * body.turn
    arch = body.carina - 1.6
    # A heart that is too tall for its chest lies across instead.
    flat = cy + (y - cy) * np.where(y > cy, np.float32(0.78), np.float32(1.0)) * max(
        1.0, scale * 10.0 / (body.floor - arch)
    )
    ventricle = _ellipse(x, flat, (cx, cy), (6.9 * scale, 4.4 * scale), body.heart_axis)
    atrium = _ellipse(x, flat, (shift - 1.1 * scale, cy + 0.4), (2.8 * scale, 4.5 * scale), -0.10)
    reach = cy - arch
    base = _ellipse(x, y, (shift + 0.7, cy - 0.4 * reach), (2.9 * scale**0.5, 0.6 * reach), -0.2)
    chambers = np.sqrt(np.sqrt(ventricle * ventricle + atrium * atrium + base * base))
    knob = np.sqrt(_ellipse(x, y, (2.35 + shift * 0.3, arch), (body.aorta, body.aorta * 1.05)))
    pulmonary = np.sqrt(_ellipse(x, y, (shift + 1.7, arch + 3.5), (2.05, 1.9)))
    azygos = _ellipse(x, y, (shift * 0.5 - 2.3, body.carina - 0.5), (0.85, 1.05))
    half = lookup(y, [-4, 0, 3, arch, cy - 3, cy], [4.4, 3.2, 2.75, 2.6, 2.7, 2.2])
    # Below the arch the left border falls back: the aortopulmonary window.
    window = 0.7 * np.exp(-(((y - arch - 2.0) / 1.1) ** 2))
    band = _column((x - (shift * 0.5 - 0.3) - 0.15 * np.sin(0.5 * y) + window) / half)
    band = band * smoothstep(cy + 1.0, cy - 5.0, y)
    spine = spine_centre(body, y).astype(np.float32)
    bulge = 0.3 * np.sin(0.25 * y)
    descending = _column((x - 1.4 - 0.2 * body.aorta - 0.6 * spine - bulge) / 1.25)
    descending = descending * smoothstep(arch - 0.5, arch + 1.5, y)
    cava = _column((x - 0.6 * shift + 2.05) / 1.15) * smoothstep(1.5, 4.5, y) * smoothstep(cy, cy - 3.0, y)
    subclavian = _column((x - 0.3 * shift - 2.0) / 1.0) * smoothstep(-2.0, 1.0, y) * smoothstep(arch, arch - 2.0, y)
    front = 13.0 * scale**0.5 * chambers
    vessels = 5.5 * band
    thickness = np.sqrt(front * front + vessels * vessels)
    thickness += (
        5.2 * knob
        + 3.4 * pulmonary
        + 1.5 * azygos
        + 1.5 * cava
        + 1.2 * subclavian
        + 2.0 * descending
        + 1.5 * _column((x - spine) / 1.8)
    )
    return thickness, np.maximum(ventricle, atrium)


def _column(across: Array) -> Array:
    """Relative thickness of a round column; `across` is -1 to 1 from edge to edge."""
    return np.sqrt(np.clip(1.0 - across * across, 0.0, None))


def _lung(case: Case, body: Body, side: str, x: Array, y: Array, mediastinum: Array) -> Lung:
    index = 0 if side == "right" else 1
    sign = np.float32(SIDES[side])
    room = max(body.height - body.dome[index], 1.5)
    sag = room * 1.02 * np.clip((_ACROSS - 0.42) / 0.58, 0.0, None) ** 2.6
    sag += (1.6 if index == 0 else 0.9) * np.clip((0.42 - _ACROSS) / 0.42, 0.0, None) ** 1.6
    below = y - np.float32(body.dome[index] + sag[0])
    across = np.full_like(x, -1.0)
    chord, air = np.zeros_like(x), np.zeros_like(x)
    field = np.zeros(x.shape, bool)
    # A lung stays on its side of the body, between its apex and the lowest sulcus.
    box = bounding_box((sign * x > -2.6) & (y > -0.2) & (y < body.height + 6.0))
    x, y = x[box], y[box]
    knots = _HEIGHT_KNOTS * body.height
    lateral = lookup(y, knots, body.width * body.lateral[index])
    medial = lookup(y, knots, body.width * body.medial[index])
    lateral -= medial
    u = (sign * x - medial) / np.maximum(lateral, np.float32(1e-3))
    across[box] = u
    inside = (u > 0.0) & (u < 1.0) & (y > 0.0)
    np.maximum(u, np.float32(0.0), out=u)
    np.minimum(u, np.float32(1.0), out=u)
    depth = 2.0 * body.depth * np.array([0.26, 0.52, 0.86, 1.0, 1.0])
    thick = lookup(y, body.height * np.array([0.0, 0.1, 0.3, 0.55, 1.0]), depth)
    thick *= lookup(u, _ACROSS, _PROFILE)
    thick *= inside
    under = y - np.float32(body.dome[index]) - lookup(u, _ACROSS, sag)
    below[box] = under
    thick *= lookup(under, _SULCUS, _BEHIND_DOME)
    chord[box] = thick
    # The heart rests on the diaphragm; it takes no room from the lung behind the dome.
    thick -= mediastinum[box] * smoothstep(0.7, -0.3, under)
    if rind := _rind(case, side):
        wall = (1.0 - u) * lateral + 0.12 * np.sin(1.9 * y + body.spine_bend[1])
        if rind == "apical":
            # The cap follows the top of the lung inside the chest wall.
            depth = 1.0 / np.sqrt(1.0 / np.maximum(wall, 0.1) ** 2 + 1.0 / np.maximum(y, 0.1) ** 2)
            cap = smoothstep(1.65, 1.15, depth) * smoothstep(5.5, 3.0, y)
        else:
            cap = smoothstep(1.5, 1.1, wall) * smoothstep(0.25, 0.4, y / body.height)
        thick *= np.float32(1.0) - np.float32(0.6) * cap
    air[box] = np.maximum(thick, np.float32(0.0))
    field[box] = inside & (under < 0.0)
    return Lung(side=side, across=across, below=below, chord=chord, air=air, field=field)


def _rind(case: Case, side: str) -> str:
    """Where the pleura of this side is thickened: "apical", "lateral" or ""."""
    for name in case.incidentals:
        if name.endswith("pleural thickening") and name.split()[0] in (side, "biapical"):
            return "lateral" if "lateral" in name else "apical"
    return ""


def _trunk(case: Case, body: Body, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Thickness of chest, shoulders, arms, neck and breasts, in cm."""
    knots = body.height * np.array([-0.3, 0.0, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4])
    inner = np.maximum(lateral_border(body, "right", knots), lateral_border(body, "left", knots))
    flank = inner + body.wall * np.interp(knots / body.height, [0, 0.35, 0.7, 1.2], [1.9, 1.3, 1.0, 1.25])
    flank = lookup(y, knots, flank)
    thick = 2.0 * (body.depth + 0.5 * body.fat + 1.3)
    thick = thick * np.array([0.35, 0.52, 0.68, 0.8, 0.93, 1.0, 1.0, 1.0, 0.97])
    ratio = np.minimum(np.abs(x) / flank, 1.0)
    chest = lookup(y, knots, thick) * np.sqrt(1.0 - ratio**3) * smoothstep(-3.0, 4.0, y)
    joint, height = body.shoulder_width, body.shoulder
    plump = 1.0 + 0.12 * (body.fat - 2.2)
    neck = 2.3 * body.neck * _column(x / body.neck) * smoothstep(7.0, -1.0, y)
    total = (chest * chest) ** 2 + (neck * neck) ** 2
    distance = np.abs(x)
    outward = np.linspace(0.0, joint + 6.0, 60)
    slope = height - 4.4 - 8.0 * np.exp(-np.clip(outward - 0.85 * body.neck, -3.0, None) / 2.4)
    round_off = 13.0 * np.clip((outward - joint + 4.0) / 9.0, 0.0, None) ** 3
    top = lookup(distance, outward, slope + round_off)
    bottom = lookup(distance, [0, joint - 5.0, joint + 4.0], [15.0, 14.0, 9.0])
    slab = 13.5 * plump * np.sqrt(np.clip((y - top) / 4.0, 0.0, 1.0))
    slab = slab * np.sqrt(np.clip((bottom - y) / 6.0, 0.0, 1.0))
    total += (slab * slab) ** 2
    for index, sign in enumerate(SIDES.values()):
        angle = body.arm_angle[index]
        sin, cos = np.float32(np.sin(angle)), np.float32(np.cos(angle))
        dx, dy = sign * x - joint, y - height
        along = np.clip(dx * sin + dy * cos, 0.0, None)
        off_x, off_y = dx - along * sin, dy - along * cos
        radius = 4.6 * plump
        arm = np.clip(radius**2 - off_x * off_x - off_y * off_y, 0.0, None)
        total += (4.8 * arm) ** 2
    chin = (rng.normal(0.0, 1.0), rng.normal(-13.0, 1.5))
    if case.view == "AP":
        skull = 169.0 * _ellipse(x, y, chin, (6.0, 5.0))
        total += skull * skull
    return np.sqrt(np.sqrt(total)) + _breasts(case, body, x, y, rng)


def _breasts(case: Case, body: Body, x: Array, y: Array, rng: np.random.Generator) -> Array:
    place_x, place_y, radius = body.breast_place
    total = np.zeros_like(x)
    for sign in SIDES.values():
        centre = (
            sign * place_x + 6.0 * body.turn + rng.normal(0, 0.3),
            place_y + rng.normal(0.0, 0.4),
        )
        dx = (x - centre[0]) / (radius * 1.1)
        dy = y - centre[1]
        dy = np.maximum(dy * (1.0 / (radius * 0.85)), dy * (-1.0 / (radius * 1.7)))
        shape = np.maximum(1.0 - dx * dx - dy * dy, np.float32(0.0))
        total += body.breast * (np.sqrt(shape * np.sqrt(shape)) if case.sex == "F" else shape)
    return total


def _ribs(case: Case, body: Body, skeleton: Solids, rng: np.random.Generator) -> None:
    """Twelve pairs of ribs, each a bent tube of compact bone on the rib cage."""
    size = skeleton.frame.size
    number = np.arange(1, 13)
    start = body.rib_spacing * (number - 1.45)
    start[0] += 0.5
    drop = body.rib_drop * np.interp(
        number,
        [1, 2, 3, 4, 5, 6, 8, 10, 11, 12],
        [4.0, 5.6, 7.2, 8.4, 9.6, 10.6, 11.5, 9.5, 7.0, 5.0],
    )
    last = np.interp(number, [1, 2, 7, 8, 9, 10, 11, 12], [150, 146, 143, 132, 124, 115, 78, 52])
    last = np.deg2rad(last)
    first = np.deg2rad(9.0)
    half_height = np.interp(number, [1, 2, 5, 10, 12], [0.68, 0.65, 0.70, 0.66, 0.5])
    along = np.linspace(0.0, 1.0, size)
    across = max(7, size // 28)
    t = (np.arange(across) + 0.5) * (2.0 / across) - 1.0
    # The cortex is one thin shell around marrow, so a ray through the rim passes more of it.
    shell = 0.24 / np.sqrt(1.08 - t * t) + 0.16 * np.sqrt(1.0 - t * t)
    shell = (shell * (2.0 / across)).astype(np.float32)
    t = spread(t.astype(np.float32), size)
    for side, sign in SIDES.items():
        y0 = start + rng.normal(0.0, 0.10, 12)
        fall = drop * rng.normal(1.0, 0.03, 12)
        phi = first + along[None, :] * (last[:, None] - first)
        reach = lateral_border(body, side, np.clip(y0 + fall * 0.5, 0.8, None)) + 0.35
        reach[0] = 0.47 * body.width
        sin, cos = np.sin(phi), np.cos(phi)
        depth = body.depth * np.interp(number, [1, 3, 6, 12], [0.45, 0.8, 1.0, 1.0])[:, None]
        back = (1.0 + cos) / 2
        lift = 0.55 * np.sin(np.clip(phi * 2.2, 0.0, np.pi)) * (1.0 - back)
        z = -depth * cos
        x = sign * reach[:, None] * sin + (z + 3.0 * (1 + cos)) * body.turn
        x = x + spine_centre(body, y0)[:, None] * back
        y = y0[:, None] + fall[:, None] * (1.0 - back) - lift
        callus = np.zeros_like(x)
        for name in case.incidentals:
            if name.startswith(side) and name.endswith("rib fracture"):
                broken = RIBS[name.split()[1]] - 1
                # The outer end healed lower than the inner one, in a sleeve of new bone.
                offset = (phi[broken] - np.deg2rad(46.0)) * body.width
                callus[broken] = np.exp(-((offset / 0.9) ** 2))
                y[broken] += 0.4 * np.tanh(offset / 0.6) * np.exp(-((offset / 4.0) ** 2))
        tx, ty, tz = (np.gradient(c, axis=1) for c in (x, y, z))
        length = np.sqrt(tx * tx + ty * ty + tz * tz) + 1e-9
        # The rib's tall axis lies in the rib cage, across the rib: tangent x outward normal.
        up_x, up_y = -ty * cos, tz * sign * sin + tx * cos
        up_z = -ty * sign * sin
        norm = np.sqrt(up_x * up_x + up_y * up_y + up_z * up_z) + 1e-9
        angle = phi / np.pi
        fade = np.interp(angle, [0.0, 0.5, 0.62, 0.8], [1.0, 1.0, 0.8, 0.6])
        half = half_height[:, None] * np.interp(angle, [0.0, 0.1, 0.5, 0.8], [0.85, 1.0, 1.0, 1.18])
        fade = fade * np.interp(number, [8, 11, 12], [1.0, 0.6, 0.5])[:, None]
        fade = fade * np.clip((1.0 - along[None, :]) * 30.0, 0.0, 1.0)
        half = half * (1.0 + 0.4 * callus)
        mass = (length * half * fade * (1.0 + 2.3 * callus)).astype(np.float32)
        wide_x, wide_y = (
            (half * up_x / norm).astype(np.float32),
            (half * up_y / norm).astype(np.float32),
        )
        skeleton.add(x.astype(np.float32), y.astype(np.float32), (wide_x, wide_y), t, mass[..., None] * shell)


def _spine(case: Case, body: Body, x: Array, y: Array) -> Array:
    """Compact bone of the vertebrae: bodies, end plates, pedicles and processes."""
    spacing = body.rib_spacing
    out = np.zeros_like(x)
    columns = np.nonzero((np.abs(x - spine_centre(body, y)) < 3.6).any(axis=0))[0]
    if columns.size == 0:
        return out
    strip = slice(int(columns[0]), int(columns[-1]) + 1)
    x, y = x[:, strip], y[:, strip]
    level = (y + np.float32(1.2 * spacing)) / np.float32(spacing)
    v = level - np.floor(level) - np.float32(0.5)
    width = lookup(y, [-8.0, 0.0, 10.0, 30.0], [1.15, 1.4, 1.45, 1.95])
    u = (x - spine_centre(body, y).astype(np.float32)) / width
    far, tall = np.abs(u), np.abs(v)
    waist = 1.0 - 0.35 * np.clip(0.25 - v * v, 0.0, None)
    side = far / waist
    body_part = smoothstep(1.04, 0.92, side) * smoothstep(0.47, 0.41, tall)
    plates = smoothstep(0.09, 0.02, np.abs(tall - 0.40)) * smoothstep(1.08, 0.9, far)
    walls = smoothstep(0.15, 0.03, np.abs(side - 0.95)) * smoothstep(0.46, 0.38, tall)
    ring = np.sqrt(((far - 0.62) / 0.24) ** 2 + ((v + 0.14) / 0.20) ** 2)
    pedicle = smoothstep(0.55, 0.1, np.abs(ring - 0.85))
    spinous = smoothstep(1.3, 0.8, np.sqrt((u / 0.17) ** 2 + ((v - 0.22) / 0.24) ** 2))
    wing = smoothstep(0.25, 0.05, np.abs(v + 0.16)) * smoothstep(2.1, 1.8, far) * (far > 0.8)
    wear = 1.8 if "degenerative spine" in case.incidentals else 1.0
    out[:, strip] = 0.22 * body_part + 0.20 * wear * plates + 0.2 * walls + 0.26 * pedicle + 0.4 * spinous + 0.2 * wing
    return out


def _shoulder_girdle(body: Body, skeleton: Solids, rng: np.random.Generator) -> None:
    """Clavicles and upper humeri."""
    frame = skeleton.frame
    for index, sign in enumerate(SIDES.values()):
        joint, height = body.shoulder_width, body.shoulder
        medial_y = body.clavicle[0] + rng.normal(0.0, 0.2)
        tip_y = body.clavicle[1] + rng.normal(0.0, 0.4) + 0.4 * (height - 3.0)
        front = 5.5 * body.turn
        rise = tip_y - medial_y
        x, y = frame.curve(
            [
                (sign * 1.5 + front, medial_y + 0.2),
                (sign * 0.30 * joint + front * 0.8, medial_y + 0.05 + 0.15 * rise),
                (sign * 0.58 * joint + front * 0.4, medial_y + 0.75 * rise),
                (sign * 0.80 * joint, tip_y - 0.3),
                (sign * 0.97 * joint, tip_y + 0.1),
            ]
        )
        along = np.linspace(0.0, 1.0, x.size)
        radius = np.interp(along, [0, 0.08, 0.25, 0.6, 0.85, 1.0], [0.35, 0.66, 0.62, 0.56, 0.68, 0.5])
        skeleton.tube(x, y, radius, wall=0.38, weight=1.7)
        angle = body.arm_angle[index]
        sin, cos = sign * np.sin(angle), np.cos(angle)
        head = (sign * (joint + 0.6), height + 0.6)
        x, y = frame.curve(
            [
                (head[0], head[1] + 0.3),
                (head[0] + 6 * sin + sign * 0.5, head[1] + 6 * cos),
                (head[0] + 24 * sin, head[1] + 24 * cos),
            ]
        )
        radius = np.interp(np.linspace(0.0, 1.0, x.size), [0.0, 0.06, 0.2, 1.0], [2.0, 1.9, 1.25, 1.05])
        skeleton.tube(x, y, radius, wall=0.3, weight=1.0)
        x, y = frame.curve([(head[0] - sign * 0.3, head[1] - 1.9), (head[0], head[1] + 0.6)])
        radius = np.interp(np.linspace(0.0, 1.0, x.size), [0, 0.15, 0.4, 1.0], [0.6, 1.4, 2.0, 2.3])
        skeleton.tube(x, y, radius, wall=0.35, weight=0.8)


def _shoulder_blades(body: Body, skeleton: Solids, rng: np.random.Generator) -> Array:
    """Scapulae: adds their strong borders to the skeleton, returns their thin plates in cm."""
    frame = skeleton.frame
    joint, height = body.shoulder_width, body.shoulder
    factor = 2
    plate = Image.new("L", (frame.size * factor, frame.size * factor))
    pen = ImageDraw.Draw(plate)
    for sign in SIDES.values():
        inner = body.scapula + rng.normal(0.0, 0.4) - sign * 5.0 * body.turn
        lower = (sign * (inner + 0.8 + rng.normal(0, 0.3)), height + 10.5 + rng.normal(0.0, 0.6))
        upper = (sign * (inner + 0.3), height - 2.2)
        socket = (sign * (joint - 1.3), height + 0.3)
        neck = (sign * (joint - 2.0), height + 2.6)
        back = (sign * (inner - 0.15), height + 4.0)
        corner = (sign * (inner + 1.6), height - 2.4)
        notch = (sign * (joint - 3.6), height - 1.3)
        foot = (lower[0] + sign * 1.2, lower[1] - 1.2)
        outline = [upper, corner, notch, socket, neck, foot, lower, back, upper]
        columns, rows = frame.pixels(*frame.curve(outline, step=2.0))
        points = np.stack([columns + 0.5, rows + 0.5], axis=1) * factor
        pen.polygon([tuple(point) for point in points.tolist()], fill=255)
        tip_y = min(body.clavicle[1] + 0.4 * (height - 3.0) + 0.4, height - 2.2)
        ridge = [(sign * (inner + 0.2), height + 0.6), (sign * (joint - 3.0), height - 1.6)]
        ridge_x, ridge_y = frame.curve([*ridge, (sign * (joint + 0.4), tip_y)])
        thick = np.interp(np.linspace(0, 1, ridge_x.size), [0, 0.6, 1.0], [0.25, 0.45, 0.9])
        skeleton.tube(ridge_x, ridge_y, thick, wall=0.35, weight=0.85)
        for points, radius, wall, weight in (
            ([lower, foot, neck, socket], 0.42, 0.5, 0.9),
            ([upper, back, lower], 0.22, 0.0, 0.7),
            (
                [(socket[0], height - 1.3), (socket[0] + sign * 0.1, height + 0.6), neck],
                0.28,
                0.0,
                0.7,
            ),
            (
                [(notch[0] + sign * 0.4, height - 0.9), (sign * (joint - 2.2), height - 0.3)],
                0.7,
                0.3,
                0.6,
            ),
        ):
            skeleton.tube(*frame.curve(points), radius, wall=wall, weight=1.4 * weight)
    area = np.asarray(plate.reduce(factor), np.float32) / 255.0
    return 0.32 * area


def _aortic_calcification(body: Body, skeleton: Solids, rng: np.random.Generator) -> None:
    begin = rng.uniform(-1.5, -0.6)
    theta = np.linspace(begin, begin + rng.uniform(0.9, 1.8), 60)
    x = 1.9 + body.turn + 0.93 * body.aorta * np.cos(theta)
    y = body.carina - 1.6 + 0.98 * body.aorta * np.sin(theta)
    skeleton.tube(x.astype(np.float32), y.astype(np.float32), 0.11, weight=1.5)


def _airways(body: Body, frame: Frame) -> Array:
    """Air in the trachea and the main bronchi, cm."""
    airways = Solids(frame)
    carina = (0.15 - 0.12 * body.aorta + 0.5 * body.turn, body.carina)
    x, y = frame.curve([(0.0, -18.0), (0.0, -6.0), (-0.05, 0.0), (carina[0] - 0.25, carina[1] - 3.0), carina])
    radius = np.interp(y, [-18, -6, -4.5, -3, body.carina], [1.1, 1.0, 0.55, 0.75, 0.85])
    airways.tube(x, y, radius, weight=1.2)
    right = [carina, (carina[0] - 1.9, carina[1] + 2.2), (carina[0] - 3.0, carina[1] + 4.6)]
    airways.tube(*frame.curve(right), 0.62, weight=0.9)
    left = [carina, (carina[0] + 2.4, carina[1] + 1.9), (carina[0] + 4.4, carina[1] + 3.3)]
    airways.tube(*frame.curve(left), 0.55, weight=0.9)
    return airways.thickness()


def _abdomen(case: Case, body: Body, frame: Frame, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Gas in stomach and bowel, and fat below liver and spleen as the gas that would absorb as little, cm."""
    full, level = rng.random(), rng.random()
    radii = (rng.uniform(1.6, 3.8), rng.uniform(1.0, 2.2))
    centre = (rng.uniform(4.5, 7.5), body.dome[1] + radii[1] + rng.uniform(0.6, 1.3))
    tilt = rng.normal(0.0, 0.25)
    floor = centre[1] + rng.uniform(-0.1, 0.6) * radii[1]
    edge, slope = body.dome[0] + rng.uniform(6.5, 12.0), rng.uniform(0.25, 0.6)
    spleen = (rng.uniform(8.5, 10.5), body.dome[1] + rng.uniform(4.0, 5.5))
    fat = rng.uniform(0.6, 2.0)
    rough = frame.noise(rng, 2.0)
    wrinkles = frame.noise(rng, 1.0)
    out = np.zeros_like(x)
    loops = _bowel(body, rng)
    rows = np.nonzero((y > min(body.dome)).any(axis=1))[0]
    if rows.size == 0:
        return out
    abdomen = slice(int(rows[0]), None)
    x, y, gas = x[abdomen], y[abdomen], out[abdomen]
    rough, wrinkles = rough[abdomen], wrinkles[abdomen]
    liver = y - edge + slope * (x + 9.0) + 0.4 * rough
    below = smoothstep(-0.2, 0.9, liver) * smoothstep(0.0, 0.25, 1.0 - _ellipse(x, y, spleen, (3.6, 4.8), 0.3) * 2.2)
    below *= smoothstep(1.5, 4.0, y - np.float32(body.dome[1]))
    gas += fat * below * (1.0 + 0.35 * rough + 0.2 * wrinkles)
    if full < 0.72:
        # Folds and remains of food make the bubble's outline uneven.
        bent_x, bent_y = x + 0.22 * wrinkles, y + 0.3 * rough
        stomach = 5.5 * np.sqrt(_ellipse(bent_x, bent_y, centre, radii, tilt))
        if level < 0.45 and not case.supine:
            stomach *= smoothstep(floor + 0.12, floor - 0.12, y)
        gas += stomach * (1.0 + 0.08 * wrinkles)
    for place, size, angle, amount in loops:
        bubble = amount * _ellipse(x + 0.2 * wrinkles, y + 0.2 * rough, place, size, angle)
        np.maximum(gas, bubble, out=gas)
    return out


def _bowel(body: Body, rng: np.random.Generator) -> list[tuple[tuple[float, float], tuple[float, float], float, float]]:
    """Gas-filled pouches of the colon and loops of the gut: place, radii, angle, thickness, in cm."""
    low = max(body.dome)
    loops = []
    # The left flexure of the colon climbs beside the stomach; the right one stays below the liver.
    for chance, px, py in ((0.5, rng.uniform(7.5, 10.0), 3.0), (0.35, rng.uniform(-9.5, -6.0), 9.0)):
        heading = rng.uniform(0.6, 2.4)
        py += low + rng.uniform(0.0, 2.5)
        shown = rng.random() < chance
        for _ in range(int(rng.integers(3, 7))):
            size = rng.uniform(0.6, 1.2)
            if shown:
                loops.append(((px, py), (size, size * rng.uniform(0.7, 1.0)), heading, rng.uniform(1.2, 3.2)))
            px, py = px + 1.3 * size * float(np.cos(heading)), py + 1.3 * size * float(np.sin(heading))
            heading += rng.normal(0.0, 0.45)
    start = rng.uniform(-9.0, 9.0)
    for _ in range(int(rng.integers(0, 7))):
        where = (start + rng.normal(0.0, 3.5), low + rng.uniform(6.0, 12.0))
        loops.append(
            (where, (rng.uniform(0.6, 1.8), rng.uniform(0.5, 1.1)), rng.uniform(-0.6, 0.6), rng.uniform(0.6, 2.2))
        )
    return loops


# Lobar vessels: angle from the horizontal (degrees, downwards positive) and radius in cm; the lower
# lobes get the larger ones.
_TRUNKS = np.array(
    [(-75, 0.42), (-48, 0.44), (-22, 0.34), (-2, 0.30), (22, 0.40), (42, 0.52), (60, 0.60), (76, 0.66), (90, 0.40)]
)


def _vessels(body: Body, frame: Frame, rng: np.random.Generator, lungs: dict[str, Lung]) -> Array:
    """Lung vessels: trees that taper from the hila, grown one generation at a time on both sides.

    Every place in the tree has draws of its own: a branch that ends early, because the breath is shallow, changes no
    other branch.
    """
    tree = Solids(frame)
    trunks = len(_TRUNKS)
    left = np.repeat([False, True], trunks)
    angle = np.deg2rad(np.tile(_TRUNKS[:, 0], 2) + rng.normal(0.0, 6.0, 2 * trunks)).astype(np.float32)
    radius = (np.tile(_TRUNKS[:, 1], 2) * rng.normal(1.0, 0.12, 2 * trunks)).astype(np.float32)
    top = np.where(left, body.carina + 0.9, body.carina + 1.9)
    upper = angle < np.deg2rad(10)
    # x counts from the midline outwards on either side.
    root_y = np.where(upper, top, top + 1.4 + 1.2 * (angle > 0.9)) + rng.normal(0, 0.3, 2 * trunks)
    root_x = np.where(upper, 3.0, 3.7) + rng.normal(0.0, 0.25, 2 * trunks)
    length = 0.17 * (np.where(left, body.dome[1], body.dome[0]) - top) + 0.5
    fine = 0.7 * frame.pixel
    node = np.arange(2 * trunks)
    hilar = [(rng.normal(1.0, 0.1), rng.normal(0.0, 0.2, 4), rng.normal(0.85, 0.1)) for _ in range(2)]
    for generation in range(7):
        places = 2 * trunks * 2**generation
        # In the order of their radius, so that tubes with as many samples lie together.
        order = np.argsort(radius, kind="stable")
        root_x, root_y, angle, left, radius, length, node = (
            branches[order] for branches in (root_x, root_y, angle, left, radius, length, node)
        )
        spacing = (0.55 if generation < 2 else 0.85) * frame.pixel
        steps = int(np.clip(float(length.max()) / spacing, 6, 200))
        s = np.linspace(0.0, 1.0, steps, dtype=np.float32)[None, :]
        bend = rng.normal(0.0, 0.28, places)[node].astype(np.float32)
        squeeze = np.cos(rng.normal(0.0, 0.5, places)[node])
        # The heading turns by `bend` from root to end: a parabola, as the turn is small.
        reach = (length * squeeze).astype(np.float32)
        cos, sin = reach * np.cos(angle), reach * np.sin(angle)
        x = (cos + 0.3 * bend * sin)[:, None] * s - (0.5 * bend * sin)[:, None] * (s * s)
        y = (sin - 0.3 * bend * cos)[:, None] * s + (0.5 * bend * cos)[:, None] * (s * s)
        x += root_x.astype(np.float32)[:, None]
        y += root_y.astype(np.float32)[:, None]
        end_x, end_y, end_angle = x[:, -1], y[:, -1], angle + 0.7 * bend
        x = x * np.where(left, np.float32(1.0), np.float32(-1.0))[:, None]
        thin, middle = (int(bound) for bound in np.searchsorted(radius, (fine, 2.0 * fine)))
        for chosen, across in ((slice(thin), 2), (slice(thin, middle), 0), (slice(middle, None), 0)):
            if radius[chosen].size:
                tree.tube(x[chosen], y[chosen], radius[chosen, None] * (1.0 - 0.16 * s), across=across)
        turn = rng.choice([-1.0, 1.0], places)[node]
        main = end_angle - turn * np.deg2rad(np.abs(rng.normal(12.0, 6.0, places)[node]))
        branch = end_angle + turn * np.deg2rad(np.abs(rng.normal(40.0, 12.0, places)[node]))
        # Every branch bends back to the ray from the hilum, so the tree fans out.
        top = np.where(left, body.carina + 0.9, body.carina + 1.9)
        away = np.arctan2(end_y - top - 1.0, end_x - 2.2)
        main = main + 0.25 * np.sin(away - main)
        branch = branch + 0.2 * np.sin(away - branch)
        root_x, root_y, left = np.tile(end_x, 2), np.tile(end_y, 2), np.tile(left, 2)
        angle = np.concatenate([main, branch]).astype(np.float32)
        radius = np.concatenate([radius * 0.80, radius * rng.uniform(0.42, 0.66, places)[node]]).astype(np.float32)
        node = np.concatenate([2 * node, 2 * node + 1])
        length = np.concatenate([length, length * 0.85]) * rng.uniform(0.75, 1.15, 2 * places)[node]
        borders = (lateral_border(body, side, root_y) for side in ("left", "right"))
        keep = (radius > 0.055) & (root_x < np.where(left, *borders) - 0.6) & (root_x > 1.5)
        keep &= (root_y > 0.8) & (root_y < np.where(left, body.dome[1], body.dome[0]) + 3.0)
        if not keep.any():
            break
        root_x, root_y, angle, left = root_x[keep], root_y[keep], angle[keep], left[keep]
        radius, length, node = radius[keep], length[keep], node[keep]
    hila = (
        ([(-1.0, 1.9), (-3.0, 2.0), (-4.1, 3.6), (-4.7, 7.2)], (0.9, 0.75, 0.2)),
        ([(1.0, 1.4), (3.0, 0.9), (4.1, 2.2), (4.9, 6.4)], (0.95, 0.75, 0.2)),
    )
    for (points, radii), (grow, shifts, thick) in zip(hila, hilar, strict=True):
        path = [
            (grow * px + 2.0 * body.turn, body.carina + py + shift)
            for (px, py), shift in zip(points, shifts, strict=True)
        ]
        px, py = frame.curve(path)
        radius = np.interp(np.linspace(0.0, 1.0, px.size), [0.0, 0.55, 1.0], radii)
        tree.tube(px, py, radius * thick, weight=0.6)
    aerated = lungs["right"].air + lungs["left"].air
    aerated -= np.float32(1.0)
    aerated *= np.float32(1.0 / 9.0)
    np.minimum(np.maximum(aerated, np.float32(0.0), out=aerated), np.float32(1.0), out=aerated)
    aerated *= tree.thickness()
    aerated *= np.float32(1.9)
    return aerated
