"""Figures: right axes, labels, colours and data; nothing global is touched; the same figure gives the same bytes."""

import inspect
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mgca_lib import figures
from mgca_lib.evaluation.grounding import GroundingSummary
from mgca_lib.evaluation.intervals import Interval
from mgca_lib.figures import tokens
from mgca_lib.figures.style import readable

RNG = np.random.default_rng(0)
FILM = RNG.uniform(size=(40, 30))
MASK = np.zeros((40, 30), bool)
MASK[5:20, 3:12] = True
CELL = {"mean": 0.8, "low": 0.7, "high": 0.9, "n": 3}
HISTORY = [
    {"epoch": e, "learning_rate": 1e-3 / e}
    | {f"{s}/{p}": 5.0 / e for s in ("train", "valid") for p in figures.TERM_NAMES}
    for e in range(1, 5)
]
HISTORY[2]["valid/total"] = 0.1
SPAN = {"section": "findings", "first_word": 1, "last_word": 2, "finding": "edema", "negated": True, "uncertain": True}
POINTS, STARS = RNG.normal(size=(50, 2)), RNG.normal(size=(6, 2))
FINDINGS = np.array(["edema", "no finding"] * 25)
CLUSTERS = np.array([0, 1, 2, 3, 0] * 10)
CASES = [
    {"film": FILM, "caption": "hit", "true_boxes": [(3, 5, 12, 20)], "found_boxes": [(4, 5, 12, 21)], "scores": [0.9]},
    {"film": FILM, "caption": "outline", "true_mask": MASK, "found_mask": np.roll(MASK, 9, axis=1)},
    {"film": FILM, "caption": "nothing"},
]

STUDY = {
    "name": "study 1",
    "film": FILM,
    "words": ["left", "effusion", "seen"],
    "maps": [np.eye(4), np.ones((4, 4)), None],
    "masks": [MASK, MASK, None],
    "scores": [{"hit": False, "chance": 0.1125, "contrast": 0.5}, {"hit": True, "chance": 0.1125, "contrast": 0}, None],
    "window": (5, 10, 20, 20),
}
PLATE = [
    {
        **STUDY,
        "words": STUDY["words"][:2],
        "maps": STUDY["maps"][:2],
        "masks": [MASK, None],
        "caption": "left effusion",
    },
    {"film": FILM[:30], "words": ["edema"], "maps": [np.eye(2)]},
]

