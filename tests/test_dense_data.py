"""Boxes and masks on the encoder's input, a frozen trunk's maps, and the loop that trains a head on them."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from dense_helpers import square_studies
from helpers import with_cell
from PIL import Image
from torch import nn

from mgca_lib.data.studies import DatasetError
from mgca_lib.data.tasks import Task, TaskImages
from mgca_lib.data.transforms import ImageTransform, mask_to_input, pad_to_square
from mgca_lib.encoders import ImageEncoder
from mgca_lib.evaluation.dense_data import (
    BoxImages,
    FeatureMaps,
    HeadRecipe,
    MaskImages,
    boxes_to_input,
    draw_images,
    seeded,
    train_head,
    trunk_maps,
    trunk_strides,
)
from mgca_lib.evaluation.linear_probe import draw_labels


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return square_studies(tmp_path_factory.mktemp("squares"), size=40, train=10, valid=4)


def change(studies, row, **values):
    for column, value in values.items():
        studies = with_cell(studies, row, column, value)
    return studies


def encoder(name="test_resnet", size=64, **settings):
    torch.manual_seed(0)
    return ImageEncoder(name, pretrained=False, image_size=size, **settings)


@pytest.mark.parametrize(
    ("width", "height", "stored"),
    [(120, 120, 120), (90, 120, 120), (121, 77, 60), (200, 31, 60), (64, 64, 16), (50, 37, 111), (30, 40, 90)],
)
def test_a_box_lands_where_the_image_road_carries_its_pixels(width, height, stored):
    """Centre and extent of bright rectangles after `pad_to_square`, against the transformed corners."""
    rng = np.random.default_rng(width + stored)
    errors = []
    for _ in range(40):
        x1, y1 = rng.integers(5, width // 2), rng.integers(5, height // 2)
        x2, y2 = rng.integers(x1 + 6, width - 4), rng.integers(y1 + 6, height - 4)
        grey = np.zeros((height, width), np.uint8)
        grey[y1:y2, x1:x2] = 255
        square = pad_to_square(grey, stored).astype(float) / 255
        (box,) = boxes_to_input([[x1, y1, x2, y2]], width=width, height=height, stored_size=stored, image_size=stored)
        for axis, low, high in ((0, box[0], box[2]), (1, box[1], box[3])):
            profile = square.max(axis=axis)
            centre = (profile * (np.arange(stored) + 0.5)).sum() / profile.sum()
            errors.append((centre - (low + high) / 2, profile.sum() - (high - low)))
    # Pillow's box filter takes whole pixels, so single edges may be off by half a pixel of the larger grid.
    assert np.abs(errors).max() < 0.55
    centre, extent = np.abs(np.mean(errors, axis=0))
    assert centre < 0.06
    assert extent < 0.25


def test_the_crop_moves_boxes_with_the_image():
    (box,) = boxes_to_input([[10, 20, 30, 60]], width=80, height=100, stored_size=50, image_size=31)
    # halved: 40 x 50; 5 columns of padding; the crop starts at (50 - 31) // 2 = 9
    assert box.tolist() == [5 + 5 - 9, 10 - 9, 15 + 5 - 9, 30 - 9]
    assert boxes_to_input([], width=4, height=4, stored_size=4, image_size=4).shape == (0, 4)


def test_box_items_are_image_and_corners_and_the_crop_counts(studies):
    boxes = [(0, 0, 20, 20), (2, 2, 6, 6), (0, 20, 10, 10), (30, 30, 4, 4)]
    changed = change(studies, 3, boxes=[{"x": x, "y": y, "w": w, "h": h, "name": "square"} for x, y, w, h in boxes])
    transform = ImageTransform(40, 32)
    data = BoxImages(changed.select([3]), transform, min_visible=0.4)
    # the crop shows 4 ... 36: the first box keeps 256 of 400, the second 16 of 36, the third 60 of 100
    assert data.boxes[0].tolist() == [[0, 0, 16, 16], [0, 0, 4, 4], [0, 16, 6, 26], [26, 26, 30, 30]]
    assert (data.cut, data.left_out) == (3, 0)
    strict = BoxImages(changed.select([3]), transform, min_visible=0.5)
    assert strict.boxes[0].tolist() == [[0, 0, 16, 16], [0, 16, 6, 26], [26, 26, 30, 30]]
    assert (strict.cut, strict.left_out) == (2, 1)
    image, own = data[0]
    assert torch.equal(own, data.boxes[0])
    expected, _ = TaskImages(changed, Task("x", "multilabel", ("Edema",), "auroc"), transform)[3]
    assert torch.equal(image, expected)


def test_presence_says_which_images_have_something(studies):
    transform = ImageTransform(40, 40)
    expected = [number % 4 != 3 for number in range(10)]
    train = studies.split("train")
    for data in (
        BoxImages(train, transform),
        MaskImages(train, transform),
        MaskImages(train, transform, source="boxes"),
    ):
        assert data.present.tolist() == expected


@pytest.mark.parametrize("image_size", [40, 33, 24])
def test_box_masks_equal_a_loop_over_pixel_centres(studies, image_size):
    boxes = [
        {"x": 3.25, "y": 8.5, "w": 10.5, "h": 20.25, "name": "a"},
        {"x": 10.0, "y": 4.0, "w": 9.0, "h": 9.0, "name": "b"},
    ]
    changed = change(studies, 0, boxes=boxes)
    mask = MaskImages(changed, ImageTransform(40, image_size), source="boxes").masks([0])[0]
    corner = (40 - image_size) // 2
    for y in range(image_size):
        for x in range(image_size):
            cx, cy = x + corner + 0.5, y + corner + 0.5
            inside = any(b["x"] <= cx < b["x"] + b["w"] and b["y"] <= cy < b["y"] + b["h"] for b in boxes)
            assert mask[y, x] == inside


@pytest.mark.parametrize(("stored", "image_size"), [(40, 40), (40, 31), (80, 64)])
def test_mask_files_and_their_boxes_agree(studies, stored, image_size):
    """The squares fill their boxes, so both sources must give the same pixels, on every image."""
    transform = ImageTransform(stored, image_size)
    files, boxes = (MaskImages(studies, transform, source=source) for source in ("mask", "boxes"))
    np.testing.assert_array_equal(files.masks(), boxes.masks())
    for row in (0, 2):
        with Image.open(studies.root / studies.table["mask"].iat[row]) as picture:
            raw = np.asarray(picture) > 0
        expected = mask_to_input(raw, stored_size=stored, image_size=image_size)
        np.testing.assert_array_equal(files[row][1].numpy(), expected)
        assert expected.any()
    assert not files.masks([3]).any()


def test_bad_masks_are_named(studies, tmp_path):
    transform = ImageTransform(40, 32)
    Image.fromarray(np.full((20, 40), 255, np.uint8)).save(studies.root / "masks" / "flat.png")
    with pytest.raises(
        DatasetError, match=r"flat\.png: mask of image 'train001' \(row 1\) is 40 x 20, its image 40 x 40"
    ):
        MaskImages(change(studies, 1, mask="masks/flat.png"), transform)
    (studies.root / "masks" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"broken\.png: mask of image 'train002' \(row 2\) cannot be read"):
        MaskImages(change(studies, 2, mask="masks/broken.png"), transform)
    with pytest.raises(DatasetError, match="column 'mask': no image has any"):
        MaskImages(studies.select([3, 7]), transform)
    with pytest.raises(ValueError, match="'mask' or 'boxes', found 'file'"):
        MaskImages(studies, transform, source="file")
    for make in (BoxImages, MaskImages):
        with pytest.raises(ValueError, match="augmentation='none'"):
            make(studies, replace(transform, augmentation="crop"))
    with pytest.raises(ValueError, match="min_visible"):
        BoxImages(studies, transform, min_visible=0)


def test_draws_are_those_of_the_linear_probe_and_nest(tmp_path):
    data = MaskImages(square_studies(tmp_path, size=16, train=60), ImageTransform(16, 16), source="boxes")
    label = Task("any", "multilabel", ("any",), "auroc")
    for seed in range(5):
        small, large = (draw_images(data, fraction=fraction, seed=seed) for fraction in (0.1, 0.5))
        expected = draw_labels(data.present[:, None].astype(np.float32), label, fraction=0.1, seed=seed)
        np.testing.assert_array_equal(small, expected)
        assert len(small) == 6
        assert set(small) <= set(large)
    assert data.present[draw_images(data, fraction=0.01, seed=0)].any()
    with pytest.raises(ValueError, match=r"\(0, 1\], found 0"):
        draw_images(data, fraction=0, seed=0)
    empty = BoxImages(data.studies.select([3, 7]), data.transform)
    with pytest.raises(ValueError, match="nothing to learn"):
        draw_images(empty, fraction=1, seed=0)


@pytest.mark.parametrize(
    ("name", "settings", "stride"),
    [
        ("test_resnet", {}, 16),
        ("test_resnet", {"upsample_to": 96}, 16),
        ("test_vit", {}, 16),
        ("test_convnext", {}, 16),
    ],
)
def test_maps_are_the_patches_that_pretraining_saw(name, settings, stride):
    model = encoder(name, **settings).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        local = model(images).local
    (level,) = trunk_maps(model, images, trunk_strides(model, (stride,)))
    assert not level.requires_grad
    torch.testing.assert_close(level.flatten(2).transpose(1, 2), local, rtol=1e-5, atol=1e-5)


def test_strides_are_those_the_trunk_has():
    assert trunk_strides(encoder(), (8, 16, 32)) == (8, 16, 32)
    assert trunk_strides(encoder("test_convnext"), (2, 4, 8, 16, 32)) == (4, 8, 16, 32)
    assert trunk_strides(encoder("test_vit"), (8, 32)) == (16,)
    with pytest.raises(ValueError, match=r"strides \[4, 8, 16, 32\], none of \[2\]"):
        trunk_strides(encoder("test_convnext"), (2,))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_kept_and_fresh_maps_agree_and_keep_the_order(studies, name):
    model = encoder(name).train()
    before = copy.deepcopy(model.state_dict())
    data = BoxImages(studies.split("train"), ImageTransform(64, 64))
    kept = FeatureMaps(model, data, strides=(8, 16), batch_size=4)
    fresh = FeatureMaps(model, data, strides=(8, 16), memory_gib=0)
    assert kept.kept
    assert not fresh.kept
    rows = np.array([7, 2, 9, 2, 0])
    for maps in (kept, fresh):
        parts, levels = zip(*maps.batches(rows, 2), strict=True)
        assert [part.tolist() for part in parts] == [[7, 2], [9, 2], [0]]
        joined = [torch.cat(level) for level in zip(*levels, strict=True)]
        images = torch.stack([data[row][0] for row in rows])
        for level, expected in zip(joined, trunk_maps(model, images, maps.strides), strict=True):
            assert level.dtype == torch.float32
            assert tuple(level.shape[1:]) in maps.shapes
            torch.testing.assert_close(level, expected, rtol=1e-3, atol=1e-3)  # float16 keeps 11 bits
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_maps_that_are_not_finite_name_the_image(studies):
    model = encoder()
    with torch.no_grad():
        model.trunk.layer3[0].bn1.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="image 'train000' are not finite"):
        FeatureMaps(model, BoxImages(studies, ImageTransform(64, 64)), strides=(16,))
    with pytest.raises(ValueError, match="empty dataset"):
        FeatureMaps(model, [])


class OneWeight(nn.Module):
    """The smallest head there is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))


