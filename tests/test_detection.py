"""Average precision against hand counts, a slow loop and pycocotools; a detector that learns while the trunk rests."""

import copy
import math

import numpy as np
import pytest
import torch
from dense_helpers import give_patients_two_images, square_studies

from mgca_lib.data.transforms import ImageTransform
from mgca_lib.encoders import ImageEncoder
from mgca_lib.evaluation import detection as module
from mgca_lib.evaluation.dense_data import BoxImages, FeatureMaps, HeadRecipe, draw_images
from mgca_lib.evaluation.detection import (
    DETECTION_STRIDES,
    IOU_THRESHOLDS,
    DetectionResult,
    Detections,
    Detector,
    average_precision,
    detect,
    detection_gain,
    detection_probe,
    map_gain,
    map_interval,
    match_detections,
    mean_average_precision,
    suppress,
    train_detector,
)

NONE = np.zeros((0, 4))


def found(*entries):
    """Detections from ``(x1, y1, x2, y2, score)``."""
    rows = np.array(entries, dtype=float).reshape(-1, 5)
    return Detections(rows[:, :4], rows[:, 4])


def slow_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_map(detections, truths, thresholds):
    """Mean AP from its definition: one detection after the other, one recall after the other, no array tricks."""
    total = sum(len(truth) for truth in truths)
    if total == 0:
        return math.nan
    values = []
    for threshold in thresholds:
        ranked = sorted(
            (
                (score, image, tuple(box))
                for image, one in enumerate(detections)
                for box, score in zip(one.boxes, one.scores, strict=True)
            ),
            key=lambda entry: -entry[0],
        )
        taken, hits, curve = set(), 0, []
        for rank, (_, image, box) in enumerate(ranked, start=1):
            free = [
                (slow_iou(box, truth), number)
                for number, truth in enumerate(truths[image])
                if (image, number) not in taken
            ]
            best = max(free, default=(-1, None))
            if best[0] >= threshold:
                taken.add((image, best[1]))
                hits += 1
            curve.append((hits, hits / rank))
        precisions = [
            max((precision for hits, precision in curve if 100 * hits >= recall * total), default=0.0)
            for recall in range(101)
        ]
        values.append(sum(precisions) / 101)
    return sum(values) / len(values)


