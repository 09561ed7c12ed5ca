"""Pick a word, see where it looks: a widget where somebody can turn it, a still picture everywhere else.

A widget lives in a running kernel. On an executed page that is only read, it is an error message, so batch runs never
emit one: they get the panel that the widget would show first.
"""

import html
import os
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from mgca_lib.figures.drawing import as_film, outline, show_film, text_width
from mgca_lib.figures.style import ANSWER_COLOURS, INK, MODALITY_COLOURS, MUTED, WIDTH, course_style, styled, tint
from mgca_lib.figures.tokens import heat_bar, lay_heat, mark_peak, times_mean

if TYPE_CHECKING:
    from ipywidgets import VBox

_REPORT_WIDTH = 3.4  # inches


@styled
def word_panel(study: Mapping[str, Any], word: int, *, title: str = "") -> Figure:
    """One word of one study: the film untouched, its heat map with the ground truth, the report, the pointing game.

    Args:
        study: ``film``, a grey image ``(H, W)``; ``words`` of its report in reading order; and for each of them a
            value, or ``None`` where there is none, in ``maps`` (attention ``(h, w)`` of any size), ``masks`` (ground
            truth, bool in the film's shape) and ``scores`` (``hit``, ``chance`` and ``contrast``, as
            `mgca_lib.evaluation.grounding.RegionScore` has them). Optional: ``window``, the ``(x, y, width, height)``
            in pixels of the film that the maps cover; the whole film by default.
        word: Number of the word.
        title: Stands above the report.

    Raises:
        IndexError: the study has no such word.
        ValueError: ``maps``, ``masks`` or ``scores`` are not as many as the words.
    """
    _check(study)
    if not 0 <= word < len(study["words"]):
        raise IndexError(f"word {word} of a report with {len(study['words'])} words")
    film = as_film(study["film"])
    figure = Figure(figsize=(WIDTH + 1.0, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(WIDTH + 1.0 - _REPORT_WIDTH, _REPORT_WIDTH))
    plain, marked = left.subplots(1, 2)
    show_film(plain, film, "film alone")
    show_film(marked, film, f"“{study['words'][word]}”")
    heat, mask = study["maps"][word], study["masks"][word]
    if heat is not None:
        x, y, wide, tall = study.get("window", (0, 0, film.shape[1], film.shape[0]))
        extent = (x - 0.5, x + wide - 0.5, y + tall - 0.5, y - 0.5)
        relative = times_mean(heat)
        top = max(2.0, float(relative.max()))
        lay_heat(marked, relative, top, extent)
        mark_peak(marked, relative, extent)
        heat_bar(left, [marked], top, "times its mean")
    if mask is not None:
        outline(marked, mask, film.shape, ANSWER_COLOURS["ground truth"])
    _write_report(right.add_axes((0, 0, 1, 1)), study, word, title or "its report")
    return figure


def explore_words(
    studies: Sequence[Mapping[str, Any]],
    *,
    interactive: bool | None = None,
    study: int = 0,
    word: int | None = None,
) -> "Figure | VBox":
    """Let the reader pick a study and a word, and show :func:`word_panel` for them.

    Args:
        studies: As in :func:`word_panel`, each with a ``name``.
        interactive: A widget (True) or the still panel of the first choice (False). By default a widget only where a
            person turns it, see :func:`is_watched`.
        study: Number of the study shown first.
        word: Number of its word shown first; by default the first with ground truth, else the first.

    Returns:
        The panel, or an ``ipywidgets`` box of two menus, the picture, and the result in words.

    Raises:
        IndexError: there is no such study or word.
        ValueError: there is no study, or ``maps``, ``masks`` or ``scores`` are not as many as the words.
    """
    if not studies:
        raise ValueError("give at least one study to explore")
    for one in studies:
        _check(one)
    if not 0 <= study < len(studies):
        raise IndexError(f"study {study} of {len(studies)}")
    first = _first_word(studies[study]) if word is None else word
    if not (is_watched() if interactive is None else interactive):
        return word_panel(studies[study], first, title=studies[study]["name"])
    import ipywidgets as widgets  # only where a widget is wanted

    which = widgets.Dropdown(options=[(one["name"], number) for number, one in enumerate(studies)], value=study)
    which.description = "study"
    pick = widgets.Dropdown(options=_menu(studies[study]), value=first, description="word")
    picture, answer = widgets.Image(format="png"), widgets.HTML()

    def draw() -> None:
        shown = studies[which.value]
        picture.value = _png(word_panel(shown, pick.value))
        answer.value = html.escape(pointing_text(shown, pick.value))

    def change_study(_: Any) -> None:
        pick.unobserve(change_word, "value")  # new words would draw twice
        pick.options = _menu(studies[which.value])
        pick.value = _first_word(studies[which.value])
        pick.observe(change_word, "value")
        draw()

    def change_word(_: Any) -> None:
        draw()

    which.observe(change_study, "value")
    pick.observe(change_word, "value")
    draw()
    return widgets.VBox([widgets.HBox([which, pick]), picture, answer])


def is_watched() -> bool:
    """Whether this is a notebook that a person runs, and not a batch run whose page is only read.

    Batch runs of the course set ``MGCA_PROGRESS=0``. Elsewhere the kernel must have been started for a notebook by
    Jupyter, VS Code or Colab, and the notebook must hold no parameters that papermill injected; in doubt the answer
    is no.
    """
    if os.environ.get("MGCA_PROGRESS", "1") == "0" or "ipykernel" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    names = shell.user_ns if shell else {}
    injected = any(str(cell).startswith("# Parameters\n") for cell in names.get("In", ()))
    started = "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in names or "google.colab" in sys.modules
    return started and not injected


def pointing_text(study: Mapping[str, Any], word: int) -> str:
    """Say in one sentence how a word fared in the pointing game.

    >>> study = {"words": ["left", "the"], "scores": [{"hit": True, "chance": 0.04, "contrast": 1.5}, None]}
    >>> pointing_text(study, 0)
    '“left”: hit, the brightest pixel lies inside the outline (blind guess: 4 %); contrast 1.50'
    >>> pointing_text(study, 1)
    '“the” belongs to no finding that can be seen, so there is nothing to hit'
    """
    name, score = study["words"][word], study["scores"][word]
    if score is None:
        return f"“{name}” belongs to no finding that can be seen, so there is nothing to hit"
    result = "hit, the brightest pixel lies inside" if score["hit"] else "miss, the brightest pixel lies outside"
    chance = f"{100 * score['chance']:.0f} %"
    return f"“{name}”: {result} the outline (blind guess: {chance}); contrast {score['contrast']:.2f}"


def _check(study: Mapping[str, Any]) -> None:
    for part in ("maps", "masks", "scores"):
        if len(study[part]) != len(study["words"]) or not len(study["words"]):
            raise ValueError(f"{len(study[part])} {part} for {len(study['words'])} words; give one for each, or None")


def _first_word(study: Mapping[str, Any]) -> int:
    return next((number for number, mask in enumerate(study["masks"]) if mask is not None), 0)


def _menu(study: Mapping[str, Any]) -> list[tuple[str, int]]:
    marks = ["  (finding)" if mask is not None else "" for mask in study["masks"]]
    return [(f"{n + 1}  {word}{mark}", n) for n, (word, mark) in enumerate(zip(study["words"], marks, strict=True))]


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    with course_style():
        figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _write_report(axis: Axes, study: Mapping[str, Any], picked: int, heading: str) -> None:
    """Write the report with the picked word framed and words of visible findings tinted, the result below."""
    width, height, line = _REPORT_WIDTH, 3.5, 0.19
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    axis.text(0.05, 0.15, heading, fontsize=9, fontweight="bold", va="center", color=MUTED)
    font = FontProperties(size=8)
    space = text_width("a b", font) - text_width("ab", font)
    places, x, y = [], 0.05, 0.0
    for word in study["words"]:
        length = text_width(word, font)
        if x + length > width - 0.1 and x > 0.05:
            x, y = 0.05, y + line
        places.append((x, y, length))
        x += length + space
    # Of a long report the lines around the picked word are shown.
    room = int((height - 1.2) / line)
    lines = round(places[-1][1] / line) + 1
    start = min(max(0, round(places[picked][1] / line) - room // 2), max(0, lines - room))
    for number, (x, y, length) in enumerate(places):
        if not start <= round(y / line) < start + room:
            continue
        y += 0.32 - start * line
        if study["masks"][number] is not None:
            colour = tint(ANSWER_COLOURS["ground truth"], 0.35)
            axis.add_patch(Rectangle((x - 0.02, y), length + 0.04, line - 0.02, facecolor=colour, edgecolor="none"))
        if number == picked:
            frame = Rectangle((x - 0.03, y - 0.01), length + 0.06, line, fill=False, linewidth=1.6)
            axis.add_patch(frame).set(edgecolor=MODALITY_COLOURS["report"], zorder=3)
        axis.text(
            x,
            y + line / 2 - 0.01,
            study["words"][number],
            fontproperties=font,
            va="center",
            color=INK,
            parse_math=False,
        )
    if lines > room:
        part = f"lines {start + 1} to {start + room} of {lines}"
        axis.text(width - 0.1, room * line + 0.36, part, fontsize=7, ha="right", va="top", color=MUTED)
    result = pointing_text(study, picked)
    for number, text in enumerate(_wrapped(result, FontProperties(size=8, weight="bold"), width - 0.1)):
        axis.text(0.05, height - 0.55 + number * line, text, fontsize=8, fontweight="bold", va="top")


def _wrapped(text: str, font: FontProperties, width: float) -> list[str]:
    """Cut a text into lines of at most so many inches."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
