"""Segmentation: can a decoder draw the outline of a finding from a frozen trunk's maps (the paper's table 3)?

A U-Net decoder (CNN) or a token-upsampling head (ViT) learns on the maps that
`mgca_lib.evaluation.dense_data.FeatureMaps` computed once. **Empty masks decide what Dice says:** where most images
are empty, a model that never predicts anything scores the share of empty images. So Dice over the images with
something to find stands beside Dice over all images, and beside what predicting nothing would score.
"""

# isort: off
import mgca_lib.torchvision_operators  # noqa: F401 - first: repairs a torchvision built for another torch

# isort: on
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from mgca_lib.evaluation.dense_data import Check, FeatureMaps, HeadRecipe, draw_images, seeded, train_head
from mgca_lib.evaluation.intervals import Interval, bootstrap_interval, t_interval

THRESHOLDS = tuple(round(0.05 * number, 2) for number in range(1, 20))
"""Probabilities above which a pixel may be called positive; the validation split chooses one."""

Rule = Literal["all", "positive", "upstream"]


class Segmenter(nn.Module):
    """Decoder for one class, on maps instead of images.

    Maps of several strides (CNN): the decoder of segmentation-models-pytorch's U-Net, as upstream, with one block a
    map and the maps as skip connections. The single map of a ViT: token upsampling after SETR-PUP, as
    upstream's unpublished option: a linear layer, then 3x3 convolution, BatchNorm, ReLU and bilinear doubling
    until the input's resolution is reached.

    Args:
        shapes: ``(C, H, W)`` of each map, finest first.
        image_size: Side of the encoder's input, pixels.
        widths: Channels of the decoder's blocks, coarsest first; where there are fewer blocks the first are left
            out, and where there are more the last is repeated (U-Net's own: 256, 128, 64, 32, 16).
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int, int]],
        image_size: int,
        *,
        widths: Sequence[int] = (64, 32, 16, 16, 8),
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.is_unet = len(shapes) > 1
        blocks = len(shapes) if self.is_unet else max(1, math.ceil(math.log2(image_size / shapes[0][1])))
        widths = (*widths, *[widths[-1]] * blocks)[max(0, len(widths) - blocks) :][:blocks]
        if self.is_unet:
            channels = [0, *(shape[0] for shape in shapes)]
            self.decoder: nn.Module = UnetDecoder(channels, widths, n_blocks=blocks)
        else:
            inputs = shapes[0][0]
            self.decoder = nn.Sequential(nn.Conv2d(inputs, inputs, kernel_size=1))
            for before, after in zip((inputs, *widths), widths, strict=False):
                self.decoder.extend(
                    [
                        nn.Conv2d(before, after, kernel_size=3, padding=1, bias=False),
                        nn.BatchNorm2d(after),
                        nn.ReLU(),
                        nn.Upsample(scale_factor=2, mode="bilinear"),
                    ]
                )
        self.head = nn.Conv2d(widths[-1], 1, kernel_size=3, padding=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return the logits ``(B, S, S)`` of every pixel."""
        size = (self.image_size, self.image_size)
        if self.is_unet:
            # The decoder reads the input's size off an entry that would be the input itself.
            hidden = self.decoder([maps[0].new_empty(len(maps[0]), 0, *size), *maps])
        else:
            hidden = self.decoder(maps[0])
            if hidden.shape[-2:] != size:  # patches whose side is no power of 2
                hidden = F.interpolate(hidden, size=size, mode="bilinear")
        return self.head(hidden)[:, 0]


def segmentation_loss(logits: Tensor, masks: Tensor, *, focal_weight: float = 10.0) -> Tensor:
    """The published loss: 10 x focal loss (gamma 2) minus the logarithm of the soft Dice of the whole batch.

    Args:
        logits: ``(B, S, S)``.
        masks: ``(B, S, S)`` in [0, 1].
        focal_weight: Weight of the focal term, which is averaged over pixels.

    Returns:
        Scalar; soft Dice is ``(2 sum(p m) + 1) / (sum(p) + sum(m) + 1)`` over all pixels of the batch.

    >>> segmentation_loss(torch.full((1, 2, 2), 50.0), torch.ones(1, 2, 2)).abs().item() < 1e-6
    True
    """
    masks = masks.to(logits.dtype)
    focal = sigmoid_focal_loss(logits, masks, alpha=-1, gamma=2, reduction="mean")
    probability = logits.sigmoid()
    soft_dice = (2 * (probability * masks).sum() + 1) / (probability.sum() + masks.sum() + 1)
    return focal_weight * focal - soft_dice.log()


