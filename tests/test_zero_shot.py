"""Zero-shot classification against slow loops, scikit-learn, hand-made cases and the pair encoder."""

import dataclasses
import math
import re
import warnings

import numpy as np
import pytest
import torch
from helpers import SMALL, small_tokenizer, tiny_config, tiny_studies, tiny_tokenizer
from sklearn.metrics import roc_auc_score

from data_scripts.phantom.cases import FINDINGS
from data_scripts.phantom.lexicon import CLASSES_OF_FINDING
from mgca_lib.data.pairs import PairImages, report_texts
from mgca_lib.data.reports import clean_sentences
from mgca_lib.data.studies import DatasetError
from mgca_lib.data.tasks import TASKS, TaskImages, task_targets
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.evaluation.features import embed_pairs, extract_features
from mgca_lib.evaluation.zero_shot import (
    FIVE_CLASSES,
    PROMPT_SETS,
    ClassVectors,
    PromptError,
    PromptSet,
    auroc_gain,
    combine,
    encode_classes,
    encode_prompts,
    five_by_200,
    project_features,
    template_pairs,
    zero_shot,
    zero_shot_scores,
)
from mgca_lib.model import build_model

TRANSFORM = ImageTransform(SMALL["stored_size"], SMALL["image_size"])
PAIRS = PromptSet(
    "toy pairs",
    {"Edema": ("there is edema", "perihilar haze"), "Consolidation": ("dense consolidation",)},
    {"Edema": ("no edema",), "Consolidation": ("lungs clear", "no consolidation")},
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    studies = tiny_studies(tmp_path_factory.mktemp("tiny"))
    tokenizer = tiny_tokenizer(studies)
    return studies, tokenizer, build_model(tiny_config(), tokenizer, seed=0)


# --- prompt sets ---


def test_templates_give_every_combination_once():
    prompts = combine(("", "small", "large"), ("effusion", "collection"), ("", "on the left"))
    assert len(prompts) == len(set(prompts)) == 12
    assert prompts[0] == "effusion"
    assert prompts[-1] == "large collection on the left"


def test_built_in_sets_cover_the_five_classes_and_the_phantom_findings():
    assert PROMPT_SETS["chexpert"].classes == PROMPT_SETS["chexpert_5x200"].classes == TASKS["chexpert"].classes
    assert PROMPT_SETS["covidx"].classes == TASKS["covidx"].classes
    shown = {name for finding in FINDINGS for name in CLASSES_OF_FINDING[finding]} - {"Lung Opacity"}
    for name in ("findings", "findings_exclusive"):
        assert set(PROMPT_SETS[name].classes) == shown
    assert PROMPT_SETS["chexpert"].task.kind == PROMPT_SETS["findings"].task.kind == "multilabel"
    assert PROMPT_SETS["chexpert_5x200"].task.metric == PROMPT_SETS["covidx"].task.metric == "accuracy"


@pytest.mark.parametrize("name", sorted(PROMPT_SETS))
def test_every_built_in_prompt_survives_cleaning_and_is_of_one_class_alone(name):
    prompts = PROMPT_SETS[name]
    for part in (prompts.positive, prompts.negative):
        for texts in part.values():
            for text in texts:
                assert clean_sentences(findings=text, impression=""), text
    texts = [text for part in prompts.positive.values() for text in part]
    assert len(texts) == len(set(texts))
    for label, negative in prompts.negative.items():
        assert not set(negative) & set(prompts.positive[label])


def test_only_keeps_the_order_that_is_asked_for():
    part = PROMPT_SETS["chexpert"].only(("Edema", "Atelectasis"))
    assert part.classes == tuple(part.negative) == ("Edema", "Atelectasis")
    assert part.positive["Edema"] == PROMPT_SETS["chexpert"].positive["Edema"]
    with pytest.raises(PromptError, match="no class 'Fracture'; there are Atelectasis"):
        PROMPT_SETS["chexpert"].only(("Fracture",))


@pytest.mark.parametrize(
    ("positive", "negative", "message"),
    [
        ({}, {}, "'bad' has no class"),
        ({"Edema": ()}, {}, "positive prompts of 'Edema': expected one sentence or more"),
        ({"Edema": "there is edema"}, {}, "in a tuple, found 'there is edema'"),
        ({"Edema": ("one", "one")}, {}, "positive prompts of 'Edema': a prompt occurs twice"),
        ({"Edema": ("a b",)}, {"Edema": ()}, "negative prompts of 'Edema'"),
        ({"Edema": ("a b",)}, {"Nodule": ("a b",)}, "positive prompts are of Edema, negative ones of Nodule"),
        ({"A": ("a b",), "B": ("b c",)}, {"B": ("d e",), "A": ("f g",)}, "in the same order"),
    ],
)
def test_incomplete_sets_are_refused(positive, negative, message):
    with pytest.raises(PromptError, match=message):
        PromptSet("bad", positive, negative)


def test_templates_take_nouns_and_articles():
    prompts = template_pairs(
        "plain", ("{a}{finding} is seen.",), ("No {finding}.", "Clear lungs."), classes=("Edema", "Pneumothorax")
    )
    assert prompts.positive == {"Edema": ("pulmonary edema is seen.",), "Pneumothorax": ("a pneumothorax is seen.",)}
    assert prompts.negative["Pneumothorax"] == ("No pneumothorax.", "Clear lungs.")
    assert template_pairs("plain", ("{finding} noted",), ("no {finding}",)).classes == FIVE_CLASSES


@pytest.mark.parametrize(
    ("positive", "negative", "classes", "message"),
    [
        ("There is edema.", "No {finding}.", FIVE_CLASSES, "'odd': positive sentence 'There is edema.' does not name"),
        ("A {finding}.", "No {disease}.", FIVE_CLASSES, "'No {disease}.' may hold {finding} and {a} only"),
        ("A {finding}.", "No {}.", FIVE_CLASSES, "'No {}.' may hold"),
        ("A {finding}.", "No {.", FIVE_CLASSES, "'No {.' may hold"),
        ("A {finding}.", "No {finding}.", ("Fracture",), "no noun for 'Fracture'; there are Atelectasis"),
    ],
)
def test_templates_that_do_not_fit_are_refused(positive, negative, classes, message):
    with pytest.raises(PromptError, match=re.escape(message)):
        template_pairs("odd", (positive,), (negative,), classes=classes)


# --- encoding ---


def test_a_prompt_is_encoded_like_a_report_of_the_same_words(tiny):
    studies, tokenizer, model = tiny
    pairs = PairImages(studies, tokenizer, TRANSFORM, max_pieces=112, seed=0)
    _, expected = embed_pairs(model, pairs, batch_size=8)
    # Written as a radiologist would: cleaning takes capitals and full stops away again.
    prompts = [". ".join(f"{text[0].upper()}{text[1:]}" for text in row) + "." for row in studies.table["sentences"]]
    torch.testing.assert_close(encode_prompts(model, tokenizer, prompts), expected, rtol=0, atol=2e-6)


def test_encoding_does_not_depend_on_the_batch_and_leaves_the_mode_alone(tiny):
    studies, tokenizer, model = tiny
    prompts = report_texts(studies)[:7] + ["lungs clear"]
    model.train()
    whole = encode_prompts(model, tokenizer, prompts)
    assert model.training
    assert not whole.requires_grad
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(8), rtol=0, atol=1e-6)
    for size in (1, 3):
        torch.testing.assert_close(encode_prompts(model, tokenizer, prompts, batch_size=size), whole, rtol=0, atol=2e-6)
    model.eval()