@pytest.fixture(scope="module")
def maps(studies):
    return FeatureMaps(encoder(), BoxImages(studies.split("train"), ImageTransform(64, 64)), strides=(16,))


def test_a_head_ends_with_the_weights_of_its_best_check(maps):
    head, scores, seen, modes = OneWeight(), iter([0.1, 0.7, 0.7, 0.2]), [], []

    def loss(levels, rows):
        modes.append(head.training)
        return (head.weight - 5) ** 2

    def score():
        modes.append(head.training)
        seen.append(head.weight.item())
        return next(scores)

    recipe = HeadRecipe(epochs=1, min_steps=8, checks=4, batch_size=4)
    checks = train_head(head, maps, np.arange(10), loss=loss, score=score, recipe=recipe, seed=0)
    assert [check.step for check in checks] == [2, 4, 6, 8]
    assert [check.score for check in checks] == [0.1, 0.7, 0.7, 0.2]
    assert head.weight.item() == seen[1] != seen[2]
    assert modes == [True, True, False] * 4
    assert not head.training


def test_a_head_sees_each_drawn_image_once_an_epoch_in_seeded_order(maps):
    def order(seed):
        head, rows = OneWeight(), []

        def loss(levels, part):
            rows.extend(part.tolist())
            return head.weight**2

        recipe = HeadRecipe(epochs=3, min_steps=0, checks=1, batch_size=2)
        train_head(head, maps, np.array([1, 4, 5, 8, 9]), loss=loss, score=lambda: 0.0, recipe=recipe, seed=seed)
        return rows

    first = order(0)
    assert len(first) == 15
    assert all(sorted(first[start : start + 5]) == [1, 4, 5, 8, 9] for start in (0, 5, 10))
    assert first == order(0) != order(1)
    assert first[:5] != first[5:10]


