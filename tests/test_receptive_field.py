"""Where patches look, against encoders whose fields are known."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mgca_lib.encoders import ImageEncoder
from mgca_lib.evaluation.receptive_field import patch_offset, pixel_influence


class Reader(nn.Module):
    """Each patch of a grid reads a block of pixels that lies so many pixels beside its own tile."""

    def __init__(self, *, tile, down, right, size=64, block=1):
        super().__init__()
        first = tile // 2 - block // 2
        self.rows = (torch.arange(0, size, tile) + first + down).clamp(0, size - block)
        self.columns = (torch.arange(0, size, tile) + first + right).clamp(0, size - block)
        self.block = block

    def forward(self, images):
        squares = nn.functional.unfold(images, self.block).view(len(images), self.block**2, -1)
        across = images.shape[-1] - self.block + 1
        places = (self.rows[:, None] * across + self.columns).flatten()
        return SimpleNamespace(local=squares[:, :, places].transpose(1, 2))


def films(size=64, count=3):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("down", "right"), [(0, 0), (-3, 0), (0, 2), (-3, -2)])
@pytest.mark.parametrize("block", [1, 3, 5])
def test_the_offset_of_readers_that_look_beside_their_tile(down, right, block):
    """A block of odd width around pixel ``tile / 2`` has its middle half a pixel beside that of the tile.

    Directions are drawn at random, 48 of them, so that the pixels of a block do not count quite alike.
    """
    reader = Reader(tile=8, down=down, right=right, block=block)
    expected = ((down + 0.5) / 8, (right + 0.5) / 8)
    assert patch_offset(reader, films()) == pytest.approx(expected, abs=1e-5 if block == 1 else 0.02)


def test_influence_is_where_the_patch_reads_and_nowhere_else():
    influence = pixel_influence(Reader(tile=8, down=-3, right=2, block=3), films(), 1, 2)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[8:11, 21:24] = True
    assert torch.equal(influence > 0, inside)
    assert influence.sum().item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"no patch \(8, 0\) in 64 patches"):
        pixel_influence(Reader(tile=8, down=0, right=0), films(), 8, 0)


def test_a_resnet_looks_up_and_to_the_left_and_a_vit_at_its_tile():
    """Strides of a ResNet pull by at most ``(tile - 1) / 2`` pixels: 3.5 of 8."""
    torch.manual_seed(0)
    resnet = ImageEncoder(
        "resnet10t", pretrained=False, image_size=96, local_stride=8, channels=(8, 16, 24, 32)
    ).train()
    offset = patch_offset(resnet, films(96, 8))
    assert all(-3.5 / 8 < part < -0.5 / 8 for part in offset)
    assert resnet.trunk.training
    vit = ImageEncoder("test_vit", pretrained=False, image_size=64)
    assert patch_offset(vit, films(64, 8)) == pytest.approx((0, 0), abs=0.1)


class Squarer(Reader):
    """Reads the square of its pixels, so that black films change nothing."""

    def forward(self, images):
        return super().forward(images.square())


def test_films_that_change_nothing_do_not_count():
    squarer = Squarer(tile=8, down=-3, right=2)
    black = torch.zeros(2, 1, 64, 64)
    mixed = torch.cat([black, films()])
    assert pixel_influence(squarer, mixed, 1, 2).sum().item() == pytest.approx(1)
    assert patch_offset(squarer, mixed) == pytest.approx((-2.5 / 8, 2.5 / 8), abs=1e-5)
    with pytest.raises(ValueError, match=r"no pixel changes patch \(2, 2\)"):
        patch_offset(squarer, black)
