"""Where a patch looks: which pixels of the film change its vector, and how far their middle lies from its tile.

A map over patches is drawn as if each patch saw its own tile of the film. A CNN's patches see more, and not evenly
around the tile: a convolution with a kernel of three and a stride of two has its middle on the *first* of the two
pixels that it steps over. Kernels and strides of a ResNet alone would put the middle of what a patch of stride 16 sees
7.5 pixels up and to the left of the middle of its tile; the ways around the convolutions (shortcuts) pull it back, and
training decides how much of either counts. So it is measured: by the gradient, as the effective receptive field of Luo
et al. (NeurIPS 2016). No label and no mask takes part.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mgca_lib.encoders import ImageEncoder
from mgca_lib.evaluation.features import encoder_device, frozen

ON_TILES = (0.0, 0.0)
"""The offset of maps that are drawn as usual, each value in the middle of its tile."""

_BLOCK = 4  # patches a side, in the middle of the film


def pixel_influence(encoder: ImageEncoder, images: Tensor, row: int, column: int, *, seed: int = 0) -> Tensor:
    """How much each pixel changes one patch: the squared gradient of the patch's vector in a random direction.

    Args:
        encoder: An image encoder; it works where it is, in eval mode, and gets its training mode back.
        images: ``(B, 1 or 3, S, S)`` float, as the encoder reads them.
        row: Row of the patch, counted from the top.
        column: Column of the patch.
        seed: Decides the direction, one for each image.

    Returns:
        ``(S, S)`` float32 on the CPU: mean over the images that change the patch at all, each of which adds up to 1.

    Raises:
        ValueError: the patches form no square, there is no such patch, or no pixel of any image changes it.

    >>> encoder = ImageEncoder("test_vit", pretrained=False, image_size=64)
    >>> influence = pixel_influence(encoder, torch.rand(2, 1, 64, 64), 1, 2)
    >>> influence.shape, round(influence.sum().item(), 4)
    (torch.Size([64, 64]), 1.0)
    """
    return _influences(encoder, images, {(row, column): seed})[row, column]


def patch_offset(encoder: ImageEncoder, images: Tensor) -> tuple[float, float]:
    """How far the middle of what a patch sees lies from the middle of its tile.

    The centre of gravity of :func:`pixel_influence`, averaged over the four by four patches in the middle (all, where
    there are fewer): the border of the film cuts off what they see on all sides alike.

    Args:
        encoder: An image encoder with a square of patches.
        images: ``(B, 1 or 3, S, S)`` float; a few dozen films will do.

    Returns:
        Rows (down) and columns (to the right), in sides of a tile; ``offset`` of the functions of
        :mod:`mgca_lib.evaluation.grounding`.

    Raises:
        ValueError: as :func:`pixel_influence`.
    """
    with torch.inference_mode(), frozen(encoder):
        side = round(encoder(images[:1].to(encoder_device(encoder))).local.shape[1] ** 0.5)
    tile = images.shape[-1] / side
    block = range(max(0, side // 2 - _BLOCK // 2), min(side, side // 2 + _BLOCK // 2))
    pixel = torch.arange(images.shape[-1]) + 0.5
    offsets = []
    seeds = {(row, column): row * side + column for row in block for column in block}
    for (row, column), influence in _influences(encoder, images, seeds).items():
        down, right = ((influence.sum(dim=axis) * pixel).sum() for axis in (1, 0))
        offsets.append((down / tile - row - 0.5, right / tile - column - 0.5))
    rows, columns = torch.tensor(offsets).mean(dim=0).tolist()
    return rows, columns


def _influences(
    encoder: ImageEncoder, images: Tensor, seeds: Mapping[tuple[int, int], int]
) -> dict[tuple[int, int], Tensor]:
    """:func:`pixel_influence` of several patches, by row and column, from one pass through the encoder."""
    found = {}
    with frozen(encoder), torch.enable_grad():
        pixels = images.to(encoder_device(encoder), copy=True).requires_grad_()
        local = encoder(pixels).local
        side = round(local.shape[1] ** 0.5)
        for (row, column), seed in seeds.items():
            if side**2 != local.shape[1] or not (0 <= row < side and 0 <= column < side):
                raise ValueError(f"no patch ({row}, {column}) in {local.shape[1]} patches of a square")
            vector = local[:, row * side + column].float()
            # In one direction that is one sample of the sum over all directions, of the whole Jacobian.
            direction = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed)).to(vector)
            (change,) = torch.autograd.grad((vector * direction).sum(), pixels, retain_graph=True)
            energy = change.float().square().sum(dim=1)
            total = energy.sum(dim=(1, 2), keepdim=True)
            alive = total.flatten() > 0
            if not alive.any():
                raise ValueError(
                    f"no pixel changes patch ({row}, {column}): is this encoder trained, and its output not constant?"
                )
            found[row, column] = (energy / total)[alive].mean(dim=0).cpu()
    return found