EXAMPLES = {
    "image_grid": lambda: figures.image_grid([FILM] * 5, list("abcde"), columns=3),
    "image_with_masks": lambda: figures.image_with_masks(FILM, [MASK], ["edema"], boxes=[(3, 5, 9, 15)]),
    "stride_grids": lambda: figures.stride_grids(FILM, (8, 16), boxes=[(3, 5, 12, 20)]),
    "localisation_cases": lambda: figures.localisation_cases(CASES),
    "patch_grid": lambda: figures.patch_grid(FILM, (4, 3), weights=np.full(12, 1 / 12)),
    "word_heat_maps": lambda: figures.word_heat_maps(FILM, [FILM, FILM[:8, :8]], ["left", "edema"], masks=[None, MASK]),
    "prototype_grid": lambda: figures.prototype_grid([[FILM] * 3, [FILM]], [["edema"] * 3, ["nodule"]], ["one", "two"]),
    "word_plate": lambda: figures.word_plate(PLATE),
    "word_panel": lambda: figures.word_panel(STUDY, 1),
    "explore_words": lambda: figures.explore_words([STUDY], interactive=False),
    "report_with_spans": lambda: figures.report_with_spans(
        {"findings": "No edema seen. " * 30, "impression": ""}, [SPAN]
    ),
    "label_counts": lambda: figures.label_counts({"train": {"a": 3, "b": 9}, "test": {"a": 1, "b": 2}}),
    "word_weights": lambda: figures.word_weights([f"w{n}" for n in range(30)], np.full(30, 1 / 30)),
    "similarity_matrix": lambda: figures.similarity_matrix(np.eye(3), rows=list("abc"), columns=list("def")),
    "similarity_histogram": lambda: figures.similarity_histogram(POINTS.ravel() + 3, POINTS),
    "retrieval_cases": lambda: figures.retrieval_cases(
        [{"film": FILM, "answer_film": FILM, "report": "no edema " * 30, "answer": "edema", "caption": "rank 2"}] * 2
    ),
    "curves": lambda: figures.curves([1, 2], {"a": [1, 2], "b": [2, 1]}, x_label="x", y_label="y", marks={"m": 1.5}),
    "sinkhorn_steps": lambda: figures.sinkhorn_steps([np.full((4, 4), 1 / 16)] * 5, list("12345")),
    "loss_curves": lambda: figures.loss_curves(HISTORY, chance={"instance": 5.5}),
    "probe_bars": lambda: figures.probe_bars(
        {"CheXpert": {"1%": {"random": CELL, "mgca": CELL}}, "RSNA": {"1%": {"random": CELL, "mgca": CELL}}},
        published={"CheXpert": {"1%": {"mgca": 0.888}}},
        metric={"CheXpert": "macro AUROC"},
        chance={"CheXpert": 0.5, "RSNA": 0.5},
    ),
    "retrieval_curve": lambda: figures.retrieval_curve(
        {"image to report": {1: CELL, 5: CELL}}, chance={1: 0.1, 5: 0.5}
    ),
    "grounding_bars": lambda: figures.grounding_bars({"edema": CELL | {"chance": 0.1, "control": float("nan")}}),
    "interval_dots": lambda: figures.interval_dots(
        {"macro": {"random": CELL, "mgca": CELL}, "edema": {"mgca": CELL, "other": {"mean": 0.6}}},
        value_label="AUROC",
        levels={"chance": 0.5},
    ),
    "pointing_dots": lambda: figures.pointing_dots(
        {"cta": {"all": pointing(0.1), "edema": pointing(0.2)}, "gloria": {"all": pointing(0.3)}},
        ["all", "edema"],
        references=("chance", "ceiling"),
    ),
    "projection_maps": lambda: figures.projection_maps(
        {"t-SNE": (POINTS, STARS), "UMAP": (POINTS, STARS)}, FINDINGS, CLUSTERS, top_clusters=3
    ),
    "embedding_maps": lambda: figures.embedding_maps({"perplexity 5": POINTS, "perplexity 30": POINTS}, FINDINGS),
    "prototype_composition": lambda: figures.prototype_composition(CLUSTERS, FINDINGS),
    "course_map": lambda: figures.course_map(FILM, "Small left effusion. " * 9),
}


def pointing(mean):
    hits = Interval(mean, mean - 0.05, mean + 0.05, 9)
    return GroundingSummary(hits, 0.05, 0.95, 0.1, 0.15, hits, hits, 0.1, 0.5, 9, hits, 0.1, 0.2)


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


@pytest.fixture(scope="module")
def drawn():
    return {name: example() for name, example in EXAMPLES.items()}


