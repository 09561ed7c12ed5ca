"""The style of every figure: one look, and one colour for one meaning."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.figure import Figure

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
    "ita": "#DDAA33",
    "ita+cta": "#BB5566",
    "ita+cpa": "#009988",
    "ita+cta+cpa": "#0B5FA5",
    "cta": "#BB5566",
    "cta grounded": "#332288",
    "grounded, finer": "#7A5BC7",
    "grounded, finer, near": "#B08CE0",
    "grounded, all steps": "#AA3377",
    "grounded, affirmed": "#CC6600",
    "grounded, all steps, affirmed": "#882255",
    "gloria": "#228833",
    "pretrained": "#56B4E9",
    "cta-stride-8": "#E59AA6",
    "cta grounded-stride-8": "#7A5BC7",
    "labels": "#E69F00",
    "labels-stride-8": "#F5CF80",
    "told": "#00664F",
    "told-stride-8": "#5DB59E",
    "mgca": "#0B5FA5",
    "mgca upstream": "#66A5D9",
    "published": "#1F2933",
    "chance": "#6B7785",
    "ceiling": "#1F2933",
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
COLLECTION_COLOURS = {"phantoms": "#0077BB", "NIH": "#EE7733", "COVID-19 collection": "#009988"}
"""Where a film comes from."""
ANSWER_COLOURS = {"ground truth": "#35E0E8", "found": "#FF7AB8"}
UNUSED = "#8E99A5"
"""A prototype that no study chose."""
SERIES = ("#0077BB", "#EE7733", "#009988", "#AA3377", "#BBAA22", "#774411", "#332288")
"""Lines and bars whose name has no colour of its own, in this order."""

ATTENTION_MAP = "inferno"
HEAT_MAP = ListedColormap(mpl.colormaps["inferno"](np.linspace(0.25, 1, 256)), name="heat")
"""For overlays: inferno without its black end, which would pass for a shadow on the film."""
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
    "pdf.fonttype": 42,  # text in a PDF stays text
}
HALO = [patheffects.withStroke(linewidth=2.3, foreground="black", alpha=0.7)]


def course_style() -> Any:
    """Return a context in which matplotlib draws in the style of the course; outside nothing changes.

    >>> before = mpl.rcParams["font.size"]
    >>> with course_style():
    ...     inside = mpl.rcParams["font.size"]
    >>> inside, mpl.rcParams["font.size"] == before
    (9.5, True)
    """
    return mpl.rc_context(_STYLE)


def styled(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Let a function draw in the style of the course, and leave matplotlib's settings as they were."""

    @wraps(function)
    def in_style(*args: Any, **kwargs: Any) -> Figure:
        with course_style():
            return function(*args, **kwargs)

    return in_style


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Write a PNG or PDF without date or software name, so that the same figure gives the same bytes.

    Args:
        figure: A figure.
        path: File to write, ending in ``.png`` or, for a publication, ``.pdf``: text and lines are then vectors.
            Its folder is made.
        dpi: Dots per inch of a PNG, and of the films and heat maps within a PDF.

    Returns:
        The path.

    Raises:
        ValueError: the path ends otherwise.
    """
    path = Path(path)
    nameless = {".png": {"Software": None}, ".pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    if path.suffix not in nameless:
        raise ValueError(f"{path.name}: a figure is saved as .png or .pdf")
    path.parent.mkdir(parents=True, exist_ok=True)
    with course_style():
        figure.savefig(path, format=path.suffix[1:], dpi=dpi, metadata=nameless[path.suffix])
    return path


def finding_colour(name: str) -> str:
    """Colour of a finding, however it is written; dark grey for one the course does not know.

    >>> finding_colour("Pleural Effusion") == finding_colour("effusion") == FINDING_COLOURS["pleural effusion"]
    True
    """
    name = name.lower().strip()
    return FINDING_COLOURS.get(_SAME_FINDING.get(name, name), "#4A4A4A")


def known_method(name: str) -> str:
    """Name of a method as in :data:`METHOD_COLOURS`, however it is written; ``""`` for one the course does not know."""
    plain = name.lower().replace("_", " ").removesuffix(" init").strip()
    return plain if plain in METHOD_COLOURS else ""


def method_colour(name: str) -> str:
    """Colour of a method, however it is written; dark grey for one the course does not know."""
    return METHOD_COLOURS.get(known_method(name), "#4A4A4A")


def tint(colour: str, strength: float) -> tuple[float, float, float]:
    """Mix a colour with white; strength 1 is the colour itself."""
    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))


def readable(colour: str) -> tuple[float, float, float]:
    """Darken a colour until it can be read as text on white."""
    parts = np.array(to_rgb(colour))
    brightness = float(parts @ (0.299, 0.587, 0.114))
    return tuple(parts * min(1.0, 0.45 / max(brightness, 1e-6)))
