"""Plain charts: counts of labels, a quantity over a setting, losses over epochs."""

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mgca_lib.figures.drawing import add_title, level_lines, new_axes, require
from mgca_lib.figures.style import (
    FINDING_COLOURS,
    INK,
    METHOD_COLOURS,
    MUTED,
    SERIES,
    SPLIT_COLOURS,
    TERM_COLOURS,
    TERM_NAMES,
    WIDTH,
    styled,
)


@styled
def label_counts(counts: Mapping[str, Mapping[str, float]], *, unit: str = "images", title: str = "") -> Figure:
    """How often each label occurs in each split: prevalence, and whether the splits agree.

    Args:
        counts: For each split (or dataset) the number, or share, of images for each label; labels in one
            order.
        unit: Label of the axis.
        title: Title of the figure.
    """
    require(counts, "split with its counts")
    labels = list(dict.fromkeys(label for part in counts.values() for label in part))
    require(labels, "label")
    figure, (axis,) = new_axes(
        1, 1, width=7.5, height=0.55 + len(labels) * (0.16 + 0.12 * len(counts)) + 0.3 * bool(title)
    )
    step = 0.8 / len(counts)
    for number, (split, part) in enumerate(counts.items()):
        places = np.arange(len(labels)) - 0.4 + (number + 0.5) * step
        colour = SPLIT_COLOURS.get(split, SERIES[number % len(SERIES)])
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
    add_title(figure, title)
    return figure


@styled
def curves(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    marks: Mapping[str, float] | None = None,
    levels: Mapping[str, float] | None = None,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    dashed: Sequence[str] = (),
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
        bands: For some of the lines the lower and upper ends of their intervals.
        dashed: Lines that are controls: dashed, in the colour of the line before them.
        title: Title of the figure.
    """
    require(series, "line")
    figure, (axis,) = new_axes(1, 1, width=6.2, height=3.3 + 0.3 * bool(title))
    known = METHOD_COLOURS | TERM_COLOURS | FINDING_COLOURS
    colour, number = INK, 0
    for name, values in series.items():
        if name not in dashed:
            colour, number = known.get(name.lower(), SERIES[number % len(SERIES)]), number + 1
        line = "--" if name in dashed else "-"
        axis.plot(x, values, line, color=colour, marker="o" if len(x) <= 12 else None, markersize=4, label=name)
        if bands and name in bands:
            axis.fill_between(x, *bands[name], color=colour, alpha=0.15, linewidth=0)
    if log_x:
        axis.set_xscale("log")
        if len(x) <= 12 and all(float(value).is_integer() for value in x):  # counts: 4, 8, 16 rather than 10^1
            axis.set_xticks(x, [f"{value:g}" for value in x])
            axis.minorticks_off()
    elif all(float(value).is_integer() for value in x):
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    level_lines(axis, levels)
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
        figure.legend(loc="outside lower center", ncols=min(4, len(series)), handlelength=2.8)
    add_title(figure, title)
    return figure


@styled
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
    require(history, "epoch")
    epochs = [row["epoch"] for row in history]
    parts = [name for name in ("instance", "token", "prototype", "total") if f"train/{name}" in history[0]]
    columns = len(parts) + 1
    figure, axes = new_axes(1, columns, width=WIDTH * min(1.2, columns / 4.2), height=2.9 + 0.3 * bool(title))
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
    add_title(figure, title)
    return figure