def test_every_public_figure_has_an_example():
    public = {
        name
        for name, function in inspect.getmembers(figures, inspect.isfunction)
        if not name.startswith("_") and function.__module__.startswith(figures.__name__)
    }
    helpers = {"course_style", "save_figure", "finding_colour", "method_colour"}
    assert public - helpers == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_figure_is_drawn_inside_its_frame_and_nothing_global_is_left(name, drawn, tmp_path):
    before = dict(mpl.rcParams)
    figure = EXAMPLES[name]()
    assert isinstance(figure, Figure)
    first = figures.save_figure(figure, tmp_path / "new" / "one.png", dpi=40).read_bytes()
    assert first == figures.save_figure(drawn[name], tmp_path / "two.png", dpi=40).read_bytes()
    assert np.asarray(Image.open(tmp_path / "two.png").convert("L")).std() > 5
    with figures.course_style():
        used, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(used.x0, used.y0) > -0.05
    assert used.x1 < width + 0.05
    assert used.y1 < height + 0.05
    assert dict(mpl.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("image_grid", ["a", "e"]),
        ("image_with_masks", ["image alone", "ground truth", "edema"]),
        ("stride_grids", ["image alone", "stride 8: 5 x 4 cells", "stride 16: 3 x 2 cells", "ground truth"]),
        ("localisation_cases", ["film alone", "hit", "0.90", "ground truth", "found (dashed)"]),
        ("patch_grid", ["4 x 3 = 12 patches", "times the equal share"]),
        ("word_heat_maps", ["image alone", "“edema”", "attention, times its mean over the image"]),
        (
            "word_plate",
            [" \nfilm alone", "“left”", "a  left effusion", "b", "brightest pixel", "what the encoder sees"],
        ),
        ("word_panel", ["film alone", "“effusion”", "its report", "seen", "times its mean"]),
        ("report_with_spans", ["Findings", "struck through: denied", "dotted: uncertain", "seen."]),
        ("label_counts", ["images", "train", "test", "9"]),
        ("word_weights", ["equal\nshare", "w29", "weight"]),
        ("similarity_matrix", ["image", "report", "cosine similarity", "1.00"]),
        ("loss_curves", ["instance (ITA)", "loss (nats)", "validation", "learning rate", "knows nothing"]),
        ("probe_bars", ["macro AUROC", "share of training labels", "published", "foot of the bars: chance"]),
        ("retrieval_curve", ["recall at K (%)", "K", "chance"]),
        ("grounding_bars", ["edema  (n = 3)", "blind guess"]),
        ("pointing_dots", ["all findings", "edema", "cta", "gloria", "chance", "ceiling"]),
        ("interval_dots", ["macro", "edema", "random", "mgca", "other", "AUROC", "chance"]),
        ("projection_maps", ["t-SNE, by disease", "UMAP, by prototype", "unused prototype", "1 others"]),
        ("embedding_maps", ["perplexity 5", "perplexity 30", "edema", "no finding", "dominant finding"]),
        ("course_map", ["Instance alignment", "Token alignment", "Prototype alignment", "not for clinical use"]),
    ],
)
def test_labels_say_what_is_shown(name, expected, drawn):
    shown = texts(drawn[name])
    for text in expected:
        assert text in shown, shown


def test_films_are_drawn_whole_and_in_a_fixed_window(drawn):
    for name in (
        "image_grid",
        "image_with_masks",
        "word_heat_maps",
        "word_plate",
        "word_panel",
        "patch_grid",
        "stride_grids",
        "localisation_cases",
    ):
        axis = drawn[name].axes[0]
        (image,) = axis.get_images()
        assert image.get_clim() == (0, 1)
        np.testing.assert_allclose(axis.get_xlim(), (-0.5, 29.5))
        np.testing.assert_allclose(axis.get_ylim(), (39.5, -0.5))
        np.testing.assert_allclose(np.asarray(image.get_array()), FILM)
    assert len(drawn["word_heat_maps"].axes[0].get_images()) == 1
    assert len(drawn["word_heat_maps"].axes[1].get_images()) == 2


def test_flat_attention_leaves_the_film_untouched(drawn):
    figure = figures.word_heat_maps(FILM, [np.ones((4, 4)), np.eye(4)], ["flat", "sharp"])
    flat, sharp = (axis.get_images()[1] for axis in figure.axes[1:3])
    assert np.max(flat.get_alpha()) == 0
    assert np.max(sharp.get_alpha()) > 0.7
    np.testing.assert_allclose(sharp.get_array(), 4 * np.eye(4))
    assert flat.get_clim() == sharp.get_clim() == (1, 4)


def test_plate_lays_maps_into_the_window_on_one_scale_and_crosses_their_peaks(drawn):
    film, left, flat, other_film, edema, empty = drawn["word_plate"].axes[:6]
    assert [len(axis.get_images()) for axis in (film, left, flat, other_film, edema, empty)] == [1, 2, 2, 1, 2, 0]
    assert tuple(left.get_images()[1].get_extent()) == (4.5, 24.5, 29.5, 9.5)
    assert tuple(edema.get_images()[1].get_extent()) == (-0.5, 29.5, 29.5, -0.5)
    assert {axis.get_images()[1].get_clim() for axis in (left, flat, edema)} == {(1, 4)}  # np.eye(4) is 4 x its mean
    crosses = [[line.get_xydata()[0].tolist() for line in axis.lines] for axis in (film, left, edema)]
    # Cells of 5 x 5 and 15 x 15 pixels; the first of equal maxima lies in the upper left one.
    assert crosses == [[], [[7.0, 12.0]], [[7.0, 7.0]]]
    assert [len(axis.collections) for axis in (left, flat, edema)] == [1, 0, 0]
    assert len(film.patches) == 0
    np.testing.assert_allclose(left.patches[0].get_bbox().extents, (4.5, 9.5, 24.5, 29.5))


