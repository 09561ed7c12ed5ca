"""Parts that several figures share: axes, films in a fixed grey window, outlines, boxes, numbers in cells."""

import math
from collections.abc import Callable, Mapping, Sequence, Sized

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.textpath import TextToPath

from mgca_lib.figures.style import HALO, MUTED


def new_axes(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of its own, with no window behind it, and its panels row by row; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def balanced(count: int, columns: int) -> tuple[int, int]:
    """Rows and columns for so many panels, without a lonely panel in the last row.

    Raises:
        ValueError: there is no panel.
    """
    if count < 1:
        raise ValueError("nothing to draw: give at least one image or matrix")
    rows = math.ceil(count / max(1, columns))
    return rows, math.ceil(count / rows)


def require(things: Sized, what: str) -> None:
    """Refuse to draw nothing: the traceback of matplotlib would not say what is missing.

    Raises:
        ValueError: there is none of ``things``.
    """
    if not len(things):
        raise ValueError(f"nothing to draw: give at least one {what}")


def add_title(figure: Figure, title: str, *, math: bool = True) -> None:
    """Write the title of a figure; nothing for an empty one. A ``$`` begins a formula, unless ``math`` is False."""
    if title:
        figure.suptitle(title, fontsize=11.5, fontweight="bold", parse_math=math)


def panel_letter(number: int) -> str:
    """Letter of a panel, as captions name it.

    >>> panel_letter(0), panel_letter(27)
    ('a', 'ab')
    """
    return ("" if number < 26 else panel_letter(number // 26 - 1)) + chr(ord("a") + number % 26)


def as_film(image: np.ndarray) -> np.ndarray:
    """Return a grey image ``(H, W)`` as floats in [0, 1].

    Args:
        image: uint8, or floats in [0, 1].

    Raises:
        ValueError: the image is not grey, or its values lie elsewhere.
    """
    film = np.asarray(image)
    if film.ndim != 2:
        raise ValueError(f"a radiograph is a grey image (H, W), found shape {film.shape}")
    film = film.astype(float) / (255 if film.dtype == np.uint8 else 1)
    if not (film.min() >= -1e-6 and film.max() <= 1 + 1e-6):
        raise ValueError(
            f"grey values reach from {film.min():.2f} to {film.max():.2f}; give uint8 or floats in [0, 1] "
            "(mgca_lib.data.transforms.to_display undoes the encoder's scaling)"
        )
    return film


def extent_of(shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """Edges of an image in its own pixels: left, right, bottom, top."""
    return (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)


def show_film(axis: Axes, film: np.ndarray, title: str) -> None:
    """Draw a film whole, in the grey window from 0 to 1, with a small title, in which a ``$`` is a dollar."""
    axis.imshow(film, cmap="gray", vmin=0, vmax=1, extent=extent_of(film.shape))
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=9, fontweight="normal", pad=3, parse_math=False)


DASHES = (0, (4, 2))


def outline(axis: Axes, mask: np.ndarray, shape: tuple[int, int], colour: str, *, dashed: bool = False) -> None:
    """Draw the outline of a mask; nothing for an empty one.

    Raises:
        ValueError: the mask's shape is not that of the image.
    """
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != shape:
        raise ValueError(f"mask of shape {mask.shape} for an image of shape {shape}")
    if mask.any():
        # A frame of zeros closes outlines that touch the border.
        padded = np.pad(mask.astype(float), 1)
        x, y = np.arange(-1, shape[1] + 1), np.arange(-1, shape[0] + 1)
        style = {"colors": [colour], "linewidths": 1.3, "linestyles": [DASHES if dashed else "-"]}
        lines = axis.contour(x, y, padded, levels=[0.5], **style)
        lines.set_path_effects(HALO)
        axis.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))


def frame_box(axis: Axes, box: Sequence[float], colour: str, *, dashed: bool) -> None:
    """Draw a box given by its corners ``x1, y1, x2, y2`` in pixels, edges between pixels."""
    x1, y1, x2, y2 = (float(edge) for edge in box)
    style = DASHES if dashed else "-"
    frame = Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, linestyle=style, linewidth=1.3)
    frame.set(edgecolor=colour, path_effects=HALO)
    axis.add_patch(frame)


def text_width(text: str, font: FontProperties) -> float:
    """Width in inches, independent of any canvas."""
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


def matrix_ticks(axis: Axes, rows: Sequence[str] | None, columns: Sequence[str] | None) -> None:
    """Write the names of rows and columns at a matrix, without tick marks and frame."""
    for names, set_ticks in ((rows, axis.set_yticks), (columns, axis.set_xticks)):
        set_ticks(range(len(names)) if names else [], names if names else [])
    if columns:
        axis.tick_params(axis="x", rotation=40)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def write_numbers(axis: Axes, matrix: np.ndarray, colour: Callable[[float], str]) -> None:
    """Write each number of a matrix into its cell, in the colour that ``colour(value)`` chooses."""
    for (row, column), value in np.ndenumerate(matrix):
        axis.text(column, row, short_number(value), ha="center", va="center", fontsize=8.5, color=colour(value))


def short_number(value: float) -> str:
    """Two decimals without a leading zero: .25, 1.00."""
    text = f"{value:.2f}" if abs(value) < 99.5 else f"{value:.0f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def level_lines(axis: Axes, levels: Mapping[str, float] | None) -> None:
    """Draw named heights as dashed lines, with their names on the right of the axes, where no curve covers them."""
    for name, value in (levels or {}).items():
        axis.axhline(value, color=MUTED, linestyle="--", linewidth=1.1)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axis.annotate(name, (1, value), xytext=(4, 0), va="center", fontsize=8, color=MUTED, **place)


def arrow(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    *,
    width: float = 1.3,
    halo: bool = False,
) -> None:
    """Draw an arrow between two points; a white halo lifts it off what it crosses."""
    line = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, shrinkA=0, shrinkB=0)
    line.set(color=colour, linewidth=width, zorder=5 if halo else 2)
    if halo:
        line.set_path_effects([patheffects.withStroke(linewidth=width + 3, foreground="white")])
    axis.add_patch(line)