def random_case(rng, images=12, *, empty=0.4):
    truths, detections = [], []
    for _ in range(images):
        corners = rng.uniform(0, 60, (0 if rng.random() < empty else rng.integers(1, 4), 2))
        truth = np.concatenate([corners, corners + rng.uniform(5, 30, corners.shape)], axis=1)
        near = truth[rng.random(len(truth)) < 0.8]
        near = near + rng.normal(0, 2.5, near.shape)
        near = np.concatenate([near, near + rng.normal(0, 1.5, near.shape)])  # doubles of the same box
        far = rng.uniform(0, 60, (rng.integers(0, 3), 2))
        boxes = np.concatenate([near, np.concatenate([far, far + rng.uniform(4, 20, far.shape)], axis=1)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)  # noise must not turn a box inside out
        truths.append(truth)
        detections.append(Detections(boxes, rng.random(len(boxes))))
    return detections, truths


def test_thresholds_are_the_papers():
    assert IOU_THRESHOLDS == (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)


def test_average_precision_by_hand():
    truths = [np.array([[0, 0, 10, 10], [20, 20, 30, 30]]), NONE, np.array([[0, 0, 10, 10]])]
    detections = [found((0, 0, 10, 10, 0.9), (0, 0, 10, 9, 0.8)), found((5, 5, 9, 9, 0.7)), found((0, 0, 10, 6, 0.6))]
    # In order: hit (1/1, recall 1/3), double (1/2), false alarm (1/3), hit at IoU 0.6 (2/4, recall 2/3).
    # 34 recalls (0 ... 0.33) at precision 1, 33 (0.34 ... 0.66) at 1/2, the rest at 0.
    low, high = average_precision(match_detections(detections, truths, thresholds=(0.6, 0.65)))
    assert low == pytest.approx((34 + 33 * 0.5) / 101, abs=1e-12)
    assert high == pytest.approx(34 / 101, abs=1e-12)
    assert mean_average_precision(detections, truths, thresholds=(0.6, 0.65)) == pytest.approx((low + high) / 2)
    # Upstream drops image 1 with its false alarm: the second hit is then third of three.
    upstream = average_precision(match_detections(detections, truths, thresholds=(0.6,)), rule="upstream")
    assert upstream.item() == pytest.approx((34 + 33 * 2 / 3) / 101, abs=1e-12)


def test_images_without_boxes_or_without_detections_count():
    box, alarm = np.array([[0, 0, 8, 8]]), found((0, 0, 8, 8, 0.9))
    hit = found((0, 0, 8, 8, 0.5))
    every, upstream = {"rule": "all"}, {"rule": "upstream"}
    # a missed image: half of the boxes are found, recalls 0 ... 0.5
    assert mean_average_precision([hit, found()], [box, box], **every) == pytest.approx(51 / 101)
    assert mean_average_precision([hit, found()], [box, box], **upstream) == 1
    # a false alarm before the hit on an image without boxes
    assert mean_average_precision([hit, alarm], [box, NONE], **every) == pytest.approx(0.5)
    assert mean_average_precision([hit, alarm], [box, NONE], **upstream) == 1
    assert mean_average_precision([found()], [box], **every) == 0
    assert math.isnan(mean_average_precision([found()], [box], **upstream))
    assert math.isnan(mean_average_precision([alarm], [NONE]))
    assert mean_average_precision([hit, alarm], [box, NONE], min_score=0.6) == 0
    assert mean_average_precision([found((9, 9, 12, 12, 0.9), (0, 0, 8, 8, 0.5))], [box], max_detections=1) == 0


def test_a_recall_on_the_grid_is_reached():
    corners = np.array([[20.0 * number, 0, 20 * number + 10, 10] for number in range(10)])
    assert mean_average_precision([Detections(corners[:7], np.ones(7))], [corners]) == pytest.approx(71 / 101)


def test_each_detection_takes_the_free_box_it_overlaps_most():
    truths = [np.array([[0, 0, 10, 10], [0, 0, 10, 12]])]
    detections = [found((0, 0, 10, 10, 0.9), (0, 0, 10, 10.4, 0.8))]
    # both overlap the first box most; it is taken, so the second detection gets the second box (IoU 0.867)
    assert match_detections(detections, truths, thresholds=(0.85,)).hits.tolist() == [[True, True]]
    assert match_detections(detections, [truths[0][:1]], thresholds=(0.85,)).hits.tolist() == [[True, False]]


@pytest.mark.parametrize("seed", range(8))
def test_random_cases_equal_the_slow_loop(seed):
    rng = np.random.default_rng(seed)
    detections, truths = random_case(rng)
    expected = slow_map(detections, truths, IOU_THRESHOLDS)
    assert 0.05 < expected < 0.95
    assert mean_average_precision(detections, truths) == pytest.approx(expected, abs=1e-12)
    kept = [i for i in range(len(truths)) if len(truths[i]) and len(detections[i])]
    expected = slow_map([detections[i] for i in kept], [truths[i] for i in kept], IOU_THRESHOLDS)
    assert mean_average_precision(detections, truths, rule="upstream") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(0, 0.2358878201275925), (1, 0.22073912560215644), (2, 0.18188763363715837), (3, 0.1879169825525618)],
)
def test_random_cases_equal_pycocotools(seed, expected):
    """The values are those of pycocotools 2.0.11: bbox, these thresholds, all areas, 100 detections an image."""
    detections, truths = random_case(np.random.default_rng(seed), images=20)
    assert mean_average_precision(detections, truths) == pytest.approx(expected, abs=1e-12)


def test_resampled_images_equal_copies():
    rng = np.random.default_rng(3)
    detections, truths = random_case(rng)
    matches = match_detections(detections, truths)
    for _ in range(10):
        rows = rng.integers(len(truths), size=len(truths))
        expected = slow_map([detections[i] for i in rows], [truths[i] for i in rows], IOU_THRESHOLDS)
        assert average_precision(matches, images=rows).mean() == pytest.approx(expected, abs=1e-12)


def test_intervals_hold_the_value_and_draw_patients():
    detections, truths = random_case(np.random.default_rng(5), images=30)
    matches = match_detections(detections, truths)
    images = map_interval(matches, resamples=200)
    patients = map_interval(matches, groups=np.repeat(np.arange(10), 3), resamples=200)
    assert images.mean == patients.mean == pytest.approx(mean_average_precision(detections, truths))
    assert images.low < images.mean < images.high
    assert (images.n, patients.n) == (30, 10)
    optimistic = map_interval(matches, rule="upstream", resamples=50)
    assert optimistic.mean == pytest.approx(mean_average_precision(detections, truths, rule="upstream"))


