"""What findings do to the chest: fluid in place of air, air in place of lung, metal in front of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from data_scripts.phantom.anatomy import (
    LUNG_DENSITY,
    SIDES,
    Anatomy,
    Body,
    lateral_border,
    medial_border,
)
from data_scripts.phantom.cases import Case, Finding, nodule_diameter
from data_scripts.phantom.projection import Array, Frame, Solids, bounding_box, smoothstep, tube_thickness

_GRADE = {"mild": 0, "moderate": 1, "severe": 2}
_VEIL = 1.0
"""Fluid in cm that shows as a veil: about a twenty-fifth of the grey range."""


@dataclass(frozen=True)
class Effect:
    """What one finding changes.

    Attributes:
        mask: Where the finding can be seen, bool.
        fluid: Share of the lung's air that is replaced by fluid, 0 to 1.
        solid: Extra soft tissue in cm.
        empty: Share of the lung replaced by free air, 0 to 1; no vessels there.
        metal: Thickness of metal in cm.
        in_lung: Whether it is in the lung itself, so that free air in the pleura takes its place.
    """

    mask: NDArray[np.bool_]
    fluid: Array | float = 0.0
    solid: Array | float = 0.0
    empty: Array | float = 0.0
    metal: Array | float = 0.0
    in_lung: bool = True


@dataclass(frozen=True)
class Scene:
    """Everything a finding needs to know about where it is.

    Attributes:
        case: The case.
        body: Its measures.
        anatomy: Its projection.
        frame: The detector.
        x: Body coordinates of the pixels, cm.
        y: Likewise.
    """

    case: Case
    body: Body
    anatomy: Anatomy
    frame: Frame
    x: Array
    y: Array

    @property
    def air(self) -> Array:
        """Thickness of both lungs in cm."""
        return self.anatomy.lungs["right"].air + self.anatomy.lungs["left"].air

    @property
    def field(self) -> NDArray[np.bool_]:
        """Both lung fields."""
        return self.anatomy.lungs["right"].field | self.anatomy.lungs["left"].field

    def around(self, centre: tuple[float, float], reach: float) -> tuple[slice, slice]:
        """Rows and columns of the pixels within `reach` cm of a point, and some more."""
        # A tilted square is wider than its side, and the slow bend moves points by up to a centimetre.
        half = (1.2 * reach + 1.0) / self.frame.pixel
        place = self.frame.pixels(np.float32(centre[0]), np.float32(centre[1]))
        column, row = (slice(max(int(p - half), 0), max(int(p + half) + 2, 0)) for p in map(float, place))
        return row, column

    def dome(self, side: str) -> float:
        """Height coordinate of the top of a diaphragm."""
        return self.body.dome[0 if side == "right" else 1]

    def place(self, side: str, across: float, down: float) -> tuple[float, float]:
        """Point (x, y): `across` 0 (mediastinum) to 1 (wall), `down` 0 (apex) to 1 (dome)."""
        y = down * self.dome(side)
        inner = float(medial_border(self.body, side, y))
        outer = float(lateral_border(self.body, side, y))
        return SIDES[side] * (inner + across * (outer - inner)), float(y)


def finding_effect(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    """Draw one finding.

    Raises:
        KeyError: If the finding's name is unknown.
    """
    return _DRAW[finding.name](finding, scene, rng)


def _sides(finding: Finding) -> tuple[str, ...]:
    return ("right", "left") if finding.side == "bilateral" else (finding.side,)


def _blob(
    scene: Scene,
    centre: tuple[float, float],
    radii: tuple[float, float],
    angle: float,
    rough: Array,
    softness: float,
) -> Array:
    """Soft-edged ellipse whose border follows a noise field; 0 to 1."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    out = np.zeros_like(scene.x)
    reach = max(radii) * (1.0 + softness + float(rough.max()))
    box = scene.around(centre, reach)
    dx, dy = scene.x[box] - centre[0], scene.y[box] - centre[1]
    along = dx * (cos / radii[0]) + dy * (sin / radii[0])
    across = dy * (cos / radii[1]) - dx * (sin / radii[1])
    distance = np.sqrt(along * along + across * across)
    out[box] = smoothstep(-softness, softness, np.float32(1.0) - distance + rough[box])
    return out


