"""Prototypes: their nearest studies, their make-up, and maps of the embedding space."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mgca_lib.figures.drawing import add_title, as_film, new_axes, panel_letter, require
from mgca_lib.figures.style import (
    FINDING_COLOURS,
    GRID,
    INK,
    MODALITY_COLOURS,
    UNUSED,
    WIDTH,
    finding_colour,
    readable,
    styled,
)


@styled
def prototype_grid(
    images: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]],
    names: Sequence[str],
    *,
    reports: Sequence[Sequence[tuple[str, str]]] | None = None,
    title: str = "",
) -> Figure:
    """The studies nearest to each prototype, one row a prototype: what a prototype stands for.

    Args:
        images: For each prototype its nearest images, nearest first.
        captions: For each of them a short text, usually its finding; the colour follows the finding.
        names: Name of each prototype.
        reports: For each prototype its nearest reports, nearest first: finding and text. They stand right of the
            films, cut to what fits; three fit a row. Without them the films stand alone.
        title: Title of the figure.

    Raises:
        ValueError: images, captions, names or reports are not equally many.
    """
    require([image for row in images for image in row], "prototype with an image")
    columns = max(len(row) for row in images)
    room = 1.2 if reports is None else 4.4
    side = min(1.5, (WIDTH - room) / columns)
    figure = Figure(
        figsize=(side * columns + room, (side + 0.08) * len(images) + 0.3 * bool(title) + 0.25 * bool(reports)),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    text_column = [] if reports is None else [(room - 1.2) / side]
    axes = figure.subplots(
        len(images), columns + len(text_column), squeeze=False, width_ratios=[1.0] * columns + text_column
    )
    for row, row_images, row_captions, name in zip(axes, images, captions, names, strict=True):
        for axis in row:
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        for axis, image, caption in zip(row, row_images, row_captions, strict=False):
            axis.imshow(as_film(image), cmap="gray", vmin=0, vmax=1)
            axis.set_xlabel(caption, color=readable(finding_colour(caption)), fontsize=8, labelpad=2)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, fontweight="bold")
    if reports is not None:
        for row, nearest in zip(axes, reports, strict=True):
            _write_reports(row[-1], nearest[:3], width=room - 1.3, height=side)
        axes[0, columns // 2].set_title("nearest films", fontsize=9)
        axes[0, -1].set_title("nearest reports", fontsize=9, loc="left")
    add_title(figure, title)
    return figure


@styled
def projection_maps(
    maps: Mapping[str, tuple[np.ndarray, np.ndarray]],
    findings: Sequence[str],
    clusters: Sequence[int],
    *,
    top_clusters: int = 10,
    title: str = "",
) -> Figure:
    """Embeddings in the plane, after figure 4 of the paper: coloured by disease above, by prototype below.

    Prototypes cut the space into regions, so islands of one colour below say that the space has an order, not that it
    is one of diseases: that takes the same islands above. Prototypes are stars.

    Args:
        maps: For each method (``"t-SNE"``, ``"UMAP"``) the ``(N, 2)`` points of the studies and the ``(K,
            2)`` points of the prototypes.
        findings: Dominant finding of each study.
        clusters: Prototype of each study.
        top_clusters: So many of the most frequent prototypes get a colour of their own, the others are grey.
        title: Title of the figure.
    """
    require(maps, "map")
    findings, clusters = np.asarray(findings), np.asarray(clusters)
    numbers, counts = np.unique(clusters, return_counts=True)
    largest = numbers[np.argsort(-counts, kind="stable")][:top_clusters]
    wheel = [colour for place, colour in enumerate(mpl.colormaps["tab20"].colors) if place // 2 != 7]  # no grey
    wheel = wheel[::2] + wheel[1::2]
    cluster_colours = {int(number): wheel[place % len(wheel)] for place, number in enumerate(largest)}
    names = sorted(set(findings), key=lambda name: (name == "no finding", -int((findings == name).sum())))
    figure, axes = new_axes(2, len(maps), width=min(WIDTH, 3.6 * len(maps) + 1.8), height=7.0 + 0.3 * bool(title))
    for column, (method, (points, stars)) in enumerate(maps.items()):
        size = float(np.clip(2600 / max(len(points), 1), 4, 26))
        large = float(np.clip(6000 / max(len(stars), 1), 16, 95))  # hundreds of stars must not hide the studies
        upper, lower = axes[column], axes[len(maps) + column]
        for name in reversed(names):
            upper.scatter(*points[findings == name].T, s=size, color=finding_colour(name), linewidth=0, alpha=0.85)
        others = ~np.isin(clusters, largest)
        lower.scatter(*points[others].T, s=size, color=FINDING_COLOURS["no finding"], linewidth=0, alpha=0.6)
        for number, colour in cluster_colours.items():
            lower.scatter(*points[clusters == number].T, s=size, color=[colour], linewidth=0, alpha=0.9)
        used = np.isin(np.arange(len(stars)), numbers)
        for axis in (upper, lower):
            for own, colour in ((used, "white"), (~used, UNUSED)):  # the few unused ones on top
                axis.scatter(*stars[own].T, marker="*", s=large, color=colour, edgecolor=INK, linewidth=0.8, zorder=3)
        for number, colour in cluster_colours.items():
            if number < len(stars):
                lower.scatter(
                    *stars[number], marker="*", s=1.25 * large, color=[colour], edgecolor=INK, linewidth=0.9, zorder=4
                )
        upper.set_title(f"{method}, by disease")
        lower.set_title(f"{method}, by prototype")
        for axis, number in ((upper, column), (lower, len(maps) + column)):
            axis.set_title(panel_letter(number), loc="left")
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
        handles.append(Line2D([], [], color=UNUSED, label="unused prototype", **star))
    legend = figure.legend(handles=handles, loc="outside right center")
    for text in legend.get_texts():
        if text.get_text() in [heading.get_label() for heading in headings]:
            text.set_fontweight("bold")
    add_title(figure, title)
    return figure


@styled
def embedding_maps(
    maps: Mapping[str, np.ndarray],
    groups: Sequence[str],
    *,
    legend: str = "dominant finding",
    colours: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """The same points laid out in several ways, side by side: what a map owes to its settings.

    Args:
        maps: For each panel its title and the ``(N, 2)`` points.
        groups: Group of each point: a finding, or ``"image"`` and ``"report"``.
        legend: Title of the legend.
        colours: Colour of each group that is neither.
        title: Title of the figure.
    """
    require(maps, "map")
    groups = np.asarray(groups)
    names = sorted(set(groups), key=lambda name: (name == "no finding", -int((groups == name).sum())))
    known = MODALITY_COLOURS | dict(colours or {})
    colours = {name: known.get(name) or finding_colour(name) for name in names}
    figure, axes = new_axes(1, len(maps), width=min(WIDTH, 3.0 * len(maps) + 1.6), height=2.9 + 0.3 * bool(title))
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
    add_title(figure, title)
    return figure


@styled
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
    require(clusters, "study")
    clusters, findings = np.asarray(clusters), np.asarray(findings)
    numbers, counts = np.unique(clusters, return_counts=True)
    shown = numbers[np.argsort(-counts, kind="stable")][:top]
    names = sorted(set(findings), key=lambda name: (name == "no finding", -int((findings == name).sum())))
    figure, (axis,) = new_axes(1, 1, width=WIDTH, height=3.3 + 0.3 * bool(title))
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
    add_title(figure, title)
    return figure


def _write_reports(axis: Axes, reports: Sequence[tuple[str, str]], *, width: float, height: float) -> None:
    """Write findings in their colours and as much of each report as fits; sizes in inches."""
    axis.set(xlim=(0, width), ylim=(height, 0))
    line = 0.12
    fitting = max(1, int(height / len(reports) / line) - 1) if reports else 0
    for number, (finding, text) in enumerate(reports):
        top = number * height / len(reports)
        colour = readable(finding_colour(finding))
        axis.text(0, top, finding, fontsize=7.5, fontweight="bold", color=colour, va="top")
        lines = textwrap.wrap(text, int(width / 0.05), max_lines=fitting, placeholder=" ...")
        axis.text(0, top + line, "\n".join(lines), fontsize=7, va="top", linespacing=1.15, parse_math=False)