def test_suppression_equals_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        corners = rng.uniform(0, 20, (30, 2))
        boxes, scores = np.concatenate([corners, corners + rng.uniform(5, 15, (30, 2))], axis=1), rng.random(30)
        stays = []
        for number in np.argsort(-scores):
            if all(slow_iou(boxes[number], boxes[other]) <= 0.5 for other in stays):
                stays.append(number)
        result = suppress(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5)
        assert result.tolist() == stays
    assert suppress(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


@pytest.mark.parametrize(("image_size", "sides"), [(96, (12, 6, 3, 2)), (60, (8, 4, 2, 1))])
def test_anchors_are_centred_in_their_cells_in_the_order_of_the_outputs(image_size, sides):
    shapes = [(4 + number, side, side) for number, side in enumerate(sides[:3])]
    detector = Detector(shapes, image_size, channels=8)
    outputs = detector([torch.zeros(2, *shape) for shape in shapes])
    count = 9 * sum(side * side for side in sides)
    assert outputs["cls_logits"].shape == (2, count, 1)
    assert detector.anchors.shape == (count, 4)
    at = 0
    for level, side in enumerate(sides):
        for row in range(side):
            for column in range(side):
                nine = detector.anchors[at : at + 9].double().numpy()
                at += 9
                centres = (nine[:, :2] + nine[:, 2:]) / 2
                np.testing.assert_allclose(centres[:, 0], (column + 0.5) * image_size / side, rtol=1e-5)
                np.testing.assert_allclose(centres[:, 1], (row + 0.5) * image_size / side, rtol=1e-5)
                areas = np.sort((nine[:, 2:] - nine[:, :2]).prod(axis=1))
                size = image_size / 12 * 2**level
                expected = np.repeat([size**2, size**2 * 2 ** (2 / 3), size**2 * 2 ** (4 / 3)], 3)
                np.testing.assert_allclose(np.sqrt(areas), np.sqrt(expected), atol=1.5)  # torchvision rounds corners


def test_decoding_undoes_encoding():
    detector = Detector([(4, 8, 8), (4, 4, 4), (4, 2, 2)], 64, channels=8)
    boxes = torch.tensor([[10.0, 12, 30, 40], [35, 5, 55, 30]])
    offsets = detector.coder.encode_single(boxes[[0, 1]], detector.anchors[[100, 300]])
    logits = torch.full((1, len(detector.anchors), 1), -9.0)
    regression = torch.zeros(1, len(detector.anchors), 4)
    logits[0, [100, 300], 0] = torch.tensor([1.0, 2.0])
    regression[0, [100, 300]] = offsets
    detector.forward = lambda maps: {"cls_logits": logits, "bbox_regression": regression}
    (one,) = detector.decode([], min_score=0.05, nms_iou=0.5, max_detections=10)
    np.testing.assert_allclose(one.boxes, boxes[[1, 0]].numpy(), atol=1e-4)
    np.testing.assert_allclose(one.scores, 1 / (1 + np.exp([-2.0, -1.0])), rtol=1e-6)
    (best,) = detector.decode([], min_score=0.05, nms_iou=0.5, max_detections=1)
    assert len(best) == 1


def make_maps(root, name, **sizes):
    torch.manual_seed(0)
    encoder = ImageEncoder(name, pretrained=False, image_size=64).train()
    studies = square_studies(root, **sizes)
    transform = ImageTransform(64, 64)
    return encoder, {
        split: FeatureMaps(encoder, BoxImages(studies.split(split), transform), strides=DETECTION_STRIDES)
        for split in sizes
    }


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_eight_images_are_learned_and_the_trunk_stays_bit_for_bit(tmp_path, name):
    encoder, maps = make_maps(tmp_path, name, train=8, valid=8)
    before = copy.deepcopy(encoder.state_dict())
    recipe = HeadRecipe(epochs=1, min_steps=80, batch_size=8, checks=2, learning_rate=5e-3)
    state = torch.random.get_rng_state()
    trained = train_detector(maps["train"], maps["train"], fraction=1.0, seed=0, recipe=recipe, channels=32)
    truths = [boxes.numpy() for boxes in maps["train"].dataset.boxes]
    value = mean_average_precision(detect(trained.detector, maps["train"]), truths)
    assert value > 0.9
    assert value == max(check.score for check in trained.checks)
    assert trained.rows == tuple(range(8))
    assert torch.equal(state, torch.random.get_rng_state())
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in encoder.state_dict().items())


