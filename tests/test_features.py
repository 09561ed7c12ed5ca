"""Features: frozen encoder, one pass, and a cache that is never out of date."""

import copy
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny_config, tiny_studies, tiny_tokenizer
from PIL import Image
from torch import nn

from mgca_lib.data.pairs import PairImages
from mgca_lib.data.studies import DatasetError, load_studies, write_studies
from mgca_lib.data.tasks import TASKS, TaskImages
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.encoders import ImageEncoder
from mgca_lib.evaluation.features import embed_pairs, extract_features, weights_hash
from mgca_lib.model import build_model


class TinyEncoder(nn.Module):
    """Two convolutions with everything that behaves differently in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return SimpleNamespace(pooled=self.body(images).mean(dim=(2, 3)))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TinyEncoder()


@pytest.fixture
def studies(tmp_path):
    root = tmp_path / "rsna"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(10):
        Image.fromarray(rng.integers(0, 255, (20, 16), dtype=np.uint8)).save(root / "images" / f"{number}.png")
        rows.append(
            {
                "image_id": f"i{number}",
                "patient_id": f"p{number}",
                "study_id": f"s{number}",
                "split": ("train", "valid", "test")[number % 3],
                "view": "PA",
                "image": f"images/{number}.png",
                "width": 16,
                "height": 20,
                "findings": "",
                "impression": "",
                "sentences": [],
                "labels": {"Pneumonia": float(number % 2)},
                "boxes": [],
                "mask": "",
                "source": "x",
            }
        )
    write_studies(
        root,
        pd.DataFrame(rows),
        name="rsna",
        version="1",
        source="t",
        licence="none",
        restricted=False,
        options={},
    )
    return load_studies(root)


def make(studies, **settings):
    return TaskImages(studies, TASKS["rsna"], ImageTransform(**{"stored_size": 20, "image_size": 16} | settings))


def test_values_equal_a_loop_in_eval_mode(encoder, studies):
    dataset = make(studies)
    encoder.train()
    features = extract_features(encoder, dataset, batch_size=3)
    assert encoder.training
    assert encoder.body[1].training
    reference = copy.deepcopy(encoder).eval()
    expected = torch.cat([reference(dataset[row][0][None]).pooled for row in range(len(dataset))]).detach().numpy()
    np.testing.assert_allclose(features.values, expected, rtol=1e-6, atol=1e-6)
    assert features.values.dtype == np.float32
    np.testing.assert_array_equal(features.targets[:, 0], np.arange(10) % 2)
    assert features.image_ids == tuple(f"i{n}" for n in range(10))


def test_batchnorm_statistics_and_single_frozen_parts_stay_as_they_were(encoder, studies):
    encoder.train()
    encoder.body[1].eval()
    before = weights_hash(encoder)
    extract_features(encoder, make(studies))
    assert weights_hash(encoder) == before
    assert encoder.body[0].training
    assert not encoder.body[1].training


def test_the_second_call_reads_the_cache(encoder, studies, tmp_path):
    first = extract_features(encoder, make(studies), cache_dir=tmp_path / "cache")
    calls = encoder.calls
    second = extract_features(encoder, make(studies), cache_dir=tmp_path / "cache")
    assert encoder.calls == calls
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.targets, second.targets)
    assert first.image_ids == second.image_ids
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


@dataclass(frozen=True)
class Change:
    """One thing that features depend on."""

    encoder: bool = False
    architecture: bool = False
    transform: bool = False
    rows: bool = False
    task: bool = False
    image: bool = False
    card: bool = False


@pytest.mark.parametrize("name", ["encoder", "architecture", "transform", "rows", "task", "image", "card"])
def test_every_change_misses_the_cache(encoder, studies, tmp_path, name):
    extract_features(encoder, make(studies), cache_dir=tmp_path / "cache")
    change = Change(**{name: True})
    if change.encoder:
        with torch.no_grad():
            encoder.body[0].weight[0, 0, 0, 0] += 1e-6
    if change.architecture:
        encoder.body[2] = nn.GELU()
    if change.rows:
        studies = studies.select([*range(8), 9, 8])
    if change.image:
        Image.fromarray(np.zeros((20, 16), np.uint8)).save(studies.image_path(0))
    if change.card:
        studies = replace(studies, card=replace(studies.card, table_sha256="0" * 64))
    dataset = make(studies, **({"stored_size": 18} if change.transform else {}))
    if change.task:
        dataset.task = replace(dataset.task, name="other")
    calls = encoder.calls
    extract_features(encoder, dataset, cache_dir=tmp_path / "cache")
    assert encoder.calls > calls
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_encoders_that_resize_differently_share_no_cache(studies, tmp_path):
    """Equal weights, another resize before the first layer: other features."""
    settings = {"backbone": "test_resnet", "image_size": 32, "pretrained": False}
    plain, larger = (ImageEncoder(upsample_to=side, **settings) for side in (0, 32))
    larger.load_state_dict(plain.state_dict())
    for one in (plain, larger):
        extract_features(one, make(studies), cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_corrupt_cache_is_computed_again_with_one_warning(encoder, studies, tmp_path, damage):
    first = extract_features(encoder, make(studies), cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-20], "garbage": b"\x00" * 100, "empty": b""}[damage])
    with pytest.warns(UserWarning, match="unreadable feature cache") as record:
        second = extract_features(encoder, make(studies), cache_dir=tmp_path / "cache")
    assert len(record) == 1
    assert str(path) in str(record[0].message)
    np.testing.assert_array_equal(first.values, second.values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extract_features(encoder, make(studies), cache_dir=tmp_path / "cache")


def test_weights_hash_sees_one_bit_a_name_and_a_buffer(encoder):
    before = weights_hash(encoder)
    other = copy.deepcopy(encoder)
    assert weights_hash(other) == before
    other.body[1].running_mean[0] += 1e-7
    assert weights_hash(other) != before
    assert weights_hash(nn.Sequential(nn.Linear(2, 2))) != weights_hash(nn.Linear(2, 2))


def test_bad_input_says_what_to_do(encoder, studies, tmp_path):
    with pytest.raises(ValueError, match="must not be random"):
        extract_features(encoder, make(studies, augmentation="crop"))
    plain = torch.utils.data.TensorDataset(torch.zeros(3, 1, 16, 16), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="pass key="):
        extract_features(encoder, plain, cache_dir=tmp_path)
    assert len(extract_features(encoder, plain, cache_dir=tmp_path, key="zeros")) == 3
    with pytest.raises(ValueError, match="empty dataset"):
        extract_features(encoder, torch.utils.data.TensorDataset(torch.zeros(0, 1)))
    dataset = make(studies)
    dataset.transform = lambda picture: torch.zeros(1, 16, 16)
    with pytest.raises(ValueError, match="changes with every run"):
        extract_features(encoder, dataset, cache_dir=tmp_path)
    with torch.no_grad():
        encoder.body[0].bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"'i0' are not finite"):
        extract_features(encoder, make(studies))
    assert not list(Path(tmp_path).glob("*.part"))


def test_a_missing_image_is_named(encoder, studies, tmp_path):
    dataset = make(studies)
    studies.image_path(3).unlink()
    with pytest.raises(DatasetError, match=r"3\.png: image 'i3' \(row 3\)"):
        extract_features(encoder, dataset, cache_dir=tmp_path)


def test_pairs_are_embedded_in_order_one_by_one_or_together(tmp_path):
    studies = tiny_studies(tmp_path / "tiny", train=4, valid=1, test=6)
    config, tokenizer = tiny_config(), tiny_tokenizer(studies)
    model = build_model(config, tokenizer, seed=0).train()
    transform = ImageTransform(config.model.stored_size, config.model.image_size)
    pairs = PairImages(studies.split("test"), tokenizer, transform, max_pieces=20, seed=0)
    before = weights_hash(model)
    images, reports = embed_pairs(model, pairs, batch_size=4)
    assert model.training
    assert weights_hash(model) == before
    assert images.shape == reports.shape == (6, config.model.joint_dim)
    model.eval()
    with torch.no_grad():
        for row in range(6):
            batch = pairs.collate([pairs[row]])
            torch.testing.assert_close(images[row], model.encode_image(batch.images).pooled[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(reports[row], model.encode_report(batch).pooled[0], rtol=1e-4, atol=1e-5)
    pairs.transform = replace(transform, augmentation="crop")
    with pytest.raises(ValueError, match="augmentation='none'"):
        embed_pairs(model, pairs)
