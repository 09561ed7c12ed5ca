"""Every plot of the course: one style, and one colour for one meaning.

Each function takes plain arrays, returns a matplotlib ``Figure`` and leaves no global state behind: no open
figure, no changed setting, nothing shown. Radiographs are drawn whole, side markers included, with a fixed
grey window from 0 to 1, and never under an overlay alone: the plain image always stands beside it.
"""

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Ellipse, FancyArrowPatch, FancyBboxPatch, Patch, Polygon, Rectangle
from matplotlib.textpath import TextToPath

WIDTH = 9.0
"""Width of a full-width figure, inches."""

INK, MUTED, GRID = "#1F2933", "#6B7785", "#D9DEE4"

FINDING_COLOURS = {
    "atelectasis": "#56B4E9",
    "cardiomegaly": "#CC6677",
    "consolidation": "#332288",
    "edema": "#44AA99",
    "pleural effusion": "#117733",
    "pneumothorax": "#DDCC77",
    "pneumonia": "#AA4499",
    "nodule": "#882255",
    "covid-like opacities": "#999933",
    "foreign object": "#E69F00",
    "no finding": "#B8BEC6",
}
"""One colour a finding, told apart by colour-blind readers (after Paul Tol's muted scheme)."""

_SAME_FINDING = {
    "lung lesion": "nodule",
    "covid-19": "covid-like opacities",
    "effusion": "pleural effusion",
    "normal": "no finding",
    "mass": "nodule",
}
METHOD_COLOURS = {
    "random": "#9AA5B1",
    "thumbnail": "#C9A66B",
    "imagenet": "#7B6CA8",
    "convirt": "#DDAA33",
    "ita only": "#DDAA33",
    "gloria": "#228833",
    "mgca": "#0B5FA5",
    "mgca upstream": "#66A5D9",
    "published": "#1F2933",
    "chance": "#6B7785",
}
TERM_COLOURS = {"instance": "#DDAA33", "token": "#BB5566", "prototype": "#009988", "total": "#1F2933"}
TERM_NAMES = {
    "instance": "instance (ITA)",
    "token": "token (CTA)",
    "prototype": "prototype (CPA)",
    "total": "weighted total",
}
MODALITY_COLOURS = {"image": "#0077BB", "report": "#EE7733"}
SPLIT_COLOURS = {"train": "#4477AA", "valid": "#CCBB44", "test": "#EE6677"}
ANSWER_COLOURS = {"ground truth": "#35E0E8", "found": "#FF7AB8"}
_UNUSED = "#8E99A5"
_SERIES = ("#0077BB", "#EE7733", "#009988", "#AA3377", "#BBAA22", "#6B7785", "#332288")

ATTENTION_MAP = "inferno"
PROBABILITY_MAP = LinearSegmentedColormap.from_list("probability", ["#FFFFFF", "#9CCFC8", "#009988", "#003D36"])
SIMILARITY_MAP = LinearSegmentedColormap.from_list(
    "similarity", ["#8C510A", "#DFC27D", "#F7F7F7", "#80B1D3", "#08467E"]
)

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.hinting": "no_hinting",
    "text.hinting_factor": 1,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "image.cmap": "gray",
}
_PALE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
_HALO = [patheffects.withStroke(linewidth=2.3, foreground="black", alpha=0.7)]


def course_style() -> Any:
    """Return a context in which matplotlib draws in the style of the course; outside nothing changes.

    >>> before = mpl.rcParams["font.size"]
    >>> with course_style():
    ...     inside = mpl.rcParams["font.size"]
    >>> inside, mpl.rcParams["font.size"] == before
    (9.5, True)
    """
    return mpl.rc_context(_STYLE)


def _styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    @wraps(function)
    def in_style(*args: Any, **kwargs: Any) -> Figure:
        with course_style():
            return function(*args, **kwargs)

    return in_style


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Write a PNG without date or software name, so that the same figure gives the same bytes.

    Args:
        figure: A figure.
        path: File to write; its folder is made.
        dpi: Dots per inch.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with course_style():
        figure.savefig(path, format="png", dpi=dpi, metadata={"Software": None})
    return path


def finding_colour(name: str) -> str:
    """Colour of a finding, however it is written; dark grey for one the course does not know.

    >>> finding_colour("Pleural Effusion") == finding_colour("effusion") == FINDING_COLOURS["pleural effusion"]
    True
    """
    name = name.lower().strip()
    return FINDING_COLOURS.get(_SAME_FINDING.get(name, name), "#4A4A4A")


def method_colour(name: str) -> str:
    """Colour of a method, however it is written; dark grey for one the course does not know."""
    return METHOD_COLOURS.get(name.lower().replace("_", " ").removesuffix(" init").strip(), "#4A4A4A")


# Images
# -----------------------------------------------------------------------------------------------------------


@_styled
def image_grid(
    images: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, columns: int = 4, title: str = ""
) -> Figure:
    """Radiographs side by side, whole, in one fixed grey window: what the data look like.

    Args:
        images: Grey images ``(H, W)``, uint8 or float in [0, 1]; sizes may differ.
        titles: One short text an image.
        columns: Images a row.
        title: Title of the figure.
    """
    films = [_film(image) for image in images]
    rows, columns = _balanced(len(films), columns)
    side = WIDTH / max(columns, 3)
    figure, axes = _axes(rows, columns, width=side * columns, height=(side + 0.25) * rows + 0.35 * bool(title))
    for number, axis in enumerate(axes):
        axis.set_axis_off()
        if number < len(films):
            _show_film(axis, films[number], titles[number] if titles is not None else "")
    _title(figure, title)
    return figure