@dataclass(frozen=True)
class TrainedSegmenter:
    """A decoder and how it came to be.

    Attributes:
        segmenter: In eval mode, with the weights of its best check.
        rows: Rows of the training split whose masks were used.
        checks: Validation score (minus the validation loss) during training.
    """

    segmenter: Segmenter
    rows: tuple[int, ...]
    checks: tuple[Check, ...]


def train_segmenter(
    train: FeatureMaps,
    valid: FeatureMaps,
    *,
    fraction: float,
    seed: int,
    recipe: HeadRecipe | None = None,
    widths: Sequence[int] = (64, 32, 16, 16, 8),
) -> TrainedSegmenter:
    """Train a decoder on the frozen maps of a share of the training images.

    The validation split is used whole at every fraction: the weights with its least loss are kept, as upstream.

    Args:
        train: Maps of `MaskImages`, training split.
        valid: The same, validation split.
        fraction: Share of the training images in (0, 1]; see `mgca_lib.evaluation.dense_data.draw_images`.
        seed: Seed of the draw, the initial weights and the order.
        recipe: Settings of the training.
        widths: Channels of the decoder.

    Raises:
        ValueError: the fraction is out of range, or the training split has no mask that is not empty.
    """
    rows = draw_images(train.dataset, fraction=fraction, seed=seed)
    with seeded(seed, train.device):
        segmenter = Segmenter(train.shapes, train.image_size, widths=widths).to(train.device)
        checks = train_head(
            segmenter,
            train,
            rows,
            loss=lambda maps, part: segmentation_loss(segmenter(maps), _masks(train, part)),
            score=lambda: -_validation_loss(segmenter, valid),
            recipe=recipe or HeadRecipe(),
            seed=seed,
        )
    return TrainedSegmenter(segmenter, tuple(rows.tolist()), checks)


@torch.no_grad()
def segment(segmenter: Segmenter, maps: FeatureMaps, *, batch_size: int = 64) -> np.ndarray:
    """Return the probability of every pixel of all images, float16 ``(N, S, S)``, in the order of the dataset."""
    training = segmenter.training
    segmenter.eval()
    parts = [
        segmenter(levels).sigmoid().half().cpu().numpy() for _, levels in maps.batches(np.arange(len(maps)), batch_size)
    ]
    segmenter.train(training)
    return np.concatenate(parts)


