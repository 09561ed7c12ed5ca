"""A step in chunks is the step on the whole batch: losses, gradients, random numbers, statistics; it saves memory."""

from dataclasses import fields, replace

import pytest
import torch
from helpers import tiny_batch, tiny_config, tiny_studies, tiny_tokenizer
from torch.autograd.graph import saved_tensors_hooks

from mgca_lib.chunking import encode_in_chunks, project_in_chunks
from mgca_lib.config import ConfigError
from mgca_lib.encoders import LocalProjection, Tokens
from mgca_lib.model import build_model


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return tiny_studies(tmp_path_factory.mktemp("chunks"), train=12, valid=4, test=4).split("train")


@pytest.fixture(scope="module")
def batch(studies):
    return tiny_batch(studies, list(range(11)))


def model_of(studies, **settings):
    settings = {"backbone": "test_vit", "text_dropout": 0.0} | settings
    return build_model(tiny_config(**settings), tiny_tokenizer(studies), seed=4)


def step(model, batch, *, half=False):
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = model(batch)[0]
    losses.total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.double() for name, value in losses.named().items()}, gradients, dict(model.named_buffers())


def assert_same_step(one, two, *, loss=2e-6, gradient=1e-4):
    """Losses relative to themselves, gradients to the largest of their tensor or, where that is rounding, of all."""
    for name, value in one[0].items():
        torch.testing.assert_close(two[0][name], value, rtol=loss, atol=0, msg=name)
    assert one[1].keys() == two[1].keys()
    largest = max(value.abs().max().item() for value in one[1].values())
    for name, value in one[1].items():
        scale = max(value.abs().max().item(), 1e-3 * largest)
        assert (two[1][name] - value).abs().max() < gradient * scale, name
    for name, buffer in one[2].items():
        torch.testing.assert_close(two[2][name], buffer, rtol=1e-5, atol=1e-6, msg=name)


SETTINGS = {
    "default": {},
    "queue": {"queue_size": 9},
    "upstream": {"upstream": "vit"},
    "grounded": {"token_form": "cta_grounded"},
    "gloria": {"token_form": "gloria"},
}


def distance(one, two):
    """Length of the difference of all gradients, relative to that of the second."""
    squares = [(one[name].double() - gradient).square().sum() for name, gradient in two.items()]
    return (sum(squares) / sum(gradient.square().sum() for gradient in two.values())).sqrt().item()


@pytest.mark.parametrize("chunk_size", [1, 4, 10])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_chunks_equal_the_whole_batch(studies, batch, settings, chunk_size):
    """In double precision; what is left there is the single precision in which attention becomes importance.

    In single precision, chunks are as close to that as the whole batch at once.
    """
    sizes = (0, chunk_size)
    whole, parts = (step(model_of(studies, **settings, chunk_size=size), batch) for size in sizes)
    batch = replace(batch, images=batch.images.double())
    exact, also = (step(model_of(studies, **settings, chunk_size=size).double(), batch) for size in sizes)
    assert_same_step(exact, also, loss=1e-8, gradient=1e-6)
    for name, loss in exact[0].items():
        rounding = (whole[0][name] - loss).abs()
        assert (parts[0][name] - loss).abs() <= torch.maximum(3 * rounding, 2e-6 * loss.abs()), name
    assert distance(parts[1], exact[1]) < max(3 * distance(whole[1], exact[1]), 1e-5)


def test_a_chunk_as_large_as_the_batch_changes_no_bit(studies, batch):
    one, two = step(model_of(studies), batch), step(model_of(studies, chunk_size=11), batch)
    for first, second in zip(one, two, strict=True):
        assert all(torch.equal(second[name], value) for name, value in first.items())


def written_out(model, batch, chunk_size):
    """The same chunks with their whole graphs kept: what the recomputation must not be told from."""
    plain = {}
    for name in ("image_encoder", "report_encoder"):
        encoder = getattr(model, name)
        plain[name] = encoder.forward

        def in_parts(*inputs, forward=encoder.forward, **settings):
            pieces = zip(*(tensor.split(chunk_size) for tensor in inputs), strict=True)
            parts = [forward(*piece, **settings) for piece in pieces]
            return Tokens(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Tokens)))

        encoder.forward = in_parts
    return step(model, batch)


