"""From a case to a film: project the body, add findings and devices, expose, develop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data_scripts.phantom.anatomy import LUNG_DENSITY, Anatomy, Body, build_anatomy, sample_body
from data_scripts.phantom.cases import DEVICES, FINDINGS, Case
from data_scripts.phantom.devices import device_metal
from data_scripts.phantom.hospitals import Hospital
from data_scripts.phantom.pathology import Effect, Scene, finding_effect
from data_scripts.phantom.projection import Array, Frame, smoothstep

# Effective linear attenuation at about 70 keV after beam hardening, per cm.
SOFT_TISSUE = 0.175
COMPACT_BONE = 0.36
METAL = 4.0


@dataclass(frozen=True)
class Rendered:
    """A film and the truth about it.

    Attributes:
        image: float32 (size, size) in [0, 1], dense is bright.
        finding_masks: bool (size, size), aligned with `case.findings`.
        device_masks: Device name -> bool (size, size).
        lung_mask: Both lung fields above the diaphragm, bool; consolidated lung included.
        heart_mask: The heart's outline, bool.
        marker: Letter of the side marker, "L" or "R", or "" for none.
        marker_mask: Pixels of the marker, bool.
    """

    image: Array
    finding_masks: tuple[NDArray[np.bool_], ...]
    device_masks: dict[str, NDArray[np.bool_]]
    lung_mask: NDArray[np.bool_]
    heart_mask: NDArray[np.bool_]
    marker: str
    marker_mask: NDArray[np.bool_]


def render_case(case: Case, hospital: Hospital, rng: np.random.Generator, *, size: int = 256) -> Rendered:
    """Make the film of a case.

    Anatomy, findings, devices and film chain each have a random stream of their own, so that two cases
    that differ in their findings alone share everything else when rendered from equal generators.

    Args:
        case: Patient, findings and devices.
        hospital: Imaging chain.
        rng: Source of every choice; the same state gives the same bytes.
        size: Pixels per side, 64 to 2048.

    Raises:
        ValueError: If `size` is out of range.
    """
    if not 64 <= size <= 2048:
        raise ValueError(f"size must lie between 64 and 2048, not {size}")
    seeds = [int(seed) for seed in rng.integers(2**62, size=6)]
    body = sample_body(case, np.random.default_rng(seeds[0]))
    frame = _place_detector(hospital, body, np.random.default_rng(seeds[1]), size)
    x, y = frame.grid()
    anatomy = build_anatomy(case, body, frame, x, y, np.random.default_rng(seeds[2]))
    scene = Scene(case, body, anatomy, frame, x, y)
    effects = [
        finding_effect(finding, scene, np.random.default_rng([seeds[3], FINDINGS.index(finding.name)]))
        for finding in case.findings
    ]
    devices = {
        name: device_metal(name, scene, np.random.default_rng([seeds[4], DEVICES.index(name)])) for name in case.devices
    }
    film = np.random.default_rng(seeds[5])
    attenuation = _attenuate(anatomy, frame, effects, film)
    metal = sum([effect.metal for effect in effects] + list(devices.values()), np.float32(0.0))
    image = _develop(attenuation, METAL * metal, anatomy, hospital, frame, film)
    image, marker, marker_mask = _finish(image, case, hospital, frame, film)
    return Rendered(
        image=image,
        finding_masks=tuple(effect.mask for effect in effects),
        device_masks={name: metal > 0.008 for name, metal in devices.items()},
        lung_mask=scene.field,
        heart_mask=anatomy.heart,
        marker=marker,
        marker_mask=marker_mask,
    )


def _place_detector(hospital: Hospital, body: Body, rng: np.random.Generator, size: int) -> Frame:
    margin = rng.uniform(2.2, 6.8)
    # A radiographer repeats the film that cuts off the costophrenic angles.
    field_of_view = max(rng.uniform(*hospital.field_of_view), margin + body.height + 2.5)
    return Frame(
        size=size,
        field_of_view=field_of_view,
        centre=(rng.normal(0.0, 1.0), field_of_view / 2 - margin),
        tilt=float(np.deg2rad(rng.normal(0.0, 2.3))),
        bend=(rng.normal(0, 0.35), rng.normal(0, 0.35), rng.uniform(0, 6.28), rng.uniform(0, 6.28)),
    )


def _attenuate(
    anatomy: Anatomy,
    frame: Frame,
    effects: list[Effect],
    rng: np.random.Generator,
) -> Array:
    """Line integral of the body's attenuation along each ray (Beer-Lambert), dimensionless."""
    air = anatomy.lungs["right"].air + anatomy.lungs["left"].air
    texture = 0.014 * frame.fractal(rng, 0.7, 2)
    tissue = 1.0 + 0.012 * frame.fractal(rng, 4.0, 3)
    aerated = np.ones_like(air)
    empty = np.zeros_like(air)
    solid = np.zeros_like(air)
    for effect in effects:
        aerated = aerated * (1.0 - effect.fluid)
        empty = np.maximum(empty, effect.empty)
        solid = solid + effect.solid
    lung = 1.0 - LUNG_DENSITY
    parenchyma = texture * air + lung * anatomy.vessels + solid * np.clip(lung * air / 4.0, 0.0, 1.0)
    gas = air * aerated * (lung + LUNG_DENSITY * empty) - parenchyma * (1.0 - empty) - solid * empty
    soft = anatomy.soft * tissue - gas - np.minimum(anatomy.airway, 0.5 * anatomy.soft)
    # Lower tube voltage shows more bone.
    bone = COMPACT_BONE * rng.uniform(0.75, 1.5) * anatomy.bone
    total = SOFT_TISSUE * np.clip(soft, 0.0, None) + bone
    return total.astype(np.float32)