def dice_scores(predicted: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Dice of each image: ``2 |P and M| / (|P| + |M|)``.

    **Empty-mask rule**, as upstream: an empty mask scores 1 if the prediction is empty, else 0.

    Args:
        predicted: ``(N, H, W)`` bool.
        masks: ``(N, H, W)`` bool.

    Returns:
        ``(N,)`` float64 in [0, 1].

    Raises:
        ValueError: the shapes differ, or one of the two is not bool.

    >>> masks = np.array([[[1, 1, 0]], [[0, 0, 0]], [[0, 0, 0]]], bool)
    >>> dice_scores(np.array([[[0, 1, 0]], [[0, 0, 0]], [[0, 1, 0]]], bool), masks).round(3).tolist()
    [0.667, 1.0, 0.0]
    """
    if predicted.shape != masks.shape or predicted.ndim != 3:
        raise ValueError(f"predictions {predicted.shape} and masks {masks.shape} must both be (N, H, W)")
    if predicted.dtype != bool or masks.dtype != bool:  # a mask of 0 and 255 would count each pixel 255 times
        raise ValueError(
            f"predictions ({predicted.dtype}) and masks ({masks.dtype}) must both be bool: compare with a threshold"
        )
    shared = (predicted & masks).sum(axis=(1, 2))
    total = predicted.sum(axis=(1, 2)) + masks.sum(axis=(1, 2))
    return np.divide(2 * shared, total, out=np.ones(len(masks)), where=total > 0)


def dice(scores: np.ndarray, present: np.ndarray, *, rule: Rule = "all", batch_size: int = 16) -> float:
    """Mean Dice, in [0, 1].

    Args:
        scores: ``(N,)`` Dice of each image, from :func:`dice_scores`.
        present: ``(N,)`` bool: whether the image's mask is not empty.
        rule: ``"all"``: mean over images. ``"positive"``: mean over images whose mask is not empty.
            ``"upstream"``: mean over batches of their means, so that images of an incomplete last batch weigh more.
        batch_size: Images a batch of the upstream rule (published: 8 for SIIM, 16 for RSNA).

    Returns:
        The mean; NaN where no image counts.

    >>> scores, present = np.array([0.5, 1.0, 0.0]), np.array([True, False, False])
    >>> [dice(scores, present, rule=rule, batch_size=2) for rule in ("all", "positive", "upstream")]
    [0.5, 0.5, 0.375]
    """
    if rule == "positive":
        scores = scores[np.asarray(present, dtype=bool)]  # 0 and 1 would be taken for places
    elif rule == "upstream":
        scores = np.array([scores[start : start + batch_size].mean() for start in range(0, len(scores), batch_size)])
    elif rule != "all":
        raise ValueError(f"rule must be 'all', 'positive' or 'upstream', found {rule!r}")
    return float(scores.mean()) if len(scores) else math.nan


def dice_interval(
    scores: np.ndarray,
    present: np.ndarray,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    rule: Rule = "all",
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean Dice with a 95 % bootstrap interval over test images, or over patients.

    Args:
        scores: As in :func:`dice`.
        present: As in :func:`dice`.
        groups: Patient of each image; whole patients are then drawn.
        rule: As in :func:`dice`.
        resamples: Number of resamples; those in which no image counts are left out.
        seed: Seed of the resampling.

    Raises:
        ValueError: no image counts.
    """
    if rule == "positive":  # images that never count are no cases, and their patients are not behind the interval
        present = np.asarray(present, dtype=bool)
        groups = None if groups is None else [group for group, own in zip(groups, present, strict=True) if own]
        scores = scores[present]
        present = present[present]
    return bootstrap_interval(
        lambda rows: dice(scores[rows], present[rows], rule=rule),
        len(scores),
        groups=groups,
        resamples=resamples,
        seed=seed,
    )


def choose_threshold(probabilities: np.ndarray, masks: np.ndarray, *, rule: Rule = "all") -> float:
    """Return the threshold of the best mean Dice, for the validation split; of equals the nearest to 0.5.

    Upstream always takes 0.5.

    Args:
        probabilities: ``(N, S, S)`` in [0, 1].
        masks: ``(N, S, S)`` bool.
        rule: As in :func:`dice`.

    Returns:
        One of `THRESHOLDS`; a pixel is positive where its probability is greater.

    Raises:
        ValueError: no image counts: there is none, or by rule ``"positive"`` every mask is empty.
    """
    present = masks.any(axis=(1, 2))
    if not (present.any() if rule == "positive" else len(present)):
        raise ValueError(f"rule {rule!r}: no image to choose a threshold by; {present.sum()} masks are not empty")
    values = [dice(dice_scores(probabilities > threshold, masks), present, rule=rule) for threshold in THRESHOLDS]
    best = np.flatnonzero(np.array(values) == np.nanmax(values))
    return min((THRESHOLDS[number] for number in best), key=lambda threshold: abs(threshold - 0.5))


@dataclass(frozen=True)
class SegmentationResult:
    """Segmentation with one encoder at one share of the labels, by two rules.

    Attributes:
        all: Mean Dice over all test images with its 95 % interval.
        positive: Mean Dice over the test images whose mask is not empty.
        nothing: What an always empty prediction scores over all test images: the share of empty masks.
        spread: ``"seeds"``: t interval over seeds; ``"patients"``: bootstrap over the test split, for one seed.
        values: Rule -> mean Dice for each seed.
        thresholds: Rule -> threshold for each seed; the validation split chose it by that rule.
        subsets: For each seed the rows of the training split whose masks were used.
        scores: Rule -> for each seed the Dice of each test image at that threshold.
        present: Whether the mask of a test image is not empty.
        probabilities: For each seed the probabilities of the test images, float16 ``(N, S, S)``.
    """

    all: Interval
    positive: Interval
    nothing: float
    spread: Literal["seeds", "patients"]
    values: dict[str, tuple[float, ...]]
    thresholds: dict[str, tuple[float, ...]]
    subsets: tuple[tuple[int, ...], ...]
    scores: dict[str, tuple[np.ndarray, ...]] = field(repr=False, compare=False)
    present: np.ndarray = field(repr=False, compare=False)
    probabilities: tuple[np.ndarray, ...] = field(repr=False, compare=False)


def segmentation_probe(
    train: FeatureMaps,
    valid: FeatureMaps,
    test: FeatureMaps,
    *,
    fraction: float,
    seeds: Sequence[int],
    recipe: HeadRecipe | None = None,
    widths: Sequence[int] = (64, 32, 16, 16, 8),
    resamples: int = 1000,
) -> SegmentationResult:
    """Train a decoder per seed on a share of the labels, and measure it on the test split.

    Args:
        train: Maps of `MaskImages`, training split.
        valid: The same, validation split.
        test: The same, test split.
        fraction: Share of the training images in (0, 1].
        seeds: One decoder each.
        recipe: Settings of the training.
        widths: Channels of the decoder.
        resamples: Bootstrap resamples, where there is one seed.

    Raises:
        ValueError: no seed, a fraction out of range, or a split in which every mask is empty.
    """
    if not len(seeds):
        raise ValueError("a segmentation probe needs at least one seed")
    for part, name in ((valid, "validation"), (test, "test")):
        if not part.dataset.present.any():
            raise ValueError(f"{part.dataset.studies.root}: every {name} mask is empty")
    settings = {"fraction": fraction, "recipe": recipe, "widths": widths}
    valid_masks, masks, present = valid.dataset.masks(), test.dataset.masks(), test.dataset.present
    rules: tuple[Rule, ...] = ("all", "positive")
    thresholds: dict[str, list[float]] = {rule: [] for rule in rules}
    scores: dict[str, list[np.ndarray]] = {rule: [] for rule in rules}
    subsets, probabilities = [], []
    for seed in seeds:
        trained = train_segmenter(train, valid, seed=seed, **settings)
        subsets.append(trained.rows)
        probabilities.append(segment(trained.segmenter, test))
        chosen_on = segment(trained.segmenter, valid)
        for rule in rules:
            thresholds[rule].append(choose_threshold(chosen_on, valid_masks, rule=rule))
            scores[rule].append(dice_scores(probabilities[-1] > thresholds[rule][-1], masks))
    values = {rule: tuple(dice(one, present, rule=rule) for one in scores[rule]) for rule in rules}
    patients = test.dataset.studies.table["patient_id"].to_numpy()
    intervals = {
        rule: t_interval(values[rule], bounds=(0.0, 1.0))
        if len(seeds) > 1
        else dice_interval(scores[rule][0], present, groups=patients, rule=rule, resamples=resamples)
        for rule in rules
    }
    return SegmentationResult(
        all=intervals["all"],
        positive=intervals["positive"],
        nothing=float(1 - present.mean()),
        spread="seeds" if len(seeds) > 1 else "patients",
        values=values,
        thresholds={rule: tuple(thresholds[rule]) for rule in rules},
        subsets=tuple(subsets),
        scores={rule: tuple(scores[rule]) for rule in rules},
        present=present,
        probabilities=tuple(probabilities),
    )


def segmentation_gain(
    result: SegmentationResult,
    baseline: SegmentationResult,
    *,
    rule: Literal["all", "positive"] = "all",
    groups: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
) -> Interval:
    """Gain in mean Dice of one encoder over another, paired: same labelled images, same test images.

    Args:
        result: Of the encoder in question.
        baseline: Of the other encoder, with the same seeds and share of labels.
        rule: As in :func:`dice`.
        groups: Patient of each test image, for the bootstrap of a single seed.
        resamples: Bootstrap resamples, where there is one seed.

    Returns:
        Mean difference with a t interval over seeds, or with a bootstrap over the test split for one seed.

    Raises:
        ValueError: the results are of different labelled images or other test images.
    """
    if result.subsets != baseline.subsets or not np.array_equal(result.present, baseline.present):
        raise ValueError("a paired gain needs decoders of the same seeds, share of labels, and test images")
    if len(result.subsets) > 1:
        return t_interval(np.subtract(result.values[rule], baseline.values[rule]), bounds=(-1.0, 1.0))
    difference = result.scores[rule][0] - baseline.scores[rule][0]
    return dice_interval(difference, result.present, groups=groups, rule=rule, resamples=resamples)


def _masks(maps: FeatureMaps, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(maps.dataset.masks(rows)).to(maps.device)


@torch.no_grad()
def _validation_loss(segmenter: Segmenter, valid: FeatureMaps) -> float:
    parts = valid.batches(np.arange(len(valid)), 64)
    losses = [(len(rows), segmentation_loss(segmenter(levels), _masks(valid, rows))) for rows, levels in parts]
    return float(sum(count * loss for count, loss in losses)) / len(valid)
