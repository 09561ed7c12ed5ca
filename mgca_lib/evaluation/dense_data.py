"""What detection and segmentation share: images with boxes or masks, a frozen trunk's maps, and the training loop.

Boxes and masks lie on the encoder's input: they are resized, padded and cropped exactly as the image is. The trunk
never learns, so its feature maps are computed once and kept in memory where they fit; a head then trains on
them alone.
"""

# isort: off
import mgca_lib.torchvision_operators  # noqa: F401 - first: repairs a torchvision built for another torch

# isort: on
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from mgca_lib.data.studies import DAMAGED, DatasetError, Studies
from mgca_lib.data.tasks import Task, load_picture
from mgca_lib.data.transforms import ImageTransform, mask_to_input
from mgca_lib.encoders import ImageEncoder
from mgca_lib.evaluation.features import encoder_device, frozen
from mgca_lib.evaluation.linear_probe import draw_labels

STRIDES = (2, 4, 8, 16, 32)
_PRESENCE = Task("presence", "multilabel", ("present",), "auroc")


class BoxImages(Dataset):
    """Images with their boxes, all of one class, on the encoder's input.

    An item is ``(image, boxes)``: image ``(1, S, S)`` float32 in [-1, 1]; boxes ``(n, 4)`` float32, corners
    ``x1, y1, x2, y2`` in pixels of the input, ``n`` may be 0. The centre crop cuts the margin off: a box is clipped
    to what is left, and left out where less than ``min_visible`` of its area is. Upstream stretches the whole
    image to a square instead; ``ImageTransform(stored_size=S, image_size=S)`` shows the whole image, too,
    undistorted.

    Args:
        studies: Images with boxes, usually one split.
        transform: Makes the tensor from the stored image; must not be random.
        min_visible: Least share of a box's area that the crop must show, in (0, 1].

    Attributes:
        boxes: The boxes of each image.
        cut: Number of boxes that the crop clips but leaves in.
        left_out: Number of boxes that the crop leaves out.

    Raises:
        ValueError: the transform is random, or ``min_visible`` is out of range.
    """

    def __init__(self, studies: Studies, transform: ImageTransform, *, min_visible: float = 0.25) -> None:
        _check_fixed(transform)
        if not 0 < min_visible <= 1:
            raise ValueError(f"min_visible must lie in (0, 1], found {min_visible}")
        self.studies = studies
        self.transform = transform
        self.boxes: list[Tensor] = []
        self.cut = self.left_out = 0
        for row in range(len(studies)):
            whole = _input_boxes(studies, row, transform)
            clipped = whole.clip(0, transform.image_size)
            shown = _area(clipped) / _area(whole)
            keep = shown >= min_visible
            self.cut += int((keep & (shown < 1 - 1e-9)).sum())
            self.left_out += int((~keep).sum())
            self.boxes.append(torch.from_numpy(clipped[keep].astype(np.float32)))

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.transform(load_picture(self.studies, row)), self.boxes[row]

    @property
    def present(self) -> np.ndarray:
        """``(N,)`` bool: which images have a box."""
        return np.array([len(boxes) > 0 for boxes in self.boxes])