def test_colour_bar_is_as_transparent_as_the_overlays(drawn):
    figure = drawn["word_plate"]
    bar = figure.axes[-1]
    strength = bar.collections[-1].get_cmap()(np.array([0.0, 1.0]))[:, 3]
    np.testing.assert_allclose(strength, [0, 0.8**0.7])
    assert np.max(figure.axes[1].get_images()[1].get_alpha()) == pytest.approx(0.8**0.7)


@pytest.mark.parametrize("studies", [[], [{"film": FILM, "words": [], "maps": []}]])
def test_an_empty_plate_is_refused(studies):
    with pytest.raises(ValueError, match="at least one"):
        figures.word_plate(studies)


def test_pdf_keeps_text_and_lines_as_vectors_and_gives_the_same_bytes(tmp_path):
    first = figures.save_figure(figures.word_plate(PLATE), tmp_path / "one.pdf").read_bytes()
    assert first == figures.save_figure(figures.word_plate(PLATE), tmp_path / "two.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    assert b"/CIDFontType2" in first or b"/TrueType" in first  # embedded outlines, not pictures of text
    assert b"/Type3" not in first
    assert b"CreationDate" not in first
    with pytest.raises(ValueError, match=r"as \.png or \.pdf"):
        figures.save_figure(figures.image_grid([FILM]), tmp_path / "one.tiff")


def test_prototype_grid_shows_films_and_reports_side_by_side():
    reports = [[("edema", "vascular congestion " * 30), ("nodule", "round")], [("nodule", "a mass")]]
    figure = figures.prototype_grid([[FILM] * 3, [FILM]], [["edema"] * 3, ["nodule"]], ["one", "two"], reports=reports)
    assert {"nearest films", "nearest reports", "round", "a mass", "one"} <= set(texts(figure))
    (long,) = [text for text in figure.findobj(mpl.text.Text) if text.get_text().startswith("vascular")]
    assert long.get_text().endswith(" ...")
    assert [len(axis.get_images()) for axis in figure.axes] == [1, 1, 1, 0, 1, 0, 0, 0]
    colours = {text.get_text(): text.get_color() for text in figure.axes[3].texts}
    assert colours["edema"] == readable(figures.finding_colour("edema"))
    with pytest.raises(ValueError, match="zip"):
        figures.prototype_grid([[FILM]], [["edema"]], ["one"], reports=[])


def test_many_stars_are_drawn_smaller():
    def size(count):
        stars = np.random.default_rng(0).normal(size=(count, 2))
        figure = figures.projection_maps({"t-SNE": (POINTS, stars)}, FINDINGS, CLUSTERS)
        return max(part.get_sizes()[0] for part in figure.axes[0].collections if len(part.get_offsets()) < 60 * count)

    assert size(6) == 95
    assert size(500) < 30


def test_outline_follows_the_mask():
    figure = figures.image_with_masks(FILM, [MASK], ["edema"])
    (outline,) = [c for c in figure.axes[1].collections if len(c.get_paths())]
    points = np.concatenate([path.vertices for path in outline.get_paths()])
    np.testing.assert_allclose([points.min(0), points.max(0)], [[2.5, 4.5], [11.5, 19.5]])
    assert figure.axes[0].collections[:] == []


def test_heat_maps_of_other_things_carry_their_own_labels():
    figure = figures.word_heat_maps(
        FILM, [FILM], ["CNN"], masks=[MASK], value_label="reaction", outline_label="own square", quoted=False
    )
    assert {"CNN", "reaction", "own square"} <= set(texts(figure))


def test_a_report_that_begins_with_the_name_of_a_section_is_text():
    figure = figures.report_with_spans({"findings": "Findings are stable."}, [])
    drawn = [text for text in figure.axes[0].texts if text.get_text() == "Findings"]
    assert sorted(text.get_fontweight() for text in drawn) == ["bold", "normal"]


def test_similarity_histogram_means_and_shares():
    figure = figures.similarity_histogram(np.array([0.5, 0.7]), np.array([0.0, 0.1, 0.2, -0.3]))
    assert "matched pairs: mean 0.60" in texts(figure)
    assert "unmatched pairs: mean 0.00" in texts(figure)


def test_similarity_histograms_with_limits_share_their_axis():
    (axis,) = figures.similarity_histogram(np.array([0.2, 1.5]), np.array([0.0, -3.0]), limits=(-1, 1)).axes
    assert axis.get_xlim() == (-1, 1)
    bars = {(round(bar.get_x(), 2), round(bar.get_height())) for bar in axis.patches if hasattr(bar, "get_height")}
    assert {(-1.0, 50), (0.95, 50)} <= bars  # nothing gets lost beyond the ends


def test_bands_and_controls_share_the_colour_of_their_line():
    series = {"a": [3, 4], "shuffled": [1, 2], "b": [5, 6]}
    settings = {"x_label": "x", "y_label": "y", "dashed": ["shuffled"]}
    (axis,) = figures.curves([1, 2], series, bands={"a": ([2, 3], [4, 5])}, **settings).axes
    own, control, other = axis.lines[:3]
    assert own.get_color() == control.get_color() != other.get_color()
    assert [line.get_linestyle() for line in (own, control, other)] == ["-", "--", "-"]
    (band,) = axis.collections
    assert {tuple(at) for at in band.get_paths()[0].vertices} == {(1, 2), (2, 3), (1, 4), (2, 5)}
    (axis,) = figures.curves([1, 2], {"a": [3, 4], "b": [5, 6]}, x_label="x", y_label="y").axes
    assert axis.lines[1].get_color() == other.get_color()  # a control takes no colour from the lines after it


def test_counts_on_a_logarithmic_axis_are_written_out():
    (axis,) = figures.curves([4, 16, 64], {"a": [1, 2, 3]}, x_label="K", y_label="y", log_x=True).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["4", "16", "64"]


def test_loss_curves_mark_the_best_epoch(drawn):
    total = drawn["loss_curves"].axes[3]
    star = [line for line in total.lines if line.get_marker() == "*"]
    assert [float(x) for x in star[0].get_xdata()] == [3]


def test_probe_bars_stand_on_chance(drawn):
    axis = drawn["probe_bars"].axes[0]
    assert [round(bar.get_y(), 6) for bar in axis.patches] == [0.5, 0.5]
    assert [round(bar.get_y() + bar.get_height(), 6) for bar in axis.patches] == [0.8, 0.8]
    diamonds = [line for line in axis.lines if line.get_marker() == "D"]
    assert [float(line.get_ydata()[0]) for line in diamonds] == [0.888]
    assert not [line for line in drawn["probe_bars"].axes[1].lines if line.get_marker() == "D"]


def test_a_published_number_is_seen_on_a_bar_of_its_own_colour():
    cells = {"CheXpert": {"1%": {"mgca": CELL}}}
    figure = figures.probe_bars(cells, published={"CheXpert": {"1%": {"mgca": 0.6}}})
    (axis,) = figure.axes
    (diamond,) = [line for line in axis.lines if line.get_marker() == "D"]
    figure.canvas.draw()
    x, y = axis.transData.transform((float(diamond.get_xdata()[0]), 0.6))
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1, :, :3]  # rows from below, as y counts
    half = round(diamond.get_markersize() * figure.dpi / 72)  # its tip is at 0.7 of that
    row = pixels[round(y), round(x) - half : round(x) + half + 1].astype(int)
    bar = np.round(255 * np.array(mpl.colors.to_rgb(axis.patches[0].get_facecolor())))
    assert (row[[0, half, -1]] == bar).all()  # the middle of the diamond, and the bar on both sides
    for side in (row[:half], row[half:]):
        assert side.min(axis=1).max() > 200  # nearly white between them


