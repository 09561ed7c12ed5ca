"""From a stored image to the tensor that an image encoder sees, and masks along the same road.

The published geometry: the longer side is resized with area interpolation, the shorter side zero-padded to a
square, then a random crop (training) or the centre crop (evaluation), and grey values mapped to [-1, 1].
"""

# isort: off
import mgca_lib.torchvision_operators  # noqa: F401 - first: repairs a torchvision built for another torch

# isort: on
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

Augmentation = Literal["none", "crop", "chexpert"]


@dataclass(frozen=True)
class ImageTransform:
    """Grey image to ``(1, image_size, image_size)`` float32 in [-1, 1].

    The encoder repeats the channel; storing one keeps batches three times smaller.

    Attributes:
        stored_size: Side of the padded square, pixels.
        image_size: Side of the crop, pixels.
        augmentation: ``"none"`` takes the centre crop; ``"crop"`` a random crop (pretraining, RSNA and COVIDx probes);
            ``"chexpert"`` adds upstream's jitter, blur and flip of its CheXpert probe.

    >>> picture = Image.fromarray(np.full((40, 20), 255, np.uint8))
    >>> tensor = ImageTransform(stored_size=40, image_size=32)(picture)
    >>> tensor.shape, tensor[0, 16, 16].item(), tensor[0, 16, 0].item()
    (torch.Size([1, 32, 32]), 1.0, -1.0)
    """

    stored_size: int
    image_size: int
    augmentation: Augmentation = "none"

    def __call__(self, picture: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Transform one picture; ``generator`` decides the random crop (default: torch's global one)."""
        return self.crop(self.square(picture), generator)

    def square(self, picture: Image.Image) -> Tensor:
        """First half, the same every time: the padded square, ``(stored_size, stored_size)`` uint8."""
        grey = picture if picture.mode == "L" else picture.convert("L")
        return torch.from_numpy(pad_to_square(np.asarray(grey), self.stored_size))

    def crop(self, square: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Second half: crop, augmentation and grey mapping of a padded square."""
        top, left = self._corner(generator)
        crop = square[top : top + self.image_size, left : left + self.image_size]
        tensor = crop.float()[None]
        if self.augmentation == "chexpert":
            return _CHEXPERT_AUGMENTATION(tensor.div_(255)).mul_(2).sub_(1)
        return tensor.div_(127.5).sub_(1)  # the same bits as above in one pass less: half of 255 is exact

    def _corner(self, generator: torch.Generator | None) -> tuple[int, int]:
        room = self.stored_size - self.image_size
        if self.augmentation == "none" or room == 0:
            return room // 2, room // 2
        top, left = torch.randint(0, room + 1, (2,), generator=generator).tolist()
        return top, left


# On one grey channel upstream's saturation, hue and greyscale steps have no effect, so they are left out.
_CHEXPERT_AUGMENTATION = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(brightness=0.4, contrast=0.4)], p=0.8),
        v2.RandomApply([v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=0.5),
        v2.RandomHorizontalFlip(p=0.5),
    ]
)


def pad_to_square(grey: np.ndarray, size: int) -> np.ndarray:
    """Resize the longer side of an 8-bit image to ``size`` (area interpolation) and zero-pad to a square.

    Args:
        grey: ``(H, W)`` uint8.
        size: Side of the result, pixels.

    Returns:
        ``(size, size)`` uint8.
    """
    return _pad(_resize(grey, size), size)


def mask_to_input(mask: np.ndarray, *, stored_size: int, image_size: int) -> np.ndarray:
    """Take a mask along the road of the evaluation transform, so that it lies on the encoder's input.

    Args:
        mask: ``(H, W)`` bool, in the geometry of the raw or stored image.
        stored_size: As in :class:`ImageTransform`.
        image_size: As in :class:`ImageTransform`.

    Returns:
        ``(image_size, image_size)`` bool: a pixel is set where at least half of it is covered.
    """
    square = pad_to_square(np.asarray(mask, dtype=np.uint8) * 255, stored_size)
    corner = (stored_size - image_size) // 2
    return square[corner : corner + image_size, corner : corner + image_size] >= 128


def to_display(image: Tensor) -> np.ndarray:
    """Undo the grey mapping: ``(1 or 3, H, W)`` in [-1, 1] to ``(H, W)`` float in [0, 1]."""
    return image[0].float().add(1).div(2).clamp(0, 1).cpu().numpy()


def _resize(grey: np.ndarray, size: int) -> np.ndarray:
    height, width = grey.shape
    longer = max(height, width)
    if longer == size:
        return grey
    shape = (max(1, round(width * size / longer)), max(1, round(height * size / longer)))
    # BOX is area interpolation when shrinking and nearest neighbour when growing, where bilinear is smoother.
    resample = Image.Resampling.BOX if longer > size else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(grey).resize(shape, resample))


def _pad(grey: np.ndarray, size: int) -> np.ndarray:
    height, width = grey.shape
    top, left = (size - height) // 2, (size - width) // 2
    square = np.zeros((size, size), dtype=grey.dtype)
    square[top : top + height, left : left + width] = grey
    return square