def test_a_class_is_the_mean_direction_of_its_prompts(tiny):
    _, tokenizer, model = tiny
    vectors = encode_classes(model, tokenizer, PAIRS)
    for part, found in ((PAIRS.positive, vectors.positive), (PAIRS.negative, vectors.negative)):
        for row, texts in enumerate(part.values()):
            each = torch.stack([encode_prompts(model, tokenizer, [text])[0] for text in texts])
            mean = each.sum(dim=0) / each.sum(dim=0).norm()
            torch.testing.assert_close(found[row], mean, rtol=0, atol=3e-6)
    exclusive = PromptSet("toy", PAIRS.positive)
    again = encode_classes(model, tokenizer, exclusive, batch_size=1)
    assert again.negative is None
    assert again.task == exclusive.task
    torch.testing.assert_close(again.positive, vectors.positive, rtol=0, atol=3e-6)


def test_two_prompts_at_a_right_angle_meet_in_the_middle(tiny, monkeypatch):
    _, tokenizer, model = tiny
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
    monkeypatch.setattr("mgca_lib.evaluation.zero_shot.encode_prompts", lambda *_, **__: given)
    vectors = encode_classes(model, tokenizer, PAIRS)  # 2 and 1 positive, 1 and 2 negative prompts
    torch.testing.assert_close(vectors.positive, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))
    torch.testing.assert_close(vectors.negative, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_projected_features_are_the_joint_vectors_of_the_images(tiny):
    studies, tokenizer, model = tiny
    pairs = PairImages(studies, tokenizer, TRANSFORM, max_pieces=112, seed=0)
    expected, _ = embed_pairs(model, pairs)
    features = extract_features(model.image_encoder, TaskImages(studies, TASKS["covidx"], TRANSFORM))
    torch.testing.assert_close(project_features(model, features), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "one prompt or more"),
        ("there is edema", "one prompt or more"),
        (["there is edema", "Cardiomegaly."], "prompt 'Cardiomegaly.': nothing is left"),
        (["..."], "nothing is left"),
        (["there is edema " * 60], "longer than the 112 word pieces"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(tiny, prompts, message):
    _, tokenizer, model = tiny
    with pytest.raises(PromptError, match=message):
        encode_prompts(model, tokenizer, prompts)


def test_unknown_words_are_named(tiny):
    tokenizer = small_tokenizer(["there", "is", "edema"])
    model = build_model(tiny_config(), tokenizer, seed=0)
    with pytest.warns(UserWarning, match="does not know these words of the prompts: haze, the$"):
        encode_prompts(model, tokenizer, ["There is edema.", "The haze is there."])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompts(model, tokenizer, ["There is edema."])


# --- scores ---


def slow_scores(image, positive, negative, temperature):
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    rows = []
    for vector in image.tolist():
        here = [math.exp(cosine(vector, c) / temperature) for c in positive.tolist()]
        if negative is None:
            rows.append([value / sum(here) for value in here])
        else:
            away = [math.exp(cosine(vector, c) / temperature) for c in negative.tolist()]
            rows.append([p / (p + q) for p, q in zip(here, away, strict=True)])
    return np.array(rows)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("pairs", [True, False])
def test_scores_equal_a_slow_loop(pairs, temperature):
    torch.manual_seed(0)
    image, positive, negative = torch.randn(9, 5), torch.randn(4, 5), torch.randn(4, 5) if pairs else None
    scores = zero_shot_scores(image, positive, negative, temperature=temperature)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(scores, slow_scores(image, positive, negative, temperature), rtol=1e-6, atol=1e-12)
    scaled = zero_shot_scores(5 * image, 0.1 * positive, negative, temperature=temperature)
    np.testing.assert_allclose(scaled, scores, rtol=1e-5, atol=1e-12)
    one_by_one = torch.cat([zero_shot_scores(row[None], positive, negative, temperature=temperature) for row in image])
    np.testing.assert_allclose(one_by_one, scores, rtol=1e-9)


def test_confident_pairs_keep_their_order():
    angles = torch.linspace(0, 0.3, 6, dtype=torch.float64)
    image = torch.stack([angles.cos(), angles.sin()], dim=1)
    scores = zero_shot_scores(image, torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]))[:, 0]
    assert (scores.diff() < 0).all()  # all above 1 - 1e-11: float32 would call them equal


