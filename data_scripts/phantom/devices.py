"""Tubes, lines and wires that lie in or on the patient."""

from __future__ import annotations

import numpy as np

from data_scripts.phantom.anatomy import SIDES, heart_centre
from data_scripts.phantom.pathology import Scene
from data_scripts.phantom.projection import Array, Solids, smoothstep, tube_thickness


def device_metal(name: str, scene: Scene, rng: np.random.Generator) -> Array:
    """Thickness of a device in cm of metal (plastic counts by its lower attenuation).

    Args:
        name: One of `cases.DEVICES`.
        scene: Where to put it.
        rng: Source of position and course.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in _DRAW:
        raise ValueError(f"unknown device {name!r}; choose from {', '.join(_DRAW)}")
    return np.asarray(_DRAW[name](scene, rng), np.float32)


def _line(scene: Scene, points: list[tuple[float, float]], radius: float, wall: float = 0.0) -> Array:
    return tube_thickness(scene.frame, *scene.frame.curve(points), radius, wall=wall)


def _endotracheal(scene: Scene, rng: np.random.Generator) -> Array:
    tip = scene.body.carina - scene.case.tube_height
    turn = 0.5 * scene.body.turn
    lean = rng.normal(0.0, 0.15)
    path = [(0.6 + lean, -20.0), (0.3 + lean, -8.0), (0.0, 0.0), (-0.15 + turn, tip)]
    shifted = [(x + 0.42, y) for x, y in path]
    return 0.10 * _line(scene, path, 0.5, wall=0.2) + 0.9 * _line(scene, shifted, 0.07)


def _nasogastric(scene: Scene, rng: np.random.Generator) -> Array:
    dome = scene.body.dome[1]
    end = (rng.uniform(4.0, 8.0), dome + rng.uniform(3.0, 6.5))
    path = [
        (-0.4, -20.0),
        (-0.2, -4.0),
        (0.5, scene.body.carina),
        (1.2, dome - 4.0),
        (1.9, dome + 0.5),
        (4.0, dome + 3.6),
        end,
        (end[0] + 0.8, end[1] + 2.0),
    ]
    return 0.10 * _line(scene, path, 0.26, wall=0.3) + 0.8 * _line(scene, path, 0.06)


def _central_line(scene: Scene, rng: np.random.Generator) -> Array:
    side = "right" if rng.random() < 0.72 else "left"
    sign = SIDES[side]
    carina = scene.body.carina
    tip = (-2.1 + 2.0 * scene.body.turn, carina + rng.uniform(0.0, 4.5))
    style = rng.random()
    if style < 0.5:
        start = [(sign * 5.5, -12.0), (sign * 4.2, -4.0), (sign * 3.2, 0.8)]
    elif style < 0.75:
        start = [(sign * 12.5, 6.0), (sign * 9.0, 2.6), (sign * 5.0, 2.0)]
    else:
        start = [(sign * 19.0, 14.0), (sign * 15.5, 4.8), (sign * 9.5, 1.9), (sign * 5.0, 2.0)]
    bridge = [(2.2, 3.0), (-1.2, 4.3)] if side == "left" else [(-2.7, 3.4)]
    path = [*start, *bridge, (-2.3 + 2.0 * scene.body.turn, carina - 2.0), tip]
    return 0.5 * _line(scene, path, rng.uniform(0.10, 0.13))


def _chest_tube(scene: Scene, rng: np.random.Generator) -> Array:
    drained = [
        finding.side
        for finding in scene.case.findings
        if finding.name in ("pneumothorax", "pleural effusion") and finding.side in SIDES
    ]
    side = drained[-1] if drained else ("right" if rng.random() < 0.5 else "left")
    wall = scene.body.width
    sign = SIDES[side]
    enter = rng.uniform(0.55, 0.8) * scene.dome(side)
    end = scene.place(side, rng.uniform(0.3, 0.6), rng.uniform(0.12, 0.4))
    path = [
        (sign * (wall + 8.0), enter + 5.0),
        (sign * (wall + 1.0), enter + 0.8),
        (sign * wall * 0.8, enter - 2.2),
        (0.5 * (end[0] + sign * wall * 0.72), 0.5 * (end[1] + enter - 3.0)),
        end,
    ]
    edge = [(x + 0.25 * sign, y + 0.1) for x, y in path]
    return 0.10 * _line(scene, path, 0.42, wall=0.25) + 0.9 * _line(scene, edge, 0.06)


def _pacemaker(scene: Scene, rng: np.random.Generator) -> Array:
    side = "left" if rng.random() < 0.85 else "right"
    sign = SIDES[side]
    cx = sign * (9.8 + rng.normal(0.0, 0.6))
    cy = 4.6 + rng.normal(0.0, 0.8)
    angle = rng.normal(0.0, 0.25)
    dx, dy = scene.x - cx, scene.y - cy
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = -np.sin(angle) * dx + np.cos(angle) * dy
    inside = (np.abs(u / 2.4) ** 3.2 + np.abs(v / 2.0) ** 3.2) ** (1 / 3.2) - 1.0
    can = 0.35 * smoothstep(0.02, -0.02, inside)
    coil = 0.2 * smoothstep(0.03, -0.03, np.hypot((u + 0.3) / 1.3, (v - 0.5) / 0.9) - 1.0)
    header = 0.06 * smoothstep(0.1, -0.1, np.maximum(np.abs(u) - 1.5, np.abs(v + 1.9) - 0.5))
    hx, hy = heart_centre(scene.body)
    scale = scene.body.heart
    vein = [(cx, cy - 2.1), (cx - sign * 2.2, cy - 2.9), (sign * 5.0, 2.2)]
    vein += [(2.0, 3.4), (-1.2, 4.8)] if side == "left" else [(-2.6, 3.6)]
    cava = [(-2.4, scene.body.carina), (-2.6, hy - 2.0)]
    ventricle = [(-1.4, hy + 2.0), (1.5, hy + 3.2 * scale), (hx + 3.3 * scale, hy + 3.1 * scale)]
    total = can + coil + header + 1.0 * _line(scene, [*vein, *cava, *ventricle], 0.07)
    lifted = [(x + 0.15, y + 0.18) for x, y in [*vein, *cava]]
    return total + 1.0 * _line(scene, [*lifted, (-2.3, hy + 0.6), (-1.2, hy + 0.2), (-1.0, hy - 1.0)], 0.07)


def _sternal_wires(scene: Scene, rng: np.random.Generator) -> Array:
    wires = Solids(scene.frame)
    front = 8.5 * scene.body.turn
    count = int(rng.integers(5, 8))
    # The sternum is a bone: it does not follow the diaphragm.
    bottom = 7.7 * scene.body.rib_spacing
    theta = np.linspace(0.0, 2 * np.pi, 60, dtype=np.float32)
    for y in np.linspace(4.2, bottom, count).tolist():
        width, tall = rng.uniform(0.7, 1.0), rng.uniform(0.25, 0.45)
        lean = rng.normal(0.0, 0.15)
        px = front + rng.normal(0.0, 0.12) + width * np.cos(theta)
        py = y + tall * np.sin(theta) + lean * np.cos(theta)
        wires.tube(px, py, 0.05, weight=1.2)
        knot = (front + rng.normal(0.0, 0.2), y - tall)
        tail = (knot[0] + rng.normal(0.0, 0.2), knot[1] - 0.45)
        wires.tube(*scene.frame.curve([knot, tail]), 0.09, weight=0.5)
    return wires.thickness()


def _ecg_leads(scene: Scene, rng: np.random.Generator) -> Array:
    total = np.zeros_like(scene.x)
    wires = Solids(scene.frame)
    width, dome = scene.body.width, max(scene.body.dome)
    spots = [(-0.82, 0.12), (0.82, 0.12), (-0.8, 0.95), (0.85, 0.95), (0.1, 0.55)]
    exit_x = rng.uniform(-1.0, 1.0) * width
    for across, down in spots:
        if rng.random() < 0.25:
            continue
        x = across * width + rng.normal(0.0, 1.6)
        y = down * dome + rng.normal(0.0, 2.2)
        box = scene.around((x, y), 1.6)
        distance = np.hypot(scene.x[box] - x, scene.y[box] - y)
        total[box] += 0.15 * smoothstep(0.05, -0.05, np.abs(distance - 0.42) - 0.14)
        total[box] += 0.012 * smoothstep(0.1, -0.1, distance - 1.4)
        down_end = scene.frame.field_of_view if rng.random() < 0.6 else -12.0
        middle = (
            0.5 * (x + exit_x) + rng.normal(0.0, 2.5),
            0.5 * (y + down_end) + rng.normal(0.0, 2.0),
        )
        near = (x + rng.normal(0.0, 1.0), y + float(np.sign(down_end)) * rng.uniform(1.0, 2.5))
        end = (exit_x + rng.normal(0.0, 1.5), down_end)
        wires.tube(*scene.frame.curve([(x, y), near, middle, end]), 0.085, weight=0.30)
    return total + wires.thickness()


_DRAW = {
    "endotracheal tube": _endotracheal,
    "nasogastric tube": _nasogastric,
    "central venous catheter": _central_line,
    "chest tube": _chest_tube,
    "pacemaker": _pacemaker,
    "sternal wires": _sternal_wires,
    "ecg leads": _ecg_leads,
}
