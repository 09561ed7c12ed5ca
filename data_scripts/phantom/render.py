"""From a case to a film: project the body, add findings and devices, expose, develop."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFont

from data_scripts.phantom.anatomy import LUNG_DENSITY, Anatomy, Body, build_anatomy, sample_body
from data_scripts.phantom.cases import DEVICES, FINDINGS, Case
from data_scripts.phantom.devices import device_metal
from data_scripts.phantom.hospitals import Hospital
from data_scripts.phantom.pathology import Effect, Scene, finding_effect, room_for_solids
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
        pixel: Side of a pixel in centimetres.
    """

    image: Array
    finding_masks: tuple[NDArray[np.bool_], ...]
    device_masks: dict[str, NDArray[np.bool_]]
    lung_mask: NDArray[np.bool_]
    heart_mask: NDArray[np.bool_]
    marker: str
    marker_mask: NDArray[np.bool_]
    pixel: float


def render_case(
    case: Case, hospital: Hospital, rng: np.random.Generator, *, size: int = 256, study: int | None = None
) -> Rendered:
    """Make the film of a case.

    Anatomy, findings, devices and film chain each have a random stream of their own, so that two cases
    that differ in their findings alone share everything else when rendered from equal generators. What stays with
    the patient comes from `case.patient` where that is given.

    Args:
        case: Patient, findings and devices.
        hospital: Imaging chain.
        rng: Source of every choice; the same state gives the same bytes.
        size: Pixels per side, 64 to 2048.
        study: Seed of what all films of a study share beside the patient: breath and arms, ECG leads, foreign objects,
            field of view. None draws it with the film.

    Raises:
        ValueError: If `size` is out of range.
    """
    if not 64 <= size <= 2048:
        raise ValueError(f"size must lie between 64 and 2048, not {size}")
    detector, detail, chain = _seeds(rng, 3)
    patient = _seeds(rng if case.patient is None else np.random.default_rng(case.patient), 4)
    body_seed, detail_of_patient, lesion, inside = patient
    pose, object_seed, leads, window = _seeds(rng if study is None else np.random.default_rng(study), 4)
    _keep_memory()
    body = sample_body(case, np.random.default_rng(body_seed), np.random.default_rng(pose))
    frame = _place_detector(hospital, body, np.random.default_rng(window), np.random.default_rng(detector), size)
    x, y = frame.grid()
    anatomy = build_anatomy(
        case, body, frame, x, y, np.random.default_rng(detail_of_patient), np.random.default_rng(detail)
    )
    scene = Scene(case, body, anatomy, frame, x, y)
    # What the patient has stays where it is from film to film; what lies on the patient does not.
    effects = [
        finding_effect(
            finding,
            scene,
            np.random.default_rng(
                [object_seed if finding.name == "foreign object" else lesion, FINDINGS.index(finding.name)]
            ),
        )
        for finding in case.findings
    ]
    devices = {
        name: device_metal(
            name, scene, np.random.default_rng([leads if name == "ecg leads" else inside, DEVICES.index(name)])
        )
        for name in case.devices
    }
    film = np.random.default_rng(chain)
    attenuation = _attenuate(anatomy, frame, effects, film)
    metal = sum([effect.metal for effect in effects] + list(devices.values()), np.float32(0.0))
    image = _develop(attenuation, METAL * metal, anatomy, hospital, frame, film)
    image, marker, marker_mask = _finish(image, case, hospital, frame, film)
    return Rendered(
        image=image,
        finding_masks=_finding_masks(effects),
        device_masks={name: metal > 0.008 for name, metal in devices.items()},
        lung_mask=anatomy.lungs["right"].field | anatomy.lungs["left"].field,
        heart_mask=anatomy.heart,
        marker=marker,
        marker_mask=marker_mask,
        pixel=frame.pixel,
    )


def _seeds(rng: np.random.Generator, count: int) -> list[int]:
    return [int(seed) for seed in rng.integers(2**62, size=count)]


@cache
def _keep_memory() -> None:
    """Let the C library keep freed arrays for the next ones.

    glibc hands freed blocks above a threshold back to the kernel, and page faults on the way back take a fifth of
    the time of a film. Freeing one large block raises the threshold to its size; elsewhere this does nothing.
    """
    np.empty(30 * 2**20, np.uint8)