def _visible(amount: Array, frame: Frame, share: float = 0.4, *, blur: float = 0.3) -> NDArray[np.bool_]:
    """Where a finding's thickness, as an eye would smooth it (by `blur` cm), passes `share` of its peak."""
    smooth = frame.blur(amount, blur)
    mask = np.zeros(amount.shape, bool)
    box = bounding_box(smooth > 1e-3)
    smooth = smooth[box]
    if smooth.size:
        peak = float(np.quantile(smooth[smooth > 1e-3], 0.98))
        mask[box] = _without_holes(smooth > max(share * peak, 1e-3))
    return mask


def _without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what the mask encloses; labels the background once instead of growing it step by step."""
    regions, _ = label(~np.pad(mask, 1))
    return (regions != regions[0, 0])[1:-1, 1:-1]


def _main_parts(mask: NDArray[np.bool_], *, smallest: float = 0.15) -> NDArray[np.bool_]:
    """Drop islands of less than `smallest` of the largest part."""
    regions, count = label(mask)
    areas = np.bincount(regions.ravel(), minlength=count + 1)
    areas[0] = 0
    return (areas >= max(smallest * areas.max(), 1))[regions]


def _visible_fields(
    amount: Array, finding: Finding, scene: Scene, share: float = 0.4, *, blur: float = 0.3
) -> NDArray[np.bool_]:
    """As `_visible` in each lung field of the finding's sides, so that the fainter side keeps its mask."""
    fields = (scene.anatomy.lungs[side].field for side in _sides(finding))
    return np.any([_visible(amount * field, scene.frame, share, blur=blur) for field in fields], axis=0)


def _zone(finding: Finding, rng: np.random.Generator) -> tuple[float, float]:
    """Centre (across, down) of a zone."""
    down = {
        "upper": (0.20, 0.36),
        "apical": (0.08, 0.2),
        "middle": (0.46, 0.62),
        "lower": (0.74, 0.92),
        "basal": (0.82, 0.98),
        "perihilar": (0.45, 0.6),
        "retrocardiac": (0.82, 0.92),
        "peripheral": (0.30, 0.90),
    }[finding.zone]
    across = {"perihilar": (0.22, 0.34), "retrocardiac": (0.12, 0.24), "peripheral": (0.78, 0.92)}
    return rng.uniform(*across.get(finding.zone, (0.34, 0.72))), rng.uniform(*down)


def _aerated(finding: Finding, scene: Scene, side: str, rng: np.random.Generator) -> tuple[float, float]:
    """Centre (across, down) of a zone with lung enough to be filled: behind a large heart little may be left."""
    across, down = _zone(finding, rng)
    air = scene.anatomy.lungs[side].air
    for _ in range(8):
        if _at(air, scene, scene.place(side, across, down)) > 5.0:
            break
        across, down = min(across + 0.06, 0.6), down - 0.02
    return across, down


def _at(image: Array, scene: Scene, point: tuple[float, float]) -> float:
    """Value of an image at a point of the body; the nearest pixel outside of the film."""
    column, row = scene.frame.pixels(np.array(point[0]), np.array(point[1]))
    last = scene.frame.size - 1
    return float(image[int(np.clip(row, 0, last)), int(np.clip(column, 0, last))])