def test_interval_dots_stand_in_the_row_of_their_name(drawn):
    (axis,) = drawn["interval_dots"].axes
    dots = {line.get_label(): line for line in axis.lines if line.get_marker() == "o"}
    np.testing.assert_allclose(dots["mgca"].get_xdata(), [0.8, 0.8])
    assert [round(y) for y in dots["mgca"].get_ydata()] == [0, 1]
    assert [round(y) for y in dots["other"].get_ydata()] == [1]  # only the second row has it
    assert dots["random"].get_ydata()[0] < dots["mgca"].get_ydata()[0]
    bars = [line for line in axis.lines if list(line.get_xdata()) == [0.7, 0.9]]
    assert len(bars) == 3  # "other" has no interval
    assert dots["mgca"].get_color() == figures.METHOD_COLOURS["mgca"]
    assert dots["other"].get_color() not in figures.METHOD_COLOURS.values()


def test_pointing_dots_show_the_methods_that_have_a_finding_and_its_references(drawn):
    (axis,) = drawn["pointing_dots"].axes
    dots = {line.get_label(): list(line.get_xdata()) for line in axis.lines if line.get_marker() == "o"}
    assert dots == {"cta": [0.1, 0.2], "gloria": [0.3], "chance": [0.05, 0.05], "ceiling": [0.95, 0.95]}
    with pytest.raises(ValueError, match="give at least one method"):
        figures.pointing_dots({}, ["all"])


