"""Results: linear probes, retrieval, grounding."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mgca_lib.figures.drawing import add_title, as_film, new_axes, require, show_film
from mgca_lib.figures.style import (
    GRID,
    INK,
    METHOD_COLOURS,
    MODALITY_COLOURS,
    MUTED,
    SERIES,
    WIDTH,
    finding_colour,
    known_method,
    method_colour,
    styled,
)

# The white edge keeps a diamond apart from a bar of its own colour.
_PUBLISHED = {"marker": "D", "markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 1.2, "linestyle": "none"}


@styled
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

    Published numbers come from other data and other encoders; they are drawn as diamonds in the colour of their method,
    with a white edge, to compare the pattern, not the height.

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
    require(methods, "dataset with a method and its score")
    figure, axes = new_axes(1, len(results), width=max(4.2, 3.05 * len(results)), height=3.6 + 0.3 * bool(title))
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
                    axis.plot(x, shown, color=method_colour(method), zorder=4, **_PUBLISHED)
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
        handles.append(Line2D([], [], color=MUTED, label="published", **_PUBLISHED))
    if chance:
        handles.append(Line2D([], [], color=MUTED, label=f"foot of the bars: {foot}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    add_title(figure, title)
    return figure


@styled
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
    ticks = sorted({k for part in recalls.values() for k in part})
    require(ticks, "line with its recall at some K")
    figure, (axis,) = new_axes(1, 1, width=5.6, height=3.4 + 0.3 * bool(title))
    for number, (name, part) in enumerate(recalls.items()):
        colour = MODALITY_COLOURS.get(name.split(" ")[0], SERIES[number % len(SERIES)])
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
    add_title(figure, title)
    return figure


@styled
def retrieval_cases(cases: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Images whose own report was beaten: film and own report, then the preferred report and the film of that.

    Args:
        cases: For each image ``film`` and ``answer_film``, grey images; ``report`` and ``answer``, the two texts; and
            ``caption``, a short text below the film. Long texts are cut.
        title: Title of the figure.
    """
    require(cases, "image with the report that was preferred")
    height = 1.85
    figure = Figure(figsize=(WIDTH, height * len(cases) + 0.3 + 0.3 * bool(title)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), 4, squeeze=False, width_ratios=(1.0, 1.45, 1.45, 1.0))
    heads = ("film", "its own report", "preferred report", "film of that report")
    for number, (row, case) in enumerate(zip(axes, cases, strict=True)):
        for axis, key in ((row[0], "film"), (row[3], "answer_film")):
            show_film(axis, as_film(case[key]), "")
            axis.set_anchor("N")
        below = {"ha": "center", "va": "top", "fontsize": 8, "parse_math": False}
        row[0].text(0.5, -0.04, case["caption"], transform=row[0].transAxes, **below)
        for axis, key, colour in ((row[1], "report", INK), (row[2], "answer", METHOD_COLOURS["ita only"])):
            axis.set_axis_off()
            lines = textwrap.wrap(case[key], 44, max_lines=12, placeholder=" ...")
            written = {"va": "top", "fontsize": 7.5, "color": INK, "parse_math": False}
            axis.text(0.02, 0.98, "\n".join(lines), transform=axis.transAxes, **written)
            axis.plot([-0.02, -0.02], [0, 1], transform=axis.transAxes, color=colour, linewidth=2, clip_on=False)
        if number == 0:
            for axis, head in zip(row, heads, strict=True):
                axis.set_title(head, fontsize=9, fontweight="bold")
    add_title(figure, title)
    return figure


@styled
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
    require(scores, "finding with its score")
    names = list(scores)
    figure, (axis,) = new_axes(1, 1, width=7.2, height=0.34 * len(names) + 1.25 + 0.3 * bool(title))
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
    add_title(figure, title)
    return figure


def pointing_dots(
    summaries: Mapping[str, Mapping[str, Any]],
    findings: Sequence[str],
    *,
    references: Sequence[str] = ("chance",),
) -> Figure:
    """Hit rates of the pointing game, a row for each finding and a dot for each method.

    Args:
        summaries: ``summaries[method][finding]`` of `mgca_lib.evaluation.grounding.GroundingSummary`.
        findings: Rows from the top; ``"all"`` is written out. A method may lack some, the first must have all.
        references: ``"chance"``, ``"ceiling"`` or both, drawn as the first method has them.

    Raises:
        ValueError: there is no method, or no row.
    """
    require(summaries, "method")
    require(findings, "finding")
    first = next(iter(summaries.values()))
    rows = {}
    for finding in findings:
        row = {method: vars(own[finding].pointing) for method, own in summaries.items() if finding in own}
        row |= {name: {"mean": getattr(first[finding], name)} for name in references}
        rows["all findings" if finding == "all" else finding] = row
    return interval_dots(rows, value_label="pointing game: hit rate, 95 % interval over patients")


@styled
def interval_dots(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    value_label: str,
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Scores of several methods side by side, a row each for every class or setting.

    Args:
        scores: ``scores[row][method]`` holds ``mean`` and, where it is known, ``low`` and ``high``. A row may lack a
            method. Methods that the course knows have their own colour.
        value_label: Label of the axis.
        levels: Named values, for example the chance level.
        title: Title of the figure.
    """
    methods = list(dict.fromkeys(method for row in scores.values() for method in row))
    require(methods, "row with a method and its score")
    figure, (axis,) = new_axes(
        1, 1, width=7.2, height=1.35 + len(scores) * (0.16 + 0.13 * len(methods)) + 0.3 * bool(title)
    )
    step = 0.72 / len(methods)
    known = {method: method_colour(method) for method in methods if known_method(method)}
    others = iter(SERIES[bool(known) :])  # the first one is too close to the blue of mgca
    for number, method in enumerate(methods):
        colour = known.get(method) or next(others, MUTED)
        drawn = [(place, row[method]) for place, row in enumerate(scores.values()) if method in row]
        heights = [place - 0.36 + (number + 0.5) * step for place, _ in drawn]
        axis.plot(
            [cell["mean"] for _, cell in drawn], heights, "o", color=colour, markersize=5.5, label=method, zorder=3
        )
        for height, (_, cell) in zip(heights, drawn, strict=True):
            if "low" in cell:
                axis.plot([cell["low"], cell["high"]], [height, height], color=colour, linewidth=2)
    for place in range(1, len(scores)):
        axis.axhline(place - 0.5, color=GRID, linewidth=0.8)
    for number, (name, value) in enumerate((levels or {}).items()):
        axis.axvline(value, color=MUTED, linestyle="--" if number == 0 else ":", linewidth=1.1)
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
    axis.set_yticks(range(len(scores)), list(scores))
    axis.tick_params(axis="y", length=0)
    axis.set(xlabel=value_label, ylim=(len(scores) - 0.5, -0.5))
    axis.xaxis.grid(True)
    figure.legend(loc="outside lower center", ncols=min(4, len(methods)))
    add_title(figure, title)
    return figure
