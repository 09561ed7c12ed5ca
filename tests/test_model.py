"""The model end to end: invariances, gradients, and its losses against the alignment functions called by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_batch, tiny_config, tiny_studies, tiny_tokenizer

from mgca_lib.alignment import (
    importance_weights,
    instance_alignment_loss,
    prototype_alignment_loss,
    token_alignment_loss,
)
from mgca_lib.model import build_model

PARTS = ("instance", "token", "prototype", "total")
BACKBONES = ("test_resnet", "test_vit", "test_convnext")


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return tiny_studies(tmp_path_factory.mktemp("model"), train=12, valid=4, test=4).split("train")


@pytest.fixture(scope="module")
def batch(studies):
    return tiny_batch(studies, list(range(7)))


def model_of(studies, **settings):
    return build_model(tiny_config(text_dropout=0.0, **settings), tiny_tokenizer(studies), seed=4)


def padded(batch, amount=4):
    """The same batch behind more padding, with a real piece's id as the padding."""
    return replace(
        batch,
        pieces=F.pad(batch.pieces, (0, amount), value=7),
        piece_keep=F.pad(batch.piece_keep, (0, amount)),
        word_ids=F.pad(batch.word_ids, (0, amount), value=-1),
        num_words=batch.num_words + amount,
    )


def permuted(batch, order):
    names = ("images", "pieces", "piece_keep", "word_ids", "rows", "text_ids")
    return replace(batch, **{name: getattr(batch, name)[order] for name in names})