def test_projection_draws_every_study_and_star_in_each_panel(drawn):
    for axis in drawn["projection_maps"].axes:
        offsets = [len(part.get_offsets()) for part in axis.collections]
        assert sum(offsets) >= len(POINTS) + len(STARS)
    upper = drawn["projection_maps"].axes[0]
    colours = {mpl.colors.to_hex(part.get_facecolor()[0]).upper() for part in upper.collections}
    assert {figures.finding_colour("edema"), figures.finding_colour("no finding")} <= colours


def test_embedding_maps_draw_every_point_in_the_colour_of_its_group():
    groups = np.array(["image", "report"] * 25)
    (points,) = figures.embedding_maps({"t-SNE": POINTS}, groups).axes[0].collections
    expected = {tuple(at): mpl.colors.to_rgb(figures.MODALITY_COLOURS[g]) for at, g in zip(POINTS, groups, strict=True)}
    drawn = zip(points.get_offsets(), points.get_facecolor(), strict=True)
    assert {tuple(np.asarray(at)): tuple(colour[:3]) for at, colour in drawn} == expected


def test_embedding_maps_take_colours_of_groups_of_their_own():
    groups = np.array(["phantoms", "NIH"] * 25)
    figure = figures.embedding_maps({"t-SNE": POINTS}, groups, colours=figures.COLLECTION_COLOURS)
    (points,) = figure.axes[0].collections
    drawn = {mpl.colors.to_hex(colour).upper() for colour in points.get_facecolor()}
    assert drawn == {figures.COLLECTION_COLOURS["phantoms"], figures.COLLECTION_COLOURS["NIH"]}


def test_composition_bars_add_up():
    figure = figures.prototype_composition(CLUSTERS, FINDINGS)
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == len(CLUSTERS)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()][0] == "0"


def test_report_words_are_marked_by_their_number():
    spans = [SPAN | {"first_word": 1, "last_word": 1}, SPAN | {"first_word": 3, "last_word": 4, "finding": "nodule"}]
    pieces = tokens._pieces("No - edema, or a nodule.", spans)
    assert [(text, span["finding"] if span else "") for text, span in pieces] == [
        ("No", ""),
        ("-", ""),
        ("edema,", "edema"),
        ("or", ""),
        ("a", "nodule"),
        ("nodule.", "nodule"),
    ]