def test_z_scores_over_images_take_away_what_a_class_has_for_everybody():
    torch.manual_seed(1)
    image, classes = torch.randn(50, 6), torch.randn(3, 6)
    classes = torch.nn.functional.normalize(classes, dim=1)
    image += 6 * classes[0]  # every film resembles class 0
    plain = zero_shot_scores(image, classes)
    assert (plain.argmax(dim=1) == 0).float().mean() > 0.9
    scores = zero_shot_scores(image, classes, standardize="images").numpy()
    unit = image.double() / image.double().norm(dim=1, keepdim=True)
    cosine = (unit @ (classes.double() / classes.double().norm(dim=1, keepdim=True)).T).numpy()
    z = (cosine - cosine.mean(axis=0)) / cosine.std(axis=0)
    np.testing.assert_allclose(scores, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True), rtol=1e-9)
    assert (scores.argmax(axis=1) == 0).mean() < 0.6


def test_z_scores_of_a_collapsed_encoder_are_no_amplified_rounding():
    scores = zero_shot_scores(torch.ones(5, 3) / 3, torch.randn(4, 3), standardize="images")
    np.testing.assert_array_equal(scores, np.full((5, 4), 0.25))


@pytest.mark.parametrize(
    ("shapes", "settings", "message"),
    [
        (((3, 2), (2, 3), None), {}, r"positive: expected \(rows, 2\), found \(2, 3\)"),
        (((3,), (2, 3), None), {}, "image: expected"),
        (((0, 3), (2, 3), None), {}, "image: expected"),
        (((3, 3), (2, 3), (2, 2)), {}, "negative: expected"),
        (((3, 3), (2, 3), (1, 3)), {}, "2 positive but 1 negative"),
        (((3, 3), (2, 3), None), {"temperature": 0.0}, "temperature must be positive, found 0.0"),
        (((3, 3), (2, 3), None), {"temperature": math.nan}, "temperature must be positive"),
        (((3, 3), (2, 3), None), {"standardize": "classes"}, "'none' or 'images', found 'classes'"),
        (((3, 3), (2, 3), (2, 3)), {"standardize": "images"}, "is for exclusive classes"),
        (((1, 3), (2, 3), None), {"standardize": "images"}, "two films or more"),
    ],
)
def test_scores_refuse_what_does_not_fit(shapes, settings, message):
    image, positive, negative = (None if shape is None else torch.ones(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        zero_shot_scores(image, positive, negative, **settings)


def test_scores_refuse_values_that_are_not_finite():
    with pytest.raises(ValueError, match="positive: a value is not finite"):
        zero_shot_scores(torch.ones(2, 2), torch.full((1, 2), math.nan))


# --- measures ---


def toy_vectors(kind, count, width, *, seed=0):
    torch.manual_seed(seed)
    positive, negative = torch.randn(count, width), torch.randn(count, width)
    classes = {f"class {number}": ("a b",) for number in range(count)}
    task = PromptSet("toy", classes, classes if kind == "pairs" else {}).task
    return ClassVectors(task, positive, negative if kind == "pairs" else None)


def test_pairs_are_measured_as_scikit_learn_measures_them():
    vectors = toy_vectors("pairs", 3, 6)
    image, rng = torch.randn(80, 6).round(), np.random.default_rng(0)  # rounded: ties
    targets = rng.integers(0, 2, (80, 3)).astype(np.float32)
    targets[rng.random((80, 3)) < 0.2] = np.nan
    result = zero_shot(image, vectors, targets, resamples=100)
    expected = []
    for column, name in enumerate(vectors.task.classes):
        known = ~np.isnan(targets[:, column])
        expected.append(roc_auc_score(targets[known, column], result.scores[known, column]))
        assert result.per_class[name].mean == pytest.approx(expected[-1], abs=1e-12)
        assert result.per_class[name].low < expected[-1] < result.per_class[name].high
    assert result.auroc.mean == pytest.approx(np.mean(expected), abs=1e-12)
    assert (result.accuracy, result.majority, result.left_out) == (None, None, ())
    other = zero_shot(image, vectors, targets, temperature=0.5, resamples=100)
    assert other.auroc == result.auroc  # the order of pairs does not depend on the temperature


@pytest.mark.parametrize("kind", ["pairs", "exclusive"])
def test_a_low_temperature_costs_no_auroc(kind):
    """Most probabilities round to 1 then."""
    direction, generator = torch.eye(4)[:1], torch.Generator().manual_seed(3)
    image, noise = torch.randn(200, 4, generator=generator), torch.randn(200, generator=generator)
    here = (image[:, 0] + noise > 0).numpy()
    vectors = toy_vectors(kind, 1 if kind == "pairs" else 2, 4)
    sides = (direction, -direction) if kind == "pairs" else (torch.cat([direction, -direction]), None)
    vectors = dataclasses.replace(vectors, positive=sides[0], negative=sides[1])
    targets = here[:, None].astype(np.float32) if kind == "pairs" else np.where(here, 0, 1)
    result = zero_shot(image, vectors, targets, temperature=0.005, resamples=10)
    assert (result.scores[:, 0] == 1).sum() > 50
    expected = roc_auc_score(here, (image[:, 0].double() / image.double().norm(dim=1)).numpy())
    assert result.per_class["class 0"].mean == pytest.approx(expected, abs=1e-12)
    assert result.auroc.mean == pytest.approx(expected, abs=1e-12)


def test_exclusive_classes_by_hand():
    vectors = dataclasses.replace(toy_vectors("exclusive", 3, 3), positive=torch.eye(3))
    image = torch.tensor([[3.0, 1, 0], [0, 2, 1], [0, 1, 2], [2, 1, 0], [0, 0, 1]])
    result = zero_shot(image, vectors, np.array([0, 1, 1, 0, 2]), resamples=50)
    assert result.accuracy.mean == 4 / 5  # the third film is taken for class 2
    assert result.majority == 2 / 5
    assert result.per_class["class 0"].mean == 1
    assert result.per_class["class 2"].mean == 1
    truth = np.array([0, 1, 1, 0, 0])
    assert result.per_class["class 1"].mean == pytest.approx(roc_auc_score(truth, result.scores[:, 1]))
    assert result.auroc.mean == pytest.approx(np.mean([part.mean for part in result.per_class.values()]))


def test_random_vectors_are_at_chance_and_collapsed_ones_too():
    vectors = toy_vectors("exclusive", 5, 32, seed=3)
    targets = np.arange(500) % 5
    result = zero_shot(torch.randn(500, 32), vectors, targets, resamples=100)
    assert result.majority == 0.2
    assert result.accuracy.low < 0.2 < result.accuracy.high
    assert result.auroc.low < 0.5 < result.auroc.high
    collapsed = zero_shot(torch.ones(500, 32), vectors, targets, resamples=20)
    assert collapsed.accuracy.mean == 0.2
    assert collapsed.auroc.mean == pytest.approx(0.5, abs=1e-9)


def test_the_right_direction_wins():
    vectors = toy_vectors("pairs", 1, 4)
    present = np.arange(20) % 2
    image = torch.where(torch.tensor(present)[:, None] == 1, vectors.positive, vectors.negative)
    assert zero_shot(image, vectors, present[:, None].astype(float), resamples=20).auroc.mean == 1
    swapped = dataclasses.replace(vectors, positive=vectors.negative, negative=vectors.positive)
    assert zero_shot(image, swapped, present[:, None].astype(float), resamples=20).auroc.mean == 0


def test_groups_are_drawn_together_and_a_seed_repeats():
    vectors = toy_vectors("exclusive", 2, 4)
    image, targets = torch.randn(40, 4), np.arange(40) // 2 % 2
    settings = {"groups": np.repeat(np.arange(10), 4), "resamples": 50}
    result = zero_shot(image, vectors, targets, **settings)
    assert result.accuracy.n == result.auroc.n == 10
    assert result.accuracy == zero_shot(image, vectors, targets, **settings).accuracy


def test_classes_that_cannot_be_scored_are_named():
    vectors = toy_vectors("pairs", 2, 4)
    targets = np.stack([np.arange(12) % 2, np.zeros(12)], axis=1)
    with pytest.warns(UserWarning, match="toy: left out for want of positive or negative films: class 1"):
        result = zero_shot(torch.randn(12, 4), vectors, targets, resamples=20)
    assert result.left_out == ("class 1",)
    assert set(result.per_class) == {"class 0"}
    with pytest.raises(ValueError, match="no class has both"):
        zero_shot(torch.randn(12, 4), vectors, np.zeros((12, 2)), resamples=20)


def test_gains_in_auroc_are_paired():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (120, 2)).astype(float)
    targets[rng.random((120, 2)) < 0.1] = np.nan
    noise = rng.normal(size=(3, 120, 2))
    good, fair = np.nan_to_num(targets) + 0.7 * noise[0], np.nan_to_num(targets) + 0.8 * noise[0]

    def macro(scores):
        known = ~np.isnan(targets)
        return np.mean([roc_auc_score(targets[known[:, c], c], scores[known[:, c], c]) for c in range(2)])

    gain = auroc_gain(good, fair, targets, resamples=200)
    assert gain.mean == pytest.approx(macro(good) - macro(fair), abs=1e-12)
    assert 0 < gain.low < gain.mean < gain.high
    alone = auroc_gain(good, np.zeros_like(good), targets, resamples=200)  # equal scores: 0.5 in every resample
    assert alone.mean == pytest.approx(macro(good) - 0.5, abs=1e-12)
    assert gain.high - gain.low < 0.5 * (alone.high - alone.low)  # luck that both share has gone
    several = auroc_gain(good, np.stack([fair, noise[1]]), targets, resamples=20)
    assert several.mean == pytest.approx(macro(good) - (macro(fair) + macro(noise[1])) / 2, abs=1e-12)
    assert auroc_gain(good, fair, targets, groups=np.arange(120) // 4, resamples=20).n == 30
    with pytest.raises(ValueError, match="finite scores"):
        auroc_gain(good[:, :1], fair, targets)
    with pytest.raises(ValueError, match="finite scores"):
        auroc_gain(np.where(targets == 1, np.nan, good), fair, targets)


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        ("pairs", np.zeros((4, 3)), r"must be \(4, 2\) of 0, 1 or NaN, found shape \(4, 3\)"),
        ("pairs", np.full((4, 2), -1.0), "of 0, 1 or NaN"),
        ("pairs", np.zeros(4), "of 0, 1 or NaN"),
        ("exclusive", np.array([0, 1, 2, 0]), r"4 class numbers 0 ... 1"),
        ("exclusive", np.array([0, 1, 1]), "4 class numbers"),
        ("exclusive", np.array([0, 1, 0.5, 1]), "4 class numbers"),
    ],
)
def test_targets_that_do_not_fit_are_refused(kind, targets, message):
    with pytest.raises(ValueError, match=message):
        zero_shot(torch.randn(4, 4), toy_vectors(kind, 2, 4), targets, resamples=5)


