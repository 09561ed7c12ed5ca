"""From solids in centimetres to thickness on a pixel grid.

Coordinates: `x` grows to the image's right (the patient's left), `y` downwards, both in centimetres;
the origin is the midline at the height of the lung apices. `z` points to the front of the chest.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Array = NDArray[np.float32]
_WIDEST = 50.0
"""No detector has more centimetres; noise is drawn for so many."""


def smoothstep(low: float, high: float, value: Array) -> Array:
    """Cubic step from 0 below `low` to 1 above `high`.

    >>> float(smoothstep(0.0, 2.0, np.float32(1.0)))
    0.5
    """
    t = np.subtract(value, low)
    t *= 1.0 / (high - low)
    t = np.minimum(np.maximum(t, np.float32(0.0)), np.float32(1.0))
    cubic = np.float32(3.0) - t - t
    cubic *= t
    cubic *= t
    return cubic


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
        x = cos * u + (sin * v + self.centre[0])
        y = -sin * u + (cos * v + self.centre[1])
        dx, dy = self._displacement(x, y)
        x -= dx
        y -= dy
        return x, y

    def pixels(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Column and row (pixel centres at integers) of points of the body."""
        dx, dy = self._displacement(x, y)
        x, y = x + dx - self.centre[0], y + dy - self.centre[1]
        cos, sin = float(np.cos(self.tilt) / self.pixel), float(np.sin(self.tilt) / self.pixel)
        half = self.size / 2 - 0.5
        return cos * x - sin * y + half, sin * x + cos * y + half

    def curve(self, points: list[tuple[float, float]], *, step: float = 0.7) -> tuple[Array, Array]:
        """Smooth curve through control points (Catmull-Rom), sampled every `step` pixels."""
        (x0, y0), (x1, y1) = points[:2]
        (x2, y2), (x3, y3) = points[-2:]
        p = np.array([(2 * x0 - x1, 2 * y0 - y1), *points, (2 * x3 - x2, 2 * y3 - y2)], np.float32)
        longest = max(math.dist(one, two) for one, two in itertools.pairwise(points))
        count = max(3, int(longest / (step * self.pixel)))
        t = (np.arange(count, dtype=np.float32) * np.float32(0.5 / count))[:, None]
        s = 2.0 * t
        a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
        path = (3 * b + d - a - 3 * c) * s
        path += 2 * a - 5 * b + 4 * c - d
        path *= s
        path += c - a
        path *= t
        path += b
        last = path.reshape(-1, 2).T
        return np.append(last[0], p[-2, 0]), np.append(last[1], p[-2, 1])

    def coarse(self, spacing: float = 0.4) -> Frame:
        """The same field of view with larger pixels of at most `spacing` cm, for what varies slowly.

        The number of pixels is this frame's, divided by a power of two; `enlarge` leads back.
        """
        size = self.size
        while size % 2 == 0 and 2 * self.field_of_view / size <= spacing:
            size //= 2
        return replace(self, size=size)

    def enlarge(self, image: Array) -> Array:
        """Bring an image of a coarse frame, (n, n), to this frame's pixels by linear interpolation."""
        side = len(image)
        if side == self.size:
            return image
        return _separable(image, _enlargement(side, self.size))

    def noise(self, rng: np.random.Generator, scale: float) -> Array:
        """Smooth random field, about unit variance, with features of `scale` cm.

        The lattice depends on centimetres alone, so the same field appears at every image size. It has as many points
        for every field of view, so what is drawn after it is the same, too.
        """
        count = int(_WIDEST / scale) + 4
        lattice = rng.standard_normal((count, count)).astype(np.float32)
        return _separable(lattice, _spline(self.size, self.pixel / scale, count))

    def fractal(self, rng: np.random.Generator, scale: float, octaves: int = 3) -> Array:
        """Sum of `octaves` noise fields, each with half the scale and 0.6 of the amplitude."""
        field = self.noise(rng, scale)
        for octave in range(1, octaves):
            field += np.float32(0.6**octave) * self.noise(rng, scale / 2**octave)
        return field

    def blur(self, image: Array, sigma: float) -> Array:
        """Gaussian blur with standard deviation `sigma` in cm; wide blurs work on a coarse copy."""
        sigma_pixels = sigma / self.pixel
        factor = 1
        while sigma_pixels / factor > 3.5 and self.size % (2 * factor) == 0:
            factor *= 2
        if factor > 1:
            side = self.size // factor
            image = np.add.reduce(image.reshape(self.size, side, factor), axis=2)
            image = np.add.reduce(image.reshape(side, factor, side), axis=1) * np.float32(1.0 / factor**2)
        return self.enlarge(_separable(image, _gaussian(len(image), sigma_pixels / factor)))


