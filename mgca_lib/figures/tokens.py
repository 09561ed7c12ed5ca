"""Patches of a film and words of a report: weights, heat maps, marked phrases."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, FigureBase
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from mgca_lib.figures.drawing import (
    add_title,
    as_film,
    balanced,
    extent_of,
    new_axes,
    outline,
    panel_letter,
    require,
    show_film,
    text_width,
)
from mgca_lib.figures.style import (
    ANSWER_COLOURS,
    ATTENTION_MAP,
    HALO,
    HEAT_MAP,
    INK,
    MUTED,
    TERM_COLOURS,
    WIDTH,
    finding_colour,
    styled,
    tint,
)


@styled
def patch_grid(
    image: np.ndarray, grid: tuple[int, int], *, weights: np.ndarray | None = None, title: str = ""
) -> Figure:
    """The encoder's patches laid over the image, and how much weight each of them has.

    Args:
        image: Grey image ``(H, W)`` as the encoder sees it.
        grid: Rows and columns of patches.
        weights: ``(rows * columns,)`` importance weights, sum 1; without them only the grid is drawn.
        title: Title of the figure.
    """
    film = as_film(image)
    rows, columns = grid
    count = 2 if weights is None else 3
    figure, axes = new_axes(1, count, width=3.0 * count + 0.5 * (count == 3), height=3.3 + 0.3 * bool(title))
    show_film(axes[0], film, "image alone")
    show_film(axes[1], film, f"{rows} x {columns} = {rows * columns} patches")
    for edge in np.linspace(-0.5, film.shape[0] - 0.5, rows + 1):
        axes[1].axhline(edge, color="#FFD166", linewidth=0.7, alpha=0.9)
    for edge in np.linspace(-0.5, film.shape[1] - 0.5, columns + 1):
        axes[1].axvline(edge, color="#FFD166", linewidth=0.7, alpha=0.9)
    axes[1].set(xlim=(-0.5, film.shape[1] - 0.5), ylim=(film.shape[0] - 0.5, -0.5))
    if weights is not None:
        relative = np.asarray(weights, dtype=float).reshape(rows, columns) * rows * columns
        show_film(axes[2], film, "weight of each patch")
        drawn = axes[2].imshow(
            relative, cmap=ATTENTION_MAP, alpha=0.6, vmin=0, extent=extent_of(film.shape), interpolation="nearest"
        )
        figure.colorbar(drawn, ax=axes[2], label="times the equal share", shrink=0.8)
    add_title(figure, title)
    return figure


@styled
def word_heat_maps(
    image: np.ndarray,
    maps: Sequence[np.ndarray],
    words: Sequence[str],
    *,
    masks: Sequence[np.ndarray | None] | None = None,
    columns: int = 4,
    value_label: str = "attention, times its mean over the image",
    outline_label: str = "ground-truth outline of the finding",
    quoted: bool = True,
    title: str = "",
) -> Figure:
    """Where words look, after figure 3 of the paper: the plain image, then one overlay a word.

    All overlays share one scale: attention divided by its mean over the image, so 1 is what a word that
    looks nowhere in particular has everywhere. Only attention above 1 is coloured, so the film stays
    visible elsewhere; the ground truth is outlined.

    Args:
        image: Grey image ``(H, W)``.
        maps: Attention of each word over the image, ``(h, w)`` of any size, not negative.
        words: The words or phrases.
        masks: Bool ground truth of each word in the image's shape, or ``None`` where there is none.
        columns: Panels a row, the plain image included.
        value_label: What the colour is.
        outline_label: What the outlines are.
        quoted: Whether the panels' titles stand in quotation marks, as words of a report do.
        title: Title of the figure.

    Raises:
        ValueError: maps, words or masks are not equally many.
    """
    film = as_film(image)
    masks = masks if masks is not None else [None] * len(words)
    if not len(maps) == len(words) == len(masks):
        raise ValueError(f"{len(maps)} maps and {len(masks)} masks for {len(words)} words")
    relative = [times_mean(one) for one in maps]
    top = max([2.0, *(float(one.max()) for one in relative)])
    count = len(words) + 1
    rows, columns = balanced(count, columns)
    side = WIDTH / max(columns, 3)
    figure, axes = new_axes(rows, columns, width=side * columns + 0.7, height=(side + 0.3) * rows + 0.35)
    for axis in axes:
        axis.set_axis_off()
    show_film(axes[0], film, "image alone")
    for axis, heat, word, mask in zip(axes[1:], relative, words, masks, strict=False):
        show_film(axis, film, f"“{word}”" if quoted else word)
        lay_heat(axis, heat, top, extent_of(film.shape))
        if mask is not None:
            outline(axis, mask, film.shape, ANSWER_COLOURS["ground truth"])
    if relative:
        heat_bar(figure, axes, top, value_label)
    if any(mask is not None for mask in masks):
        figure.legend(handles=[_truth_handle(outline_label)], loc="outside lower center")
    add_title(figure, title, math=False)  # usually a phrase of a report
    return figure


@styled
def word_plate(
    studies: Sequence[Mapping[str, Any]],
    *,
    value_label: str = "attention, times its mean over the image",
    outline_label: str = "ground-truth outline of the finding",
    title: str = "",
) -> Figure:
    """Several studies, one a row, after figure 3 of the paper: the untouched film, then one overlay a word.

    The films are drawn whole, with their side markers, although the encoder sees the crop within the dotted frame
    only. All overlays of the plate share one scale and one colour bar, as in :func:`word_heat_maps`. Crosses mark the
    brightest pixel of each map: what the pointing game looks at. Text and outlines stay vectors in a PDF.

    Args:
        studies: For each row ``film``, a grey image ``(H, W)``; ``words``, and their ``maps``, ``(h, w)`` of any size.
            Optional: ``masks``, bool in the film's shape or ``None`` for each word; ``window``, the ``(x, y, width,
            height)`` in pixels of the film that the maps cover (the whole film by default); ``caption``, a short
            text, usually the phrase.
        value_label: What the colour is.
        outline_label: What the outlines are.
        title: Title of the figure.

    Raises:
        ValueError: there is no study, a study has no word, or as many maps or masks as words are missing.
    """
    if not studies or not all(len(study["words"]) for study in studies):
        raise ValueError("a plate needs at least one study, and each study at least one word")
    relative = [[times_mean(one) for one in study["maps"]] for study in studies]
    top = max([2.0, *(float(one.max()) for row in relative for one in row)])
    columns = 1 + max(len(study["words"]) for study in studies)
    side = WIDTH / max(columns, 4)
    shapes = [np.shape(study["film"]) for study in studies]
    height = side * max(tall / wide for tall, wide in shapes) + 0.4
    figure, axes = new_axes(
        len(studies), columns, width=side * columns + 0.8, height=height * len(studies) + 0.35 + 0.3 * bool(title)
    )
    for axis in axes:
        axis.set_axis_off()
    for number, (study, maps) in enumerate(zip(studies, relative, strict=True)):
        film = as_film(study["film"])
        x, y, wide, tall = study.get("window", (0, 0, film.shape[1], film.shape[0]))
        extent = (x - 0.5, x + wide - 0.5, y + tall - 0.5, y - 0.5)
        row = axes[number * columns : (number + 1) * columns]
        show_film(row[0], film, " \nfilm alone")  # the empty line keeps room for the caption
        name = f"{panel_letter(number)}  {study.get('caption', '')}".rstrip()
        place = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
        place["parse_math"] = False
        caption = row[0].annotate(name, (0, 1), xytext=(0, 15), fontsize=9.5, fontweight="bold", **place)
        caption.set_in_layout(False)  # it may reach over its neighbours
        masks = study.get("masks") or [None] * len(study["words"])
        for axis, heat, word, mask in zip(row[1 : 1 + len(maps)], maps, study["words"], masks, strict=True):
            show_film(axis, film, f"“{word}”")
            lay_heat(axis, heat, top, extent)
            mark_peak(axis, heat, extent)
            if mask is not None:
                outline(axis, mask, film.shape, ANSWER_COLOURS["ground truth"])
            if "window" in study:
                dotted = {"fill": False, "edgecolor": "white", "linewidth": 0.8, "linestyle": (0, (1, 2))}
                axis.add_patch(Rectangle((x - 0.5, y - 0.5), wide, tall, **dotted))
    heat_bar(figure, axes, top, value_label)
    handles = [Line2D([], [], color=INK, marker="x", linestyle="none", markersize=6, label="brightest pixel")]
    if any(mask is not None for study in studies for mask in study.get("masks") or ()):
        handles.insert(0, _truth_handle(outline_label))
    if any("window" in study for study in studies):
        handles.append(Line2D([], [], color=MUTED, linestyle=(0, (1, 2)), label="what the encoder sees"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    add_title(figure, title)
    return figure


@styled
def report_with_spans(
    sections: Mapping[str, str], spans: Iterable[Mapping[str, Any]], *, width: float = WIDTH, title: str = ""
) -> Figure:
    r"""A report with its finding phrases in colour: which words the ground truth speaks of.

    Asserted findings stand on their colour, denied ones are struck through in it, uncertain ones are
    underlined.

    Args:
        sections: Text of each section by name, in the order to show them; an empty one is left out.
        spans: For each phrase ``section``, ``first_word``, ``last_word`` (inclusive, among the ``\w+`` runs
            of the section), ``finding``, ``negated`` and ``uncertain``, as in the phantom's ground truth.
        width: Width of the figure, inches.
        title: Title of the figure.
    """
    spans = list(spans)
    pieces = [
        (name, _pieces(text, [s for s in spans if s["section"] == name])) for name, text in sections.items() if text
    ]
    figure = Figure(figsize=(width, 1.0))
    font = FontProperties(size=10.5)
    space, line_height = text_width("a b", font) - text_width("ab", font), 0.27
    left, right = 0.15, width - 0.15
    headers, placed, top = [], [], 0.1 + 0.3 * bool(title)
    for name, words in pieces:
        headers.append((top, name.capitalize()))
        top += line_height
        x = left
        for text, span in words:
            length = text_width(text, font)
            if x + length > right and x > left:
                x, top = left, top + line_height
            placed.append((x, top, text, span))
            x += length + space
        top += line_height * 1.5
    shown = list(dict.fromkeys(span["finding"] for _, _, _, span in placed if span is not None))
    height = top + 0.18 * math.ceil((len(shown) + 2) / 5) + 0.12 if shown else top
    figure.set_size_inches(width, height)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    for y, text in headers:
        axis.text(left, y + 0.14, text, fontsize=9, fontweight="bold", color=MUTED, va="center")
    for number, (x, y, text, span) in enumerate(placed):
        if span is not None:
            _mark_word(axis, x, y, text_width(text, font), _joins(placed, number, space), span)
        axis.text(x, y + 0.14, text, fontproperties=font, va="center", color=INK, parse_math=False)
    if shown:
        handles = [Patch(facecolor=tint(finding_colour(name), 0.45), label=name) for name in shown]
        own = [span for _, _, _, span in placed if span is not None]
        line = {"color": MUTED, "linewidth": 1.6}
        if any(span["negated"] for span in own):
            handles.append(Line2D([], [], label="struck through: denied", **line))
        if any(span["uncertain"] for span in own):
            handles.append(Line2D([], [], linestyle=(0, (1.5, 1.2)), label="dotted: uncertain", **line))
        axis.legend(handles=handles, loc="lower left", ncols=5, handlelength=1.6, borderaxespad=0.4)
    if title:
        axis.text(0.15, 0.2, title, fontsize=10.5, fontweight="bold", va="center")
    return figure


@styled
def word_weights(words: Sequence[str], weights: Sequence[float], *, title: str = "") -> Figure:
    """The importance weight of each word of a report: which words count in the token loss.

    The dashed line is the equal share.

    Args:
        words: Words in reading order.
        weights: Their weights, sum 1.
        title: Title of the figure.
    """
    require(words, "word")
    rows = math.ceil(len(words) / 24)
    width = math.ceil(len(words) / rows)
    figure, axes = new_axes(
        rows, 1, width=max(4.0, min(WIDTH, 0.42 * width + 1)), height=2.3 * rows + 0.3 * bool(title)
    )
    top = 1.15 * max(*weights, 1 / len(words))
    for row, axis in enumerate(axes):
        part = slice(row * width, (row + 1) * width)
        own = list(words[part])
        axis.bar(range(len(own)), weights[part], color=TERM_COLOURS["token"], width=0.72)
        axis.axhline(1 / len(words), color=MUTED, linestyle="--", linewidth=1)
        if row == 0:
            axis.annotate(
                "equal\nshare",
                (1, 1 / len(words)),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=MUTED,
            )
        axis.set_xticks(range(len(own)), own, rotation=40, ha="right", rotation_mode="anchor", parse_math=False)
        axis.set(xlim=(-0.6, width - 0.4), ylim=(0, top), ylabel="weight")
    add_title(figure, title)
    return figure


def lay_heat(axis: Axes, heat: np.ndarray, top: float, extent: tuple[float, float, float, float]) -> None:
    """Lay a map, given in multiples of its mean, over a film; up to 1 it is transparent, at ``top`` strongest."""
    axis.imshow(
        heat, cmap=HEAT_MAP, vmin=1, vmax=top, alpha=_opacity(heat, top), extent=extent, interpolation="bilinear"
    )


def heat_bar(figure: FigureBase, axes: Sequence[Axes], top: float, label: str) -> None:
    """Draw the one colour bar of overlays from :func:`lay_heat`, as transparent as they are."""
    values = np.linspace(1, top, 256)
    colours = HEAT_MAP(np.linspace(0, 1, 256))
    colours[:, 3] = _opacity(values, top)
    scale = mpl.cm.ScalarMappable(norm=mpl.colors.Normalize(1, top), cmap=ListedColormap(colours))
    bar = figure.colorbar(scale, ax=axes, label=label, shrink=0.85, aspect=28, pad=0.015)
    bar.solids.set(edgecolor="none", rasterized=True)  # 256 vector cells would show seams


def mark_peak(axis: Axes, heat: np.ndarray, extent: tuple[float, float, float, float]) -> None:
    """Mark the centre of a map's brightest cell with a cross; of several the first in reading order."""
    row, column = np.unravel_index(int(np.argmax(heat)), heat.shape)
    left, right, bottom, top = extent
    x = left + (column + 0.5) * (right - left) / heat.shape[1]
    y = top + (row + 0.5) * (bottom - top) / heat.shape[0]
    (cross,) = axis.plot(x, y, "x", color="white", markersize=6, markeredgewidth=1.4)
    cross.set_path_effects(HALO)