def assert_same_losses(one, two, tolerance=1e-5):
    for name in PARTS:
        torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(studies, batch, training):
    """Neither the losses nor, in training, what BatchNorm remembers."""
    one, two = (model_of(studies).train(training) for _ in range(2))
    assert_same_losses(one(batch)[0], two(padded(batch))[0])
    for (name, first), second in zip(one.named_buffers(), two.buffers(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6, msg=name)


def test_padding_changes_no_gradient(studies, batch):
    one, two = (model_of(studies) for _ in range(2))
    one(batch)[0].total.backward()
    two(padded(batch))[0].total.backward()
    largest = max(parameter.grad.abs().max() for parameter in one.parameters())
    assert largest > 0.1
    for (name, first), second in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-4 * largest, msg=name)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_order_of_a_batch_does_not_matter(studies, batch, backbone):
    model = model_of(studies, backbone=backbone).eval()
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    with torch.no_grad():
        losses, image, report = model(batch)
        again, other_image, other_report = model(permuted(batch, order))
    assert_same_losses(losses, again)
    torch.testing.assert_close(other_image.local, image.local[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other_report.local, report.local[order], rtol=1e-4, atol=1e-5)


def test_pairing_matters(studies, batch):
    """Reports of other images give another loss: the model does compare row with row."""
    one, two = (model_of(studies) for _ in range(2))  # in training mode: untrained features differ little
    order = torch.roll(torch.arange(7), 1)
    swapped = replace(permuted(batch, order), images=batch.images)
    with torch.no_grad():
        one, two = one(batch)[0], two(swapped)[0]
    for name in PARTS:
        assert abs(getattr(one, name) - getattr(two, name)) > 1e-4, name


@pytest.mark.parametrize("upstream", ["", "vit", "resnet"])
@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_losses_are_those_of_the_alignment_functions(studies, batch, backbone, upstream):
    settings = {
        "instance_temperature": 0.11,
        "token_temperature": 0.23,
        "prototype_temperature": 0.31,
        "sinkhorn_epsilon": 0.17,
        "sinkhorn_iterations": 5,
        "instance_weight": 0.5,
        "token_weight": 2.0,
        "prototype_weight": 3.0,
    }
    model = model_of(studies, backbone=backbone, upstream=upstream, **settings).eval()
    with torch.no_grad():
        losses, image, report = model(batch)
        instance = instance_alignment_loss(image.pooled, report.pooled, temperature=0.11)
        token = token_alignment_loss(
            report.local,
            image.local,
            word_keep=report.keep,
            word_weight=importance_weights(report.weight, report.keep),
            patch_weight=importance_weights(image.weight, None),
            temperature=0.23,
            upstream=upstream or None,
        )
        prototype = prototype_alignment_loss(
            image.pooled, report.pooled, model.prototypes, temperature=0.31, epsilon=0.17, iterations=5
        )
    torch.testing.assert_close(losses.instance, instance, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.token, token, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.prototype, prototype, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses.total, 0.5 * instance + 2 * token + 3 * prototype, rtol=1e-6, atol=0)
    assert list(losses.named()) == list(PARTS)


@pytest.mark.parametrize("term", ["instance", "token", "prototype"])
def test_a_term_without_weight_is_not_computed(studies, batch, term, monkeypatch):
    model = model_of(studies, **{f"{term}_weight": 0.0}).eval()

    def forbidden(*_, **__):
        raise AssertionError(f"{term} alignment was computed")

    monkeypatch.setattr(getattr(model, f"{term}_alignment"), "forward", forbidden)
    losses = model(batch)[0]
    assert getattr(losses, term).item() == 0
    rest = [getattr(losses, name) for name in ("instance", "token", "prototype") if name != term]
    torch.testing.assert_close(losses.total, sum(rest))
    assert min(part.item() for part in rest) > 0


def gradients(model, batch):
    model(batch)[0].total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradients_reach_every_parameter(studies, batch, backbone):
    model = model_of(studies, backbone=backbone)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.data.normal_(std=0.1)  # timm starts residual branches at zero, which stops gradients at first
    found = gradients(model, batch)
    assert [name for name, gradient in found.items() if gradient is None] == []
    # A bias in front of BatchNorm, and one added to all keys, change nothing: their gradient is rounding.
    idle = ("enter.bias", "leave.bias", "layers.0.bias", "layers.3.bias", "key.bias")
    dead = [name for name, gradient in found.items() if not gradient.abs().sum() > 0 and not name.endswith(idle)]
    assert dead == []
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        ({"token_weight": 0.0, "prototype_weight": 0.0}, {"image_local", "report_local", "prototype_alignment"}),
        ({"prototype_weight": 0.0}, {"prototype_alignment"}),
        ({"token_weight": 0.0}, {"image_local", "report_local"}),
        ({"instance_weight": 0.0}, set()),
        (
            {"instance_weight": 0.0, "prototype_weight": 0.0},
            {"image_encoder", "image_global", "report_global", "prototype_alignment"},
        ),
    ],
)
def test_parameters_of_idle_terms_get_none(studies, batch, settings, idle):
    found = gradients(model_of(studies, **settings), batch)
    missing = [name for name, gradient in found.items() if gradient is None]
    assert {name.split(".")[0] for name in missing} == idle
    # Patches come from the third stage of four, so without a global term the fourth is idle.
    assert all("trunk.layer4" in name for name in missing if name.startswith("image_encoder"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_half_precision_gives_finite_numbers_near_the_full_ones(studies, batch, backbone):
    full, half = (model_of(studies, backbone=backbone) for _ in range(2))
    expected = full(batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, image, report = half(batch)
    losses.total.backward()
    assert {getattr(losses, name).dtype for name in PARTS} == {torch.float32}
    assert {tokens.dtype for tokens in (image.pooled, image.local, report.pooled, report.local)} == {torch.float32}
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters())
    for name in PARTS:
        torch.testing.assert_close(getattr(losses, name), getattr(expected, name), rtol=0.08, atol=0)


def test_tokens_are_unit_vectors(studies, batch):
    model = model_of(studies).eval()
    with torch.no_grad():
        image, report = model.encode_image(batch.images), model.encode_report(batch)
    assert image.pooled.shape == report.pooled.shape == (7, 16)
    assert image.local.shape == (7, 4, 16)
    assert report.local.shape == (7, batch.num_words, 16)
    for vectors in (image.pooled, report.pooled, image.local, report.local[report.keep]):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    assert model.prototypes.shape == (6, 16)
    torch.testing.assert_close(model.prototypes.norm(dim=-1), torch.ones(6))


def test_the_seed_decides_the_weights(studies):
    config, tokenizer = tiny_config(), tiny_tokenizer(studies)
    one, two, other = (build_model(config, tokenizer, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["image_global.layers.0.weight"], other["image_global.layers.0.weight"])
    torch.manual_seed(1)
    free = build_model(config, tokenizer).state_dict()
    assert all(torch.equal(one[name], free[name]) for name in one)


def test_gathering_is_switched_by_the_configuration(studies):
    for gather in (True, False):
        model = model_of(studies, gather=gather)
        assert model.instance_alignment.gather is gather
        assert model.prototype_alignment.distributed is gather


# ---- the published code's deviations, one at a time

SWITCHES = {
    "shifted_word_weights": ({}, {"token"}, {"weight"}),
    "lost_last_word": ({"max_pieces": 8}, {"token"}, {"keep", "weight", "local"}),
    "padded_batchnorm": ({}, {"token"}, {"local"}),
    "padded_softmax": ({}, {"token"}, set()),
    "unnormalized_context": ({}, {"token"}, set()),
    "separator_word": ({}, {"token"}, {"keep", "local"}),
    "mask_same_text": ({}, {"instance"}, set()),
    "local_groups": ({"gather": False}, {"instance", "prototype"}, set()),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_changes_its_own_loss_and_tokens_and_no_other(studies, name):
    base, losses, tokens = SWITCHES[name]
    batch = tiny_batch(studies, list(range(8)), max_pieces=base.get("max_pieces", 112))
    on = {name: 2 if name == "local_groups" else True}
    if name == "padded_batchnorm":  # two heads alike but for their statistics need equally many slots
        batch = replace(batch, num_words=111)
    if name == "mask_same_text":
        assert len(set(batch.text_ids.tolist())) < 8
    outcomes = []
    for settings in (base, base | on):
        model = model_of(studies, **settings)  # in training mode, with the same weights
        outcomes.append(model(batch))
    (before, image, report), (after, other_image, other_report) = outcomes
    for part in ("instance", "token", "prototype"):
        change = abs(getattr(before, part) - getattr(after, part)).item()
        assert change > 1e-4 if part in losses else change == 0, part
    assert torch.equal(image.local, other_image.local)
    assert torch.equal(image.pooled, other_image.pooled)
    width = report.keep.shape[1]
    for part in ("pooled", "local", "keep", "weight"):
        one, two = getattr(report, part), getattr(other_report, part)
        two = two if part == "pooled" else two[:, :width]
        if part == "local":  # padded slots hold what they like
            one, two = one[report.keep], two[report.keep]
        assert torch.allclose(one.float(), two.float(), atol=1e-6) is (part not in tokens), part


@pytest.mark.parametrize(("form", "padded"), [("cta_grounded", False), ("gloria", False), ("cta_grounded", True)])
def test_denied_words_take_no_part_in_the_token_term(studies, form, padded):
    """As if these words were not there for it: one report has none left, one keeps all."""
    batch = tiny_batch(studies, list(range(8)))
    denied = torch.zeros(8, batch.num_words, dtype=torch.bool)
    denied[1], denied[2, ::2], denied[5:, 0] = True, True, True
    settings = {"token_form": form, "padded_batchnorm": padded}  # the second makes 111 slots of every report
    plain, skipping = model_of(studies, **settings), model_of(studies, **settings, skip_denied_words=True)
    (before, image, report), (after, _, other) = plain(batch), skipping(replace(batch, denied=denied))
    assert (after.instance, after.prototype) == (before.instance, before.prototype)
    assert torch.equal(report.local, other.local)
    assert torch.equal(report.keep, other.keep)
    denied_slots = torch.zeros_like(report.keep)
    denied_slots[:, : batch.num_words] = denied
    by_hand = plain.token_alignment(report.local, image.local, word_keep=report.keep & ~denied_slots)
    assert after.token.item() == pytest.approx(by_hand.item(), abs=1e-6)
    assert abs(after.token - before.token) > 1e-3
    # Nothing denied: nothing changes. And flags alone change nothing.
    assert skipping(batch)[0].token == plain(replace(batch, denied=denied))[0].token == before.token


def test_the_separator_is_a_word_without_weight(studies):
    """Against [SEP] numbered by hand; full reports that lose their last word have none."""
    batch = tiny_batch(studies, list(range(4)), max_pieces=8)
    assert (batch.piece_keep.sum(dim=1) == 8).any()
    for lost in (False, True):
        model = model_of(studies, max_pieces=8, separator_word=True, lost_last_word=lost).eval()
        plain = model_of(studies, max_pieces=8, lost_last_word=lost).eval()
        _, _, report = model(batch)
        words = plain.encode_report(batch)
        word_ids = batch.word_ids.clone()
        for row, keep in enumerate(batch.piece_keep):
            last = int(keep.nonzero().max())
            if not (lost and last == 7):
                word_ids[row, last] = word_ids[row].max() + 1
        by_hand = replace(batch, word_ids=word_ids, num_words=batch.num_words + 1)
        full = model_of(studies, max_pieces=8).eval().encode_report(by_hand) if not lost else None
        width = words.keep.shape[1]
        assert torch.equal(report.keep.sum(dim=1), words.keep.sum(dim=1) + (word_ids != batch.word_ids).any(dim=1))
        torch.testing.assert_close(report.weight[:, :width], words.weight * words.keep)
        assert report.weight[:, width:].sum() == 0
        torch.testing.assert_close(report.local[:, :width][words.keep], words.local[words.keep])
        if full is not None:
            torch.testing.assert_close(report.local, full.local)
        torch.testing.assert_close(model.encode_report(batch).keep, words.keep)  # evaluations see words alone


def test_upstream_is_its_switches_together(studies, batch):
    names = ("shifted_word_weights", "lost_last_word", "padded_batchnorm", "padded_softmax", "separator_word")
    for upstream, more in (("resnet", ()), ("vit", ("unnormalized_context",))):
        together = model_of(studies, **dict.fromkeys((*names, *more), True))(batch)[0]
        combined = model_of(studies, upstream=upstream)(batch)[0]
        for name in PARTS:
            assert torch.equal(getattr(combined, name), getattr(together, name))


@pytest.mark.parametrize("name", ["padded_batchnorm", "padded_softmax"])
def test_where_padding_counts_its_amount_does_not_depend_on_the_batch(studies, batch, name):
    """Upstream fills every report up to the same number of slots, 111."""
    one, two = (model_of(studies, **{name: True}) for _ in range(2))
    (losses, _, report), (again, _, _) = one(batch), two(padded(batch))
    assert report.local.shape[1] == report.keep.shape[1] == 111
    assert_same_losses(losses, again)
