"""The map of the course."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, Ellipse, FancyBboxPatch, Polygon, Rectangle

from mgca_lib.figures.drawing import arrow, as_film, text_width
from mgca_lib.figures.style import (
    GRID,
    INK,
    MODALITY_COLOURS,
    MUTED,
    TERM_COLOURS,
    finding_colour,
    readable,
    styled,
    tint,
)


@styled
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
        axis.add_patch(Polygon(shape, facecolor=tint(colour, 0.22), edgecolor=colour, linewidth=1.6))
        axis.text(29.5, y, name, ha="center", va="center", fontsize=10.5, fontweight="bold")
        axis.text(29.5, y + 10.6, detail, ha="center", va="center", fontsize=8.5, color=MUTED)
        arrow(axis, (20.9, y), (23.6, y), colour)
        arrow(axis, (35.9, y), (40.6, y), colour)
    _map_pooled(axis, 49, 10.5, image_colour, "whole image")
    _map_locals(axis, 49, 22.6, image_colour, "patches", rows=3, columns=5)
    _map_locals(axis, 49, 40.2, report_colour, "words", rows=2, columns=4)
    _map_pooled(axis, 49, 53.5, report_colour, "whole report")
    cards = (
        (5.5, "instance", "Instance alignment", "an image finds its own report among all", "03"),
        (24.0, "token", "Token alignment", "each word looks for its place in the image", "04"),
        (42.5, "prototype", "Prototype alignment", "both choose the same cluster, without labels", "05"),
    )
    for y, term, name, text, number in cards:
        colour = TERM_COLOURS[term]
        frame = FancyBboxPatch((63, y), 32.5, 16.5, boxstyle="round,pad=0,rounding_size=1.2")
        frame.set(facecolor=tint(colour, 0.1), edgecolor=colour, linewidth=1.6)
        axis.add_patch(frame)
        axis.text(64.5, y + 2.4, name, fontsize=10.5, fontweight="bold", va="center", color=readable(colour))
        axis.text(94, y + 2.4, number, fontsize=8.5, va="center", ha="right", color=MUTED)
        axis.text(64.5, y + 14.3, text, fontsize=8.2, va="center", color=INK)
    _map_instance(axis, 79.2, 10.3)
    _map_token(axis, 79.2, 28.6)
    _map_prototype(axis, 79.2, 50.9)
    # Both whole vectors feed the outer two terms: one line joins them.
    join = {"color": MUTED, "linewidth": 1.5, "solid_capstyle": "round"}
    for y in (10.5, 53.5):
        axis.plot([52.6, 60], [y, y], **join)
        arrow(axis, (60, y), (62.7, y), MUTED, width=1.5)
    axis.plot([60, 60], [10.5, 53.5], **join)
    for y, end in ((22.6, 31.2), (40.2, 33.4)):
        arrow(axis, (55.6, y), (62.7, end), TERM_COLOURS["token"], width=1.5, halo=True)
    uses = (
        (11.0, "Linear probing", "how few labels suffice?", "07"),
        (22.5, "Retrieval", "find what is alike", "03"),
        (34.0, "Word heat maps", "do words point?", "04"),
        (45.5, "Prototype maps", "are they diseases?", "08"),
    )
    for y, name, text, number in uses:
        frame = FancyBboxPatch((100, y - 4.4), 18.5, 8.8, boxstyle="round,pad=0,rounding_size=1")
        frame.set(facecolor="white", edgecolor=GRID, linewidth=1.4)
        axis.add_patch(frame)
        axis.text(101.2, y - 1.5, name, fontsize=9.3, fontweight="bold", va="center")
        axis.text(101.2, y + 1.9, text, fontsize=8.2, va="center", color=MUTED)
        axis.text(117.4, y - 1.5, number, fontsize=8.5, va="center", ha="right", color=MUTED)
    arrow(axis, (95.9, 32.2), (99.5, 32.2), MUTED, width=2.2)
    axis.text(100, 53.6, "numbers name notebooks", fontsize=8, color=MUTED, va="center")
    axis.text(100, 56.2, "not for clinical use", fontsize=8, color=MUTED, va="center")
    return figure


def _map_film(axis: Axes, image: np.ndarray | None) -> None:
    frame = axis.add_patch(Rectangle((1.5, 8.5), 19, 19, facecolor="#0F1318", edgecolor=INK, linewidth=1))
    if image is not None:
        film = as_film(image)
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
        if line and text_width(longer, font) > 1.72:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    if len(lines) > 8:
        lines = [*lines[:7], lines[7] + " ..."]
    axis.text(2.4, 38.2, "REPORT", fontsize=7, fontweight="bold", color=MUTED, va="center")
    for number, text in enumerate(lines):
        axis.text(2.4, 40.7 + 1.95 * number, text, fontproperties=font, va="center", parse_math=False)
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
            square.set_facecolor(tint(colour, 0.25 + 0.75 * ((3 * row + 5 * column + 2) % 7) / 6))
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
        frame.set(facecolor=tint(MODALITY_COLOURS["report"], 0.4), edgecolor="none")
        axis.add_patch(frame)
        axis.text(place, y + 6.8, name, ha="center", va="center", fontsize=8, zorder=4)
    for patch, middle in enumerate(patches):
        square = Rectangle((middle - 1.1, y - 0.4), 2.2, 2.2, edgecolor="none", zorder=3)
        square.set_facecolor(tint(MODALITY_COLOURS["image"], 0.95 if patch in strong.values() else 0.4))
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
