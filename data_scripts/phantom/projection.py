"""From solids in centimetres to thickness on a pixel grid.

Coordinates: `x` grows to the image's right (the patient's left), `y` downwards, both in centimetres;
the origin is the midline at the height of the lung apices. `z` points to the front of the chest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]


def smoothstep(low: float, high: float, value: Array) -> Array:
    """Cubic step from 0 below `low` to 1 above `high`.

    >>> float(smoothstep(0.0, 2.0, np.float32(1.0)))
    0.5
    """
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


@dataclass(frozen=True)
class Frame:
    """The detector: where each pixel lies in the body, and back.

    Attributes:
        size: Pixels per side.
        field_of_view: Side of the image in centimetres.
        centre: Body coordinates (x, y) at the image centre.
        tilt: Rotation in the image plane, radians.
        bend: Amplitudes (x, y) in cm and phases of a slow deformation; no two bodies are alike.
    """

    size: int
    field_of_view: float
    centre: tuple[float, float]
    tilt: float
    bend: tuple[float, float, float, float]

    @property
    def pixel(self) -> float:
        """Side of a pixel in centimetres."""
        return self.field_of_view / self.size

    def _displacement(self, x: Array, y: Array) -> tuple[Array, Array]:
        along_x, along_y, phase_x, phase_y = self.bend
        return (
            along_x * np.sin(0.21 * y + phase_x),
            along_y * np.sin(0.19 * x + phase_y),
        )

    def grid(self) -> tuple[Array, Array]:
        """Body coordinates (x, y) of every pixel centre, each float32 (size, size)."""
        steps = (np.arange(self.size, dtype=np.float32) + 0.5) * self.pixel
        u = steps[None, :] - self.field_of_view / 2
        v = steps[:, None] - self.field_of_view / 2
        cos, sin = float(np.cos(self.tilt)), float(np.sin(self.tilt))
        x = (cos * u + sin * v + self.centre[0]).astype(np.float32)
        y = (-sin * u + cos * v + self.centre[1]).astype(np.float32)
        dx, dy = self._displacement(x, y)
        return (x - dx).astype(np.float32), (y - dy).astype(np.float32)

    def pixels(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Column and row (pixel centres at integers) of points of the body."""
        dx, dy = self._displacement(x, y)
        x, y = x + dx - self.centre[0], y + dy - self.centre[1]
        cos, sin = float(np.cos(self.tilt) / self.pixel), float(np.sin(self.tilt) / self.pixel)
        half = self.size / 2 - 0.5
        return cos * x - sin * y + half, sin * x + cos * y + half

    def curve(self, points: list[tuple[float, float]], *, step: float = 0.7) -> tuple[Array, Array]:
        """Smooth curve through control points (Catmull-Rom), sampled every `step` pixels."""
        p = np.asarray(points, np.float32)
        p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
        a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
        longest = float(np.sqrt(((c - b) ** 2).sum(-1).max()))
        count = max(3, int(longest / (step * self.pixel)))
        t = (np.arange(count, dtype=np.float32) / count)[None, :, None]
        cubic = 3 * b + d - a - 3 * c
        path = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * cubic))
        path = np.concatenate([path.reshape(-1, 2), p[-2:-1]])
        return path[:, 0], path[:, 1]

    def noise(self, rng: np.random.Generator, scale: float) -> Array:
        """Smooth random field, about unit variance, with features of `scale` cm.

        The lattice depends on centimetres alone, so the same field appears at every image size.
        """
        count = int(self.field_of_view / scale) + 4
        lattice = rng.standard_normal((count, count)).astype(np.float32)
        position = (np.arange(self.size) + 0.5) * (self.pixel / scale) + 1.0
        first = position.astype(np.int64)
        t = position - first
        # Cubic B-spline: four lattice points per axis.
        weights = np.stack(
            [
                (1 - t) ** 3 / 6,
                2 / 3 - t**2 + t**3 / 2,
                2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2,
                t**3 / 6,
            ]
        )
        return 2.1 * _resample(lattice, first - 1, weights)

    def fractal(self, rng: np.random.Generator, scale: float, octaves: int = 3) -> Array:
        """Sum of `octaves` noise fields, each with half the scale and 0.6 of the amplitude."""
        field = self.noise(rng, scale)
        for octave in range(1, octaves):
            field = field + 0.6**octave * self.noise(rng, scale / 2**octave)
        return field

    def blur(self, image: Array, sigma: float) -> Array:
        """Gaussian blur with standard deviation `sigma` in cm; wide blurs work on a coarse copy."""
        sigma_pixels = sigma / self.pixel
        factor = 1
        while sigma_pixels / factor > 5.0 and self.size % (2 * factor) == 0:
            factor *= 2
        if factor == 1:
            return gaussian_filter(image, sigma_pixels, mode="nearest", truncate=3.0)
        side = self.size // factor
        coarse = image.reshape(side, factor, side, factor).mean(axis=(1, 3))
        coarse = gaussian_filter(coarse, sigma_pixels / factor, mode="nearest", truncate=3.0)
        position = np.clip((np.arange(self.size) + 0.5) / factor - 0.5, 0, side - 1.001)
        first = position.astype(np.int64)
        return _resample(coarse, first, np.stack([1.0 - position + first, position - first]))