@_styled
def image_with_masks(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    names: Sequence[str],
    *,
    boxes: Sequence[tuple[float, float, float, float]] = (),
    title: str = "",
) -> Figure:
    """A radiograph untouched, and beside it the outlines of its findings: where the disease is.

    Args:
        image: Grey image ``(H, W)``.
        masks: Bool masks of the image's shape.
        names: Finding of each mask.
        boxes: ``(x, y, width, height)`` in pixels for each mask, drawn dashed; may be empty.
        title: Title of the figure.
    """
    film = _film(image)
    figure, (plain, marked) = _axes(1, 2, width=7.4, height=4.0 + 0.3 * bool(names))
    _show_film(plain, film, "image alone")
    _show_film(marked, film, "ground truth")
    for mask, name in zip(masks, names, strict=True):
        _outline(marked, mask, film.shape, finding_colour(name))
    for (x, y, w, h), name in zip(boxes, names, strict=bool(boxes)):
        frame = Rectangle((x - 0.5, y - 0.5), w, h, fill=False, linestyle=(0, (4, 2)), linewidth=1.2)
        frame.set(edgecolor=finding_colour(name), path_effects=_HALO)
        marked.add_patch(frame)
    if names:
        handles = [
            Line2D([], [], color=finding_colour(name), label=name, linewidth=2.4) for name in dict.fromkeys(names)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    _title(figure, title)
    return figure


@_styled
def stride_grids(
    image: np.ndarray,
    strides: Sequence[int],
    *,
    boxes: Sequence[Sequence[float]] = (),
    title: str = "",
) -> Figure:
    """The cells of feature maps laid over the image: how fine a trunk can say where.

    Args:
        image: Grey image ``(H, W)`` as the encoder sees it.
        strides: Side of a cell of each map, pixels.
        boxes: True boxes ``(n, 4)``, corners ``x1, y1, x2, y2`` in pixels, edges between pixels.
        title: Title of the figure.
    """
    film = _film(image)
    count = len(strides) + 1
    figure, axes = _axes(1, count, width=WIDTH, height=WIDTH / count + 0.35 + 0.3 * bool(title))
    _show_film(axes[0], film, "image alone")
    for axis, stride in zip(axes[1:], strides, strict=True):
        rows, columns = (math.ceil(side / stride) for side in film.shape)
        _show_film(axis, film, f"stride {stride}: {rows} x {columns} cells")
        for edge in range(stride, film.shape[0], stride):
            axis.axhline(edge - 0.5, color="#FFD166", linewidth=0.6, alpha=0.8)
        for edge in range(stride, film.shape[1], stride):
            axis.axvline(edge - 0.5, color="#FFD166", linewidth=0.6, alpha=0.8)
        for box in boxes:
            _frame(axis, box, ANSWER_COLOURS["ground truth"], dashed=False)
    if len(boxes):
        handle = Line2D([], [], color=ANSWER_COLOURS["ground truth"], linewidth=2.4, label="ground truth")
        figure.legend(handles=[handle], loc="outside lower center")
    _title(figure, title)
    return figure


@_styled
def localisation_cases(cases: Sequence[Mapping[str, Any]], *, columns: int = 2, title: str = "") -> Figure:
    """Films untouched, and beside each what was found on it and what is there: boxes, outlines, or both.

    Args:
        cases: For each film ``film``, a grey image, and ``caption``, a short text. Optional, and empty by default:
            ``true_boxes`` and ``found_boxes``, ``(n, 4)`` corners ``x1, y1, x2, y2`` in pixels, edges between
            pixels; ``scores``, a number for each found box; ``true_mask`` and ``found_mask``, bool in the film's shape.
        columns: Cases a row.
        title: Title of the figure.
    """
    rows, columns = _balanced(len(cases), columns)
    side = WIDTH / max(2 * columns, 4)
    figure, axes = _axes(
        rows, 2 * columns, width=2 * side * columns, height=(side + 0.12) * rows + 0.3 + 0.3 * bool(title)
    )
    truth, found = ANSWER_COLOURS["ground truth"], ANSWER_COLOURS["found"]
    for axis in axes:
        axis.set_axis_off()
    for plain, marked, case in zip(axes[::2], axes[1::2], cases, strict=False):
        film = _film(case["film"])
        _show_film(plain, film, "film alone")
        _show_film(marked, film, case["caption"])
        for key, colour in (("true_mask", truth), ("found_mask", found)):
            if key in case:
                _outline(marked, case[key], film.shape, colour)
        for box in case.get("true_boxes", ()):
            _frame(marked, box, truth, dashed=False)
        scores = case.get("scores", ())
        for number, box in enumerate(case.get("found_boxes", ())):
            _frame(marked, box, found, dashed=True)
            if number < len(scores):
                text = marked.text(box[0], box[1] - 1, f"{scores[number]:.2f}", color=found, fontsize=8, clip_on=True)
                text.set(path_effects=[patheffects.withStroke(linewidth=1.5, foreground="black")])
    names = {"ground truth": ("true_boxes", "true_mask"), "found": ("found_boxes", "found_mask")}
    handles = [
        Line2D([], [], color=ANSWER_COLOURS[name], linewidth=2.4, label=name)
        for name, keys in names.items()
        if any(key in case for case in cases for key in keys)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    _title(figure, title)
    return figure


@_styled
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
    film = _film(image)
    rows, columns = grid
    count = 2 if weights is None else 3
    figure, axes = _axes(1, count, width=3.0 * count + 0.5 * (count == 3), height=3.3 + 0.3 * bool(title))
    _show_film(axes[0], film, "image alone")
    _show_film(axes[1], film, f"{rows} x {columns} = {rows * columns} patches")
    for edge in np.linspace(-0.5, film.shape[0] - 0.5, rows + 1):
        axes[1].axhline(edge, color="#FFD166", linewidth=0.7, alpha=0.9)
    for edge in np.linspace(-0.5, film.shape[1] - 0.5, columns + 1):
        axes[1].axvline(edge, color="#FFD166", linewidth=0.7, alpha=0.9)
    axes[1].set(xlim=(-0.5, film.shape[1] - 0.5), ylim=(film.shape[0] - 0.5, -0.5))
    if weights is not None:
        relative = np.asarray(weights, dtype=float).reshape(rows, columns) * rows * columns
        _show_film(axes[2], film, "weight of each patch")
        drawn = axes[2].imshow(
            relative, cmap=ATTENTION_MAP, alpha=0.6, vmin=0, extent=_extent(film.shape), interpolation="nearest"
        )
        figure.colorbar(drawn, ax=axes[2], label="times the equal share", shrink=0.8)
    _title(figure, title)
    return figure


@_styled
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
    """
    film = _film(image)
    masks = masks if masks is not None else [None] * len(words)
    relative = [np.asarray(one, dtype=float) / max(float(np.mean(one)), 1e-12) for one in maps]
    top = max([2.0, *(float(one.max()) for one in relative)])
    count = len(words) + 1
    rows, columns = _balanced(count, columns)
    side = WIDTH / max(columns, 3)
    figure, axes = _axes(rows, columns, width=side * columns + 0.7, height=(side + 0.3) * rows + 0.35)
    for axis in axes:
        axis.set_axis_off()
    _show_film(axes[0], film, "image alone")
    drawn = None
    for axis, heat, word, mask in zip(axes[1:], relative, words, masks, strict=False):
        _show_film(axis, film, f"“{word}”" if quoted else word)
        drawn = axis.imshow(
            heat,
            cmap=ATTENTION_MAP,
            vmin=1,
            vmax=top,
            alpha=np.clip(0.8 * (heat - 1) / (top - 1), 0, 0.8) ** 0.7,
            extent=_extent(film.shape),
            interpolation="bilinear",
        )
        if mask is not None:
            _outline(axis, mask, film.shape, "#5CF2FF")
    if drawn is not None:
        scale = mpl.cm.ScalarMappable(norm=drawn.norm, cmap=ATTENTION_MAP)
        figure.colorbar(scale, ax=axes, label=value_label, shrink=0.85, aspect=28, pad=0.015)
    if any(mask is not None for mask in masks):
        handle = Line2D([], [], color="#18B8C9", linewidth=2.4, label=outline_label)
        figure.legend(handles=[handle], loc="outside lower center")
    _title(figure, title)
    return figure


@_styled
def prototype_grid(
    images: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]],
    names: Sequence[str],
    *,
    title: str = "",
) -> Figure:
    """The studies nearest to each prototype, one row a prototype: what a prototype stands for.

    Args:
        images: For each prototype its nearest images, nearest first.
        captions: For each of them a short text, usually its finding; the colour follows the finding.
        names: Name of each prototype.
        title: Title of the figure.
    """
    columns = max(len(row) for row in images)
    side = min(1.5, (WIDTH - 1.2) / columns)
    figure, axes = _axes(
        len(images), columns, width=side * columns + 1.2, height=(side + 0.08) * len(images) + 0.3 * bool(title)
    )
    for row, (row_images, row_captions, name) in enumerate(zip(images, captions, names, strict=True)):
        for column in range(columns):
            axis = axes[row * columns + column]
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if column < len(row_images):
                axis.imshow(_film(row_images[column]), cmap="gray", vmin=0, vmax=1)
                axis.set_xlabel(
                    row_captions[column], color=_readable(finding_colour(row_captions[column])), fontsize=8, labelpad=2
                )
        axes[row * columns].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, fontweight="bold")
    _title(figure, title)
    return figure


# Reports and labels
# -----------------------------------------------------------------------------------------------


@_styled
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
    space, line_height = _text_width("a b", font) - _text_width("ab", font), 0.27
    left, right = 0.15, width - 0.15
    headers, placed, top = [], [], 0.1 + 0.3 * bool(title)
    for name, words in pieces:
        headers.append((top, name.capitalize()))
        top += line_height
        x = left
        for text, span in words:
            length = _text_width(text, font)
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
            _mark_word(axis, x, y, _text_width(text, font), _joins(placed, number, space), span)
        axis.text(x, y + 0.14, text, fontproperties=font, va="center", color=INK)
    if shown:
        handles = [Patch(facecolor=_tint(finding_colour(name), 0.45), label=name) for name in shown]
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


@_styled
def label_counts(counts: Mapping[str, Mapping[str, float]], *, unit: str = "images", title: str = "") -> Figure:
    """How often each label occurs in each split: prevalence, and whether the splits agree.

    Args:
        counts: For each split (or dataset) the number, or share, of images for each label; labels in one
            order.
        unit: Label of the axis.
        title: Title of the figure.
    """
    labels = list(dict.fromkeys(label for part in counts.values() for label in part))
    figure, (axis,) = _axes(
        1, 1, width=7.5, height=0.55 + len(labels) * (0.16 + 0.12 * len(counts)) + 0.3 * bool(title)
    )
    step = 0.8 / len(counts)
    for number, (split, part) in enumerate(counts.items()):
        places = np.arange(len(labels)) - 0.4 + (number + 0.5) * step
        colour = SPLIT_COLOURS.get(split, _SERIES[number % len(_SERIES)])
        bars = axis.barh(places, [part.get(label, 0) for label in labels], step * 0.9, color=colour, label=split)
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=7.5, color=MUTED)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlabel(unit)
    axis.margins(x=0.08)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.grid(True)
    if len(counts) > 1:
        figure.legend(loc="outside lower center", ncols=len(counts))
    _title(figure, title)
    return figure


@_styled
def word_weights(words: Sequence[str], weights: Sequence[float], *, title: str = "") -> Figure:
    """The importance weight of each word of a report: which words count in the token loss.

    The dashed line is the equal share.

    Args:
        words: Words in reading order.
        weights: Their weights, sum 1.
        title: Title of the figure.
    """
    rows = math.ceil(len(words) / 24)
    width = math.ceil(len(words) / rows)
    figure, axes = _axes(rows, 1, width=max(4.0, min(WIDTH, 0.42 * width + 1)), height=2.3 * rows + 0.3 * bool(title))
    top = 1.15 * max(*weights, 1 / len(words))
    for row, axis in enumerate(axes):
        part = slice(row * width, (row + 1) * width)
        own = list(words[part])
        axis.bar(range(len(own)), weights[part], color=TERM_COLOURS["token"], width=0.72)
        axis.axhline(1 / len(words), color=MUTED, linestyle="--", linewidth=1)
        if row == 0:
            axis.annotate(
                "equal share",
                (1, 1 / len(words)),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=MUTED,
            )
        axis.set_xticks(range(len(own)), own, rotation=40, ha="right", rotation_mode="anchor")
        axis.set(xlim=(-0.6, width - 0.4), ylim=(0, top), ylabel="weight")
    _title(figure, title)
    return figure


# Alignment
# --------------------------------------------------------------------------------------------------------


@_styled
def similarity_matrix(
    matrix: np.ndarray,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    row_label: str = "image",
    column_label: str = "report",
    value_label: str = "cosine similarity",
    limit: float | None = 1.0,
    signless: bool = False,
    title: str = "",
) -> Figure:
    """Similarity of everything with everything: matched pairs should stand out on the diagonal.

    Small matrices carry their numbers.

    Args:
        matrix: ``(N, M)`` similarities.
        rows: Names of the rows.
        columns: Names of the columns.
        row_label: What a row is.
        column_label: What a column is.
        value_label: What the colour is.
        limit: The colours reach from minus this to plus this; ``None`` takes the largest absolute value.
        signless: The values are weights or probabilities: colours start at 0.
        title: Title of the figure.
    """
    matrix = np.asarray(matrix, dtype=float)
    colours, lowest, limit = SIMILARITY_MAP, -1.0, float(np.abs(matrix).max()) if limit is None else limit
    if signless:
        colours, lowest = PROBABILITY_MAP, 0.0
    height, width = matrix.shape
    cell = float(np.clip(4.2 / max(height, width), 0.05, 0.62))
    figure, (axis,) = _axes(
        1,
        1,
        width=max(3.4, cell * width) + 1.6 + 0.5 * bool(rows),
        height=max(1.6 if width > 2 * height else 2.6, cell * height) + 0.9,
    )
    drawn = axis.imshow(matrix, cmap=colours, vmin=lowest * limit, vmax=limit, aspect="equal")
    _matrix_ticks(axis, rows, columns)
    axis.set(xlabel=column_label, ylabel=row_label)
    if max(height, width) <= 8:
        _write_numbers(axis, matrix, lambda value: "white" if abs(value) > 0.6 * limit else INK)
    figure.colorbar(drawn, ax=axis, label=value_label, shrink=0.85)
    _title(figure, title)
    return figure


@_styled
def similarity_histogram(matched: np.ndarray, unmatched: np.ndarray, *, title: str = "") -> Figure:
    """Cosine similarity of matched and of unmatched image-report pairs: alignment pulls the two apart.

    Args:
        matched: Similarities of pairs that belong together.
        unmatched: Similarities of pairs that do not.
        title: Title of the figure.
    """
    figure, (axis,) = _axes(1, 1, width=6.2, height=3.1 + 0.3 * bool(title))
    low = min(np.min(matched), np.min(unmatched))
    high = max(np.max(matched), np.max(unmatched), low + 1e-3)
    edges = np.linspace(low, high, 41)
    for values, colour in ((unmatched, MUTED), (matched, METHOD_COLOURS["mgca"])):
        values = np.asarray(values).ravel()
        axis.hist(values, edges, weights=np.full(len(values), 100 / len(values)), color=colour, alpha=0.55)
        axis.hist(values, edges, weights=np.full(len(values), 100 / len(values)), histtype="step", color=colour)
        axis.axvline(values.mean(), color=colour, linestyle="--", linewidth=1.2)
    handles = [
        Patch(facecolor=colour, alpha=0.7, label=f"{name}: mean {np.mean(values):.2f}")
        for values, name, colour in (
            (matched, "matched pairs", METHOD_COLOURS["mgca"]),
            (unmatched, "unmatched pairs", MUTED),
        )
    ]
    axis.set(xlabel="cosine similarity of image and report", ylabel="share of pairs (%)")
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    _title(figure, title)
    return figure


@_styled
def retrieval_cases(cases: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Images whose own report was beaten: film and own report, then the preferred report and the film of that.

    Args:
        cases: For each image ``film`` and ``answer_film``, grey images; ``report`` and ``answer``, the two texts; and
            ``caption``, a short text below the film. Long texts are cut.
        title: Title of the figure.
    """
    height = 1.85
    figure = Figure(figsize=(WIDTH, height * len(cases) + 0.3 + 0.3 * bool(title)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), 4, squeeze=False, width_ratios=(1.0, 1.45, 1.45, 1.0))
    heads = ("film", "its own report", "preferred report", "film of that report")
    for number, (row, case) in enumerate(zip(axes, cases, strict=True)):
        for axis, key in ((row[0], "film"), (row[3], "answer_film")):
            _show_film(axis, _film(case[key]), "")
            axis.set_anchor("N")
        row[0].text(0.5, -0.04, case["caption"], transform=row[0].transAxes, ha="center", va="top", fontsize=8)
        for axis, key, colour in ((row[1], "report", INK), (row[2], "answer", METHOD_COLOURS["ita only"])):
            axis.set_axis_off()
            lines = textwrap.wrap(case[key], 44, max_lines=12, placeholder=" ...")
            axis.text(0.02, 0.98, "\n".join(lines), transform=axis.transAxes, va="top", fontsize=7.5, color=INK)
            axis.plot([-0.02, -0.02], [0, 1], transform=axis.transAxes, color=colour, linewidth=2, clip_on=False)
        if number == 0:
            for axis, head in zip(row, heads, strict=True):
                axis.set_title(head, fontsize=9, fontweight="bold")
    _title(figure, title)
    return figure


@_styled
def curves(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    marks: Mapping[str, float] | None = None,
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Quantities as a function of one setting, for example the loss against the temperature.

    Args:
        x: The setting.
        series: For each line its values.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        log_x: Logarithmic horizontal axis.
        marks: Named positions on the horizontal axis, for example the published value.
        levels: Named heights, for example the chance level.
        title: Title of the figure.
    """
    figure, (axis,) = _axes(1, 1, width=6.2, height=3.3 + 0.3 * bool(title))
    known = METHOD_COLOURS | TERM_COLOURS | FINDING_COLOURS
    for number, (name, values) in enumerate(series.items()):
        colour = known.get(name.lower(), _SERIES[number % len(_SERIES)])
        axis.plot(x, values, color=colour, marker="o" if len(x) <= 12 else None, markersize=4, label=name)
    if log_x:
        axis.set_xscale("log")
    _levels(axis, levels)
    for name, value in (marks or {}).items():
        axis.axvline(value, color=MUTED, linestyle=":", linewidth=1.2)
        axis.annotate(
            name,
            (value, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=MUTED,
        )
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.yaxis.grid(True)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=min(4, len(series)))
    _title(figure, title)
    return figure


@_styled
def sinkhorn_steps(matrices: Sequence[np.ndarray], titles: Sequence[str], *, title: str = "") -> Figure:
    """A matrix of prototype scores on its way to codes.

    Rows and columns are scaled in turn until both sums fit. Sums stand outside the frame. Matrices up to 6
    x 6 carry their numbers.

    Args:
        matrices: One ``(B, K)`` matrix a step, not negative.
        titles: What was done in each step.
        title: Title of the figure.
    """
    matrices = [np.asarray(matrix, dtype=float) for matrix in matrices]
    height, width = matrices[0].shape
    rows, columns = _balanced(len(matrices), 4)
    figure, axes = _axes(
        rows,
        columns,
        width=WIDTH,
        height=(WIDTH / columns * min(1.1, height / width) + 0.55) * rows + 0.35 * bool(title),
    )
    for number, axis in enumerate(axes):
        if number >= len(matrices):
            axis.set_axis_off()
            continue
        matrix = matrices[number]
        axis.imshow(matrix, cmap=PROBABILITY_MAP, vmin=0, vmax=float(matrix.max()), aspect="auto")
        axis.set_title(titles[number], fontsize=9)
        axis.set(xticks=range(width) if width <= 6 else [], yticks=range(height) if height <= 6 else [])
        axis.set_xticklabels([f"$c_{k + 1}$" for k in range(width)] if width <= 6 else [])
        axis.set_yticklabels([f"study {b + 1}" for b in range(height)] if height <= 6 and number % columns == 0 else [])
        axis.tick_params(length=0)
        if max(height, width) <= 6:
            top = float(matrix.max())
            _write_numbers(axis, matrix, lambda value, top=top: "white" if value > 0.42 * top else INK)
            for b, total in enumerate(matrix.sum(axis=1)):
                axis.text(width - 0.42, b, _short(total), va="center", fontsize=8, color=MODALITY_COLOURS["report"])
            for k, total in enumerate(matrix.sum(axis=0)):
                axis.text(
                    k, -0.56, _short(total), ha="center", va="bottom", fontsize=8, color=MODALITY_COLOURS["image"]
                )
            axis.set_title(titles[number], fontsize=9, pad=17)
    _title(figure, title)
    return figure


@_styled
def loss_curves(
    history: Sequence[Mapping[str, float]], *, chance: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """The loss parts over the epochs, training against validation, and the learning rate: did it learn?

    Args:
        history: One dictionary an epoch, as `mgca_lib.pretrain.pretrain` returns: ``epoch``,
            ``learning_rate``, and ``train/PART`` and ``valid/PART`` for the parts ``instance``, ``token``,
            ``prototype``, ``total``.
        chance: For each part the value of an untrained model, drawn dashed.
        title: Title of the figure.
    """
    epochs = [row["epoch"] for row in history]
    parts = [name for name in ("instance", "token", "prototype", "total") if f"train/{name}" in history[0]]
    columns = len(parts) + 1
    figure, axes = _axes(1, columns, width=WIDTH * min(1.2, columns / 4.2), height=2.9 + 0.3 * bool(title))
    marker = "o" if len(epochs) < 25 else None
    for axis, name in zip(axes, parts, strict=False):
        colour = TERM_COLOURS[name]
        axis.plot(epochs, [row[f"train/{name}"] for row in history], color=colour, marker=marker, markersize=3)
        valid = [row.get(f"valid/{name}", math.nan) for row in history]
        axis.plot(epochs, valid, color=colour, linestyle="--", marker=marker, markersize=3, markerfacecolor="white")
        if name == "total" and np.isfinite(valid).any():
            best = int(np.nanargmin(valid))
            axis.plot(epochs[best], valid[best], marker="*", markersize=11, color="#BB5566", linestyle="none")
        if chance and name in chance:
            axis.axhline(chance[name], color=MUTED, linestyle=":", linewidth=1.2)
        axis.set_title(TERM_NAMES[name])
        axis.set_xlabel("epoch")
        axis.yaxis.grid(True)
    axes[0].set_ylabel("loss (nats)")
    rates = np.array([row["learning_rate"] for row in history])
    power = math.floor(math.log10(max(rates.max(), 1e-12)))
    axes[-1].plot(epochs, rates / 10.0**power, color=MUTED, marker=marker, markersize=3)
    axes[-1].set_title("learning rate")
    axes[-1].set(xlabel="epoch", ylabel=f"learning rate / $10^{{{power}}}$")
    axes[-1].yaxis.grid(True)
    for axis in axes:
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5, integer=True))
    handles = [
        Line2D([], [], color=INK, label="training"),
        Line2D([], [], color=INK, linestyle="--", label="validation"),
        Line2D([], [], color="#BB5566", marker="*", linestyle="none", markersize=9, label="best validation loss"),
    ]
    if chance:
        handles.append(Line2D([], [], color=MUTED, linestyle=":", label="knows nothing"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    _title(figure, title)
    return figure


# Results
# ----------------------------------------------------------------------------------------------------------


@_styled
def probe_bars(
    results: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
    *,
    published: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
    metric: Mapping[str, str] | None = None,
    chance: Mapping[str, float] | None = None,
    foot: str = "chance",
    title: str = "",
) -> Figure:
    """Linear probing, after table 1 of the paper: each method at each share of labels, with its interval.

    Published numbers come from other data and other encoders; they are drawn as open diamonds to compare
    the pattern, not the height.

    Args:
        results: ``results[dataset][fraction][method]`` holds ``mean``, ``low`` and ``high``.
        published: ``published[dataset][fraction][method]`` is a number on the same scale.
        metric: For each dataset the label of its axis.
        chance: For each dataset the score of a guess; the bars stand on it, so their height is what was
            learned.
        foot: What ``chance`` is called in the legend.
        title: Title of the figure.
    """
    methods = list(dict.fromkeys(m for part in results.values() for share in part.values() for m in share))
    figure, axes = _axes(1, len(results), width=max(4.2, 3.05 * len(results)), height=3.6 + 0.3 * bool(title))
    step = 0.8 / len(methods)
    for axis, (dataset, part) in zip(axes, results.items(), strict=True):
        base = (chance or {}).get(dataset, 0.0)
        ends = [base]
        for number, method in enumerate(methods):
            for place, (fraction, share) in enumerate(part.items()):
                x = place - 0.4 + (number + 0.5) * step
                if method in share:
                    cell = share[method]
                    axis.bar(x, cell["mean"] - base, step * 0.88, base, color=method_colour(method))
                    error = [[max(0, cell["mean"] - cell["low"])], [max(0, cell["high"] - cell["mean"])]]
                    axis.errorbar(x, cell["mean"], error, color=INK, linewidth=1.1, capsize=2.5)
                    ends += [cell["low"], cell["high"]]
                shown = ((published or {}).get(dataset, {}).get(fraction) or {}).get(method)
                if shown is not None:
                    ends.append(shown)
                    diamond = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white", "linestyle": "none"}
                    axis.plot(x + 0.3 * step, shown, color=INK, **diamond)
        axis.axhline(base, color=MUTED, linewidth=1)
        room = 0.06 * (max(ends) - min(ends))
        axis.set_ylim(min(ends) - (room if min(ends) < base else 0), max(ends) + room)
        axis.spines["bottom"].set_visible(False)
        axis.set_xticks(range(len(part)), list(part))
        axis.set(title=dataset, xlabel="share of training labels", ylabel=(metric or {}).get(dataset, "score"))
        axis.yaxis.grid(True)
        axis.tick_params(axis="x", length=0)
    handles = [Patch(facecolor=method_colour(method), label=method) for method in methods]
    if published:
        handles.append(
            Line2D([], [], marker="D", markerfacecolor="white", color=INK, linestyle="none", label="published")
        )
    if chance:
        handles.append(Line2D([], [], color=MUTED, label=f"foot of the bars: {foot}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    _title(figure, title)
    return figure


@_styled
def retrieval_curve(
    recalls: Mapping[str, Mapping[int, Mapping[str, float]]],
    *,
    chance: Mapping[int, float] | None = None,
    title: str = "",
) -> Figure:
    """Recall at K in both directions, with intervals, above what a random ranking reaches.

    Args:
        recalls: For each line, for each K, ``mean``, ``low`` and ``high``. The names ``"image to report"``
            and ``"report to image"`` get the colour of what is searched with.
        chance: For each K the recall of a random ranking.
        title: Title of the figure.
    """
    figure, (axis,) = _axes(1, 1, width=5.6, height=3.4 + 0.3 * bool(title))
    ticks = sorted({k for part in recalls.values() for k in part})
    for number, (name, part) in enumerate(recalls.items()):
        colour = MODALITY_COLOURS.get(name.split(" ")[0], _SERIES[number % len(_SERIES)])
        ks = list(part)
        mean = np.array([part[k]["mean"] for k in ks])
        low, high = (np.array([part[k][end] for k in ks]) for end in ("low", "high"))
        axis.fill_between(ks, 100 * low, 100 * high, color=colour, alpha=0.15, linewidth=0)
        axis.plot(ks, 100 * mean, color=colour, marker="o", markersize=5, label=name)
    if chance:
        ks = list(chance)
        axis.plot(ks, [100 * chance[k] for k in ks], color=METHOD_COLOURS["chance"], linestyle="--", label="chance")
    axis.set_xscale("log")
    axis.set_xticks(ticks, [str(k) for k in ticks])
    axis.minorticks_off()
    axis.set(xlabel="K", ylabel="recall at K (%)", ylim=(0, None))
    axis.yaxis.grid(True)
    figure.legend(loc="outside lower center", ncols=3)
    _title(figure, title)
    return figure


@_styled
def grounding_bars(
    scores: Mapping[str, Mapping[str, float]], *, value_label: str = "pointing game: hit rate", title: str = ""
) -> Figure:
    """How often the words of each finding look into its mask, beside two controls that need no understanding.

    Args:
        scores: For each finding ``mean``, ``low``, ``high``, ``chance`` (blind guess) and ``control`` (the
            usual place of the finding; may be NaN), and ``n``.
        value_label: Label of the axis.
        title: Title of the figure.
    """
    names = list(scores)
    figure, (axis,) = _axes(1, 1, width=7.2, height=0.34 * len(names) + 1.25 + 0.3 * bool(title))
    for place, name in enumerate(names):
        cell = scores[name]
        colour = INK if name == "all" else finding_colour(name)
        axis.plot([cell["low"], cell["high"]], [place, place], color=colour, linewidth=2.6, solid_capstyle="round")
        axis.plot(cell["mean"], place, "o", color=colour, markersize=7)
        axis.plot(cell["chance"], place, "|", color=MUTED, markersize=13, markeredgewidth=2)
        axis.plot(cell["control"], place, "x", color=MUTED, markersize=6, markeredgewidth=1.6)
    axis.set_yticks(range(len(names)), [f"{name}  (n = {scores[name]['n']:.0f})" for name in names])
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.set(xlabel=value_label, xlim=(-0.02, 1.02))
    axis.xaxis.grid(True)
    handles = [
        Line2D([], [], color=INK, marker="o", label="model, 95 % interval"),
        Line2D([], [], color=MUTED, marker="x", linestyle="none", label="its maps on other patients' masks"),
        Line2D(
            [], [], color=MUTED, marker="|", markersize=10, markeredgewidth=2, linestyle="none", label="blind guess"
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    _title(figure, title)
    return figure


# Prototypes
# -------------------------------------------------------------------------------------------------------


@_styled
def projection_maps(
    maps: Mapping[str, tuple[np.ndarray, np.ndarray]],
    findings: Sequence[str],
    clusters: Sequence[int],
    *,
    top_clusters: int = 10,
    title: str = "",
) -> Figure:
    """Embeddings in the plane, after figure 4 of the paper: coloured by disease above, by prototype below.

    Where the two rows show the same islands, the prototypes found diseases without having been told any.
    Prototypes are stars.

    Args:
        maps: For each method (``"t-SNE"``, ``"UMAP"``) the ``(N, 2)`` points of the studies and the ``(K,
            2)`` points of the prototypes.
        findings: Dominant finding of each study.
        clusters: Prototype of each study.
        top_clusters: So many of the most frequent prototypes get a colour of their own, the others are grey.
        title: Title of the figure.
    """
    findings, clusters = np.asarray(findings), np.asarray(clusters)
    numbers, counts = np.unique(clusters, return_counts=True)
    largest = numbers[np.argsort(-counts, kind="stable")][:top_clusters]
    wheel = [colour for place, colour in enumerate(mpl.colormaps["tab20"].colors) if place // 2 != 7]  # no grey
    wheel = wheel[::2] + wheel[1::2]
    cluster_colours = {int(number): wheel[place % len(wheel)] for place, number in enumerate(largest)}
    names = sorted(set(findings), key=lambda name: (name == "no finding", -int((findings == name).sum())))
    figure, axes = _axes(2, len(maps), width=min(WIDTH, 3.6 * len(maps) + 1.8), height=7.0 + 0.3 * bool(title))
    for column, (method, (points, stars)) in enumerate(maps.items()):
        size = float(np.clip(2600 / max(len(points), 1), 4, 26))
        upper, lower = axes[column], axes[len(maps) + column]
        for name in reversed(names):
            upper.scatter(*points[findings == name].T, s=size, color=finding_colour(name), linewidth=0, alpha=0.85)
        others = ~np.isin(clusters, largest)
        lower.scatter(*points[others].T, s=size, color=FINDING_COLOURS["no finding"], linewidth=0, alpha=0.6)
        for number, colour in cluster_colours.items():
            lower.scatter(*points[clusters == number].T, s=size, color=[colour], linewidth=0, alpha=0.9)
        used = np.isin(np.arange(len(stars)), numbers)
        for axis in (upper, lower):
            for own, colour in ((~used, _UNUSED), (used, "white")):
                axis.scatter(*stars[own].T, marker="*", s=95, color=colour, edgecolor=INK, linewidth=0.8, zorder=3)
        for number, colour in cluster_colours.items():
            if number < len(stars):
                lower.scatter(*stars[number], marker="*", s=120, color=[colour], edgecolor=INK, linewidth=0.9, zorder=4)
        upper.set_title(f"{method}, by disease")
        lower.set_title(f"{method}, by prototype")
        for axis in (upper, lower):
            axis.set(xticks=[], yticks=[], xlabel=f"{method} 1", ylabel=f"{method} 2")
            for spine in axis.spines.values():
                spine.set(visible=True, color=GRID)
    dots = {"linestyle": "none", "marker": "o", "markersize": 6}
    handles = [Line2D([], [], color=finding_colour(name), label=name, **dots) for name in names]
    headings = [Line2D([], [], linestyle="none", label=text) for text in ("dominant finding", "prototype of a study")]
    gap = Line2D([], [], linestyle="none", label=" ")
    handles = [headings[0], *handles, gap, headings[1]]
    handles += [Line2D([], [], color=colour, label=f"{number}", **dots) for number, colour in cluster_colours.items()]
    if len(numbers) > len(largest):
        grey = FINDING_COLOURS["no finding"]
        handles.append(Line2D([], [], color=grey, label=f"{len(numbers) - len(largest)} others", **dots))
    star = {"linestyle": "none", "marker": "*", "markersize": 10, "markeredgecolor": INK}
    handles.append(Line2D([], [], color="white", label="prototype", **star))
    if not np.isin(np.arange(len(next(iter(maps.values()))[1])), numbers).all():
        handles.append(Line2D([], [], color=_UNUSED, label="unused prototype", **star))
    legend = figure.legend(handles=handles, loc="outside right center")
    for text in legend.get_texts():
        if text.get_text() in [heading.get_label() for heading in headings]:
            text.set_fontweight("bold")
    _title(figure, title)
    return figure


@_styled
def embedding_maps(
    maps: Mapping[str, np.ndarray], groups: Sequence[str], *, legend: str = "dominant finding", title: str = ""
) -> Figure:
    """The same points laid out in several ways, side by side: what a map owes to its settings.

    Args:
        maps: For each panel its title and the ``(N, 2)`` points.
        groups: Group of each point: a finding, or ``"image"`` and ``"report"``.
        legend: Title of the legend.
        title: Title of the figure.
    """
    groups = np.asarray(groups)
    names = sorted(set(groups), key=lambda name: (name == "no finding", -int((groups == name).sum())))
    colours = {name: MODALITY_COLOURS.get(name) or finding_colour(name) for name in names}
    figure, axes = _axes(1, len(maps), width=min(WIDTH, 3.0 * len(maps) + 1.6), height=2.9 + 0.3 * bool(title))
    for axis, (name, points) in zip(axes, maps.items(), strict=True):
        # In one random order, or the group drawn last would hide the others.
        order = np.random.default_rng(0).permutation(len(points))
        size = float(np.clip(2600 / max(len(points), 1), 4, 26))
        axis.scatter(*points[order].T, s=size, color=[colours[group] for group in groups[order]], linewidth=0)
        axis.set(title=name, xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(visible=True, color=GRID)
    dots = {"linestyle": "none", "marker": "o", "markersize": 6}
    handles = [Line2D([], [], color=colours[name], label=name, **dots) for name in names]
    figure.legend(handles=handles, loc="outside right center", title=legend, alignment="left")
    _title(figure, title)
    return figure


@_styled
def prototype_composition(
    clusters: Sequence[int], findings: Sequence[str], *, top: int = 20, title: str = ""
) -> Figure:
    """What the largest prototypes are made of: a pure prototype has one colour.

    Args:
        clusters: Prototype of each study.
        findings: Dominant finding of each study.
        top: Number of prototypes shown, the largest first.
        title: Title of the figure.
    """
    clusters, findings = np.asarray(clusters), np.asarray(findings)
    numbers, counts = np.unique(clusters, return_counts=True)
    shown = numbers[np.argsort(-counts, kind="stable")][:top]
    names = sorted(set(findings), key=lambda name: (name == "no finding", -int((findings == name).sum())))
    figure, (axis,) = _axes(1, 1, width=WIDTH, height=3.3 + 0.3 * bool(title))
    bottom = np.zeros(len(shown))
    for name in names:
        height = np.array([((clusters == number) & (findings == name)).sum() for number in shown], dtype=float)
        axis.bar(range(len(shown)), height, 0.8, bottom, color=finding_colour(name), label=name)
        bottom += height
    axis.set_xticks(range(len(shown)), [str(number) for number in shown])
    axis.set(xlabel="prototype, largest first", ylabel="studies")
    axis.yaxis.grid(True)
    axis.tick_params(axis="x", length=0)
    figure.legend(loc="outside right center", title="dominant finding", alignment="left")
    _title(figure, title)
    return figure


# The map of the course
# --------------------------------------------------------------------------------------------


@_styled
def course_map(image: np.ndarray | None = None, report: str = "") -> Figure:
    """The idea in one picture: image and report, two encoders, three alignments, and what they are good for.

    Args:
        image: Grey image ``(H, W)``; without it a sketch of a chest.
        report: A short report; without it an example.
    """
    figure = Figure(figsize=(12.0, 6.2))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 120), ylim=(62, 0), aspect="equal")
    axis.set_axis_off()
    image_colour, report_colour = MODALITY_COLOURS["image"], MODALITY_COLOURS["report"]
    headings = ((1.5, "a study"), (24, "two encoders"), (42, "tokens"), (63, "three alignments"), (100, "good for"))
    for x, text in headings:
        axis.text(x, 2.6, text, fontsize=11, fontweight="bold", color=MUTED, va="center")
    _map_film(axis, image)
    _map_report(axis, report or "Small left pleural effusion. Heart size is normal. No pneumothorax.")
    for y, colour, name, detail in (
        (18, image_colour, "image\nencoder", "ViT or ResNet"),
        (46, report_colour, "report\nencoder", "BERT"),
    ):
        shape = [(24, y - 8.5), (35.5, y - 5), (35.5, y + 5), (24, y + 8.5)]
        axis.add_patch(Polygon(shape, facecolor=_tint(colour, 0.22), edgecolor=colour, linewidth=1.6))
        axis.text(29.5, y, name, ha="center", va="center", fontsize=10.5, fontweight="bold")
        axis.text(29.5, y + 10.6, detail, ha="center", va="center", fontsize=8.5, color=MUTED)
        _arrow(axis, (20.9, y), (23.6, y), colour)
        _arrow(axis, (35.9, y), (40.6, y), colour)
    _map_pooled(axis, 49, 10.5, image_colour, "whole image")
    _map_locals(axis, 49, 22.6, image_colour, "patches", rows=3, columns=5)
    _map_locals(axis, 49, 40.2, report_colour, "words", rows=2, columns=4)
    _map_pooled(axis, 49, 53.5, report_colour, "whole report")
    cards = (
        (5.5, "instance", "Instance alignment", "an image finds its own report among all", "03"),
        (24.0, "token", "Token alignment", "a word finds its place in the image", "04"),
        (42.5, "prototype", "Prototype alignment", "both choose the same cluster, without labels", "05"),
    )
    for y, term, name, text, number in cards:
        colour = TERM_COLOURS[term]
        frame = FancyBboxPatch((63, y), 32.5, 16.5, boxstyle="round,pad=0,rounding_size=1.2")
        frame.set(facecolor=_tint(colour, 0.1), edgecolor=colour, linewidth=1.6)
        axis.add_patch(frame)
        axis.text(64.5, y + 2.4, name, fontsize=10.5, fontweight="bold", va="center", color=_readable(colour))
        axis.text(94, y + 2.4, number, fontsize=8.5, va="center", ha="right", color=MUTED)
        axis.text(64.5, y + 14.3, text, fontsize=8.2, va="center", color=INK)
    _map_instance(axis, 79.2, 10.3)
    _map_token(axis, 79.2, 28.6)
    _map_prototype(axis, 79.2, 50.9)
    # Both whole vectors feed the outer two terms: one line joins them.
    join = {"color": MUTED, "linewidth": 1.5, "solid_capstyle": "round"}
    for y in (10.5, 53.5):
        axis.plot([52.6, 60], [y, y], **join)
        _arrow(axis, (60, y), (62.7, y), MUTED, width=1.5)
    axis.plot([60, 60], [10.5, 53.5], **join)
    for y, end in ((22.6, 31.2), (40.2, 33.4)):
        _arrow(axis, (55.6, y), (62.7, end), TERM_COLOURS["token"], width=1.5, halo=True)
    uses = (
        (11.0, "Linear probing", "few labels suffice", "07"),
        (22.5, "Retrieval", "find what is alike", "03"),
        (34.0, "Word heat maps", "see what is meant", "04"),
        (45.5, "Prototype maps", "diseases as islands", "08"),
    )
    for y, name, text, number in uses:
        frame = FancyBboxPatch((100, y - 4.4), 18.5, 8.8, boxstyle="round,pad=0,rounding_size=1")
        frame.set(facecolor="white", edgecolor=GRID, linewidth=1.4)
        axis.add_patch(frame)
        axis.text(101.2, y - 1.5, name, fontsize=9.3, fontweight="bold", va="center")
        axis.text(101.2, y + 1.9, text, fontsize=8.2, va="center", color=MUTED)
        axis.text(117.4, y - 1.5, number, fontsize=8.5, va="center", ha="right", color=MUTED)
    _arrow(axis, (95.9, 32.2), (99.5, 32.2), MUTED, width=2.2)
    axis.text(100, 53.6, "numbers name notebooks", fontsize=8, color=MUTED, va="center")
    axis.text(100, 56.2, "not for clinical use", fontsize=8, color=MUTED, va="center")
    return figure


def _map_film(axis: Axes, image: np.ndarray | None) -> None:
    frame = axis.add_patch(Rectangle((1.5, 8.5), 19, 19, facecolor="#0F1318", edgecolor=INK, linewidth=1))
    if image is not None:
        film = _film(image)
        height, width = film.shape
        half = 9.5 * np.array([width, height]) / max(film.shape)
        extent = (11 - half[0], 11 + half[0], 18 + half[1], 18 - half[1])
        axis.imshow(film, cmap="gray", vmin=0, vmax=1, extent=extent, zorder=2)
        axis.set(xlim=(0, 120), ylim=(62, 0), aspect="equal")
    else:
        parts = [Ellipse((11, 20.5), 17.5, 22, facecolor="#59626D")]
        parts += [Ellipse((11 + x, 17.6), 5.6, 13, angle=-1.4 * x, facecolor="#1C2229") for x in (-4.2, 4.2)]
        parts += [
            Rectangle((10.2, 8.9), 1.6, 18.3, facecolor="#A7B0BA"),
            Ellipse((12.3, 21.4), 6.2, 6.4, angle=-25, facecolor="#C3CBD3"),
            Ellipse((16.0, 23.2), 4.0, 2.3, angle=-18, facecolor="#E9EDF1"),
        ]
        for part in parts:
            axis.add_patch(part).set_clip_path(frame)
        axis.text(19.0, 10.3, "L", color="white", fontsize=9, fontweight="bold", ha="center", va="center")
    axis.text(11, 29.4, "chest radiograph", ha="center", va="center", fontsize=8.5, color=MUTED)


def _map_report(axis: Axes, report: str) -> None:
    axis.add_patch(Rectangle((1.5, 36.5), 19, 19, facecolor="#FFFDF8", edgecolor=MUTED, linewidth=1))
    font = FontProperties(size=8)
    lines, line = [], ""
    for word in report.split():
        longer = f"{line} {word}".strip()
        if line and _text_width(longer, font) > 1.72:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    if len(lines) > 8:
        lines = [*lines[:7], lines[7] + " ..."]
    axis.text(2.4, 38.2, "REPORT", fontsize=7, fontweight="bold", color=MUTED, va="center")
    for number, text in enumerate(lines):
        axis.text(2.4, 40.7 + 1.95 * number, text, fontproperties=font, va="center")
    axis.text(11, 57.4, "its report", ha="center", va="center", fontsize=8.5, color=MUTED)


def _map_pooled(axis: Axes, x: float, y: float, colour: str, name: str) -> None:
    axis.add_patch(Circle((x, y), 2.0, facecolor=colour, edgecolor="white", linewidth=1.2))
    axis.text(x, y - 3.6, name, ha="center", va="center", fontsize=8.5)


def _map_locals(axis: Axes, x: float, y: float, colour: str, name: str, *, rows: int, columns: int) -> None:
    width, height = 11.5 / columns, 7.0 / rows if rows > 2 else 2.6
    for row in range(rows):
        for column in range(columns):
            corner = (x + (column - columns / 2) * width + 0.2, y + (row - rows / 2) * height + 0.2)
            square = Rectangle(corner, width - 0.4, height - 0.4, edgecolor="none")
            square.set_facecolor(_tint(colour, 0.25 + 0.75 * ((3 * row + 5 * column + 2) % 7) / 6))
            axis.add_patch(square)
    axis.text(x, y + rows * height / 2 + 1.7, name, ha="center", va="center", fontsize=8.5)


def _map_instance(axis: Axes, x: float, y: float) -> None:
    places = [x - 10.5 + 7 * number for number in range(4)]
    for left in places:
        for right in places:
            own = left == right
            line = {"color": TERM_COLOURS["instance"] if own else "#CFD6DD", "linewidth": 2.4 if own else 0.8}
            axis.plot([left, right], [y + 0.4, y + 6.4], zorder=2 if own else 1.5, **line)
    for place in places:
        axis.add_patch(Circle((place, y + 0.4), 1.05, facecolor=MODALITY_COLOURS["image"], edgecolor="white", zorder=3))
        axis.add_patch(
            Circle((place, y + 6.4), 1.05, facecolor=MODALITY_COLOURS["report"], edgecolor="white", zorder=3)
        )


def _map_token(axis: Axes, x: float, y: float) -> None:
    strong = {0: 2, 1: 4, 2: 5}
    patches = [x - 11.1 + 3.7 * number for number in range(7)]
    for number, name in enumerate(("small", "left", "effusion")):
        place = x - 9.3 + 9.3 * number
        for patch, middle in enumerate(patches):
            own = strong[number] == patch
            line = {"color": TERM_COLOURS["token"] if own else "#CFD6DD", "linewidth": 2.4 if own else 0.6}
            axis.plot([place, middle], [y + 6.2, y + 1.7], zorder=2 if own else 1.5, **line)
        frame = FancyBboxPatch((place - 3.6, y + 5.6), 7.2, 2.4, boxstyle="round,pad=0,rounding_size=0.6", zorder=3)
        frame.set(facecolor=_tint(MODALITY_COLOURS["report"], 0.4), edgecolor="none")
        axis.add_patch(frame)
        axis.text(place, y + 6.8, name, ha="center", va="center", fontsize=8, zorder=4)
    for patch, middle in enumerate(patches):
        square = Rectangle((middle - 1.1, y - 0.4), 2.2, 2.2, edgecolor="none", zorder=3)
        square.set_facecolor(_tint(MODALITY_COLOURS["image"], 0.95 if patch in strong.values() else 0.4))
        axis.add_patch(square)


def _map_prototype(axis: Axes, x: float, y: float) -> None:
    rng = np.random.default_rng(3)
    for number, name in enumerate(("pleural effusion", "cardiomegaly", "nodule")):
        centre = np.array([x - 10 + 10 * number, y])
        angles = np.arange(8) * np.pi / 4 + rng.uniform(-0.25, 0.25, 8)
        spots = centre + np.stack([3.7 * np.cos(angles), 2.6 * np.sin(angles)], axis=1) * rng.uniform(0.75, 1, (8, 1))
        for place, spot in enumerate(spots):
            colour = MODALITY_COLOURS["image" if place % 2 else "report"]
            axis.plot([spot[0], centre[0]], [spot[1], centre[1]], color="#CFD6DD", linewidth=0.8, zorder=1.5)
            axis.add_patch(Circle(spot, 0.7, facecolor=colour, edgecolor="white", linewidth=0.5, zorder=2))
        star = {"markersize": 16, "markeredgecolor": "white", "markeredgewidth": 0.9, "zorder": 3}
        axis.plot(*centre, marker="*", color=finding_colour(name), **star)


# Helpers
# ----------------------------------------------------------------------------------------------------------


def _axes(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _balanced(count: int, columns: int) -> tuple[int, int]:
    """Rows and columns for so many panels, without a lonely panel in the last row."""
    rows = math.ceil(count / max(1, columns))
    return rows, math.ceil(count / rows)


def _title(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, fontsize=11.5, fontweight="bold")


def _film(image: np.ndarray) -> np.ndarray:
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


def _extent(shape: tuple[int, int]) -> tuple[float, float, float, float]:
    return (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5)


def _show_film(axis: Axes, film: np.ndarray, title: str) -> None:
    axis.imshow(film, cmap="gray", vmin=0, vmax=1, extent=_extent(film.shape))
    axis.set_axis_off()
    if title:
        axis.set_title(title, fontsize=9, fontweight="normal", pad=3)


def _outline(axis: Axes, mask: np.ndarray, shape: tuple[int, int], colour: str) -> None:
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != shape:
        raise ValueError(f"mask of shape {mask.shape} for an image of shape {shape}")
    if mask.any():
        # A frame of zeros closes outlines that touch the border.
        padded = np.pad(mask.astype(float), 1)
        x, y = np.arange(-1, shape[1] + 1), np.arange(-1, shape[0] + 1)
        lines = axis.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.3)
        lines.set_path_effects(_HALO)
        axis.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))


def _frame(axis: Axes, box: Sequence[float], colour: str, *, dashed: bool) -> None:
    x1, y1, x2, y2 = (float(edge) for edge in box)
    style = (0, (4, 2)) if dashed else "-"
    frame = Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, linestyle=style, linewidth=1.3)
    frame.set(edgecolor=colour, path_effects=_HALO)
    axis.add_patch(frame)


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
        axis.add_patch(Rectangle((x - 0.03, y + 0.02), end - x + 0.06, 0.24, facecolor=_tint(colour, 0.16), zorder=0.5))
        axis.plot([x, end], [y + 0.145, y + 0.145], color=_tint(colour, 0.85), linewidth=1.3, zorder=3)
    else:
        axis.add_patch(Rectangle((x - 0.03, y + 0.02), end - x + 0.06, 0.24, facecolor=_tint(colour, 0.45), zorder=0.5))
    if span["uncertain"]:
        axis.plot([x, end], [y + 0.25, y + 0.25], color=INK, linewidth=1.3, linestyle=(0, (1.5, 1.2)), zorder=3)


def _joins(placed: Sequence[tuple[float, float, str, Any]], number: int, space: float) -> float:
    """Width of the blank behind a word, when the next word belongs to the same span and line."""
    if number + 1 < len(placed):
        (_, y, _, span), (_, next_y, _, next_span) = placed[number], placed[number + 1]
        if next_span is span and next_y == y:
            return space
    return 0.0


def _text_width(text: str, font: FontProperties) -> float:
    """Width in inches, independent of any canvas."""
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0] / 72


def _matrix_ticks(axis: Axes, rows: Sequence[str] | None, columns: Sequence[str] | None) -> None:
    for names, set_ticks in ((rows, axis.set_yticks), (columns, axis.set_xticks)):
        set_ticks(range(len(names)) if names else [], names if names else [])
    if columns:
        axis.tick_params(axis="x", rotation=40)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _write_numbers(axis: Axes, matrix: np.ndarray, colour: Callable[[float], str]) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        axis.text(column, row, _short(value), ha="center", va="center", fontsize=8.5, color=colour(value))


def _short(value: float) -> str:
    """Two decimals without a leading zero: .25, 1.00."""
    text = f"{value:.2f}" if abs(value) < 99.5 else f"{value:.0f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def _levels(axis: Axes, levels: Mapping[str, float] | None) -> None:
    for name, value in (levels or {}).items():
        axis.axhline(value, color=MUTED, linestyle="--", linewidth=1.1)
        place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axis.annotate(name, (1, value), xytext=(0, 2.5), ha="right", fontsize=8, color=MUTED, bbox=_PALE, **place)


def _tint(colour: str, strength: float) -> tuple[float, float, float]:
    """Mix a colour with white; strength 1 is the colour itself."""
    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))


def _readable(colour: str) -> tuple[float, float, float]:
    """Darken a colour until it can be read as text on white."""
    parts = np.array(to_rgb(colour))
    brightness = float(parts @ (0.299, 0.587, 0.114))
    return tuple(parts * min(1.0, 0.45 / max(brightness, 1e-6)))


def _arrow(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    *,
    width: float = 1.3,
    halo: bool = False,
) -> None:
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, shrinkA=0, shrinkB=0)
    arrow.set(color=colour, linewidth=width, zorder=5 if halo else 2)
    if halo:
        arrow.set_path_effects([patheffects.withStroke(linewidth=width + 3, foreground="white")])
    axis.add_patch(arrow)
