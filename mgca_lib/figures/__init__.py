"""Every plot of the course: one style, and one colour for one meaning.

Each function takes plain arrays, returns a matplotlib ``Figure`` and leaves no global state behind: no open
figure, no changed setting, nothing shown. Radiographs are drawn whole, side markers included, with a fixed
grey window from 0 to 1, and never under an overlay alone: the plain image always stands beside it.
"""

from mgca_lib.figures.alignment import similarity_histogram, similarity_matrix, sinkhorn_steps
from mgca_lib.figures.charts import curves, label_counts, loss_curves
from mgca_lib.figures.evaluation import (
    grounding_bars,
    interval_dots,
    pointing_dots,
    probe_bars,
    retrieval_cases,
    retrieval_curve,
)
from mgca_lib.figures.films import image_grid, image_with_masks, localisation_cases, stride_grids
from mgca_lib.figures.interactive import explore_words, word_panel
from mgca_lib.figures.overview import course_map
from mgca_lib.figures.prototypes import embedding_maps, projection_maps, prototype_composition, prototype_grid
from mgca_lib.figures.style import (
    ANSWER_COLOURS,
    ATTENTION_MAP,
    COLLECTION_COLOURS,
    FINDING_COLOURS,
    GRID,
    INK,
    METHOD_COLOURS,
    MODALITY_COLOURS,
    MUTED,
    PROBABILITY_MAP,
    SIMILARITY_MAP,
    SPLIT_COLOURS,
    TERM_COLOURS,
    TERM_NAMES,
    WIDTH,
    course_style,
    finding_colour,
    method_colour,
    save_figure,
)
from mgca_lib.figures.tokens import patch_grid, report_with_spans, word_heat_maps, word_plate, word_weights

__all__ = [
    "ANSWER_COLOURS",
    "ATTENTION_MAP",
    "COLLECTION_COLOURS",
    "FINDING_COLOURS",
    "GRID",
    "INK",
    "METHOD_COLOURS",
    "MODALITY_COLOURS",
    "MUTED",
    "PROBABILITY_MAP",
    "SIMILARITY_MAP",
    "SPLIT_COLOURS",
    "TERM_COLOURS",
    "TERM_NAMES",
    "WIDTH",
    "course_map",
    "course_style",
    "curves",
    "embedding_maps",
    "explore_words",
    "finding_colour",
    "grounding_bars",
    "image_grid",
    "image_with_masks",
    "interval_dots",
    "label_counts",
    "localisation_cases",
    "loss_curves",
    "method_colour",
    "patch_grid",
    "pointing_dots",
    "probe_bars",
    "projection_maps",
    "prototype_composition",
    "prototype_grid",
    "report_with_spans",
    "retrieval_cases",
    "retrieval_curve",
    "save_figure",
    "similarity_histogram",
    "similarity_matrix",
    "sinkhorn_steps",
    "stride_grids",
    "word_heat_maps",
    "word_panel",
    "word_plate",
    "word_weights",
]
