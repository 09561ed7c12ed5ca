"""Radiographs, and what is marked on them: grids, masks, boxes, the cells of feature maps."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from mgca_lib.figures.drawing import DASHES, add_title, as_film, balanced, frame_box, new_axes, outline, show_film
from mgca_lib.figures.style import ANSWER_COLOURS, HALO, WIDTH, finding_colour, styled

_CORNERS = ((0, 1, "left", "bottom"), (2, 3, "right", "top"), (2, 1, "right", "bottom"), (0, 3, "left", "top"))


@styled
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
    films = [as_film(image) for image in images]
    rows, columns = balanced(len(films), columns)
    side = WIDTH / max(columns, 3)
    figure, axes = new_axes(rows, columns, width=side * columns, height=(side + 0.25) * rows + 0.35 * bool(title))
    for number, axis in enumerate(axes):
        axis.set_axis_off()
        if number < len(films):
            show_film(axis, films[number], titles[number] if titles is not None else "")
    add_title(figure, title)
    return figure


@styled
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
    film = as_film(image)
    figure, (plain, marked) = new_axes(1, 2, width=7.4, height=4.0 + 0.3 * bool(names))
    show_film(plain, film, "image alone")
    show_film(marked, film, "ground truth")
    for mask, name in zip(masks, names, strict=True):
        outline(marked, mask, film.shape, finding_colour(name))
    for (x, y, w, h), name in zip(boxes, names, strict=bool(boxes)):
        frame = Rectangle((x - 0.5, y - 0.5), w, h, fill=False, linestyle=DASHES, linewidth=1.2)
        frame.set(edgecolor=finding_colour(name), path_effects=HALO)
        marked.add_patch(frame)
    if names:
        handles = [
            Line2D([], [], color=finding_colour(name), label=name, linewidth=2.4) for name in dict.fromkeys(names)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
    add_title(figure, title)
    return figure


@styled
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
    film = as_film(image)
    count = len(strides) + 1
    figure, axes = new_axes(1, count, width=WIDTH, height=WIDTH / count + 0.35 + 0.3 * bool(title))
    show_film(axes[0], film, "image alone")
    for axis, stride in zip(axes[1:], strides, strict=True):
        rows, columns = (math.ceil(side / stride) for side in film.shape)
        show_film(axis, film, f"stride {stride}: {rows} x {columns} cells")
        for edge in range(stride, film.shape[0], stride):
            axis.axhline(edge - 0.5, color="#FFD166", linewidth=0.6, alpha=0.8)
        for edge in range(stride, film.shape[1], stride):
            axis.axvline(edge - 0.5, color="#FFD166", linewidth=0.6, alpha=0.8)
        for box in boxes:
            frame_box(axis, box, ANSWER_COLOURS["ground truth"], dashed=False)
    if len(boxes):
        handle = Line2D([], [], color=ANSWER_COLOURS["ground truth"], linewidth=2.4, label="ground truth")
        figure.legend(handles=[handle], loc="outside lower center")
    add_title(figure, title)
    return figure


@styled
def localisation_cases(
    cases: Sequence[Mapping[str, Any]], *, columns: int = 2, found_label: str = "found", title: str = ""
) -> Figure:
    """Films untouched, and beside each what was found on it and what is there: boxes, outlines, or both.

    What was found is dashed, so that it is told from the truth without colours, too.

    Args:
        cases: For each film ``film``, a grey image, and ``caption``, a short text. Optional, and empty by default:
            ``true_boxes`` and ``found_boxes``, ``(n, 4)`` corners ``x1, y1, x2, y2`` in pixels, edges between
            pixels; ``scores``, a number for each found box; ``true_mask`` and ``found_mask``, bool in the film's shape.
        columns: Cases a row.
        found_label: What the legend calls ``found_boxes`` and ``found_mask``.
        title: Title of the figure.
    """
    rows, columns = balanced(len(cases), columns)
    side = WIDTH / max(2 * columns, 4)
    figure, axes = new_axes(
        rows, 2 * columns, width=2 * side * columns, height=(side + 0.12) * rows + 0.3 + 0.3 * bool(title)
    )
    truth, found = ANSWER_COLOURS["ground truth"], ANSWER_COLOURS["found"]
    for axis in axes:
        axis.set_axis_off()
    for plain, marked, case in zip(axes[::2], axes[1::2], cases, strict=False):
        film = as_film(case["film"])
        show_film(plain, film, "film alone")
        show_film(marked, film, case["caption"])
        for key, colour in (("true_mask", truth), ("found_mask", found)):
            if key in case:
                outline(marked, case[key], film.shape, colour, dashed=key == "found_mask")
        for box in case.get("true_boxes", ()):
            frame_box(marked, box, truth, dashed=False)
        scores = case.get("scores", ())
        for number, box in enumerate(case.get("found_boxes", ())):
            frame_box(marked, box, found, dashed=True)
            if number < len(scores):
                # Boxes of one finding overlap, so their numbers stand at different corners.
                x, y, across, down = _CORNERS[number % len(_CORNERS)]
                aligned = {"ha": across, "va": down, "fontsize": 8, "clip_on": True}
                text = marked.text(box[x], box[y], f"{scores[number]:.2f}", color=found, **aligned)
                text.set(path_effects=[patheffects.withStroke(linewidth=1.5, foreground="black")])
    lines = {
        ("true_boxes", "true_mask"): {"color": truth, "linestyle": "-", "label": "ground truth"},
        ("found_boxes", "found_mask"): {"color": found, "linestyle": DASHES, "label": f"{found_label} (dashed)"},
    }
    handles = [
        Line2D([], [], linewidth=2.4, **line)
        for keys, line in lines.items()
        if any(key in case for case in cases for key in keys)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    add_title(figure, title)
    return figure