def _place_detector(
    hospital: Hospital, body: Body, window: np.random.Generator, rng: np.random.Generator, size: int
) -> Frame:
    margin = window.uniform(2.2, 6.8)
    # A radiographer repeats the film that cuts off the costophrenic angles.
    field_of_view = max(window.uniform(*hospital.field_of_view), margin + body.height + 2.5)
    return Frame(
        size=size,
        field_of_view=field_of_view,
        centre=(rng.normal(0.0, 1.0), field_of_view / 2 - margin),
        tilt=float(np.deg2rad(rng.normal(0.0, 2.3))),
        bend=(rng.normal(0, 0.35), rng.normal(0, 0.35), rng.uniform(0, 6.28), rng.uniform(0, 6.28)),
    )


def _free_air(effects: list[Effect]) -> Array | None:
    """Share of the lung that free air has taken the place of; None without any."""
    voids = [effect.empty for effect in effects if isinstance(effect.empty, np.ndarray)]
    return np.maximum.reduce(voids) if voids else None


def _finding_masks(effects: list[Effect]) -> tuple[NDArray[np.bool_], ...]:
    """Where each finding shows: what is in the lung does not show where free air or dense fluid has taken its place."""
    covers = [effect.empty > 0.5 for effect in effects if isinstance(effect.empty, np.ndarray)]
    covers += [effect.fluid > 0.8 for effect in effects if not effect.in_lung and isinstance(effect.fluid, np.ndarray)]
    if not covers:
        return tuple(effect.mask for effect in effects)
    covered = np.logical_or.reduce(covers)
    return tuple(effect.mask & ~covered if effect.in_lung else effect.mask for effect in effects)


def _attenuate(
    anatomy: Anatomy,
    frame: Frame,
    effects: list[Effect],
    rng: np.random.Generator,
) -> Array:
    """Line integral of the body's attenuation along each ray (Beer-Lambert), dimensionless."""
    air = anatomy.lungs["right"].air + anatomy.lungs["left"].air
    texture = frame.fractal(rng, 0.7, 2)
    tissue = frame.enlarge(frame.coarse().fractal(rng, 4.0, 3))
    lung = np.float32(1.0 - LUNG_DENSITY)
    vessels = lung * anatomy.vessels
    gas = lung * air
    solids = [effect.solid for effect in effects if isinstance(effect.solid, np.ndarray)]
    extra = sum(solids) if solids else np.float32(0.0)
    crowd = room_for_solids(air) if solids else np.float32(0.0)
    parenchyma = texture
    parenchyma *= np.float32(0.014)
    parenchyma *= air
    parenchyma += vessels
    if solids:
        parenchyma += extra * crowd
    empty = _free_air(effects)
    if empty is not None:
        gas += np.float32(LUNG_DENSITY) * air * empty
        parenchyma *= np.float32(1.0) - empty
        # The line of the lung's edge is all that stands in free air.
        parenchyma += empty * sum(
            effect.solid for effect in effects if isinstance(effect.solid, np.ndarray) and not effect.in_lung
        )
    for effect in effects:
        if isinstance(effect.fluid, np.ndarray):
            left = effect.in_lung and empty is not None
            gas *= np.float32(1.0) - (effect.fluid * (np.float32(1.0) - empty) if left else effect.fluid)
    gas -= parenchyma
    soft = tissue
    soft *= np.float32(0.012)
    soft += np.float32(1.0)
    soft *= anatomy.soft
    soft -= gas
    soft -= np.minimum(anatomy.airway, np.float32(0.5) * anatomy.soft)
    np.maximum(soft, np.float32(0.0), out=soft)
    soft *= np.float32(SOFT_TISSUE)
    # Lower tube voltage shows more bone.
    soft += np.float32(COMPACT_BONE * rng.uniform(0.75, 1.5)) * anatomy.bone
    return soft