class MaskImages(Dataset):
    """Images with one mask each, on the encoder's input.

    An item is ``(image, mask)``: image ``(1, S, S)`` float32 in [-1, 1]; mask ``(S, S)`` bool. A mask file counts
    as set where it is not 0, and an image without one has the empty mask. Differs from upstream, which leaves
    resized masks fractional, augments, and stretches the image to a square.

    Args:
        studies: Images with masks or boxes, usually one split.
        transform: Makes the tensor from the stored image; must not be random.
        source: ``"mask"`` reads the dataset's mask files (SIIM). ``"boxes"`` fills the union of the boxes (RSNA, as
            upstream): a pixel is set where its centre lies in a box.

    Raises:
        ValueError: the transform is random or the source unknown.
        DatasetError: no image has a mask, or a mask cannot be read or has another shape than its image.
    """

    def __init__(
        self, studies: Studies, transform: ImageTransform, *, source: Literal["mask", "boxes"] = "mask"
    ) -> None:
        _check_fixed(transform)
        if source not in ("mask", "boxes"):
            raise ValueError(f"source must be 'mask' or 'boxes', found {source!r}")
        column = "mask" if source == "mask" else "boxes"
        if not any(len(value) for value in studies.table[column]):
            raise DatasetError(f"{studies.root}: column {column!r}: no image has any; choose another source")
        self.studies = studies
        self.transform = transform
        self.source = source
        size = transform.image_size
        self._packed = np.zeros((len(studies), math.ceil(size * size / 8)), dtype=np.uint8)
        for row in range(len(studies)):
            mask = box_mask(studies, row, transform) if source == "boxes" else _file_mask(studies, row, transform)
            self._packed[row] = np.packbits(mask)

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.transform(load_picture(self.studies, row)), torch.from_numpy(self.masks([row])[0])

    def masks(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return the masks of some rows (default: all) as bool ``(len(rows), S, S)``."""
        size = self.transform.image_size
        packed = self._packed if rows is None else self._packed[np.asarray(rows)]
        bits = np.unpackbits(packed, axis=1, count=size * size)
        return bits.reshape(-1, size, size).astype(bool)

    @property
    def present(self) -> np.ndarray:
        """``(N,)`` bool: which images have a mask that is not empty."""
        return self._packed.any(axis=1)


def boxes_to_input(boxes: np.ndarray, *, width: int, height: int, stored_size: int, image_size: int) -> np.ndarray:
    """Take boxes along the road of the evaluation transform, without clipping them to the crop.

    Args:
        boxes: ``(n, 4)`` corners ``x1, y1, x2, y2``, in pixels of the stored image.
        width: Width of the stored image, pixels.
        height: Height of the stored image, pixels.
        stored_size: As in :class:`ImageTransform`.
        image_size: As in :class:`ImageTransform`.

    Returns:
        ``(n, 4)`` float64 corners, in pixels of the encoder's input; the crop spans 0 ... ``image_size``.

    >>> boxes_to_input([[0, 0, 20, 40]], width=20, height=40, stored_size=20, image_size=16).tolist()
    [[3.0, -2.0, 13.0, 18.0]]
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    longer = max(width, height)
    sizes = [max(1, round(side * stored_size / longer)) for side in (width, height)]
    scale = np.array([sizes[0] / width, sizes[1] / height])
    corner = (stored_size - image_size) // 2
    shift = np.array([(stored_size - side) // 2 - corner for side in sizes])
    return boxes * np.tile(scale, 2) + np.tile(shift, 2)


def box_mask(studies: Studies, row: int, transform: ImageTransform, *, name: str | None = None) -> np.ndarray:
    """Return the boxes of an image as one mask, in the geometry of the encoder's input.

    Args:
        studies: Prepared dataset.
        row: Row of the image.
        transform: Without augmentation.
        name: Only boxes of this name; ``None``: all.

    Returns:
        ``(image_size, image_size)`` bool, True where a pixel's centre lies in a box.
    """
    centres = np.arange(transform.image_size) + 0.5
    mask = np.zeros((transform.image_size,) * 2, dtype=bool)
    for x1, y1, x2, y2 in _input_boxes(studies, row, transform, name):
        mask |= ((centres >= y1) & (centres < y2))[:, None] & ((centres >= x1) & (centres < x2))
    return mask


def draw_images(dataset: BoxImages | MaskImages, *, fraction: float, seed: int) -> np.ndarray:
    """Draw the images whose boxes or masks a head may learn from.

    The draw of the linear probe (`mgca_lib.evaluation.linear_probe.draw_labels`), with "has something to find" as
    the label: 1 % lies within 10 % of the same seed, and no draw is without an image that has something to find.

    Args:
        dataset: Training split.
        fraction: Share of the images in (0, 1].
        seed: Seed of the permutation.

    Returns:
        Sorted row numbers.

    Raises:
        ValueError: the fraction is out of range, or there is nothing to find on any image.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], found {fraction}")
    present = dataset.present
    if not present.any():
        raise ValueError(f"{dataset.studies.root}: nothing to learn: no training image has a box or a mask")
    return draw_labels(present.astype(np.float32)[:, None], _PRESENCE, fraction=fraction, seed=seed)


class FeatureMaps:
    """Feature maps of a frozen trunk for all images of a dataset.

    A CNN gives the last map of each stride asked for, a ViT the grid of its last block after the final norm. The
    encoder works in eval mode, without gradient and in float32, and gets its training mode back afterwards;
    neither its parameters nor its BatchNorm statistics can change (upstream leaves BatchNorm in training mode).
    Maps are kept in memory where they fit and computed anew for every batch where they do not.

    Args:
        encoder: Frozen image encoder; an ``upsample_to`` of its own is applied, as in pretraining.
        dataset: Images with boxes or masks.
        strides: Strides wanted of a CNN; those that the trunk lacks are left out.
        memory_gib: Most memory for kept maps, GiB.
        batch_size: Images at a time while maps are computed.
        num_workers: Loader processes.

    Attributes:
        dataset: The dataset.
        strides: Strides of the maps, rising.
        shapes: ``(C, H, W)`` of each map.
        image_size: ``S``, side of the encoder's input before ``upsample_to``.
        kept: Whether the maps are kept in memory; then they are float16.
        device: Device of the encoder, where the maps are delivered.

    Raises:
        ValueError: the dataset is empty, the trunk has none of the strides, or a map is not finite in float16.

    >>> encoder = ImageEncoder("test_resnet", pretrained=False, image_size=64)
    >>> strides = trunk_strides(encoder, (8, 16))
    >>> [tuple(level.shape) for level in trunk_maps(encoder, torch.zeros(2, 1, 64, 64), strides)]
    [(2, 48, 8, 8), (2, 192, 4, 4)]
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        dataset: BoxImages | MaskImages,
        *,
        strides: Sequence[int] = STRIDES,
        memory_gib: float = 4.0,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        if not len(dataset):
            raise ValueError("cannot compute feature maps of an empty dataset")
        self.encoder = encoder
        self.dataset = dataset
        self.strides = trunk_strides(encoder, strides)
        self.image_size = dataset.transform.image_size
        self.device = encoder_device(encoder)
        self.num_workers = num_workers
        self.shapes = tuple(tuple(level.shape[1:]) for level in self._compute(dataset[0][0][None]))
        self.kept = len(dataset) * sum(map(math.prod, self.shapes)) * 2 <= memory_gib * 2**30
        if self.kept:
            self._maps = [torch.empty((len(dataset), *shape), dtype=torch.float16) for shape in self.shapes]
            start = 0
            for images in self._images(range(len(dataset)), batch_size):
                for kept, level in zip(self._maps, self._compute(images), strict=True):
                    kept[start : start + len(images)] = level
                    wrong = (~torch.isfinite(kept[start : start + len(images)])).flatten(1).any(dim=1).nonzero()
                    if len(wrong):
                        image_id = dataset.studies.table["image_id"].iat[start + int(wrong[0])]
                        raise ValueError(
                            f"the feature maps of image {image_id!r} are not finite in float16; the encoder has "
                            "diverged, or set memory_gib=0 to compute them anew in float32"
                        )
                start += len(images)

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, rows: Sequence[int] | np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
        """Yield row numbers and maps, ``(B, C, H, W)`` float32 on the encoder's device, in the order of ``rows``."""
        rows = np.asarray(rows)
        parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        if self.kept:
            for part in parts:
                index = torch.from_numpy(part)
                yield part, [level[index].to(self.device).float() for level in self._maps]
        else:
            for part, images in zip(parts, self._images(rows, batch_size), strict=True):
                yield part, self._compute(images)

    def _compute(self, images: Tensor) -> list[Tensor]:
        return trunk_maps(self.encoder, images.to(self.device, non_blocking=True), self.strides)

    def _images(self, rows: Sequence[int] | np.ndarray, batch_size: int) -> Iterator[Tensor]:
        return iter(
            DataLoader(
                Subset(self.dataset, [int(row) for row in rows]),
                batch_size=batch_size,
                num_workers=self.num_workers,
                pin_memory=self.device.type == "cuda",
                collate_fn=_stack_images,
                generator=torch.Generator(),  # a loader draws from the global one otherwise
            )
        )


def trunk_strides(encoder: ImageEncoder, wanted: Sequence[int]) -> tuple[int, ...]:
    """Return the strides among ``wanted`` at which a trunk has maps; a ViT has one, the side of its patches.

    Raises:
        ValueError: the trunk has none of them.
    """
    has = {info["reduction"] for info in encoder.trunk.feature_info}
    strides = tuple(sorted(has)) if len(has) == 1 else tuple(sorted(has & set(wanted)))
    if not strides:
        raise ValueError(f"the trunk has maps of strides {sorted(has)}, none of {sorted(wanted)}")
    return strides


def trunk_maps(encoder: ImageEncoder, images: Tensor, strides: Sequence[int]) -> list[Tensor]:
    """Compute feature maps of the frozen trunk, without gradient and in float32.

    Args:
        encoder: Image encoder.
        images: ``(B, 1 or 3, S, S)`` float in [-1, 1], on the encoder's device.
        strides: Strides of the maps, each one that the trunk has.

    Returns:
        One ``(B, C, H, W)`` map a stride.
    """
    reductions = [info["reduction"] for info in encoder.trunk.feature_info]
    last = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides]
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    if encoder.upsample_to:
        images = F.interpolate(images, size=encoder.upsample_to, mode="bilinear", align_corners=True)
    if not encoder.is_vit:
        images = images.contiguous(memory_format=torch.channels_last)
    with frozen(encoder), torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return list(
            encoder.trunk.forward_intermediates(images, indices=last, norm=encoder.is_vit, intermediates_only=True)
        )


@dataclass(frozen=True)
class HeadRecipe:
    """How a head is trained on frozen maps: AdamW, warm-up, cosine, and the best of several checks on valid.

    Differs from upstream (AdamW 5e-4, no schedule, 50 epochs, early stopping after 10, batch 16): a step count that
    does not collapse with the share of the labels, and no augmentation, since the maps are computed once.

    Attributes:
        epochs: Passes over the drawn images.
        min_steps: Least number of optimiser steps, for small draws.
        batch_size: Images a step.
        learning_rate: Peak of AdamW.
        weight_decay: Of AdamW.
        warmup_fraction: Share of the steps with linearly rising learning rate.
        clip_norm: Clip the gradient to this norm.
        checks: How often the validation split is scored, evenly spaced; the best weights are kept.
    """

    epochs: int = 50
    min_steps: int = 200
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.1
    clip_norm: float = 1.0
    checks: int = 8

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "checks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must lie in [0, 1), found {self.warmup_fraction}")

    def steps(self, images: int) -> int:
        """Optimiser steps for a number of training images."""
        return max(self.min_steps, self.epochs * math.ceil(images / self.batch_size))


@dataclass(frozen=True)
class Check:
    """One look at the validation split during training.

    Attributes:
        step: Optimiser steps so far.
        loss: Mean training loss since the check before.
        score: Validation score; more is better.
    """

    step: int
    loss: float
    score: float


def train_head(
    head: nn.Module,
    maps: FeatureMaps,
    rows: np.ndarray,
    *,
    loss: Callable[[list[Tensor], np.ndarray], Tensor],
    score: Callable[[], float],
    recipe: HeadRecipe,
    seed: int,
) -> tuple[Check, ...]:
    """Train a head on frozen maps, and leave it in eval mode with the weights of its best check.

    Args:
        head: What learns.
        maps: Maps of the training split.
        rows: Rows it may learn from.
        loss: Function of the maps and the row numbers of a batch.
        score: Validation score of the head as it is; ties go to the earlier check.
        recipe: Settings.
        seed: Seed of the order of the images.

    Returns:
        All checks.

    Raises:
        ValueError: the loss is not finite.
    """
    steps = recipe.steps(len(rows))
    warmup = recipe.warmup_fraction * steps
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / max(warmup, 1), 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1))),
    )
    looks = set(np.linspace(0, steps, recipe.checks + 1)[1:].round().astype(int).tolist())
    checks: list[Check] = []
    best = copy.deepcopy(head.state_dict())
    losses: list[Tensor] = []
    head.train()
    for step, (part, levels) in enumerate(_endless(maps, rows, recipe.batch_size, seed, steps), start=1):
        value = loss(levels, part)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(head.parameters(), recipe.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(value.detach())
        if step in looks:
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                raise ValueError(f"the loss is not finite at step {step}; lower the learning_rate")
            losses.clear()
            head.eval()
            found = score()
            head.train()
            if not checks or found > max(check.score for check in checks):
                best = copy.deepcopy(head.state_dict())
            checks.append(Check(step, mean, found))
    head.load_state_dict(best)
    head.eval()
    return tuple(checks)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch within the block; the generators go on afterwards as if it had not been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _endless(
    maps: FeatureMaps, rows: np.ndarray, batch_size: int, seed: int, steps: int
) -> Iterator[tuple[np.ndarray, list[Tensor]]]:
    rng = np.random.default_rng(seed)
    done = 0
    while done < steps:
        for batch in maps.batches(rng.permutation(rows), batch_size):
            yield batch
            done += 1
            if done == steps:
                return


def _stack_images(items: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([image for image, _ in items])


def _check_fixed(transform: ImageTransform) -> None:
    if transform.augmentation != "none":
        raise ValueError("boxes and masks follow the centre crop; use a transform with augmentation='none'")


def _input_boxes(studies: Studies, row: int, transform: ImageTransform, name: str | None = None) -> np.ndarray:
    boxes = [box for box in studies.table["boxes"].iat[row] if name is None or box["name"] == name]
    corners = [[box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]] for box in boxes]
    return boxes_to_input(
        np.array(corners).reshape(-1, 4),
        width=int(studies.table["width"].iat[row]),
        height=int(studies.table["height"].iat[row]),
        stored_size=transform.stored_size,
        image_size=transform.image_size,
    )


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _file_mask(studies: Studies, row: int, transform: ImageTransform) -> np.ndarray:
    name = studies.table["mask"].iat[row]
    if not name:
        return np.zeros((transform.image_size,) * 2, dtype=bool)
    path = studies.root / name
    image_id = studies.table["image_id"].iat[row]
    try:
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert("L")) > 0
    except DAMAGED as error:
        raise DatasetError(f"{path}: mask of image {image_id!r} (row {row}) cannot be read: {error}") from None
    expected = (int(studies.table["height"].iat[row]), int(studies.table["width"].iat[row]))
    if mask.shape != expected:
        raise DatasetError(
            f"{path}: mask of image {image_id!r} (row {row}) is {mask.shape[1]} x {mask.shape[0]}, "
            f"its image {expected[1]} x {expected[0]}; run the prepare script again"
        )
    return mask_to_input(mask, stored_size=transform.stored_size, image_size=transform.image_size)