def _resample(lattice: Array, first: NDArray[np.int64], weights: NDArray[np.float64]) -> Array:
    """Separable interpolation along both axes without matrix products (no threads to fight over).

    Args:
        lattice: (n, n) values.
        first: First lattice point for each of `size` positions.
        weights: (points, size) weights of that point and its successors.

    Returns:
        float32 (size, size).
    """
    weights = weights.astype(np.float32)
    rows = sum(weight[:, None] * lattice[first + k] for k, weight in enumerate(weights))
    rows = np.ascontiguousarray(rows.T)
    columns = sum(weight[:, None] * rows[first + k] for k, weight in enumerate(weights))
    return np.ascontiguousarray(columns.T)


class Solids:
    """Collects small volumes and projects them onto the detector at once.

    Args:
        frame: The detector.
    """

    def __init__(self, frame: Frame) -> None:
        """Start empty."""
        self.frame = frame
        self._pieces: list[tuple[Array, Array, Array]] = []

    def add(self, x: Array, y: Array, volume: Array) -> None:
        """Add pieces at `x`, `y` (cm) of `volume` (cm^3); all of one shape."""
        self._pieces.append((x.ravel(), y.ravel(), volume.ravel()))

    def tube(
        self,
        x: Array,
        y: Array,
        radius: Array | float,
        *,
        wall: float = 0.0,
        across: int = 0,
        weight: float = 1.0,
    ) -> None:
        """Add round tubes along polylines.

        Args:
            x: Points of the centre lines in cm, (..., points).
            y: Same shape.
            radius: In cm, scalar or same shape.
            wall: 0 for a solid rod, else the wall's share of the radius.
            across: Samples across the tube; 0 picks them from the radius.
            weight: Factor on the thickness.
        """
        radius = np.broadcast_to(np.asarray(radius, np.float32), x.shape)
        across = across or int(np.clip(2.8 * float(radius.max()) / self.frame.pixel, 3, 99))
        x, y = x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)
        t = (np.arange(across, dtype=np.float32) + 0.5) * (2.0 / across) - 1.0
        dx, dy = np.empty_like(x), np.empty_like(y)
        dx[..., 1:], dy[..., 1:] = x[..., 1:] - x[..., :-1], y[..., 1:] - y[..., :-1]
        dx[..., 0], dy[..., 0] = dx[..., 1], dy[..., 1]
        step = np.sqrt(dx * dx + dy * dy) + np.float32(1e-9)
        chord = np.sqrt(1.0 - t * t)
        if wall > 0.0:
            inner = 1.0 - wall
            chord = chord - np.sqrt(np.clip(inner * inner - t * t, 0.0, None))
        chord = chord.astype(np.float32) * np.float32(weight * 4.0 / across)
        # A different shift across the tube at each point keeps samples and pixels from beating.
        golden = np.arange(x.shape[-1], dtype=np.float32) * np.float32(0.618034)
        t = t + ((golden % 1.0 - 0.5) * np.float32(2.0 / across))[:, None]
        self.add(
            x[..., None] - (dy / step * radius)[..., None] * t,
            y[..., None] + (dx / step * radius)[..., None] * t,
            (step * radius * radius)[..., None] * chord,
        )

    def thickness(self) -> Array:
        """Thickness in cm on the detector, float32 (size, size)."""
        size, pixel = self.frame.size, self.frame.pixel
        if not self._pieces:
            return np.zeros((size, size), np.float32)
        x, y, volume = (np.concatenate(part) for part in zip(*self._pieces, strict=True))
        column, row = self.frame.pixels(x, y)
        inside = (column > 0) & (column < size - 1) & (row > 0) & (row < size - 1)
        column, row, volume = column[inside], row[inside], volume[inside] / np.float32(pixel**2)
        out = np.zeros((size, size), np.float32)
        if not volume.size:
            return out
        # Nearest cell on a grid twice as fine around the pieces, then 2 x 2 cells to a pixel.
        left, right = int(column.min() + 0.5), int(column.max() + 0.5) + 1
        top, bottom = int(row.min() + 0.5), int(row.max() + 0.5) + 1
        tall, wide = bottom - top, right - left
        index = (2.0 * row + (1.0 - 2.0 * top)).astype(np.int64) * (2 * wide)
        index += (2.0 * column + (1.0 - 2.0 * left)).astype(np.int64)
        fine = np.bincount(index, volume, 4 * tall * wide).reshape(2 * tall, 2 * wide)
        fine = fine[::2] + fine[1::2]
        out[top:bottom, left:right] = fine[:, ::2] + fine[:, 1::2]
        return out


def tube_thickness(
    frame: Frame, x: Array, y: Array, radius: Array | float, *, wall: float = 0.0, across: int = 0
) -> Array:
    """Thickness in cm of tubes along polylines; arguments as in `Solids.tube`."""
    solids = Solids(frame)
    solids.tube(x, y, radius, wall=wall, across=across)
    return solids.thickness()


def lookup(value: Array, knots: Array, levels: Array) -> Array:
    """Piecewise linear function of an array, by a fine table; float32, constant outside the knots.

    >>> value = np.float32([0.0, 0.5, 9.0])
    >>> lookup(value, np.array([0.0, 1.0]), np.array([2.0, 4.0])).round(2).tolist()
    [2.0, 3.0, 4.0]
    """
    knots = np.asarray(knots, np.float64)
    entries = 2048
    scale = entries / (knots[-1] - knots[0])
    table = np.interp(knots[0] + np.arange(entries + 1) / scale, knots, levels).astype(np.float32)
    index = (value - np.float32(knots[0])) * np.float32(scale) + np.float32(0.5)
    return table[np.clip(index, 0, entries).astype(np.int32)]
