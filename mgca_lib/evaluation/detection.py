"""Detection: can a small head find the boxes in a frozen trunk's feature maps (the paper's table 2)?

A RetinaNet of torchvision parts learns on the maps that `mgca_lib.evaluation.dense_data.FeatureMaps` computed once.
The paper trains a YOLOv3 head on the same kind of frozen maps; its metric is kept: average precision, averaged over
the IoU thresholds 0.40, 0.45, ..., 0.75.
"""

# isort: off
import mgca_lib.torchvision_operators  # noqa: F401 - first: repairs a torchvision built for another torch

# isort: on
import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from mgca_lib.evaluation.dense_data import Check, FeatureMaps, HeadRecipe, draw_images, seeded, train_head
from mgca_lib.evaluation.intervals import Interval, bootstrap_interval, t_interval

DETECTION_STRIDES = (8, 16, 32)
IOU_THRESHOLDS = tuple(round(0.40 + 0.05 * number, 2) for number in range(8))
"""The paper's thresholds: 0.40, 0.45, ..., 0.75."""

_RECALLS = np.linspace(0, 1, 101)
_MAX_STEP = math.log(1000 / 16)  # no box is decoded wider than this many times its anchor, as torchvision does

Rule = Literal["all", "upstream"]


@dataclass(frozen=True)
class Detections:
    """What a detector found on one image.

    Attributes:
        boxes: ``(n, 4)`` float corners ``x1, y1, x2, y2``, pixels of the encoder's input.
        scores: ``(n,)`` float in [0, 1], falling.
    """

    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


class Detector(nn.Module):
    """RetinaNet for one class, on maps instead of images.

    Maps of several strides (CNN) pass a feature pyramid with one coarser level by pooling; the single map of a ViT
    is first brought to twice, once and half its resolution, as in ViTDet. Anchors are centred in the cells of
    each level and scale with the image: squares and 2:1 rectangles in three sizes per octave, from 1/12 of
    the image's side at the finest level. GroupNorm in the heads, since training is short.

    Args:
        shapes: ``(C, H, W)`` of each map, finest first.
        image_size: Side of the encoder's input, pixels.
        channels: Width of pyramid and heads, a multiple of 8 (RetinaNet: 256).
        depth: Convolutions of each head before its output, 1 to 4 (RetinaNet: 4).

    Raises:
        ValueError: ``channels`` or ``depth`` is out of range.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int, int]], image_size: int, *, channels: int = 64, depth: int = 2
    ) -> None:
        super().__init__()
        if not 1 <= depth <= 4:
            raise ValueError(f"depth must be 1 to 4, found {depth}")
        if channels % 8:
            raise ValueError(f"channels must be a multiple of 8, found {channels}")
        self.image_size = image_size
        self.refine = SimplePyramid(shapes[0][0]) if len(shapes) == 1 else nn.Identity()
        widths = [shapes[0][0]] * 3 if len(shapes) == 1 else [shape[0] for shape in shapes]
        self.pyramid = FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool())
        self.head = RetinaNetHead(channels, 9, 1, norm_layer=partial(nn.GroupNorm, 8))
        for part in (self.head.classification_head, self.head.regression_head):
            part.conv = part.conv[:depth]
        with torch.no_grad():
            levels = self._levels([torch.zeros(1, *shape) for shape in shapes])
        self.register_buffer("anchors", _anchors([level.shape[-2:] for level in levels], image_size), persistent=False)
        self.matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self.coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0), bbox_xform_clip=_MAX_STEP)

    def forward(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """Return ``cls_logits`` ``(B, A, 1)`` and ``bbox_regression`` ``(B, A, 4)`` for all anchors."""
        return self.head(self._levels(maps))

    def loss(self, maps: list[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Focal loss plus L1 on box offsets, averaged over images; an image without boxes is all background."""
        targets, matched = [], []
        for own in boxes:
            own = own.to(self.anchors.device)
            targets.append({"boxes": own, "labels": torch.zeros(len(own), dtype=torch.int64, device=own.device)})
            if len(own):
                matched.append(self.matcher(box_iou(own, self.anchors)))
            else:
                matched.append(torch.full((len(self.anchors),), Matcher.BELOW_LOW_THRESHOLD, device=own.device))
        parts = self.head.compute_loss(targets, self(maps), [self.anchors] * len(boxes), matched)
        return parts["classification"] + parts["bbox_regression"]

    @torch.no_grad()
    def decode(self, maps: list[Tensor], *, min_score: float, nms_iou: float, max_detections: int) -> list[Detections]:
        """Turn maps into detections, one entry an image; see :func:`detect`."""
        outputs = self(maps)
        found = []
        for logits, offsets in zip(outputs["cls_logits"], outputs["bbox_regression"], strict=True):
            scores = logits[:, 0].sigmoid()
            best = scores.topk(min(1000, len(scores))).indices
            best = best[scores[best] >= min_score]
            boxes = self.coder.decode_single(offsets[best], self.anchors[best]).clamp(0, self.image_size)
            keep = suppress(boxes, scores[best], nms_iou)[:max_detections]
            found.append(Detections(boxes[keep].cpu().double().numpy(), scores[best][keep].cpu().double().numpy()))
        return found

    def _levels(self, maps: list[Tensor]) -> list[Tensor]:
        named = OrderedDict((str(number), level) for number, level in enumerate(self.refine(maps)))
        return list(self.pyramid(named).values())


