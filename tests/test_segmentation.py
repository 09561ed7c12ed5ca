"""Dice by hand and by loop, the published loss, and decoders that learn while the trunk rests."""

import copy
import math

import numpy as np
import pytest
import torch
from dense_helpers import give_patients_two_images, square_studies

from mgca_lib.data.transforms import ImageTransform
from mgca_lib.encoders import ImageEncoder
from mgca_lib.evaluation import segmentation as module
from mgca_lib.evaluation.dense_data import FeatureMaps, HeadRecipe, MaskImages, draw_images
from mgca_lib.evaluation.segmentation import (
    SegmentationResult,
    Segmenter,
    choose_threshold,
    dice,
    dice_interval,
    dice_scores,
    segment,
    segmentation_gain,
    segmentation_loss,
    segmentation_probe,
    train_segmenter,
)


def slow_dice(predicted, mask):
    """Dice of one image, pixel by pixel."""
    shared = either = 0
    for row_predicted, row_mask in zip(predicted.tolist(), mask.tolist(), strict=True):
        for p, m in zip(row_predicted, row_mask, strict=True):
            shared += p and m
            either += int(p) + int(m)
    return 1.0 if either == 0 else 2 * shared / either


def test_dice_by_hand():
    masks = np.zeros((5, 4, 4), bool)
    predicted = masks.copy()
    masks[0, :2, :2] = predicted[0, :2, 1:3] = True  # 4 and 4 pixels share 2
    predicted[1, 0, 0] = True  # an alarm on an empty mask
    masks[3, 0, 0] = True  # a miss
    masks[4] = predicted[4] = True
    scores = dice_scores(predicted, masks)
    assert scores.tolist() == [0.5, 0, 1, 0, 1]
    present = masks.any(axis=(1, 2))
    assert dice(scores, present) == pytest.approx(2.5 / 5)
    for flags in (present, present.astype(int)):
        assert dice(scores, flags, rule="positive") == pytest.approx(1.5 / 3)
        assert dice_interval(scores, flags, rule="positive", resamples=10).n == 3
    # batches of two: 0.25, 0.5, and the last image alone
    assert dice(scores, present, rule="upstream", batch_size=2) == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert math.isnan(dice(scores, np.zeros(5, bool), rule="positive"))


@pytest.mark.parametrize("seed", range(4))
def test_random_dice_equals_the_slow_loop(seed):
    rng = np.random.default_rng(seed)
    masks = (rng.random((12, 9, 7)) < 0.3) & (rng.random((12, 1, 1)) < 0.6)
    predicted = (rng.random((12, 9, 7)) < 0.4) & (rng.random((12, 1, 1)) < 0.6)
    expected = [slow_dice(p, m) for p, m in zip(predicted, masks, strict=True)]
    assert {0.0, 1.0} < set(expected)
    np.testing.assert_allclose(dice_scores(predicted, masks), expected, rtol=0, atol=1e-15)


def test_loss_equals_its_formula_pixel_by_pixel():
    torch.manual_seed(0)
    logits, masks = 3 * torch.randn(2, 5, 4), torch.rand(2, 5, 4) < 0.3
    focal = shared = total = 0.0
    for z, m in zip(logits.flatten().tolist(), masks.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        right = p if m else 1 - p
        focal += -((1 - right) ** 2) * math.log(right) / logits.numel()
        shared += p * m
        total += p + m
    expected = 10 * focal - math.log((2 * shared + 1) / (total + 1))
    assert segmentation_loss(logits, masks).item() == pytest.approx(expected, rel=1e-5)
    assert segmentation_loss(torch.full((1, 2, 2), -40.0), torch.zeros(1, 2, 2)).item() == pytest.approx(0, abs=1e-6)


def test_the_threshold_is_the_best_and_nearest_to_one_half():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2] = True
    probabilities = np.full((2, 4, 4), 0.1, np.float16)
    probabilities[0, :2] = 0.9
    assert choose_threshold(probabilities, masks) == 0.5  # all from 0.10 to 0.85 are perfect
    probabilities[1, 0, 0] = 0.72
    assert choose_threshold(probabilities, masks) == 0.75  # an alarm below that
    assert choose_threshold(probabilities, masks, rule="positive") == 0.5
    probabilities[0, :2] = 0.3
    assert choose_threshold(probabilities, masks, rule="positive") == 0.25