def test_a_chunk_computed_again_draws_the_same_dropout(studies, batch):
    """Dropout belongs to each chunk; it must be the same the second time."""
    settings = {"text_dropout": 0.3, "backbone": "test_vit"}
    kept = written_out(model_of(studies, **settings), batch, 4)
    again = step(model_of(studies, **settings, chunk_size=4), batch)
    assert_same_step(kept, again)
    without = step(model_of(studies, **settings | {"text_dropout": 0.0}, chunk_size=4), batch)
    assert abs(without[0]["total"] - again[0]["total"]) > 1e-3


def test_the_random_state_after_a_step_is_that_of_its_forward_pass(studies, batch):
    model = model_of(studies, text_dropout=0.3, chunk_size=4)
    torch.manual_seed(7)
    losses = model(batch)[0]
    state = torch.get_rng_state()
    losses.total.backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_a_backbone_with_batch_norm_is_refused(studies):
    with pytest.raises(ConfigError, match=r"chunk_size = 4: backbone 'test_resnet' has BatchNorm"):
        model_of(studies, backbone="test_resnet", chunk_size=4)


def test_evaluation_in_chunks(studies, batch):
    whole, parts = (model_of(studies, chunk_size=size).eval() for size in (0, 4))
    before = {name: buffer.clone() for name, buffer in parts.named_buffers()}
    with torch.inference_mode():
        one, two = whole(batch)[0].named(), parts(batch)[0].named()
    for name, loss in one.items():
        torch.testing.assert_close(two[name], loss, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(buffer, before[name]) for name, buffer in parts.named_buffers())


def test_half_precision_in_chunks(studies, batch):
    one = step(model_of(studies), batch, half=True)
    two = step(model_of(studies, chunk_size=4), batch, half=True)
    for name, loss in one[0].items():
        torch.testing.assert_close(two[0][name], loss, rtol=0.02, atol=0)
    assert {gradient.dtype for gradient in two[1].values()} == {torch.float32}


@pytest.mark.parametrize("padded", [False, True])
def test_a_head_in_chunks_in_double_precision(padded):
    """Against the head on the whole batch, gradient of the input included."""
    torch.manual_seed(1)
    local, weights = torch.randn(2, 7, 5, 6, dtype=torch.float64)
    keep = torch.rand(7, 5) < 0.6
    found = []
    for chunk_size in (None, 1, 3):
        torch.manual_seed(2)
        head = LocalProjection(6, hidden=9, joint=6, padded=padded).double()
        values = local.clone().requires_grad_()
        result = head(values, keep) if chunk_size is None else project_in_chunks(head, values, keep, chunk_size)
        (result * weights * keep[..., None]).sum().backward()
        found.append([result.detach(), values.grad, *(p.grad for p in head.parameters()), *head.buffers()])
    for parts in found[1:]:
        for one, two in zip(found[0], parts, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-11)


def kept_numbers(work):
    """Numbers that autograd keeps between forward and backward pass, each storage once."""
    seen = {}
    with saved_tensors_hooks(lambda t: seen.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t):
        work()
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values()) // 4


def test_what_is_kept_does_not_grow_with_the_hidden_layers(studies, batch):
    """Encoders and local heads keep their inputs and outputs; the activations of 11 studies between are gone."""
    parameters = sum(parameter.numel() for parameter in model_of(studies).parameters())
    whole, parts = (kept_numbers(lambda size=size: model_of(studies, chunk_size=size)(batch)) for size in (0, 1))
    assert parts - parameters < 0.25 * (whole - parameters)


def test_encoding_in_chunks_keeps_rows_in_place(studies, batch):
    model = model_of(studies).eval()
    whole = model.image_encoder(batch.images)
    parts = encode_in_chunks(model.image_encoder, 4, batch.images)
    for item in fields(Tokens):
        torch.testing.assert_close(getattr(parts, item.name), getattr(whole, item.name), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_8192_pairs_in_one_batch(studies):
    """The size that one card is meant to train; tiny encoders, in double precision."""
    batch = tiny_batch(studies, [row % 12 for row in range(8192)])
    batch = replace(batch, images=batch.images.double() + torch.randn(batch.images.shape, dtype=torch.float64) / 10)
    whole, parts = (step(model_of(studies, chunk_size=size).double(), batch) for size in (0, 64))
    assert_same_step(whole, parts, loss=1e-8, gradient=1e-5)