class SimplePyramid(nn.Module):
    """Twice, once and half the resolution of a ViT's patch grid (the simple pyramid of ViTDet, Li et al. 2022)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.down = nn.MaxPool2d(kernel_size=2, ceil_mode=True)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Map ``[(B, C, H, W)]`` to ``[(B, C, 2H, 2W), (B, C, H, W), (B, C, ceil(H/2), ceil(W/2))]``."""
        (grid,) = maps
        return [self.up(grid), grid, self.down(grid)]


def suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression: drop boxes that overlap a better one by more than ``iou``.

    Plain torch, since torchvision's compiled operator is missing where its build does not match torch's.

    Returns:
        Numbers of the boxes that stay, best first.

    >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 5], [9, 9, 12, 12]])
    >>> suppress(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5).tolist()
    [1, 2]
    """
    order = scores.argsort(descending=True, stable=True)
    overlaps = (box_iou(boxes[order], boxes[order]) > iou).cpu().numpy()
    stays = np.ones(len(order), dtype=bool)
    for number in range(len(order)):
        if stays[number]:
            stays[number + 1 :] &= ~overlaps[number, number + 1 :]
    return order[torch.from_numpy(stays).to(order.device)]


@dataclass(frozen=True)
class TrainedDetector:
    """A detector and how it came to be.

    Attributes:
        detector: In eval mode, with the weights of its best check.
        rows: Rows of the training split whose boxes were used.
        checks: Validation mAP during training.
    """

    detector: Detector
    rows: tuple[int, ...]
    checks: tuple[Check, ...]


def train_detector(
    train: FeatureMaps,
    valid: FeatureMaps,
    *,
    fraction: float,
    seed: int,
    recipe: HeadRecipe | None = None,
    channels: int = 64,
) -> TrainedDetector:
    """Train a detector on the frozen maps of a share of the training images.

    Images without boxes take part, as upstream. The validation split is used whole at every fraction: the
    weights with its best mAP are kept (upstream: the same, after early stopping).

    Args:
        train: Maps of `BoxImages`, training split.
        valid: The same, validation split.
        fraction: Share of the training images in (0, 1]; see `mgca_lib.evaluation.dense_data.draw_images`.
        seed: Seed of the draw, the initial weights and the order.
        recipe: Settings of the training.
        channels: Width of pyramid and heads.

    Raises:
        ValueError: the fraction is out of range, or training or validation split has no box.
    """
    if not valid.dataset.present.any():
        raise ValueError(f"{valid.dataset.studies.root}: no validation image has a box to choose the weights by")
    rows = draw_images(train.dataset, fraction=fraction, seed=seed)
    truths = [boxes.numpy() for boxes in valid.dataset.boxes]
    with seeded(seed, train.device):
        detector = Detector(train.shapes, train.image_size, channels=channels).to(train.device)
        checks = train_head(
            detector,
            train,
            rows,
            loss=lambda maps, part: detector.loss(maps, [train.dataset.boxes[row] for row in part]),
            score=lambda: mean_average_precision(detect(detector, valid), truths),
            recipe=recipe or HeadRecipe(),
            seed=seed,
        )
    return TrainedDetector(detector, tuple(rows.tolist()), checks)


def detect(
    detector: Detector,
    maps: FeatureMaps,
    *,
    min_score: float = 0.05,
    nms_iou: float = 0.5,
    max_detections: int = 100,
    batch_size: int = 64,
) -> list[Detections]:
    """Find boxes on all images of a dataset.

    Args:
        detector: A trained detector.
        maps: Maps of the dataset.
        min_score: Least score of a detection. Upstream's is 0.5, of another kind of score.
        nms_iou: Of two boxes that overlap more than this, only the better stays; as upstream.
        max_detections: Most detections an image.
        batch_size: Images at a time.

    Returns:
        One entry an image, in the order of the dataset.
    """
    settings = {"min_score": min_score, "nms_iou": nms_iou, "max_detections": max_detections}
    training = detector.training
    detector.eval()
    found = []
    for _, levels in maps.batches(np.arange(len(maps)), batch_size):
        found += detector.decode(levels, **settings)
    detector.train(training)
    return found


@dataclass(frozen=True)
class Matches:
    """Detections compared with the true boxes, once and for all resamples.

    Attributes:
        thresholds: ``T`` IoU thresholds.
        scores: ``(D,)`` scores of all detections, falling.
        image: ``(D,)`` number of the image of each detection.
        hits: ``(T, D)`` bool: whether the detection found a box.
        boxes: ``(N,)`` number of true boxes of each image.
        detections: ``(N,)`` number of detections of each image.
    """

    thresholds: tuple[float, ...]
    scores: np.ndarray
    image: np.ndarray
    hits: np.ndarray
    boxes: np.ndarray
    detections: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


def match_detections(
    detections: Sequence[Detections],
    truths: Sequence[np.ndarray],
    *,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    min_score: float = 0.0,
    max_detections: int = 100,
) -> Matches:
    """Match detections to true boxes as COCO does.

    On each image and for each threshold, detections choose in the order of their scores; each takes the free box
    that it overlaps most, if the IoU reaches the threshold, and a box can be taken once.

    Args:
        detections: One entry an image.
        truths: ``(n, 4)`` true corners of each image, ``n`` may be 0.
        thresholds: IoU thresholds in (0, 1].
        min_score: Leave out detections below this score.
        max_detections: Best detections an image that count.

    Raises:
        ValueError: the numbers of images differ.
    """
    if len(detections) != len(truths):
        raise ValueError(f"detections of {len(detections)} images for the boxes of {len(truths)}")
    scores, hits = [], []
    for found, truth in zip(detections, truths, strict=True):
        order = np.argsort(-found.scores, kind="stable")[:max_detections]
        order = order[found.scores[order] >= min_score]
        scores.append(found.scores[order])
        hits.append(_hits(found.boxes[order], np.asarray(truth, dtype=np.float64).reshape(-1, 4), thresholds))
    counts = np.array([len(part) for part in scores], dtype=np.int64)
    every = np.concatenate(scores) if scores else np.zeros(0)
    order = np.argsort(-every, kind="stable")
    return Matches(
        thresholds=tuple(thresholds),
        scores=every[order],
        image=np.repeat(np.arange(len(counts)), counts)[order],
        hits=np.concatenate(hits, axis=1)[:, order] if hits else np.zeros((len(thresholds), 0), dtype=bool),
        boxes=np.array([len(truth) for truth in truths], dtype=np.int64),
        detections=counts,
    )


def average_precision(matches: Matches, *, rule: Rule = "all", images: np.ndarray | None = None) -> np.ndarray:
    """Average precision at each threshold.

    Precision, made non-increasing from the right, is averaged over the recalls 0, 0.01, ..., 1 (COCO's 101-point
    interpolation); a recall that is never reached counts as precision 0.

    Args:
        matches: Detections compared with the true boxes.
        rule: ``"all"``: every image counts; boxes on images without detections are misses, and detections on images
            without boxes are false alarms. ``"upstream"``: images without any detection, and images without any
            box, are left out, as in the published code: both kinds of error disappear. How much that flatters depends
            on the least score of a detection, which is 0.5 there (``min_score`` of :func:`match_detections`).
        images: Numbers of the images that count, with repeats (a resample); default: each once.

    Returns:
        ``(T,)`` float64 in [0, 1]; NaN where no image that counts has a box.

    >>> truths = [np.array([[0, 0, 4, 4]]), np.zeros((0, 4))]
    >>> alarm = Detections(np.array([[0.0, 0, 4, 4]]), np.array([0.9]))
    >>> matches = match_detections([Detections(alarm.boxes, np.array([0.5])), alarm], truths, thresholds=[0.5])
    >>> average_precision(matches).round(3).item(), average_precision(matches, rule="upstream").round(3).item()
    (0.5, 1.0)
    """
    if rule not in ("all", "upstream"):
        raise ValueError(f"rule must be 'all' or 'upstream', found {rule!r}")
    weights = np.ones(len(matches)) if images is None else np.bincount(images, minlength=len(matches)).astype(float)
    if rule == "upstream":
        weights = weights * ((matches.boxes > 0) & (matches.detections > 0))
    total = float(weights @ matches.boxes)
    if not total:
        return np.full(len(matches.thresholds), np.nan)
    own = weights[matches.image]
    seen = np.cumsum(own)
    result = np.zeros(len(matches.thresholds))
    for number, hits in enumerate(matches.hits):
        found = np.cumsum(own * hits)
        precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        # A recall of 0.07 must reach the grid's 0.07 although 7 / 100 and 0.07 may differ in the last bit.
        result[number] = precision[np.searchsorted(found / total, _RECALLS - 1e-12)].mean()
    return result


def mean_average_precision(
    detections: Sequence[Detections],
    truths: Sequence[np.ndarray],
    *,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
    rule: Rule = "all",
    min_score: float = 0.0,
    max_detections: int = 100,
) -> float:
    """Average precision, averaged over IoU thresholds: the metric of table 2, in [0, 1].

    Equals pycocotools at the same thresholds, except where a recall lies exactly on the grid and rounding makes
    pycocotools miss it (7 of 10 boxes: 70 recalls there, 71 here, of 101). See :func:`match_detections` and
    :func:`average_precision`. NaN where no image that counts has a box.
    """
    matches = match_detections(
        detections, truths, thresholds=thresholds, min_score=min_score, max_detections=max_detections
    )
    return float(average_precision(matches, rule=rule).mean())


def map_interval(
    matches: Matches,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    rule: Rule = "all",
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean average precision with a 95 % bootstrap interval over test images, or over patients.

    Args:
        matches: Detections compared with the true boxes.
        groups: Patient of each image; whole patients are then drawn.
        rule: As in :func:`average_precision`.
        resamples: Number of resamples; those without any box are left out.
        seed: Seed of the resampling.

    Raises:
        ValueError: no image has a box.
    """
    return bootstrap_interval(
        lambda rows: _mean(average_precision(matches, rule=rule, images=rows)),
        len(matches),
        groups=groups,
        resamples=resamples,
        seed=seed,
    )