def test_intervals_hold_the_value_and_draw_patients():
    rng = np.random.default_rng(0)
    scores, present = rng.random(60), rng.random(60) < 0.5
    groups = np.repeat(np.arange(20), 3)
    for rule in ("all", "positive"):
        images = dice_interval(scores, present, rule=rule, resamples=300)
        patients = dice_interval(np.repeat(scores[:20], 3), np.repeat(present[:20], 3), groups=groups, rule=rule)
        assert images.mean == pytest.approx(dice(scores, present, rule=rule))
        assert images.low < images.mean < images.high
        counted = present if rule == "positive" else np.ones(60, dtype=bool)
        assert images.n == counted.sum()  # images that never count are not behind the interval
        assert patients.n == (present[:20].sum() if rule == "positive" else 20)
        alone = dice_interval(np.repeat(scores[:20], 3), np.repeat(present[:20], 3), rule=rule)
        assert patients.high - patients.low > 1.3 * (alone.high - alone.low)  # copies are no new evidence


@pytest.mark.parametrize(
    ("shapes", "image_size"),
    [
        ([(8, 48, 48), (6, 24, 24), (4, 12, 12), (4, 6, 6), (4, 3, 3)], 96),
        ([(6, 75, 75), (4, 38, 38), (4, 19, 19), (4, 10, 10)], 224),  # an upsampled input without stride 2
        ([(16, 14, 14)], 224),
        ([(16, 16, 16)], 224),  # patches of side 14
        ([(16, 2, 2)], 16),
    ],
)
def test_logits_lie_on_every_pixel_of_the_input(shapes, image_size):
    segmenter = Segmenter(shapes, image_size, widths=(12, 8, 6))
    logits = segmenter([torch.randn(2, *shape) for shape in shapes])
    assert logits.shape == (2, image_size, image_size)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in segmenter.parameters())


def make_maps(root, name, **sizes):
    torch.manual_seed(0)
    encoder = ImageEncoder(name, pretrained=False, image_size=64).train()
    studies = square_studies(root, **sizes)
    return encoder, {
        split: FeatureMaps(encoder, MaskImages(studies.split(split), ImageTransform(64, 64))) for split in sizes
    }


@pytest.mark.parametrize(("name", "least"), [("test_resnet", 0.95), ("test_vit", 0.85)])
def test_eight_images_are_learned_and_the_trunk_stays_bit_for_bit(tmp_path, name, least):
    encoder, maps = make_maps(tmp_path, name, train=8)
    train = maps["train"]
    before = copy.deepcopy(encoder.state_dict())
    recipe = HeadRecipe(epochs=1, min_steps=60, batch_size=8, checks=2, learning_rate=1e-2)
    state = torch.random.get_rng_state()
    trained = train_segmenter(train, train, fraction=1.0, seed=0, recipe=recipe, widths=(16, 16, 16, 8, 8))
    probabilities = segment(trained.segmenter, train)
    assert probabilities.dtype == np.float16
    scores = dice_scores(probabilities > 0.5, train.dataset.masks())
    assert scores[train.dataset.present].mean() > least
    assert trained.checks[-1].score > trained.checks[0].score - 0.05
    assert torch.equal(state, torch.random.get_rng_state())
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in encoder.state_dict().items())


def test_segmenting_is_the_same_one_by_one_or_together(tmp_path):
    _, maps = make_maps(tmp_path, "test_resnet", train=5)
    segmenter = Segmenter(maps["train"].shapes, 64).train()
    together, alone = (segment(segmenter, maps["train"], batch_size=size) for size in (5, 1))
    np.testing.assert_allclose(together, alone, atol=2e-3)  # float16
    assert segmenter.training


def test_probes_repeat_nest_and_know_their_spread(tmp_path):
    _, maps = make_maps(tmp_path, "test_resnet", train=20, valid=4, test=8)
    recipe = HeadRecipe(epochs=1, min_steps=6, batch_size=4, checks=1)
    settings = {"recipe": recipe, "widths": (8, 8, 4), "resamples": 40}
    parts = [maps[split] for split in ("train", "valid", "test")]
    one = segmentation_probe(*parts, fraction=0.2, seeds=[3], **settings)
    assert one == segmentation_probe(*parts, fraction=0.2, seeds=[3], **settings)
    assert (one.spread, one.all.n, one.nothing) == ("patients", 8, 0.25)
    assert one.subsets == (tuple(draw_images(maps["train"].dataset, fraction=0.2, seed=3).tolist()),)
    own = train_segmenter(parts[0], parts[1], fraction=0.2, seed=3, recipe=recipe, widths=(8, 8, 4)).segmenter
    validated = segment(own, parts[1])  # the validation split chooses the threshold, and no other
    for rule in ("all", "positive"):
        assert one.thresholds[rule] == (choose_threshold(validated, parts[1].dataset.masks(), rule=rule),)
    masks = maps["test"].dataset.masks()
    for rule, interval in (("all", one.all), ("positive", one.positive)):
        scores = dice_scores(one.probabilities[0] > one.thresholds[rule][0], masks)
        assert interval.mean == one.values[rule][0] == dice(scores, one.present, rule=rule)
    several = segmentation_probe(*parts, fraction=0.2, seeds=[3, 4], **settings)
    assert (several.spread, several.all.n) == ("seeds", 2)
    assert several.values["all"][0] == one.values["all"][0]
    assert several.positive.mean == pytest.approx(np.mean(several.values["positive"]))
    for rule in ("all", "positive"):
        nothing = segmentation_gain(one, one, rule=rule, resamples=20)
        assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="same seeds"):
        segmentation_gain(one, several)