def _atelectasis(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    grade = _GRADE[finding.severity]
    solid = np.zeros_like(scene.x)
    fluid = np.zeros_like(scene.x)
    rough = scene.frame.fractal(rng, 2.0, 2)
    for side in _sides(finding):
        lung = scene.anatomy.lungs[side]
        # Behind the diaphragm nothing shows: the collapsed lung is what stands above it.
        seen = (lung.air > 0) * smoothstep(0.1, -0.2, lung.below)
        if finding.kind == "plate-like" or finding.zone != "retrocardiac":
            for _ in range(1 + int(rng.integers(0, 2 + (grade > 0)))):
                plate = _plate(scene, side, grade, rng) * seen
                solid += _shown(plate, scene.air, least=(1.2, 1.6, 2.1)[grade])
        if finding.kind == "volume loss":
            if finding.zone == "retrocardiac":
                wedge = _behind_the_heart(scene, side, grade, rough) * seen
                fluid = np.maximum(fluid, (0.36 + 0.17 * grade) * wedge)
            else:
                level = lung.below + 0.35 * rough
                wedge = smoothstep(-2.0 - 0.9 * grade, -0.1, level)
                wedge = wedge * smoothstep(1.05, 0.35, lung.across)
                fluid = np.maximum(fluid, (0.26 + 0.13 * grade) * wedge * seen)
    amount = solid * room_for_solids(scene.air) + fluid * scene.air
    blur = 0.18 if finding.kind == "plate-like" else 0.3
    return Effect(mask=_visible_fields(amount, finding, scene, 0.35, blur=blur), fluid=fluid, solid=solid)


def _behind_the_heart(scene: Scene, side: str, grade: int, rough: Array) -> Array:
    """A collapsed lower lobe along the spine, 0 to 1; it reaches past a heart that leaves it no lung."""
    lung = scene.anatomy.lungs[side]
    top = scene.body.carina + 2.5
    slope = (0.20 + 0.05 * grade) * np.clip(scene.y - top, 0.0, None)
    height = smoothstep(top - 1.0, top + 5.0, scene.y)
    for reach in np.arange(2.6, 6.0, 0.4):
        edge = SIDES[side] * scene.x - reach - slope + 0.15 * rough
        wedge = smoothstep(0.55, -0.55, edge) * height
        area = ((wedge > 0.5) & (lung.air > 4.0) & lung.field).sum() * scene.frame.pixel**2
        if area > 8.0:
            break
    return wedge


def _plate(scene: Scene, side: str, grade: int, rng: np.random.Generator) -> Array:
    """A flat collapsed plate that the rays graze, about 1 cm deep: a soft, slightly bowed band."""
    x0, y0 = scene.place(side, rng.uniform(0.3, 0.62), rng.uniform(0.72, 0.90))
    half = rng.uniform(1.7, 2.6) + 0.7 * grade
    slope = float(np.tan(np.deg2rad(rng.normal(0.0, 11.0))))
    bow = rng.normal(0.0, 0.25)
    width = rng.uniform(0.13, 0.20) + 0.05 * grade
    along = (scene.x - x0) / half
    ends = np.clip(1.0 - along * along, 0.0, 1.0)
    off = (scene.y - (y0 + half * slope * along + bow * ends)) / (np.hypot(1.0, slope) * width * (0.5 + 0.5 * ends))
    # A pixel is about as wide as the plate: a bell has no edge that could beat against the grid.
    return np.exp(-0.5 * off * off) * np.sqrt(ends)


def room_for_solids(air: Array) -> Array:
    """Share of an `Effect`'s solid that finds room in the lung, 0 to 1: all of it where 4 cm of air are displaced."""
    return np.minimum(np.float32((1.0 - LUNG_DENSITY) / 4.0) * air, np.float32(1.0))


def _shown(shape: Array, air: Array, *, least: float) -> Array:
    """Scale a shape of height 1 so that half of its bulk adds `least` cm or more, as far as the lung leaves room."""
    bulk = shape > 0.5
    if not bulk.any():
        return shape
    room = float(np.median(room_for_solids(air)[bulk]))
    return shape * np.float32(least / max(room, 0.35))


def _cardiomegaly(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    return Effect(mask=scene.anatomy.heart, in_lung=False)


def _bronchi(scene: Scene, side: str, target: tuple[float, float], rng: np.random.Generator) -> Array:
    """Air bronchograms: 0 to 1 where branching airways cross a consolidated lobe."""
    frame = scene.frame
    sign = SIDES[side]
    root = (sign * 2.6, scene.body.carina + 2.6)
    airways = Solids(frame)
    for _ in range(int(rng.integers(3, 6))):
        end = (target[0] + rng.normal(0.0, 1.5), target[1] + rng.normal(0.0, 1.5))
        middle = (
            0.5 * (root[0] + end[0]) + rng.normal(0.0, 0.5),
            0.5 * (root[1] + end[1]) + rng.normal(0.0, 0.5),
        )
        px, py = frame.curve([root, middle, end])
        radius = np.linspace(0.17, 0.07, px.size)
        airways.tube(px, py, radius, across=5)
    return np.clip(airways.thickness() / 0.28, 0.0, 1.0)


def _consolidation(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    grade = _GRADE[finding.severity]
    fluid = np.zeros_like(scene.x)
    rough = 0.16 * scene.frame.fractal(rng, 2.4, 3)
    uneven = 1.0 + 0.12 * scene.frame.fractal(rng, 1.6, 2)
    for side in _sides(finding):
        lung = scene.anatomy.lungs[side]
        places = (
            [_aerated(finding, scene, side, rng)]
            if finding.zone != "diffuse"
            else [(rng.uniform(0.3, 0.7), down) for down in (0.3, 0.55, 0.82)]
        )
        for across, down in places:
            centre = scene.place(side, across, down)
            size = (3.0, 4.4, 5.8)[grade] * rng.uniform(0.85, 1.15)
            radii = (size * rng.uniform(0.85, 1.15), size * rng.uniform(0.7, 1.0))
            shape = _blob(scene, centre, radii, rng.uniform(-0.6, 0.6), rough, 0.28)
            # Only the right lung has a horizontal fissure for an upper-lobe consolidation to end at.
            if rng.random() < 0.6 and finding.zone == "upper" and side == "right":
                fissure = centre[1] + 0.45 * radii[1] + 0.06 * (scene.x - centre[0])
                shape = shape * smoothstep(0.18, -0.18, scene.y - fissure)
            airways = _bronchi(scene, side, centre, rng)
            peak = (0.28, 0.44, 0.60)[grade] * rng.uniform(0.9, 1.1)
            fluid = np.maximum(fluid, peak * shape * uneven * (1.0 - 0.4 * airways) * (lung.air > 0))
    return Effect(mask=_visible_fields(fluid, finding, scene), fluid=np.clip(fluid, 0.0, 0.9))


def _pneumonia(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    grade = _GRADE[finding.severity]
    fluid = np.zeros_like(scene.x)
    rough = 0.36 * scene.frame.fractal(rng, 1.5, 3)
    for side in _sides(finding):
        lung = scene.anatomy.lungs[side]
        if finding.zone == "diffuse":
            anchors = [(rng.uniform(0.25, 0.75), rng.uniform(0.2, 0.95)) for _ in range(4)]
        else:
            anchors = [_aerated(finding, scene, side, rng)]
        for across, down in anchors:
            centre = scene.place(side, across, down)
            spread = (1.2, 1.8, 2.6)[grade]
            for _ in range(int(rng.integers(3, 6)) + grade):
                where = (centre[0] + rng.normal(0.0, spread), centre[1] + rng.normal(0.0, spread))
                size = rng.uniform(1.1, 1.9) * (1.0, 1.2, 1.45)[grade]
                shape = _blob(
                    scene,
                    where,
                    (size, size * rng.uniform(0.7, 1.1)),
                    rng.uniform(0, 3.1),
                    rough,
                    0.95,
                )
                peak = (0.16, 0.26, 0.38)[grade] * rng.uniform(0.7, 1.1)
                fluid = 1.0 - (1.0 - fluid) * (1.0 - peak * shape * (lung.air > 0))
    return Effect(mask=_visible_fields(fluid, finding, scene, 0.33), fluid=np.clip(fluid, 0.0, 0.8))


def _edema(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    grade = _GRADE[finding.severity]
    frame = scene.frame
    alveolar = finding.kind == "alveolar"
    rough = frame.fractal(rng, 1.5, 3)
    fluid = np.zeros_like(scene.x)
    lines = Solids(frame)
    for side, sign in SIDES.items():
        lung = scene.anatomy.lungs[side]
        centre = scene.place(side, 0.30, rng.uniform(0.55, 0.65))
        radii = (4.2, 9.0) if alveolar else (6.5, 11.0)
        dx, dy = (scene.x - centre[0]) / radii[0], (scene.y - centre[1]) / radii[1]
        haze = np.exp(-(dx * dx + dy * dy) * (1.0 if alveolar else 0.7))
        strength = (0.18, 0.27, 0.40)[grade] if alveolar else (0.13, 0.17, 0.22)[grade]
        fluid += strength * haze * np.clip(1.0 + (0.35 if alveolar else 0.2) * rough, 0.1, 2.0) * (lung.air > 0)
        count = 5 + 4 * grade
        y0 = rng.uniform(0.62, 1.02, (count, 1)) * scene.dome(side)
        wall = lateral_border(scene.body, side, y0) - rng.uniform(0.15, 0.4, (count, 1))
        length = rng.uniform(0.9, 1.7, (count, 1))
        along = np.linspace(0.0, 1.0, max(3, int(2.2 / frame.pixel)))
        lines.tube(sign * (wall - length * along), y0 + rng.normal(0.0, 0.12, (count, 1)) * along, 0.055, across=3)
        if side == "right" and grade > 0:
            y0 = 0.52 * scene.dome(side)
            px, py = frame.curve(
                [
                    scene.place(side, 0.3, 0.5),
                    scene.place(side, 0.65, 0.49),
                    scene.place(side, 0.97, 0.52),
                ]
            )
            lines.tube(px, py, 0.07, across=3)
    vessels = scene.anatomy.vessels
    hazy = frame.blur(vessels, 0.22)
    upper = smoothstep(0.55, 0.15, scene.y / max(scene.body.dome))
    solid = (0.5 + 0.25 * grade) * hazy * (0.6 + 0.9 * upper) + (6.0 + 1.5 * grade) * lines.thickness()
    return Effect(mask=_visible_fields(fluid * scene.air, finding, scene, 0.35), fluid=fluid, solid=solid)


def _effusion(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    grade = _GRADE[finding.severity]
    fluid = np.zeros_like(scene.x)
    visible = np.zeros(scene.x.shape, bool)
    rough = scene.frame.fractal(rng, 5.0, 2)
    uneven = rng.uniform(0.55, 1.0) if finding.side == "bilateral" else 1.0
    sides = _sides(finding)
    for index, side in enumerate(sides):
        lung = scene.anatomy.lungs[side]
        share = uneven if index == 1 else 1.0
        box = bounding_box(lung.chord > 0)
        y, noise, chord = scene.y[box], rough[box], lung.chord[box]
        u = np.clip(lung.across[box], 0.0, 1.0)
        bottom = scene.body.height + 0.8
        room = max(scene.body.height - scene.dome(side), 1.5)
        rise = (0.8 * room + 1.6, room + 4.0, room + 9.0)[grade]
        rise = (rise + rng.normal(0.0, 0.3 + 0.4 * grade)) * share
        flat = (0.25, 0.55, 0.68)[grade]
        meniscus = bottom - rise * (flat + (1.0 - flat) * np.clip((u - 0.35) / 0.65, 0.0, 1.0) ** 2.2)
        meniscus = meniscus - 0.12 * rise * np.clip((0.3 - u) / 0.3, 0.0, 1.0) ** 1.5
        depth = y - meniscus + 0.15 * noise
        seen = np.zeros_like(scene.x)
        if finding.kind == "layering":
            # Fluid behind the lung of a lying patient: the more there is, the higher the veil reaches.
            start = (0.42, 0.26, 0.02)[grade] + 0.3 * (1.0 - share)
            veil = smoothstep(start, start + 0.75, y / bottom) * (0.16, 0.25, 0.38)[grade] * share
            floor = (0.40, 0.55, 0.70)[grade] * smoothstep(-2.5, 2.5, depth + (0.4 + 0.6 * grade))
            amount = np.maximum(veil * (1.0 + 0.04 * noise), floor)
            seen[box] = amount * chord * (lung.below[box] < 1.2)
            smooth = scene.frame.blur(seen, 0.3)
            visible |= _without_holes(smooth > max(_VEIL, 0.18 * float(smooth.max())))
        else:
            amount = 0.96 * smoothstep(-0.35, 1.1 + 0.5 * grade, depth) ** 0.8
            seen[box] = amount * chord * (lung.below[box] < 1.2)
            amount = np.maximum(amount, 0.10 * smoothstep(-3.0 - grade, 0.5, depth))
            visible |= _main_parts(_visible(seen, scene.frame, 0.25))
        fluid[box] = np.maximum(fluid[box], amount * (chord > 0))
    return Effect(mask=visible, fluid=fluid, in_lung=False)


def _pneumothorax(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    grade = _GRADE[finding.severity]
    side = finding.side
    lung = scene.anatomy.lungs[side]
    y = np.clip(scene.y, 0.0, None)
    lateral = lateral_border(scene.body, side, y.ravel()).reshape(y.shape)
    to_wall = lateral - SIDES[side] * scene.x
    gap = (1.9, 3.4, 6.4)[grade] * rng.uniform(0.9, 1.15)
    down = np.clip(y / scene.dome(side), 0.0, 1.2)
    lower = (0.10, 0.35, 0.85)[grade]
    width = gap * (lower + (1.0 - lower) * np.clip(1.0 - down / (0.65, 0.9, 1.3)[grade], 0.0, 1.0) ** 0.8)
    wave = 0.12 * scene.frame.noise(rng, 3.5)
    # Distance from the wall, joined near the apex with the distance from the top of the lung.
    reach = np.sqrt(np.clip(to_wall, 0.0, None) ** 2 + 0.3) + wave
    top = y * (1.05 if grade < 2 else 0.8) + wave
    beside = np.maximum(width, 0.15) / np.maximum(reach, 0.05)
    above = gap * (1.05, 1.0, 0.8)[grade] / np.maximum(top, 0.05)
    power = (5.0, 4.0, 2.2)[grade]
    signed = (np.minimum(beside, 20.0) ** power + np.minimum(above, 20.0) ** power) ** (-1 / power) - 1
    soft = 0.5 * scene.frame.pixel / gap
    empty = smoothstep(soft, -soft, signed) * (lung.chord > 0)
    edge = np.exp(-((signed * gap / 0.09) ** 2)) * (lung.air > 0.5)
    squeeze = (0.01, 0.03, 0.13)[grade] * (1.0 - empty) * (lung.air > 0)
    return Effect(
        mask=(empty > 0.5) & lung.field,
        fluid=squeeze,
        solid=edge * rng.uniform(0.5, 0.8),
        empty=empty,
        in_lung=False,
    )


def _nodule(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    grade = _GRADE[finding.severity]
    radius = nodule_diameter(finding) / 2
    air = scene.anatomy.lungs[finding.side].air
    across, down = _zone(finding, rng)
    # Beside a heart of any size: the nodule must be in the same place on every film of the patient.
    if finding.zone != "upper":
        nearest = 0.55 if finding.side == "left" else 0.45
        across = nearest + (across - 0.34) * (0.80 - nearest) / 0.38
    centre = scene.place(finding.side, across, min(down, 0.88))
    dx, dy = scene.x - centre[0], (scene.y - centre[1]) * rng.uniform(0.9, 1.12)
    theta = np.arctan2(dy, dx)
    bumps = sum(
        rng.normal(0.0, 0.06 / order**0.5) * np.cos(order * theta + rng.uniform(0, 6.28)) for order in range(2, 7)
    )
    distance = np.hypot(dx, dy) / (radius * (1.0 + bumps * (0.5 + 0.5 * grade)))
    solid = 2.0 * radius * np.clip(1.0 - distance**2, 0.0, None) ** 0.6
    solid = solid * (1.8, 1.3, 0.9)[grade]
    if rng.random() < 0.2 and grade < 2:
        solid = solid * 1.6
    shell = scene.frame.blur(solid.astype(np.float32), 0.05)
    return Effect(mask=(distance < 1.0) & (air > 0), solid=shell * (air > 0))


def _covid(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    grade = _GRADE[finding.severity]
    fluid = np.zeros_like(scene.x)
    rough = 0.33 * scene.frame.fractal(rng, 1.8, 3)
    net = scene.frame.fractal(rng, 0.9, 2)
    for side in _sides(finding):
        lung = scene.anatomy.lungs[side]
        for _ in range(int(rng.integers(3, 6)) + 2 * grade):
            if finding.zone == "basal":
                across, down = rng.uniform(0.35, 0.92), rng.uniform(0.72, 1.0)
            else:
                across, down = rng.uniform(0.66, 0.97), rng.uniform(0.38 - 0.08 * grade, 1.0)
            where = scene.place(side, across, down)
            size = rng.uniform(1.3, 2.4) + 0.35 * grade
            shape = _blob(scene, where, (size * 0.85, size * 1.2), rng.normal(0, 0.3), rough, 0.6)
            peak = (0.13, 0.21, 0.31)[grade] * rng.uniform(0.7, 1.15)
            fluid = np.maximum(fluid, peak * shape * (lung.air > 0))
    fluid = fluid * (1.0 + 0.08 * net)
    return Effect(mask=_visible_fields(fluid, finding, scene, 0.35), fluid=np.clip(fluid, 0.0, 0.7))


def _foreign_object(finding: Finding, scene: Scene, rng: np.random.Generator) -> Effect:
    frame = scene.frame
    side = finding.side if finding.side in SIDES else "left"
    down = {
        "apical": (-0.06, 0.08),
        "upper": (0.15, 0.38),
        "middle": (0.45, 0.62),
        "lower": (0.7, 0.95),
    }
    across, height = rng.uniform(0.2, 0.8), rng.uniform(*down[finding.zone])
    cx, cy = scene.place(side, across, max(height, 0.05))
    # Above the shoulder it must still lie on the film, clear of the collimator.
    top = frame.centre[1] - frame.field_of_view / 2
    cy = max(cy if height > 0 else height * scene.dome(side), top + 4.0)
    angle = rng.uniform(0.0, np.pi)
    scale = {"mild": 0.8, "moderate": 1.0, "severe": 1.25}[finding.severity]
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale

    def line(points: list[tuple[float, float]], radius: float) -> Array:
        path = [(cx + cos * a - sin * b, cy + sin * a + cos * b) for a, b in points]
        return tube_thickness(frame, *frame.curve(path), radius * scale)

    def ring(radius: float, thick: float, at: tuple[float, float] = (0.0, 0.0)) -> Array:
        theta = np.linspace(0.0, 2 * np.pi, 80)
        px = cx + cos * at[0] - sin * at[1] + radius * scale * np.cos(theta)
        py = cy + sin * at[0] + cos * at[1] + radius * scale * np.sin(theta)
        return tube_thickness(frame, px.astype(np.float32), py.astype(np.float32), thick * scale)

    distance = np.hypot(scene.x - cx, scene.y - cy) / scale
    disc = smoothstep(0.5 * frame.pixel, -0.5 * frame.pixel, distance - 1.05)
    if finding.kind == "coin":
        metal = 0.17 * disc + 0.05 * ring(0.98, 0.07)
    elif finding.kind == "button":
        metal = 0.09 * smoothstep(0.04, -0.04, distance - 0.62) + 0.5 * ring(0.6, 0.09)
        for a, b in ((0.17, 0.17), (-0.17, 0.17), (0.17, -0.17), (-0.17, -0.17)):
            hole = np.hypot(scene.x - cx - cos * a + sin * b, scene.y - cy - sin * a - cos * b)
            metal = metal * smoothstep(0.04, 0.13, hole)
    elif finding.kind == "necklace":
        drop = rng.uniform(2.0, 6.0)
        lean = rng.normal(0.0, 0.8)
        px, py = frame.curve([(-5.6, -3.5), (-4.0, 0.4 * drop - 1), (lean, drop), (4.0, 0.4 * drop - 1), (5.6, -3.5)])
        beads = 0.06 + 0.06 * (np.sin(np.arange(px.size) * frame.pixel * 0.5 * 11.0) > 0)
        metal = tube_thickness(frame, px, py, beads, across=5)
        if rng.random() < 0.6:
            metal += 0.25 * smoothstep(0.05, -0.05, np.hypot(scene.x - lean, scene.y - drop - 0.5) - 0.45)
    elif finding.kind == "safety pin":
        metal = line([(-1.5, 0.0), (-0.2, 0.12), (1.4, 0.25)], 0.06)
        metal += line([(-1.5, 0.0), (0.0, -0.32), (1.4, -0.25)], 0.06)
        metal += ring(0.14, 0.05, (-1.6, 0.0))
        metal += line([(1.35, 0.34), (1.7, 0.2), (1.7, -0.2), (1.35, -0.34)], 0.13)
    elif finding.kind == "hair clip":
        metal = line([(-1.9, 0.0), (0.0, 0.06), (1.9, 0.14)], 0.06)
        metal += line([(-1.9, 0.0), (-0.8, -0.1), (-0.3, -0.3), (0.2, -0.1), (0.7, -0.3), (1.9, -0.2)], 0.06)
    elif finding.kind == "earring":
        metal = ring(0.75, 0.07) + 0.2 * smoothstep(0.05, -0.05, np.hypot(scene.x - cx, scene.y - cy + 0.95) - 0.2)
    else:
        metal = ring(0.55, 0.16, (-1.5, 0.0)) + line([(-0.9, 0.0), (1.9, 0.0)], 0.12)
        metal += line([(1.4, 0.0), (1.4, 0.4)], 0.11) + line([(1.8, 0.0), (1.8, 0.3)], 0.11)
    metal = np.asarray(metal, np.float32)
    return Effect(mask=metal > 0.025, metal=3.5 * metal, in_lung=False)


_DRAW: dict[str, Callable[[Finding, Scene, np.random.Generator], Effect]] = {
    "atelectasis": _atelectasis,
    "cardiomegaly": _cardiomegaly,
    "consolidation": _consolidation,
    "edema": _edema,
    "pleural effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "pneumonia": _pneumonia,
    "nodule": _nodule,
    "covid-like opacities": _covid,
    "foreign object": _foreign_object,
}