def _develop(
    attenuation: Array,
    metal: Array,
    anatomy: Anatomy,
    hospital: Hospital,
    frame: Frame,
    rng: np.random.Generator,
) -> Array:
    """Scatter, blur, quantum noise, logarithm and display curve."""
    primary = np.exp(-attenuation)
    ratio = rng.uniform(*hospital.scatter)
    reach = rng.uniform(2.5, 4.5)
    light = primary + 0.35 * ratio * frame.blur(primary, reach)
    # Metal on or near the skin stops the scattered rays as well.
    light = frame.blur(light * np.exp(-metal), rng.uniform(*hospital.blur))
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    grain = 0.55 * grain + 1.1 * frame.blur(grain, 0.7 * frame.pixel)
    level = rng.uniform(*hospital.noise)
    light = light * np.exp(level * grain * np.sqrt(0.12 / (light + 0.01)))
    density = -np.log(np.clip(light, 1e-5, None))
    # The window hangs on the patient's build alone: a finding must not shift the whole film.
    build = SOFT_TISSUE * float(np.quantile(anatomy.soft[::4, ::4], 0.7))
    value = 0.06 + 0.74 * density / (0.85 * build)
    value = 0.42 + rng.uniform(*hospital.contrast) * (value - 0.42) + rng.normal(0.0, hospital.exposure)
    strength = rng.uniform(*hospital.equalisation)
    slow = frame.blur(np.clip(value, 0.0, 1.2).astype(np.float32), 5.0)
    value = value + 0.6 * strength * (value - slow) - 0.25 * strength * (slow - 0.55)
    fine = frame.blur(value.astype(np.float32), 0.35)
    value = value + rng.uniform(*hospital.sharpening) * (value - fine)
    # A film has a shoulder: the densest parts crowd together below white.
    value = np.where(value > 0.8, 0.8 + 0.2 * np.tanh((value - 0.8) / 0.2), value)
    value = np.clip(value, 0.0, 1.0) ** rng.uniform(*hospital.gamma)
    return value.astype(np.float32)


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=pixels)


def _finish(
    image: Array, case: Case, hospital: Hospital, frame: Frame, rng: np.random.Generator
) -> tuple[Array, str, NDArray[np.bool_]]:
    """Collimator borders, side marker, burnt-in text."""
    size = frame.size
    edges = rng.uniform(0.0, 0.06, 4) * frame.field_of_view
    angle = rng.normal(0.0, 0.012)
    if rng.random() < hospital.border_probability:
        steps = (np.arange(size, dtype=np.float32) + 0.5) * frame.pixel
        u = steps[None, :] + angle * steps[:, None]
        v = steps[:, None] - angle * steps[None, :]
        blade = np.minimum(
            np.minimum(u - edges[0], frame.field_of_view - edges[1] - u),
            np.minimum(v - edges[2], frame.field_of_view - edges[3] - v),
        )
        image = image * (0.02 + 0.98 * smoothstep(-0.08, 0.08, blade))
    drawing = Image.new("L", (size, size))
    fill = Image.new("L", (size, size))
    letter = "L" if rng.random() < 0.7 else "R"
    column = rng.uniform(0.87, 0.95) if letter == "L" else rng.uniform(0.05, 0.13)
    place = (column * size, rng.uniform(0.05, 0.22) * size)
    height = max(7, int(rng.uniform(0.045, 0.065) * size))
    if hospital.marker == "none":
        letter = ""
    else:
        stamp = Image.new("L", (3 * height, 3 * height))
        pen = ImageDraw.Draw(stamp)
        middle = 1.5 * height
        reach = 0.75 * height
        box = (middle - reach, middle - reach, middle + reach, middle + reach)
        back = Image.new("L", stamp.size)
        if hospital.marker == "boxed":
            ImageDraw.Draw(back).rectangle(box, fill=150)
        elif hospital.marker == "disc":
            ImageDraw.Draw(back).ellipse(box, fill=255)
            pen.ellipse(box, outline=255, width=max(1, height // 10))
        pen.text((middle, middle), letter, fill=255, font=_font(height), anchor="mm")
        turn = rng.normal(0.0, 6.0)
        corner = (int(place[0] - middle), int(place[1] - middle))
        drawing.paste(stamp.rotate(turn, Image.Resampling.BILINEAR), corner)
        fill.paste(back.rotate(turn, Image.Resampling.BILINEAR), corner)
    if case.view == "AP" and rng.random() < hospital.label_probability:
        words = ["PORTABLE", "AP", "MOBILE", "SUPINE" if case.supine else "AP ERECT", "SEMI-ERECT"]
        text = words[int(rng.integers(len(words)))]
        spot = (rng.uniform(0.08, 0.7) * size, rng.choice([0.02, 0.94]) * size)
        ImageDraw.Draw(drawing).text(spot, text, fill=235, font=_font(max(6, size // 30)))
    ink = np.asarray(drawing, np.float32) / 255.0
    ground = np.asarray(fill, np.float32) / 255.0
    shade = 0.04 if hospital.marker == "disc" else 0.85
    paint = 0.15 if hospital.marker == "boxed" else 0.97
    image = image * (1.0 - 0.9 * ground) + 0.9 * ground * shade
    image = image * (1.0 - ink) + ink * paint
    mask = np.zeros((size, size), bool)
    if letter:
        rows, columns = np.ogrid[:size, :size]
        near = np.maximum(np.abs(columns - place[0]), np.abs(rows - place[1])) < 1.2 * height
        mask = near & ((ink > 0.3) | (ground > 0.3))
    return np.clip(image, 0.0, 1.0).astype(np.float32), letter, mask
