"""What the alignment terms work on: similarities, and prototype scores on their way to codes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mgca_lib.figures.drawing import (
    add_title,
    balanced,
    matrix_ticks,
    new_axes,
    require,
    short_number,
    write_numbers,
)
from mgca_lib.figures.style import (
    INK,
    METHOD_COLOURS,
    MODALITY_COLOURS,
    MUTED,
    PROBABILITY_MAP,
    SIMILARITY_MAP,
    WIDTH,
    styled,
)


@styled
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
    figure, (axis,) = new_axes(
        1,
        1,
        width=max(3.4, cell * width) + 1.6 + 0.5 * bool(rows),
        height=max(1.6 if width > 2 * height else 2.6, cell * height) + 0.9,
    )
    drawn = axis.imshow(matrix, cmap=colours, vmin=lowest * limit, vmax=limit, aspect="equal")
    matrix_ticks(axis, rows, columns)
    axis.set(xlabel=column_label, ylabel=row_label)
    if max(height, width) <= 8:
        write_numbers(axis, matrix, lambda value: "white" if abs(value) > 0.6 * limit else INK)
    figure.colorbar(drawn, ax=axis, label=value_label, shrink=0.85)
    add_title(figure, title)
    return figure


@styled
def similarity_histogram(
    matched: np.ndarray, unmatched: np.ndarray, *, limits: tuple[float, float] | None = None, title: str = ""
) -> Figure:
    """Cosine similarity of matched and of unmatched image-report pairs: alignment pulls the two apart.

    Args:
        matched: Similarities of pairs that belong together.
        unmatched: Similarities of pairs that do not.
        limits: Ends of the horizontal axis, so that figures can be compared; what lies beyond counts in the outermost
            bars. ``None`` takes the range of the values.
        title: Title of the figure.
    """
    figure, (axis,) = new_axes(1, 1, width=6.2, height=3.1 + 0.3 * bool(title))
    low = min(np.min(matched), np.min(unmatched))
    high = max(np.max(matched), np.max(unmatched), low + 1e-3)
    if limits:
        low, high = limits
        axis.set_xlim(low, high)
    edges = np.linspace(low, high, 41)
    for values, colour in ((unmatched, MUTED), (matched, METHOD_COLOURS["mgca"])):
        values = np.asarray(values).ravel()
        share, inside = np.full(len(values), 100 / len(values)), np.clip(values, low, high)
        axis.hist(inside, edges, weights=share, color=colour, alpha=0.55)
        axis.hist(inside, edges, weights=share, histtype="step", color=colour)
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
    add_title(figure, title)
    return figure


@styled
def sinkhorn_steps(matrices: Sequence[np.ndarray], titles: Sequence[str], *, title: str = "") -> Figure:
    """A matrix of prototype scores on its way to codes.

    Rows and columns are scaled in turn until both sums fit. Sums stand outside the frame. Matrices up to 6
    x 6 carry their numbers.

    Args:
        matrices: One ``(B, K)`` matrix a step, not negative.
        titles: What was done in each step.
        title: Title of the figure.
    """
    require(matrices, "matrix")
    matrices = [np.asarray(matrix, dtype=float) for matrix in matrices]
    height, width = matrices[0].shape
    rows, columns = balanced(len(matrices), 4)
    figure, axes = new_axes(
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
            write_numbers(axis, matrix, lambda value, top=top: "white" if value > 0.42 * top else INK)
            for b, total in enumerate(matrix.sum(axis=1)):
                axis.text(
                    width - 0.42, b, short_number(total), va="center", fontsize=8, color=MODALITY_COLOURS["report"]
                )
            for k, total in enumerate(matrix.sum(axis=0)):
                axis.text(
                    k, -0.56, short_number(total), ha="center", va="bottom", fontsize=8, color=MODALITY_COLOURS["image"]
                )
            axis.set_title(titles[number], fontsize=9, pad=17)
    add_title(figure, title)
    return figure
