"""Pairwise token terms against slow loops, closed forms and invariances."""

import math

import pytest
import torch
from helpers import tiny_batch, tiny_config, tiny_studies, tiny_tokenizer

from mgca_lib.alignment import PairwiseAlignment, gloria_local_loss, grounded_alignment_loss, pair_scores
from mgca_lib.config import ConfigError, load_profile
from mgca_lib.model import build_model

LOSSES = (grounded_alignment_loss, gloria_local_loss)


def unit(vector):
    norm = math.sqrt(sum(x * x for x in vector))
    return [x / norm for x in vector]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def softmax(values):
    top = max(values)
    mass = [math.exp(value - top) for value in values]
    return [m / sum(mass) for m in mass]


def slow_score(words, patches, *, temperature, sharpness, words_compete):
    """One report, one image, from the equations, contexts written out."""
    words, patches = [unit(w) for w in words], [unit(p) for p in patches]
    product = [[dot(w, p) for p in patches] for w in words]
    if words_compete:
        columns = [softmax([row[k] for row in product]) for k in range(len(patches))]
        product = [[column[j] for column in columns] for j in range(len(words))]
    total = 0.0
    for word, row in zip(words, product, strict=True):
        attention = softmax([value / temperature for value in row])
        context = [sum(a * p[d] for a, p in zip(attention, patches, strict=True)) for d in range(len(word))]
        total += math.exp(sharpness * dot(word, unit(context)))
    return math.log(total)


def slow_loss(scores, scale):
    """Cross-entropy of rows and of columns, answers on the diagonal."""
    total = 0.0
    for i, row in enumerate(scores):
        for line in (row, [other[i] for other in scores]):
            total -= math.log(softmax([scale * value for value in line])[i])
    return total / len(scores)


def sample(reports=4, images=4, words=5, patches=6, width=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    keep = torch.arange(words)[None] < torch.tensor([5, 2, 3, 1, 4, 5])[:reports, None]
    draw = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((reports, words, width),)]
    return draw[0], torch.randn(images, patches, width, generator=generator, dtype=dtype), keep


@pytest.mark.parametrize("words_compete", [False, True])
@pytest.mark.parametrize(("temperature", "sharpness"), [(0.1, 5.0), (0.25, 2.0), (1.0, 9.0)])
def test_scores_against_a_slow_loop(temperature, sharpness, words_compete):
    words, patches, keep = sample(reports=4, images=3)
    settings = {"temperature": temperature, "sharpness": sharpness, "words_compete": words_compete}
    found = pair_scores(words, patches, word_keep=keep, **settings)
    for r in range(4):
        for i in range(3):
            expected = slow_score(words[r][keep[r]].tolist(), patches[i].tolist(), **settings)
            assert found[r, i].item() == pytest.approx(expected, rel=1e-10)


def test_grounded_loss_against_a_slow_loop():
    words, patches, keep = sample()
    settings = {"temperature": 0.2, "sharpness": 3.0, "words_compete": False}
    rows = zip(words, keep, strict=True)
    scores = [[slow_score(w[k].tolist(), p.tolist(), **settings) for p in patches] for w, k in rows]
    found = grounded_alignment_loss(words, patches, word_keep=keep, temperature=0.2, sharpness=3.0)
    assert found.item() == pytest.approx(slow_loss(scores, 1 / 0.2), rel=1e-10)


