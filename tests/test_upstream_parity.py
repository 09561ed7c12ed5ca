"""The three terms against the outputs of the published MGCA code (commit 680fe4a).

The files under ``fixtures/`` hold random inputs and what that code returns for them. Its own
arithmetic is single precision, so agreement ends near 1e-7.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mgca_lib.alignment import (
    importance_weights,
    instance_alignment_loss,
    prototype_alignment_loss,
    token_alignment_loss,
)
from mgca_lib.encoders import Tokens
from mgca_lib.pretrain import retrieval_accuracy

FIXTURES = sorted(Path(__file__).parent.joinpath("fixtures").glob("mgca_parity_*.npz"))
TOLERANCE = 1e-5  # relative


@pytest.fixture(params=FIXTURES, ids=lambda path: path.stem)
def stored(request):
    with np.load(request.param) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def tensors(stored, request):
    return {
        name: torch.from_numpy(array).to(request.param if array.dtype.kind == "f" else torch.bool)
        for name, array in stored.items()
        if array.ndim
    }


def token_loss(stored, tensors, upstream):
    if str(stored["backbone"]) == "vit":
        attention = tensors["patch_attention"]
        patch_weight = importance_weights(attention, torch.ones_like(attention, dtype=torch.bool))
    else:
        batch, patches = tensors["patches"].shape[:2]
        patch_weight = torch.full((batch, patches), 1 / patches)
    return token_alignment_loss(
        tensors["words"],
        tensors["patches"],
        word_keep=tensors["word_keep"],
        word_weight=importance_weights(tensors["word_attention"], tensors["word_keep"]),
        patch_weight=patch_weight,
        temperature=float(stored["local_temperature"]),
        upstream=upstream,
    ).item()


def test_both_branches_are_there():
    assert [path.stem for path in FIXTURES] == ["mgca_parity_resnet", "mgca_parity_vit"]


def test_instance(stored, tensors):
    loss = instance_alignment_loss(
        tensors["image_global"],
        tensors["report_global"],
        temperature=float(stored["instance_temperature"]),
    )
    assert loss.item() == pytest.approx(float(stored["loss_instance"]), rel=TOLERANCE)


def test_token(stored, tensors):
    loss = token_loss(stored, tensors, str(stored["backbone"]))
    assert loss == pytest.approx(float(stored["loss_token"]), rel=TOLERANCE)


@pytest.mark.parametrize("other", [None, "the other branch"])
def test_token_modes_are_told_apart(stored, tensors, other):
    backbone = str(stored["backbone"])
    mode = None if other is None else {"vit": "resnet", "resnet": "vit"}[backbone]
    loss = token_loss(stored, tensors, mode)
    assert abs(loss / float(stored["loss_token"]) - 1) > 1e-3


def test_prototype(stored, tensors):
    loss = prototype_alignment_loss(
        tensors["image_global"],
        tensors["report_global"],
        tensors["prototypes"],
        temperature=float(stored["prototype_temperature"]),
        epsilon=float(stored["sinkhorn_epsilon"]),
        iterations=int(stored["sinkhorn_iterations"]),
    )
    assert loss.item() == pytest.approx(float(stored["loss_prototype"]), rel=TOLERANCE)


def test_default_settings_are_the_published_ones(stored, tensors):
    image, report = tensors["image_global"], tensors["report_global"]
    losses = {
        "loss_instance": instance_alignment_loss(image, report),
        "loss_prototype": prototype_alignment_loss(image, report, tensors["prototypes"]),
    }
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(float(stored[name]), rel=TOLERANCE)


def test_retrieval_inside_a_batch(stored, tensors):
    sides = (tensors["image_global"], tensors["report_global"])
    found = retrieval_accuracy(*(Tokens(F.normalize(one, dim=-1), *[torch.empty(0)] * 3) for one in sides))
    for k in (1, 5):
        assert 100 * found[f"top{k}"].item() == pytest.approx(float(stored[f"retrieval_top{k}"]), abs=1e-4)