def _band(first: NDArray[np.int32], weights: NDArray[np.floating], count: int) -> csr_array:
    """Matrix of an interpolation: row i holds `weights[i]` from column `first[i]` on.

    Args:
        first: First column of each of the n rows; columns beyond the matrix count as its border.
        weights: (n, points).
        count: Columns of the matrix.
    """
    rows, points = weights.shape
    columns = np.clip(first[:, None] + np.arange(points, dtype=np.int32), 0, count - 1).astype(np.int32)
    starts = np.arange(0, rows * points + 1, points, dtype=np.int32)
    return csr_array((weights.astype(np.float32).ravel(), columns.ravel(), starts), shape=(rows, count))


@lru_cache(maxsize=32)
def _spline(size: int, step: float, count: int) -> csr_array:
    """Matrix of a cubic B-spline on `count` lattice points at `size` places, `step` lattice points apart."""
    position = (np.arange(size) + 0.5) * step + 1.0
    first = position.astype(np.int32)
    t = position - first
    weights = [
        (1 - t) ** 3 / 6,
        2 / 3 - t**2 + t**3 / 2,
        2 / 3 - (1 - t) ** 2 + (1 - t) ** 3 / 2,
        t**3 / 6,
    ]
    return _band(first - 1, 2.1**0.5 * np.stack(weights, axis=1), count)


@lru_cache(maxsize=32)
def _enlargement(side: int, size: int) -> csr_array:
    """Matrix of a linear interpolation from `side` to `size` pixels along one axis."""
    position = (np.arange(size) + 0.5) * (side / size) - 0.5
    first = np.clip(np.floor(position), 0, side - 2).astype(np.int32)
    t = position - first
    return _band(first, np.stack([1.0 - t, t], axis=1), side)


def _gaussian(size: int, sigma: float) -> csr_array:
    """Matrix of a Gaussian blur along one axis, the border repeated."""
    radius = max(1, int(3.0 * sigma + 0.5))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(sigma, 1e-3)) ** 2)
    weights = np.broadcast_to(kernel / kernel.sum(), (size, 2 * radius + 1))
    return _band(np.arange(-radius, size - radius, dtype=np.int32), weights, size)


def _separable(image: Array, band: csr_array) -> Array:
    """Apply one matrix along both axes: ``band @ image @ band.T``.

    Sparse products run on one thread in a fixed order, so equal inputs give equal bytes.
    """
    columns = band @ np.ascontiguousarray(image.T)
    return band @ np.ascontiguousarray(columns.T)


