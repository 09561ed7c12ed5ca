"""The road of an image to the encoder, against geometry worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from mgca_lib.data.transforms import ImageTransform, mask_to_input, pad_to_square, to_display


def picture(array):
    return Image.fromarray(np.asarray(array, dtype=np.uint8))


def test_square_of_the_right_size_is_untouched():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(pad_to_square(grey, 8), grey)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((8, 4), (0, 8), (2, 6)),  # portrait: two columns on either side
        ((4, 8), (2, 6), (0, 8)),  # landscape
        ((8, 5), (0, 8), (1, 6)),  # an odd rest goes to the right
        ((3, 8), (2, 5), (0, 8)),  # and to the bottom
        ((1, 8), (3, 4), (0, 8)),
    ],
)
def test_padding_is_symmetric_and_zero(shape, rows, columns):
    square = pad_to_square(np.full(shape, 200, dtype=np.uint8), 8)
    expected = np.zeros((8, 8), dtype=np.uint8)
    expected[slice(*rows), slice(*columns)] = 200
    np.testing.assert_array_equal(square, expected)


def test_shrinking_averages_areas():
    grey = np.array([[0, 4, 8, 12], [8, 12, 16, 20], [100, 100, 0, 0], [100, 100, 0, 0]], dtype=np.uint8)
    np.testing.assert_array_equal(pad_to_square(grey, 2), [[6, 14], [100, 0]])


def test_the_longer_side_decides():
    """12 x 6 shrinks to 4 x 2 and gets one column of zeros on either side."""
    grey = np.repeat(np.repeat(np.array([[10, 20], [30, 40], [50, 60], [70, 80]], np.uint8), 3, axis=0), 3, axis=1)
    expected = [[0, 10, 20, 0], [0, 30, 40, 0], [0, 50, 60, 0], [0, 70, 80, 0]]
    np.testing.assert_array_equal(pad_to_square(grey, 4), expected)


def test_extreme_shapes_keep_at_least_one_pixel():
    square = pad_to_square(np.full((400, 2), 90, dtype=np.uint8), 16)
    assert (square > 0).sum() == 16


def test_small_images_grow_smoothly():
    """Bilinear growth of a step has values between, and they rise."""
    square = pad_to_square(np.array([[0, 200], [0, 200]], dtype=np.uint8), 8)
    row = square[4].astype(int)
    assert (row[0], row[-1]) == (0, 200)
    assert (np.diff(row) >= 0).all()
    assert ((row > 0) & (row < 200)).sum() >= 3


def test_centre_crop_and_grey_values():
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6)
    tensor = ImageTransform(stored_size=6, image_size=2)(picture(grey))
    assert tensor.shape == (1, 2, 2)
    assert tensor.dtype == torch.float32
    expected = torch.tensor([[[14.0, 15.0], [20.0, 21.0]]]) / 255 * 2 - 1
    torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_black_is_minus_one_and_white_is_one():
    tensor = ImageTransform(stored_size=2, image_size=2)(picture([[0, 255], [255, 0]]))
    assert tensor.tolist() == [[[-1.0, 1.0], [1.0, -1.0]]]


def test_every_grey_value_becomes_the_same_number_with_and_without_augmentation(monkeypatch):
    """Float32, in three steps: divide by 255, double, subtract one."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = grey.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
    monkeypatch.setattr("mgca_lib.data.transforms._CHEXPERT_AUGMENTATION", lambda tensor: tensor)
    for augmentation in ("none", "crop", "chexpert"):
        tensor = ImageTransform(16, 16, augmentation)(picture(grey))
        np.testing.assert_array_equal(tensor[0].numpy(), expected)


def test_colour_pictures_become_grey():
    colour = Image.new("RGB", (4, 4), (255, 255, 255))
    assert ImageTransform(stored_size=4, image_size=4)(colour).eq(1).all()


def corners(augmentation, count=200, seed=0):
    """Upper left pixel of crops of an image whose grey value is its position."""
    transform = ImageTransform(stored_size=6, image_size=4, augmentation=augmentation)
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6)
    generator = torch.Generator().manual_seed(seed)
    values = [round((transform(picture(grey), generator)[0, 0, 0].item() + 1) / 2 * 255) for _ in range(count)]
    return [divmod(value, 6) for value in values]


def test_random_crops_reach_every_place_and_no_other():
    assert set(corners("crop")) == {(top, left) for top in range(3) for left in range(3)}
    assert set(corners("none", count=3)) == {(1, 1)}