@dataclass(frozen=True)
class DetectionResult:
    """Detection with one encoder at one share of the labels.

    Attributes:
        mean: Mean of mAP over seeds, on the test split.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n: Number of units behind the interval.
        spread: ``"seeds"``: t interval over seeds; ``"patients"``: bootstrap over the test split, for one seed.
        values: mAP for each seed.
        subsets: For each seed the rows of the training split whose boxes were used.
        matches: For each seed the compared detections of the test split: other rules and resamples need no more.
        detections: For each seed the detections of the test split.
    """

    mean: float
    low: float
    high: float
    n: int
    spread: Literal["seeds", "patients"]
    values: tuple[float, ...]
    subsets: tuple[tuple[int, ...], ...]
    matches: tuple[Matches, ...] = field(repr=False, compare=False)
    detections: tuple[list[Detections], ...] = field(repr=False, compare=False)

    def as_metric(self) -> dict[str, float]:
        """Return the form that ``metrics.json`` holds."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def detection_probe(
    train: FeatureMaps,
    valid: FeatureMaps,
    test: FeatureMaps,
    *,
    fraction: float,
    seeds: Sequence[int],
    recipe: HeadRecipe | None = None,
    channels: int = 64,
    resamples: int = 1000,
) -> DetectionResult:
    """Train a detector per seed on a share of the labels, and measure it on the test split.

    Args:
        train: Maps of `BoxImages`, training split.
        valid: The same, validation split.
        test: The same, test split.
        fraction: Share of the training images in (0, 1].
        seeds: One detector each.
        recipe: Settings of the training.
        channels: Width of pyramid and heads.
        resamples: Bootstrap resamples, where there is one seed.

    Raises:
        ValueError: no seed, a fraction out of range, or a split without boxes.
    """
    if not len(seeds):
        raise ValueError("a detection probe needs at least one seed")
    if not test.dataset.present.any():
        raise ValueError(f"{test.dataset.studies.root}: no test image has a box")
    truths = [boxes.numpy() for boxes in test.dataset.boxes]
    settings = {"fraction": fraction, "recipe": recipe, "channels": channels}
    subsets, matches, detections = [], [], []
    for seed in seeds:
        trained = train_detector(train, valid, seed=seed, **settings)
        detections.append(detect(trained.detector, test))
        matches.append(match_detections(detections[-1], truths))
        subsets.append(trained.rows)
    values = tuple(_mean(average_precision(one)) for one in matches)
    if len(seeds) > 1:
        interval, spread = t_interval(values, bounds=(0.0, 1.0)), "seeds"
    else:
        interval = map_interval(matches[0], groups=_patients(test), resamples=resamples)
        spread = "patients"
    return DetectionResult(
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        spread=spread,
        values=values,
        subsets=tuple(subsets),
        matches=tuple(matches),
        detections=tuple(detections),
    )


def detection_gain(
    result: DetectionResult,
    baseline: DetectionResult,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
) -> Interval:
    """Gain in mAP of one encoder over another, paired: same labelled images, same test images.

    Args:
        result: Of the encoder in question.
        baseline: Of the other encoder, with the same seeds and share of labels.
        groups: Patient of each test image, for the bootstrap of a single seed.
        resamples: Bootstrap resamples, where there is one seed.

    Returns:
        Mean difference with a t interval over seeds, or with a bootstrap over the test split for one seed.

    Raises:
        ValueError: the results are of different labelled images or other test images.
    """
    if result.subsets != baseline.subsets or not np.array_equal(result.matches[0].boxes, baseline.matches[0].boxes):
        raise ValueError("a paired gain needs detectors of the same seeds, share of labels, and test images")
    if len(result.values) > 1:
        return t_interval(np.subtract(result.values, baseline.values), bounds=(-1.0, 1.0))
    return map_gain(result.matches[0], baseline.matches[0], groups=groups, resamples=resamples)


def map_gain(
    matches: Matches,
    baseline: Matches,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Gain in mAP of some detections over others on the same test images: a bootstrap of the difference.

    The two need not come from a trained head: one may claim the usual places on every image.

    Args:
        matches: Of the detections in question.
        baseline: Of the others.
        groups: Patient of each image; whole patients are then drawn.
        resamples: Number of resamples; those without any box are left out.
        seed: Seed of the resampling.

    Raises:
        ValueError: the two are of different test images or thresholds, or no image has a box.
    """
    if not np.array_equal(matches.boxes, baseline.boxes) or matches.thresholds != baseline.thresholds:
        raise ValueError("a paired gain needs detections on the same test images, at the same thresholds")
    return bootstrap_interval(
        lambda rows: _mean(average_precision(matches, images=rows) - average_precision(baseline, images=rows)),
        len(matches),
        groups=groups,
        resamples=resamples,
        seed=seed,
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _patients(maps: FeatureMaps) -> np.ndarray:
    return maps.dataset.studies.table["patient_id"].to_numpy()


def _anchors(grids: Sequence[Sequence[int]], image_size: int) -> Tensor:
    """All anchors ``(A, 4)`` in the order of the head's outputs: level, row, column, shape."""
    maker = AnchorGenerator()
    parts = []
    for number, (height, width) in enumerate(grids):
        sizes = [image_size / 12 * 2 ** (number + third / 3) for third in range(3)]
        shapes = maker.generate_anchors(sizes, [0.5, 1.0, 2.0])
        y = (torch.arange(height) + 0.5) * image_size / height
        x = (torch.arange(width) + 0.5) * image_size / width
        centre_y, centre_x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack([centre_x, centre_y, centre_x, centre_y], dim=-1).reshape(-1, 1, 4)
        parts.append((centres + shapes).reshape(-1, 4))
    return torch.cat(parts)


def _hits(boxes: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    hits = np.zeros((len(thresholds), len(boxes)), dtype=bool)
    if not len(boxes) or not len(truth):
        return hits
    overlaps = box_iou(torch.from_numpy(boxes), torch.from_numpy(truth)).numpy()
    for number, threshold in enumerate(thresholds):
        free = np.ones(len(truth), dtype=bool)
        for place, overlap in enumerate(overlaps):
            best = int(np.where(free, overlap, -1).argmax())
            if free[best] and overlap[best] >= threshold:
                hits[number, place] = True
                free[best] = False
    return hits