def test_a_gain_is_one_of_differences_image_by_image():
    """Images are hard for both encoders alike, so the difference is far surer than either Dice; one image a patient."""
    rng = np.random.default_rng(0)
    hard, present = rng.uniform(0.1, 0.8, 80), np.arange(80) % 4 > 0
    better, worse = (
        SegmentationResult(
            all=None,
            positive=None,
            nothing=0.25,
            spread="patients",
            values={},
            thresholds={},
            subsets=((0, 1),),
            scores={"positive": (scores,)},
            present=present,
            probabilities=(),
        )
        for scores in (hard + rng.normal(0.05, 0.02, 80), hard)
    )
    differences = (better.scores["positive"][0] - hard)[present]
    gain = segmentation_gain(better, worse, rule="positive", groups=[f"p{row}" for row in range(80)], resamples=4000)
    half = 1.96 * differences.std() / np.sqrt(60)
    assert (gain.mean, gain.n) == (pytest.approx(differences.mean()), 60)
    assert (gain.low, gain.high) == (
        pytest.approx(gain.mean - half, abs=6e-4),
        pytest.approx(gain.mean + half, abs=6e-4),
    )


def test_probes_validate_on_their_validation_split_and_draw_patients(tmp_path, monkeypatch):
    _, maps = make_maps(tmp_path, "test_resnet", train=20, valid=4, test=8)
    give_patients_two_images(maps["test"].dataset)
    parts, seen, original = [maps[split] for split in ("train", "valid", "test")], [], module.train_segmenter
    monkeypatch.setattr(module, "train_segmenter", lambda t, v, **s: seen.append(v) or original(t, v, **s))
    recipe = HeadRecipe(epochs=1, min_steps=2, batch_size=4, checks=1)
    one = segmentation_probe(*parts, fraction=0.2, seeds=[3], recipe=recipe, widths=(8, 8, 4), resamples=40)
    assert seen == [parts[1]]
    assert (one.all.n, one.spread) == (4, "patients")


def test_wrong_input_says_what_is_wrong(tmp_path):
    _, maps = make_maps(tmp_path, "test_resnet", train=8, valid=4)
    empty = FeatureMaps(
        maps["train"].encoder,
        MaskImages(maps["train"].dataset.studies.select([3, 4]), ImageTransform(64, 64)),
    )
    empty.dataset._packed[:] = 0
    with pytest.raises(ValueError, match="every validation mask is empty"):
        segmentation_probe(maps["train"], empty, maps["valid"], fraction=1.0, seeds=[0])
    with pytest.raises(ValueError, match="every test mask is empty"):
        segmentation_probe(maps["train"], maps["valid"], empty, fraction=1.0, seeds=[0])
    with pytest.raises(ValueError, match="at least one seed"):
        segmentation_probe(maps["train"], maps["valid"], maps["valid"], fraction=1.0, seeds=[])
    with pytest.raises(ValueError, match="must both be"):
        dice_scores(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 3), bool))
    with pytest.raises(ValueError, match=r"masks \(uint8\) must both be bool"):
        dice_scores(np.ones((1, 2, 2), bool), np.full((1, 2, 2), 255, np.uint8))
    with pytest.raises(ValueError, match="no image to choose a threshold by; 0 masks are not empty"):
        choose_threshold(np.ones((2, 4, 4)), np.zeros((2, 4, 4), bool), rule="positive")
    with pytest.raises(ValueError, match="'all', 'positive' or 'upstream'"):
        dice(np.ones(2), np.ones(2, bool), rule="kind")