class Solids:
    """Collects small volumes and projects them onto the detector at once.

    Args:
        frame: The detector.
    """

    def __init__(self, frame: Frame) -> None:
        """Start empty."""
        self.frame = frame
        self._pieces: list[tuple[Array, Array, Array]] = []

    def add(self, x: Array, y: Array, half: tuple[Array, Array], t: Array, volume: Array) -> None:
        """Add rows of small pieces across the points of a line.

        Args:
            x: Points in cm, float32 (..., points).
            y: Same shape.
            half: Displacement (x, y) in cm from a point to the end of its row, same shape each.
            t: Places in the row from -1 to 1, (points, samples).
            volume: cm^3, (..., points, samples).
        """
        column, row = self.frame.pixels(x, y)
        # The slow bend turns a short row by next to nothing.
        cos, sin = float(np.cos(self.frame.tilt) / self.frame.pixel), float(np.sin(self.frame.tilt) / self.frame.pixel)
        columns = (cos * half[0] - sin * half[1])[..., None] * t
        columns += column[..., None]
        rows = (sin * half[0] + cos * half[1])[..., None] * t
        rows += row[..., None]
        self._pieces.append((columns.ravel(), rows.ravel(), volume.ravel()))

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
        across = across or min(max(int(1.0 + 2.4 * float(radius.max()) / self.frame.pixel), 3), 99)
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
        share = radius / step
        self.add(x, y, (-dy * share, dx * share), spread(t, x.shape[-1]), (step * radius * radius)[..., None] * chord)

    def thickness(self) -> Array:
        """Thickness in cm on the detector, float32 (size, size)."""
        size, pixel = self.frame.size, self.frame.pixel
        if not self._pieces:
            return np.zeros((size, size), np.float32)
        column, row, volume = (np.concatenate(part) for part in zip(*self._pieces, strict=True))
        # Pieces beside the detector gather in a frame of one pixel around it.
        for place in (column, row):
            np.maximum(place, np.float32(-1.0), out=place)
            np.minimum(place, np.float32(size), out=place)
        # Nearest cell on a grid twice as fine around the pieces, then 2 x 2 cells to a pixel.
        left, right = int(column.min() + 1.5), int(column.max() + 1.5) + 1
        top, bottom = int(row.min() + 1.5), int(row.max() + 1.5) + 1
        tall, wide = bottom - top, right - left
        row *= 2.0
        row += np.float32(3.0 - 2.0 * top)
        column *= 2.0
        column += np.float32(3.0 - 2.0 * left)
        index = row.astype(np.int32)
        index *= 2 * wide
        index += column.astype(np.int32)
        fine = np.bincount(index, volume, 4 * tall * wide).reshape(2 * tall, 2 * wide)
        fine = fine[::2] + fine[1::2]
        out = np.zeros((size + 2, size + 2), np.float32)
        np.add(fine[:, ::2], fine[:, 1::2], out=out[top:bottom, left:right], casting="same_kind")
        out *= np.float32(1.0 / pixel**2)
        return np.ascontiguousarray(out[1:-1, 1:-1])


def tube_thickness(
    frame: Frame, x: Array, y: Array, radius: Array | float, *, wall: float = 0.0, across: int = 0
) -> Array:
    """Thickness in cm of tubes along polylines; arguments as in `Solids.tube`."""
    solids = Solids(frame)
    solids.tube(x, y, radius, wall=wall, across=across)
    return solids.thickness()


def spread(across: Array, points: int) -> Array:
    """Places across a tube for each of its points, float32 (points, samples).

    A different shift at each point keeps samples and pixels from beating.
    """
    golden = np.arange(points, dtype=np.float32) * np.float32(0.618034)
    return across + ((golden % 1.0 - 0.5) * np.float32(2.0 / across.size))[:, None]


def bounding_box(mask: NDArray[np.bool_], *, margin: int = 0) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around what is true, `margin` pixels wider; empty if nothing is.

    >>> bounding_box(np.array([[False, False, False], [False, True, True]]))
    (slice(1, 2, None), slice(1, 3, None))
    """
    box = []
    for axis in (1, 0):
        inside = np.flatnonzero(mask.any(axis=axis))
        first, last = (int(inside[0]) - margin, int(inside[-1]) + 1 + margin) if inside.size else (0, 0)
        box.append(slice(max(first, 0), min(last, mask.shape[1 - axis])))
    return box[0], box[1]


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
    index = np.subtract(value, np.float32(knots[0] - 0.5 / scale))
    index *= np.float32(scale)
    return table.take(index.astype(np.intp), mode="clip")