def test_colours_have_one_meaning_and_can_be_told_apart():
    for palette in (figures.FINDING_COLOURS, figures.TERM_COLOURS, figures.MODALITY_COLOURS):
        colours = [np.array(mpl.colors.to_rgb(colour)) for colour in palette.values()]
        distances = [np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]]
        assert min(distances) > 0.2
    assert figures.finding_colour("COVID-19") == figures.FINDING_COLOURS["covid-like opacities"]
    assert figures.finding_colour("something else") == "#4A4A4A"
    assert figures.method_colour("MGCA") == figures.METHOD_COLOURS["mgca"]
    assert figures.method_colour("ImageNet Init") == figures.METHOD_COLOURS["imagenet"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: figures.image_grid([np.zeros((1, 4, 4))]), "grey image"),
        (lambda: figures.image_grid([np.full((4, 4), -1.0)]), "to_display"),
        (lambda: figures.image_with_masks(FILM, [MASK[:5]], ["edema"]), "mask of shape"),
        (lambda: figures.image_grid([]), "nothing to draw"),
        (lambda: figures.localisation_cases([]), "nothing to draw"),
        (lambda: figures.interval_dots({}, value_label="AUROC"), "at least one row with a method and its score"),
        (lambda: figures.interval_dots({"macro": {}}, value_label="AUROC"), "at least one row with a method"),
        (lambda: figures.pointing_dots({"cta": {"all": pointing(0.1)}}, []), "at least one finding"),
        (lambda: figures.grounding_bars({}), "at least one finding with its score"),
        (lambda: figures.probe_bars({}), "at least one dataset with a method"),
        (lambda: figures.probe_bars({"rsna": {"1%": {}}}), "at least one dataset with a method"),
        (lambda: figures.retrieval_curve({}), "at least one line with its recall"),
        (lambda: figures.retrieval_cases([]), "at least one image with the report"),
        (lambda: figures.label_counts({}), "at least one split"),
        (lambda: figures.label_counts({"train": {}}), "at least one label"),
        (lambda: figures.curves([1], {}, x_label="x", y_label="y"), "at least one line"),
        (lambda: figures.loss_curves([]), "at least one epoch"),
        (lambda: figures.word_weights([], []), "at least one word"),
        (lambda: figures.sinkhorn_steps([], []), "at least one matrix"),
        (lambda: figures.prototype_grid([[]], [[]], ["one"]), "at least one prototype with an image"),
        (lambda: figures.projection_maps({}, [], []), "at least one map"),
        (lambda: figures.embedding_maps({}, []), "at least one map"),
        (lambda: figures.prototype_composition([], []), "at least one study"),
        (lambda: figures.word_heat_maps(FILM, [FILM], ["left", "effusion"]), "1 maps and 2 masks for 2 words"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


PRICE = "$5 of $9"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.image_grid([FILM], [PRICE]),
        lambda: figures.localisation_cases([{"film": FILM, "caption": PRICE}]),
        lambda: figures.word_heat_maps(FILM, [FILM], [PRICE], quoted=False),
        lambda: figures.word_heat_maps(FILM, [FILM], ["left"], title=PRICE),
        lambda: figures.word_plate([{**PLATE[0], "caption": PRICE}]),
        lambda: figures.word_weights([PRICE, "edema"], [0.5, 0.5]),
        lambda: figures.retrieval_cases(
            [{"film": FILM, "answer_film": FILM, "report": PRICE, "answer": "", "caption": ""}]
        ),
        lambda: figures.retrieval_cases(
            [{"film": FILM, "answer_film": FILM, "report": "", "answer": "", "caption": PRICE}]
        ),
        lambda: figures.report_with_spans({"findings": "$5$ seen"}, []),
        lambda: figures.prototype_grid([[FILM]], [["edema"]], ["one"], reports=[[("edema", PRICE)]]),
    ],
)
def test_a_dollar_in_free_text_is_no_formula(draw):
    money = [text for text in draw().findobj(mpl.text.Text) if "$" in text.get_text()]
    assert money
    assert not any(text.get_parse_math() for text in money)


def test_a_dollar_in_the_title_of_a_chart_is_a_formula():
    figure = figures.curves([1, 2], {"a": [1, 2]}, x_label="x", y_label="y", title=r"$\tau$")
    assert figure._suptitle.get_parse_math()


def as_seen(colour, blindness):
    """Colour in CIE Lab as a red- or green-blind reader sees it: Machado et al. 2009, severity 1, on linear light."""
    matrices = {
        "none": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    parts = np.array(mpl.colors.to_rgb(colour))
    light = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    light = np.clip(matrices[blindness] @ light, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ light / [0.9505, 1, 1.089] + 1e-9)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("blindness", ["none", "protan", "deutan"])
@pytest.mark.parametrize(
    "methods",
    [
        ("pretrained", "cta", "cta_grounded", "gloria"),
        ("cta", "cta-stride-8", "cta_grounded", "cta_grounded-stride-8"),
        ("cta_grounded", "labels", "told", "cta_grounded-stride-8", "labels-stride-8", "told-stride-8"),
    ],
)
def test_heads_of_one_figure_can_be_told_apart(methods, blindness):
    """A difference of 2.3 is just noticed side by side; dots lie apart, so ten are asked for."""
    seen = [as_seen(figures.method_colour(name), blindness) for name in methods]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]) > 10