def test_recipes_count_steps_and_refuse_nonsense(maps):
    assert HeadRecipe(epochs=5, min_steps=1, batch_size=16).steps(33) == 15
    assert HeadRecipe(epochs=5, min_steps=100, batch_size=16).steps(33) == 100
    for settings in ({"epochs": 0}, {"learning_rate": 0.0}, {"warmup_fraction": 1.0}, {"checks": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            HeadRecipe(**settings)
    head = OneWeight()
    with pytest.raises(ValueError, match="not finite at step"):
        train_head(
            head,
            maps,
            np.arange(4),
            loss=lambda levels, rows: head.weight * math.inf,
            score=lambda: 0.0,
            recipe=HeadRecipe(min_steps=2, epochs=1),
            seed=0,
        )


def test_seeding_leaves_no_trace():
    before = torch.random.get_rng_state()
    with seeded(3, torch.device("cpu")):
        first = torch.rand(2)
    with seeded(3, torch.device("cpu")):
        assert torch.equal(first, torch.rand(2))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_head_trains_with_its_recipe(maps, monkeypatch):
    rates, clips = [], []
    step, clip = torch.optim.AdamW.step, nn.utils.clip_grad_norm_

    def noting(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        assert self.param_groups[0]["weight_decay"] == 0.02
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda values, norm: clips.append(norm) or clip(values, norm))
    head = OneWeight()
    recipe = HeadRecipe(
        epochs=1, min_steps=10, checks=1, learning_rate=1.0, clip_norm=0.3, warmup_fraction=0.4, weight_decay=0.02
    )
    settings = {"loss": lambda *_: (head.weight - 5) ** 2, "score": lambda: 0.0, "recipe": recipe, "seed": 0}
    train_head(head, maps, np.arange(4), **settings)
    assert clips == [0.3] * 10
    assert rates == pytest.approx([min((n + 1) / 4, 0.5 + 0.5 * math.cos(math.pi * n / 10)) for n in range(10)])