def times_mean(heat: np.ndarray) -> np.ndarray:
    """Divide a map by its mean; a map of zeros stays one.

    >>> times_mean(np.array([[1.0, 3.0]])).tolist()
    [[0.5, 1.5]]
    """
    heat = np.asarray(heat, dtype=float)
    return heat / max(float(heat.mean()), 1e-12)


def _opacity(heat: np.ndarray, top: float) -> np.ndarray:
    return np.clip(0.8 * (heat - 1) / (top - 1), 0, 0.8) ** 0.7


def _truth_handle(label: str) -> Line2D:
    return Line2D([], [], color="#18B8C9", linewidth=2.4, label=label)  # darker than on the film: it stands on white


def _pieces(text: str, spans: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any] | None]]:
    """Cut a section at its blanks; each piece with the span that its first word belongs to."""
    pieces, number = [], 0
    for piece in text.split():
        count = len(re.findall(r"\w+", piece))
        inside = [s for s in spans if count and s["first_word"] <= number + count - 1 and number <= s["last_word"]]
        pieces.append((piece, inside[0] if inside else None))
        number += count
    return pieces


def _mark_word(axis: Axes, x: float, y: float, length: float, gap: float, span: Mapping[str, Any]) -> None:
    colour = finding_colour(span["finding"])
    end = x + length + gap
    if span["negated"]:
        axis.add_patch(Rectangle((x - 0.03, y + 0.02), end - x + 0.06, 0.24, facecolor=tint(colour, 0.16), zorder=0.5))
        axis.plot([x, end], [y + 0.145, y + 0.145], color=tint(colour, 0.85), linewidth=1.3, zorder=3)
    else:
        axis.add_patch(Rectangle((x - 0.03, y + 0.02), end - x + 0.06, 0.24, facecolor=tint(colour, 0.45), zorder=0.5))
    if span["uncertain"]:
        axis.plot([x, end], [y + 0.25, y + 0.25], color=INK, linewidth=1.3, linestyle=(0, (1.5, 1.2)), zorder=3)


def _joins(placed: Sequence[tuple[float, float, str, Any]], number: int, space: float) -> float:
    """Width of the blank behind a word, when the next word belongs to the same span and line."""
    if number + 1 < len(placed):
        (_, y, _, span), (_, next_y, _, next_span) = placed[number], placed[number + 1]
        if next_span is span and next_y == y:
            return space
    return 0.0
