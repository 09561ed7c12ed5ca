"""New heads on frozen encoders: only they move, they repeat themselves, and they learn what their loss asks."""

import copy

import pytest
import torch
from helpers import tiny_batch, tiny_config, tiny_studies, tiny_tokenizer

from mgca_lib.alignment.pairwise import grounded_alignment_loss
from mgca_lib.encoders import EncoderError
from mgca_lib.evaluation.local_heads import LocalFeatures, local_features, train_local_heads, with_local_stride
from mgca_lib.model import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    studies = tiny_studies(tmp_path_factory.mktemp("heads"), train=24, valid=4, test=4)
    tokenizer = tiny_tokenizer(studies)
    model = build_model(tiny_config(text_dropout=0.3), tokenizer, seed=1).train()
    return model, studies, local_features(model, tokenizer, studies.split("train"), batch_size=7)


def test_features_are_those_of_the_encoders_in_eval_mode(setting):
    model, studies, features = setting
    assert model.training
    batch = tiny_batch(studies.split("train"), list(range(24)))
    model.eval()
    with torch.inference_mode():
        image = model.image_encoder(batch.images)
        report = model.report_encoder(batch.pieces, batch.piece_keep, batch.word_ids, batch.num_words)
    model.train()
    assert len(features) == 24
    torch.testing.assert_close(features.patches, image.local, rtol=1e-5, atol=1e-5)
    for row, words in enumerate(features.words):
        torch.testing.assert_close(words, report.local[row][report.keep[row]], rtol=1e-5, atol=1e-5)
    patches, words, keep = features.batch([5, 2])
    assert torch.equal(patches, features.patches[[5, 2]])
    assert keep.sum(dim=1).tolist() == [len(features.words[5]), len(features.words[2])]
    assert torch.equal(words[1][keep[1]], features.words[2])
    assert not words[~keep].any()


def test_patches_of_another_stage(setting):
    """Twice as many a side, the same trunk and pooled vectors, a new head; the model itself is as it was."""
    model, studies, features = setting
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finer = with_local_stride(model, 8)
    assert (finer.config.model.local_stride, model.config.model.local_stride) == (8, 16)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    own = finer.state_dict()
    assert all(torch.equal(own[name], before[name]) for name in before if not name.startswith("image_local."))
    patches = local_features(finer, tiny_tokenizer(studies), studies.split("train")).patches
    assert patches.shape[:2] == (24, 4 * features.patches.shape[1])
    trained = train_local_heads(
        finer, LocalFeatures(patches, features.words), token_form="cta_grounded", epochs=1, batch_size=8
    )
    images = tiny_batch(studies.split("train"), list(range(24))).images
    with torch.inference_mode():
        model.eval()
        assert torch.equal(trained.model.image_encoder(images).pooled, model.image_encoder(images).pooled)
        assert trained.model.encode_image(images).local.shape[:2] == patches.shape[:2]
    model.train()
    with pytest.raises(EncoderError, match="local_stride = 7"):
        with_local_stride(model, 7)


@pytest.mark.parametrize("token_form", ["cta", "cta_grounded", "gloria"])
def test_only_the_heads_move_and_the_model_stays(setting, token_form):
    model, _, features = setting
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = (
        train_local_heads(model, features, token_form=token_form, epochs=2, batch_size=8, seed=3) for _ in range(2)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not one.model.training
    assert one.history == two.history
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name
        head = name.startswith(("image_local.", "report_local."))
        assert head or torch.equal(value, before[name]), name
    moved = [name for name in before if not torch.equal(one.model.state_dict()[name], before[name])]
    assert {name.split(".")[0] for name in moved} == {"image_local", "report_local"}
    other = train_local_heads(model, features, token_form=token_form, epochs=2, batch_size=8, seed=4)
    assert other.history != one.history


def test_the_loss_falls_below_knowing_nothing(setting):
    """Reports name the pattern of their film, so contrast over films can be lowered; measured outside the loop, too."""
    model, _, features = setting
    trained = train_local_heads(model, features, token_form="cta_grounded", epochs=60, batch_size=12, seed=0)
    assert len(trained.history) == 60
    assert trained.history[-1] < 0.75 * trained.history[0]
    patches, words, keep = features.batch(range(24))
    head = trained.model
    with torch.inference_mode():
        loss = grounded_alignment_loss(
            head.report_local(words, keep), head.image_local(patches, torch.ones(patches.shape[:2]) > 0), word_keep=keep
        )
    assert loss < 0.75 * 2 * torch.tensor(24.0).log()


def test_what_cannot_be_trained(setting):
    model, _, features = setting
    with pytest.raises(ValueError, match="24 pairs do not fill a batch of 25"):
        train_local_heads(model, features, token_form="cta", batch_size=25)
    with pytest.raises(ValueError, match="form must be"):
        train_local_heads(model, features, token_form="ita", batch_size=8)


def test_the_temperature_of_the_configuration_is_used(setting):
    model, _, features = setting
    cooler = copy.deepcopy(model)
    cooler.config = model.config.override(token_temperature=0.5)
    settings = {"token_form": "cta", "epochs": 1, "batch_size": 8}
    first, second = (train_local_heads(one, features, **settings).history for one in (model, cooler))
    assert first != second