def _develop(
    attenuation: Array,
    metal: Array,
    anatomy: Anatomy,
    hospital: Hospital,
    frame: Frame,
    rng: np.random.Generator,
) -> Array:
    """Scatter, blur, quantum noise, logarithm and display curve."""
    light = np.exp(-attenuation)
    ratio = rng.uniform(*hospital.scatter)
    reach = rng.uniform(2.5, 4.5)
    light += np.float32(0.35 * ratio) * frame.blur(light, reach)
    # Metal on or near the skin stops the scattered rays as well.
    if isinstance(metal, np.ndarray):
        light *= np.exp(-metal)
    light = frame.blur(light, rng.uniform(*hospital.blur))
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    grain = np.float32(0.55) * grain + np.float32(1.1) * frame.blur(grain, 0.7 * frame.pixel)
    grain *= np.float32(rng.uniform(*hospital.noise) * 0.12**0.5)
    grain /= np.sqrt(light + np.float32(0.01))
    # The logarithm of light times exp(grain).
    density = np.log(np.maximum(light, np.float32(1e-5)))
    density += grain
    # The window hangs on the patient's build alone: a finding must not shift the whole film.
    build = SOFT_TISSUE * float(np.quantile(anatomy.soft[::4, ::4], 0.7))
    contrast = rng.uniform(*hospital.contrast)
    value = density
    value *= np.float32(-0.74 / (0.85 * build) * contrast)
    value += np.float32(0.42 + contrast * (0.06 - 0.42) + rng.normal(0.0, hospital.exposure))
    strength = rng.uniform(*hospital.equalisation)
    slow = frame.blur(_clip(value, 1.2), 5.0)
    value *= np.float32(1.0 + 0.6 * strength)
    slow *= np.float32(0.85 * strength)
    value -= slow
    value += np.float32(0.25 * strength * 0.55)
    fine = frame.blur(value, 0.35)
    sharpening = rng.uniform(*hospital.sharpening)
    value *= np.float32(1.0 + sharpening)
    fine *= np.float32(sharpening)
    value -= fine
    # A film has a shoulder: the densest parts crowd together below white.
    shoulder = np.maximum(value - np.float32(0.8), np.float32(0.0))
    shoulder -= np.float32(0.2) * np.tanh(shoulder * np.float32(5.0))
    value -= shoulder
    return _clip(value, 1.0) ** np.float32(rng.uniform(*hospital.gamma))


def _clip(value: Array, highest: float) -> Array:
    return np.minimum(np.maximum(value, np.float32(0.0)), np.float32(highest))


@cache
def _font(pixels: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=pixels)


def _finish(
    image: Array, case: Case, hospital: Hospital, frame: Frame, rng: np.random.Generator
) -> tuple[Array, str, NDArray[np.bool_]]:
    """Collimator borders, side marker, burnt-in text."""
    size = frame.size
    edges = (rng.uniform(0.0, 0.06, 4) * frame.field_of_view).tolist()
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
        words = ["PORTABLE", "AP", "MOBILE", *(["SUPINE"] if case.supine else [])]
        text = words[int(rng.integers(len(words)))]
        spot = (rng.uniform(0.08, 0.7) * size, rng.choice([0.02, 0.94]) * size)
        ImageDraw.Draw(drawing).text(spot, text, fill=235, font=_font(max(6, size // 30)))
    shade = 0.04 if hospital.marker == "disc" else 0.85
    paint = 0.15 if hospital.marker == "boxed" else 0.97
    mask = np.zeros((size, size), bool)
    extent = ImageChops.lighter(drawing, fill).getbbox()
    if extent:
        box = (slice(extent[1], extent[3]), slice(extent[0], extent[2]))
        ink = np.asarray(drawing.crop(extent), np.float32) / 255.0
        ground = np.asarray(fill.crop(extent), np.float32) / 255.0
        patch = image[box] * (1.0 - 0.9 * ground) + 0.9 * ground * shade
        image[box] = patch * (1.0 - ink) + ink * paint
        if letter:
            rows, columns = np.ogrid[box]
            near = np.maximum(np.abs(columns - place[0]), np.abs(rows - place[1])) < 1.2 * height
            mask[box] = near & ((ink > 0.3) | (ground > 0.3))
    return image, letter, mask