def test_gloria_loss_against_a_slow_loop():
    words, patches, keep = sample(seed=3)
    settings = {"temperature": 1 / 4, "sharpness": 5.0, "words_compete": True}
    rows = zip(words, keep, strict=True)
    scores = [[slow_score(w[k].tolist(), p.tolist(), **settings) for p in patches] for w, k in rows]
    found = gloria_local_loss(words, patches, word_keep=keep)
    assert found.item() == pytest.approx(slow_loss(scores, 10.0), rel=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_knowing_nothing_costs_two_ln_b(loss):
    _, _, keep = sample()
    found = loss(torch.ones(4, 5, 7), torch.ones(4, 6, 7), word_keep=torch.ones_like(keep))
    assert found.item() == pytest.approx(2 * math.log(4), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_words_that_know_their_image_cost_nothing(loss):
    """Study i speaks of one direction that only its own image shows."""
    words = torch.eye(4, 8)[:, None, :].expand(4, 3, 8)
    assert loss(words, words, word_keep=torch.ones(4, 3, dtype=torch.bool)).item() < 1e-6


def test_a_fixed_place_for_every_word_wins_cta_but_not_the_pairwise_term():
    """Why CTA does not ground: without looking at any film, word j takes place j, in every study alike."""
    from mgca_lib.alignment import token_alignment_loss

    same = torch.eye(6)[None].expand(4, 6, 6)
    keep = torch.ones(4, 6, dtype=torch.bool)
    blind = token_alignment_loss(same, same, word_keep=keep, word_weight=None, patch_weight=None)
    assert blind.item() < 0.01 * 2 * math.log(6)
    for loss in LOSSES:
        assert loss(same, same, word_keep=keep).item() == pytest.approx(2 * math.log(4), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_has_no_say(loss):
    words, patches, keep = sample()
    expected = loss(words, patches, word_keep=keep)
    longer = torch.cat([words.masked_fill(~keep[..., None], torch.nan), torch.full((4, 3, 7), torch.nan)], dim=1)
    longer.requires_grad_()
    found = loss(longer, patches, word_keep=torch.cat([keep, torch.zeros(4, 3, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    found.backward()
    assert torch.isfinite(longer.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_studies_words_and_patches_does_not_matter(loss):
    words, patches, keep = sample()
    studies, places, slots = torch.tensor([2, 0, 3, 1]), torch.randperm(6), torch.randperm(5)
    found = loss(words[studies][:, slots], patches[studies][:, places], word_keep=keep[studies][:, slots])
    torch.testing.assert_close(found, loss(words, patches, word_keep=keep), rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_by_finite_differences(loss):
    words, patches, keep = sample(words=5, patches=3, width=4)
    words.requires_grad_(), patches.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, p: loss(w, p, word_keep=keep), (words, patches))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_change_neither_value_nor_gradient(loss, chunk):
    results = []
    for size in (0, chunk):
        words, patches, keep = sample()
        words.requires_grad_(), patches.requires_grad_()
        value = loss(words, patches, word_keep=keep, chunk=size)
        value.backward()
        results.append((value.detach(), words.grad, patches.grad))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_report_without_words_is_left_out_of_the_mean(loss):
    words, patches, keep = sample()
    keep[2] = False
    found = loss(words, patches, word_keep=keep)
    rest = torch.tensor([0, 1, 3])
    scale = {grounded_alignment_loss: (0.1, 10.0), gloria_local_loss: (0.25, 10.0)}[loss]
    scores = pair_scores(words, patches, word_keep=keep, temperature=scale[0], words_compete=loss is gloria_local_loss)
    assert scores[2].tolist() == [0.0] * 4
    logits = scores * scale[1]
    expected = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal())[rest].mean()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_bf16_input_is_computed_in_float32():
    words, patches, keep = sample(dtype=torch.float32)
    words, patches = words.bfloat16(), patches.bfloat16()
    found = pair_scores(words, patches, word_keep=keep)
    assert found.dtype == torch.float32
    assert torch.equal(found, pair_scores(words.float(), patches.float(), word_keep=keep))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": torch.zeros(4, 5)}, "words must be"),
        ({"patches": torch.zeros(4, 6, 3)}, "words must be"),
        ({"patches": torch.zeros(4, 0, 7)}, "not be empty"),
        ({"word_keep": torch.ones(4, 4, dtype=torch.bool)}, "words must be"),
        ({"temperature": 0.0}, "temperature"),
        ({"sharpness": -1.0}, "sharpness"),
        ({"chunk": -1}, "chunk"),
    ],
)
def test_bad_input_is_named(change, message):
    words, patches, keep = sample()
    arguments = {"words": words, "patches": patches, "word_keep": keep} | change
    with pytest.raises(ValueError, match=message):
        pair_scores(arguments.pop("words"), arguments.pop("patches"), **arguments)


def test_different_batch_sizes_are_refused():
    words, patches, keep = sample(reports=4, images=3)
    with pytest.raises(ValueError, match="4 reports for 3 images"):
        grounded_alignment_loss(words, patches, word_keep=keep)


@pytest.mark.parametrize(("form", "loss"), [("cta_grounded", grounded_alignment_loss), ("gloria", gloria_local_loss)])
def test_the_model_uses_the_form_of_its_configuration(tmp_path, form, loss):
    studies = tiny_studies(tmp_path, train=8, valid=4, test=4).split("train")
    model = build_model(tiny_config(token_form=form, text_dropout=0.0), tiny_tokenizer(studies), seed=4).eval()
    with torch.no_grad():
        losses, image, report = model(tiny_batch(studies, list(range(6))))
    expected = loss(report.local, image.local, word_keep=report.keep)
    torch.testing.assert_close(losses.token, expected, rtol=1e-6, atol=0)


def test_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="form must be"):
        PairwiseAlignment("cta")
    with pytest.raises(ConfigError, match="token_form = 'word'"):
        load_profile("smoke", token_form="word")
    with pytest.raises(ConfigError, match="upstream = 'vit'.*token_form cta only"):
        load_profile("smoke", token_form="gloria", upstream="vit")