def test_probes_repeat_nest_and_know_their_spread(tmp_path):
    _, maps = make_maps(tmp_path, "test_resnet", train=20, valid=4, test=8)
    recipe = HeadRecipe(epochs=1, min_steps=4, batch_size=4, checks=1)
    settings = {"recipe": recipe, "channels": 8, "resamples": 40}
    parts = [maps[split] for split in ("train", "valid", "test")]
    one = detection_probe(*parts, fraction=0.2, seeds=[3], **settings)
    assert (one.spread, one.n) == ("patients", 8)
    assert one == detection_probe(*parts, fraction=0.2, seeds=[3], **settings)
    assert one.subsets == (tuple(draw_images(maps["train"].dataset, fraction=0.2, seed=3).tolist()),)
    assert one.values[0] == one.mean == one.as_metric()["mean"]
    several = detection_probe(*parts, fraction=0.2, seeds=[3, 4], **settings)
    assert (several.spread, several.n) == ("seeds", 2)
    assert several.values[0] == one.mean
    assert several.mean == pytest.approx(np.mean(several.values))
    nothing = detection_gain(one, one, resamples=20)
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)
    with pytest.raises(ValueError, match="same seeds"):
        detection_gain(one, several)


def test_probes_validate_on_their_validation_split_and_draw_patients(tmp_path, monkeypatch):
    _, maps = make_maps(tmp_path, "test_resnet", train=20, valid=4, test=8)
    give_patients_two_images(maps["test"].dataset)
    parts, seen, original = [maps[split] for split in ("train", "valid", "test")], [], module.train_detector
    monkeypatch.setattr(module, "train_detector", lambda t, v, **s: seen.append(v) or original(t, v, **s))
    recipe = HeadRecipe(epochs=1, min_steps=2, batch_size=4, checks=1)
    one = detection_probe(*parts, fraction=0.2, seeds=[3], recipe=recipe, channels=8, resamples=40)
    assert seen == [parts[1]]
    assert (one.n, one.spread) == (4, "patients")


def test_gains_are_paired():
    def result(*matches):
        values = tuple(average_precision(one).mean() for one in matches)
        subsets = ((0,),) * len(matches)
        return DetectionResult(0, 0, 1, 1, "seeds", values, subsets, matches, ())

    cases = [random_case(np.random.default_rng(seed), images=25) for seed in (1, 1, 2)]
    truths = cases[0][1]
    good = match_detections([found(*[(*box, 0.9) for box in truth]) for truth in truths], truths)
    fair = match_detections(cases[0][0], truths)
    gain = detection_gain(result(good), result(fair), resamples=100)
    assert gain.mean == pytest.approx(1 - average_precision(fair).mean())
    assert 0 < gain.low < gain.mean < gain.high
    assert map_gain(good, fair, resamples=100) == gain
    with pytest.raises(ValueError, match="same thresholds"):
        map_gain(good, match_detections(cases[0][0], truths, thresholds=[0.5]))
    both = detection_gain(result(good, good), result(fair, good))
    assert both.mean == pytest.approx(gain.mean / 2)
    with pytest.raises(ValueError, match="test images"):
        detection_gain(result(good), result(match_detections(*cases[2])))


def test_wrong_input_says_what_is_wrong(tmp_path):
    _, maps = make_maps(tmp_path, "test_resnet", train=8, valid=4)
    boxless = FeatureMaps(
        maps["train"].encoder,
        BoxImages(maps["train"].dataset.studies.select([3, 7]), ImageTransform(64, 64)),
        strides=DETECTION_STRIDES,
    )
    with pytest.raises(ValueError, match="no validation image has a box"):
        train_detector(maps["train"], boxless, fraction=1.0, seed=0)
    with pytest.raises(ValueError, match="no test image has a box"):
        detection_probe(maps["train"], maps["valid"], boxless, fraction=1.0, seeds=[0])
    with pytest.raises(ValueError, match="at least one seed"):
        detection_probe(maps["train"], maps["valid"], maps["valid"], fraction=1.0, seeds=[])
    with pytest.raises(ValueError, match="multiple of 8"):
        Detector([(4, 4, 4)], 32, channels=12)
    with pytest.raises(ValueError, match="depth must be 1 to 4"):
        Detector([(4, 4, 4)], 32, depth=5)
    with pytest.raises(ValueError, match="2 images for the boxes of 1"):
        match_detections([found(), found()], [NONE])
    with pytest.raises(ValueError, match="'all' or 'upstream'"):
        mean_average_precision([found()], [NONE], rule="kind")