def test_boxes_lie_where_they_say_and_the_film_beside_them_stays_untouched(drawn):
    plain, marked, _, outlined = drawn["localisation_cases"].axes[:4]
    assert len(plain.patches) == len(plain.collections) == len(plain.lines) == len(plain.texts) == 0
    truth, found = marked.patches
    # Corners are edges between pixels, and pixel n spans n - 0.5 to n + 0.5.
    np.testing.assert_allclose(truth.get_bbox().extents, (2.5, 4.5, 11.5, 19.5))
    np.testing.assert_allclose(found.get_bbox().extents, (3.5, 4.5, 11.5, 20.5))
    assert mpl.colors.to_hex(truth.get_edgecolor()).upper() == figures.ANSWER_COLOURS["ground truth"]
    assert mpl.colors.to_hex(found.get_edgecolor()).upper() == figures.ANSWER_COLOURS["found"]
    assert (truth.get_linestyle(), found.get_linestyle()) == ("-", (0, (4, 2)))
    lows = [np.concatenate([path.vertices for path in one.get_paths()]).min(axis=0) for one in outlined.collections]
    np.testing.assert_allclose(lows, [[2.5, 4.5], [11.5, 4.5]])
    assert [len(axis.patches) for axis in drawn["localisation_cases"].axes[4:6]] == [0, 0]
    assert not any(
        "found" in text
        for text in texts(figures.localisation_cases([{"film": FILM, "caption": "plain", "true_mask": MASK}]))
    )


def test_what_was_found_is_dashed_and_the_legend_shows_it(drawn):
    outlines = drawn["localisation_cases"].axes[3].collections
    handles = drawn["localisation_cases"].legends[0].get_lines()
    assert [one.get_linestyle()[0][1] is None for one in outlines] == [True, False]  # no pattern is a solid line
    assert [one.get_linestyle() for one in handles] == ["-", "--"]


def test_cells_of_a_stride_start_at_the_corner_and_end_at_the_border(drawn):
    plain, eight, sixteen = drawn["stride_grids"].axes
    assert len(plain.lines) == len(plain.patches) == 0
    flat = [line.get_ydata()[0] for line in eight.lines if line.get_ydata()[0] == line.get_ydata()[1]]
    np.testing.assert_allclose(flat, [7.5, 15.5, 23.5, 31.5])
    assert len(sixteen.lines) == 3
    np.testing.assert_allclose(sixteen.patches[0].get_bbox().extents, (2.5, 4.5, 11.5, 19.5))


def test_foot_of_the_bars_can_be_named():
    cells = {"SIIM": {"10%": {"mgca": CELL}}}
    assert "foot of the bars: an empty mask" in texts(
        figures.probe_bars(cells, chance={"SIIM": 0.7}, foot="an empty mask")
    )


def test_a_matrix_is_drawn_as_it_lies():
    axis = figures.similarity_matrix(np.array([[0.1, 0.9, 0.3]]), row_label="image", column_label="report").axes[0]
    np.testing.assert_allclose(axis.get_images()[0].get_array(), [[0.1, 0.9, 0.3]])
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("report", "image")


def test_weights_of_patches_lie_in_rows():
    weights = np.arange(12) / 66
    drawn = figures.patch_grid(FILM, (4, 3), weights=weights).axes[2].get_images()[1].get_array()
    np.testing.assert_allclose(drawn, weights.reshape(4, 3) * 12)


def test_values_are_drawn_where_they_belong():
    bars = figures.label_counts({"train": {"a": 3, "b": 9}}).axes[0].patches
    assert [bar.get_width() for bar in bars] == [3, 9]
    line = figures.retrieval_curve({"image to report": {1: CELL, 5: CELL}}).axes[0].lines[0]
    np.testing.assert_allclose(line.get_ydata(), [80, 80])
    (axis,) = figures.grounding_bars({"edema": CELL | {"chance": 0.1, "control": 0.3}}).axes
    single = {line.get_marker(): line.get_xdata()[0] for line in axis.lines if len(line.get_xdata()) == 1}
    assert single == {"o": 0.8, "|": 0.1, "x": 0.3}
    history = [row | {"train/instance": 9.0} for row in HISTORY]
    assert list(figures.loss_curves(history).axes[0].lines[0].get_ydata()) == [9.0] * 4
    weights = [0.1, 0.2, 0.7]
    bars = figures.word_weights(["a", "b", "c"], weights).axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx(weights)