def test_a_model_goes_from_prompts_to_numbers(tiny):
    studies, tokenizer, model = tiny
    prompts = PromptSet(
        "toy",
        {"normal": ("No acute process.",), "pneumonia": ("Perihilar haze.",), "COVID-19": ("Left pleural effusion.",)},
    )
    features = extract_features(model.image_encoder, TaskImages(studies, prompts.task, TRANSFORM))
    image, vectors = project_features(model, features), encode_classes(model, tokenizer, prompts)
    result = zero_shot(image, vectors, features.targets, groups=studies.table["patient_id"], resamples=20)
    assert result.scores.shape == (40, 3)
    assert result.majority == 0.5
    assert 0 <= result.accuracy.low <= result.accuracy.high <= 1


# --- 5x200 ---


def labelled(studies, rows):
    """The tiny studies with other labels: one tuple of values for the five classes and Lung Opacity a film."""
    names = (*FIVE_CLASSES, "Lung Opacity")
    table = studies.table.iloc[: len(rows)].copy()
    table["labels"] = [dict(zip(names, values, strict=True)) for values in rows]
    return dataclasses.replace(studies, table=table)


def alone(number, *, opacity=0.0):
    return (*(float(number == other) for other in range(5)), opacity)


def test_five_by_n_takes_films_that_show_one_class_alone(tiny):
    none = None
    rows = [alone(number) for number in range(5)] * 4
    rows += [
        (1.0, 1.0, 0.0, 0.0, 0.0, 0.0),  # two classes
        (1.0, -1.0, 0.0, 0.0, 0.0, 0.0),  # a second one in doubt
        (-1.0, 0.0, 0.0, 0.0, 0.0, 0.0),  # in doubt itself
        (none, none, none, none, none, 0.0),
        (0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    ]
    rows += [(none, none, none, none, 1.0, none)]  # blanks count as absent: a fifth Pleural Effusion
    studies = labelled(tiny[0], rows)
    task = PROMPT_SETS["chexpert_5x200"].task
    chosen = five_by_200(studies, per_class=4)
    assert np.bincount(task_targets(chosen, task)).tolist() == [4] * 5
    assert set(chosen.table["image_id"]) <= set(studies.table["image_id"][:20]) | {studies.table["image_id"][25]}
    most = five_by_200(studies, per_class=9, at_most=True)
    assert np.bincount(task_targets(most, task)).tolist() == [4, 4, 4, 4, 5]
    assert most.table["image_id"].tolist() == studies.table["image_id"].iloc[[*range(20), 25]].tolist()


def test_the_draw_is_seeded_and_grows(tiny):
    studies = labelled(tiny[0], [alone(number) for number in range(5)] * 8)
    small, again = (set(five_by_200(studies, per_class=3).table["image_id"]) for _ in range(2))
    assert small == again
    assert small < set(five_by_200(studies, per_class=6).table["image_id"])
    assert small != set(five_by_200(studies, per_class=3, seed=1).table["image_id"])


def test_other_labels_can_be_asked_to_be_absent(tiny):
    rows = [alone(number, opacity=float(number == 3)) for number in range(5)] * 2
    studies = labelled(tiny[0], rows)
    assert len(five_by_200(studies, per_class=2)) == 10
    with pytest.raises(DatasetError, match="0 images show 'Edema' alone among .*Lung Opacity"):
        five_by_200(studies, per_class=2, among=(*FIVE_CLASSES, "Lung Opacity"))
    two = five_by_200(studies, per_class=2, classes=("Edema", "Atelectasis"))
    assert len(two) == 4


def test_too_few_films_are_named(tiny):
    studies = labelled(tiny[0], [alone(number) for number in (0, 1, 2, 3, 4, 0, 1, 2, 4)])
    with pytest.raises(DatasetError, match=r"studies.parquet: 1 images show 'Edema' alone .* 2 are wanted; take fewer"):
        five_by_200(studies, per_class=2)
    with pytest.raises(DatasetError, match="200 are wanted"):
        five_by_200(studies)
    without = labelled(tiny[0], [alone(number) for number in (0, 1, 2, 4)])
    with pytest.raises(DatasetError, match="0 images show 'Edema'"):
        five_by_200(without, at_most=True)
    with pytest.raises(DatasetError, match="no label 'Fracture'"):
        five_by_200(studies, per_class=1, among=("Fracture",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per_class": 0}, "per_class must be at least 1"),
        ({"classes": ("Edema",)}, "two labels or more"),
        ({"classes": ("Edema", "Edema")}, "each once"),
    ],
)
def test_settings_of_the_draw_are_checked(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        five_by_200(tiny[0], **settings)