def test_the_generator_decides_the_crop():
    assert corners("crop", seed=1) == corners("crop", seed=1)
    assert corners("crop", seed=1) != corners("crop", seed=2)


def test_without_generator_torch_decides():
    transform = ImageTransform(stored_size=6, image_size=4, augmentation="crop")
    grey = picture(np.arange(36).reshape(6, 6))

    def draw():
        torch.manual_seed(3)
        return torch.stack([transform(grey) for _ in range(8)])

    assert torch.equal(draw(), draw())


def test_crop_does_not_touch_torch_generator_when_given_one():
    before = torch.get_rng_state()
    corners("crop", count=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_chexpert_augmentation():
    """It flips, blurs and jitters, keeps the range, and follows torch's seed."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 40), dtype=np.uint8)
    grey[:, :20] //= 4  # the left half is darker
    transform = ImageTransform(stored_size=40, image_size=32, augmentation="chexpert")
    torch.manual_seed(0)
    crops = torch.stack([transform(picture(grey)) for _ in range(80)])
    assert crops.shape == (80, 1, 32, 32)
    assert crops.min() >= -1
    assert crops.max() <= 1
    left, right = crops[..., :12].mean((1, 2, 3)), crops[..., 20:].mean((1, 2, 3))
    flipped = (left > right).float().mean().item()
    assert 0.3 < flipped < 0.7
    spread = crops.std((1, 2, 3))
    assert spread.max() > 1.5 * spread.min()
    assert crops.mean((1, 2, 3)).std() > 0.05
    torch.manual_seed(0)
    again = torch.stack([transform(picture(grey)) for _ in range(80)])
    assert torch.equal(crops, again)


@pytest.mark.parametrize("shape", [(60, 60), (60, 44), (33, 60), (200, 120), (20, 12)])
def test_a_mask_follows_its_image(shape):
    """The same rectangle drawn into image and mask lands in the same place."""
    height, width = shape
    mask = np.zeros(shape, dtype=bool)
    mask[height // 4 : height // 2, width // 3 : 2 * width // 3] = True
    tensor = ImageTransform(stored_size=36, image_size=32)(picture(mask * 255))
    found = mask_to_input(mask, stored_size=36, image_size=32)
    assert found.shape == (32, 32)
    assert found.dtype == bool
    assert found.any()
    np.testing.assert_array_equal(found, tensor[0].numpy() > 0)


def test_a_mask_by_hand():
    """Rows 4 to 7 of an 8 x 4 image on a 4 x 4 square: rows 2 and 3, columns 1 and 2."""
    mask = np.zeros((8, 4), dtype=bool)
    mask[4:] = True
    expected = np.zeros((4, 4), dtype=bool)
    expected[2:, 1:3] = True
    np.testing.assert_array_equal(mask_to_input(mask, stored_size=4, image_size=4), expected)
    np.testing.assert_array_equal(mask_to_input(mask, stored_size=4, image_size=2), expected[1:3, 1:3])


def test_a_mask_pixel_needs_half_its_area():
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, :2] = True  # half of the first pixel
    mask[2, 2] = True  # a quarter of the last one
    np.testing.assert_array_equal(mask_to_input(mask, stored_size=2, image_size=2), [[True, False], [False, False]])


def test_display_undoes_the_grey_mapping():
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6) * 7
    tensor = ImageTransform(stored_size=6, image_size=6)(picture(grey))
    np.testing.assert_allclose(to_display(tensor) * 255, grey, atol=1e-4)
    np.testing.assert_allclose(to_display(tensor.expand(3, 6, 6)) * 255, grey, atol=1e-4)


def test_about_half_of_the_augmented_films_are_blurred_and_contrast_varies():
    """Noise tells: jitter scales it, and only blur makes neighbours alike."""
    grey = np.random.default_rng(0).integers(60, 140, (40, 40), dtype=np.uint8)
    torch.manual_seed(0)
    crops = torch.stack([ImageTransform(40, 32, "chexpert")(picture(grey)) for _ in range(80)])
    rough = crops.diff(dim=-1).std((1, 2, 3)) / crops.std((1, 2, 3))
    sharp = rough > 0.9 * rough.max()
    assert 0.3 < float((~sharp).float().mean()) < 0.7
    ratio = crops[sharp].std((1, 2, 3)) / (crops[sharp].mean((1, 2, 3)) + 1)  # brightness scales both alike
    assert ratio.max() > 1.3 * ratio.min()
