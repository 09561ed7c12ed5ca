"""Token alignment and importance weights against slow loops, closed forms and invariances."""

import math

import numpy as np
import pytest
import torch

from mgca_lib.alignment import (
    TokenAlignment,
    attention_maps,
    importance_weights,
    token_alignment_loss,
    token_alignment_parts,
)

MODES = (None, "vit", "resnet")


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a):
    norm = math.sqrt(dot(a, a))
    return [x / norm for x in a]


def attend(query, keys, temperature):
    """Average of ``keys`` under the softmax of their products with ``query``."""
    mass = [math.exp(dot(query, key) / temperature) for key in keys]
    return [sum(m * key[d] for m, key in zip(mass, keys, strict=True)) / sum(mass) for d in range(len(query))]


def contrast(anchors, attended, weight, temperature):
    """Half the weighted sum of both cross-entropies, anchor by anchor."""
    total = 0.0
    for j, anchor in enumerate(anchors):
        hit = dot(anchor, attended[j]) / temperature
        row = sum(math.exp(dot(anchor, other) / temperature) for other in attended)
        column = sum(math.exp(dot(other, attended[j]) / temperature) for other in anchors)
        total += 0.5 * weight[j] * (math.log(row) - hit + math.log(column) - hit)
    return total


def slow_loop(words, patches, keep, word_weight, patch_weight, temperature=0.1, upstream=None, **switches):
    """Word side and patch side from the equations, study by study, without any mask."""
    padded = upstream is not None or switches.get("padded_softmax", False)
    unnormalized = upstream == "vit" or switches.get("unnormalized_context", False)
    word_side = patch_side = 0.0
    for b in range(len(words)):
        all_words = [unit(word) for word in words[b].double().tolist()]
        all_patches = [unit(patch) for patch in patches[b].double().tolist()]
        real = [j for j in range(len(all_words)) if keep[b, j]]
        if not real:
            continue
        slots = range(len(all_words)) if padded else real
        anchors = [all_words[j] for j in slots]
        seen = [unit(attend(word, all_patches, temperature)) for word in anchors]
        weight = [word_weight[b, j].item() for j in slots]
        word_side += contrast(anchors, seen, weight, temperature)
        read = [attend(p, [all_words[j] for j in real], temperature) for p in all_patches]
        if not unnormalized:
            read = [unit(vector) for vector in read]
        patch_side += contrast(all_patches, read, patch_weight[b].tolist(), temperature)
    return word_side / len(words), patch_side / len(words)


def study(lengths=(5, 3, 1), slots=5, num_patches=6, dim=4, seed=0):
    """Random tokens with the given numbers of real words; the padding is one constant vector."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keep = torch.arange(slots) < torch.tensor(lengths)[:, None]
    words = torch.where(keep.unsqueeze(-1), random(len(lengths), slots, dim), random(dim))
    word_weight = random(len(lengths), slots).abs() * keep
    word_weight = word_weight / word_weight.sum(1, keepdim=True).clamp(min=1e-9)
    patch_weight = random(len(lengths), num_patches).abs()
    return {
        "words": words,
        "patches": random(len(lengths), num_patches, dim),
        "word_keep": keep,
        "word_weight": word_weight,
        "patch_weight": patch_weight / patch_weight.sum(1, keepdim=True),
    }


def oracle(tokens, **settings):
    return slow_loop(
        tokens["words"],
        tokens["patches"],
        tokens["word_keep"],
        tokens["word_weight"],
        tokens["patch_weight"],
        **settings,
    )


@pytest.mark.parametrize("upstream", MODES)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"lengths": (5, 5)},
        {"lengths": (1,)},
        {"lengths": (1,), "slots": 1},
        {"lengths": (4, 0, 2)},
        {"lengths": (2, 3), "num_patches": 1},
    ],
    ids=["ragged", "full", "one word", "one slot", "an empty report", "one patch"],
)
def test_equals_the_slow_loop(shape, upstream):
    tokens = study(**shape)
    parts = token_alignment_parts(**tokens, temperature=0.2, upstream=upstream)
    word_side, patch_side = oracle(tokens, temperature=0.2, upstream=upstream)
    assert parts.word_side.item() == pytest.approx(word_side, rel=1e-11, abs=1e-12)
    assert parts.patch_side.item() == pytest.approx(patch_side, rel=1e-11, abs=1e-12)
    loss = token_alignment_loss(**tokens, temperature=0.2, upstream=upstream)
    assert torch.equal(loss, parts.total)


SWITCHES = ({"padded_softmax": True}, {"unnormalized_context": True})


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: next(iter(switches)))
@pytest.mark.parametrize("lengths", [(5, 3, 1), (5, 5), (4, 0, 2)])
def test_each_switch_equals_the_slow_loop_and_changes_its_own_side(lengths, switches):
    tokens = study(lengths)
    parts = token_alignment_parts(**tokens, **switches)
    word_side, patch_side = oracle(tokens, **switches)
    assert parts.word_side.item() == pytest.approx(word_side, rel=1e-11, abs=1e-12)
    assert parts.patch_side.item() == pytest.approx(patch_side, rel=1e-11, abs=1e-12)
    assert torch.equal(token_alignment_loss(**tokens, **switches), parts.total)
    assert torch.equal(TokenAlignment(**switches)(**tokens), parts.total)
    default = token_alignment_parts(**tokens)
    own, other = ("word_side", "patch_side") if "padded_softmax" in switches else ("patch_side", "word_side")
    assert torch.equal(getattr(parts, other), getattr(default, other))
    if own == "patch_side" or min(lengths) < 5:  # without padding there is none to leave in
        assert abs(getattr(parts, own) - getattr(default, own)) > 1e-3


def test_upstream_modes_are_their_switches():
    tokens = study()
    for upstream, vit in (("resnet", False), ("vit", True)):
        loss = token_alignment_loss(**tokens, padded_softmax=True, unnormalized_context=vit)
        assert torch.equal(token_alignment_loss(**tokens, upstream=upstream), loss)
        for switches in SWITCHES:
            with pytest.raises(ValueError, match="decides the switches already"):
                token_alignment_loss(**tokens, upstream=upstream, **switches)


def test_both_switches_by_hand():
    """Two real words and two padded slots, patches equal to the words; exp(cosine / temperature) is 32 ** cosine."""
    words = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    settings = {
        "words": words,
        "patches": words[:, :2],
        "word_keep": torch.tensor([[True, True, False, False]]),
        "word_weight": torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64),
        "patch_weight": None,
        "temperature": 0.2 / math.log(2),
    }
    # A patch shares its attention 32 : 1 between its own word and the other, and so does a word between patches.
    length = math.sqrt(32**2 + 1)
    right, wrong = 32 / length, 1 / length
    parts = token_alignment_parts(**settings)
    assert parts.word_side.item() == pytest.approx(math.log(1 + 32 ** (wrong - right)), rel=1e-12)
    assert parts.patch_side.item() == pytest.approx(math.log(1 + 32 ** (wrong - right)), rel=1e-12)
    # The padded slots look like the second word: three wrong answers to word 1 where there was one.
    padded = token_alignment_parts(**settings, padded_softmax=True)
    assert padded.word_side.item() == pytest.approx(math.log(1 + 3 * 32 ** (wrong - right)), rel=1e-12)
    # What a patch reads is (32, 1) / 33, shorter than 1.
    unnormalized = token_alignment_parts(**settings, unnormalized_context=True)
    assert unnormalized.patch_side.item() == pytest.approx(math.log(1 + 32 ** (-31 / 33)), rel=1e-12)


def test_defaults_are_the_corrected_loss_at_a_tenth():
    tokens = study()
    assert token_alignment_loss(**tokens).item() == pytest.approx(sum(oracle(tokens)), rel=1e-11)


def test_ties_cost_the_logarithms_of_words_and_patches():
    keep = torch.tensor([[True] * 3 + [False] * 4])
    for upstream, negatives in ((None, 3), ("resnet", 7), ("vit", 7)):
        parts = token_alignment_parts(
            torch.ones(1, 7, 8, dtype=torch.float64),
            torch.ones(1, 11, 8, dtype=torch.float64),
            word_keep=keep,
            word_weight=None,
            patch_weight=None,
            upstream=upstream,
        )
        assert parts.word_side.item() == pytest.approx(math.log(negatives), rel=1e-13)
        assert parts.patch_side.item() == pytest.approx(math.log(11), rel=1e-13)


def test_without_padding_the_corrected_loss_is_the_resnet_branch():
    tokens = study(lengths=(5, 5, 5))
    loss, resnet, vit = (token_alignment_loss(**tokens, upstream=mode).item() for mode in (None, "resnet", "vit"))
    assert resnet == pytest.approx(loss, rel=1e-12)
    assert abs(vit - loss) > 0.01


def padded(tokens, fill):
    """The same studies with as many more slots as ``fill`` has rows."""
    batch, extra = len(tokens["words"]), fill.shape[0]
    return tokens | {
        "words": torch.cat([tokens["words"], fill.expand(batch, -1, -1)], dim=1),
        "word_keep": torch.cat([tokens["word_keep"], torch.zeros(batch, extra, dtype=torch.bool)], dim=1),
        "word_weight": torch.cat([tokens["word_weight"], torch.zeros(batch, extra, dtype=torch.float64)], dim=1),
    }


def test_padding_changes_nothing_in_the_corrected_loss_only():
    tokens = study()
    more = padded(tokens, 9 * torch.randn(4, 4, dtype=torch.float64))
    loss = token_alignment_loss(**tokens).item()
    assert token_alignment_loss(**more).item() == pytest.approx(loss, rel=1e-13)
    for upstream in ("vit", "resnet"):
        before = token_alignment_parts(**tokens, upstream=upstream)
        after = token_alignment_parts(**more, upstream=upstream)
        assert after.word_side.item() > before.word_side.item() + 0.01
        assert after.patch_side.item() == pytest.approx(before.patch_side.item(), rel=1e-13)


def test_even_nan_padding_stays_out_of_values_and_gradients():
    tokens = study()
    words = torch.where(tokens["word_keep"].unsqueeze(-1), tokens["words"], torch.nan)
    words.requires_grad_()
    weight = torch.where(tokens["word_keep"], tokens["word_weight"], torch.nan)
    loss = token_alignment_loss(**(tokens | {"words": words, "word_weight": weight}))
    loss.backward()
    assert loss.item() == pytest.approx(token_alignment_loss(**tokens).item(), rel=1e-13)
    assert words.grad[~tokens["word_keep"]].eq(0).all()
    assert words.grad[tokens["word_keep"]].isfinite().all()
    assert words.grad[0].abs().sum() > 0


@pytest.mark.parametrize("upstream", MODES)
def test_an_empty_report_contributes_zero_and_no_gradient(upstream):
    tokens = study(lengths=(4, 0, 2))
    tokens["word_weight"][1] = 0.2  # even if the caller gives it weight
    words, patches = (tokens[name].requires_grad_() for name in ("words", "patches"))
    loss = token_alignment_loss(**tokens, upstream=upstream)
    loss.backward()
    assert loss.item() == pytest.approx(sum(oracle(tokens, upstream=upstream)), rel=1e-11)
    for gradient in (words.grad, patches.grad):
        assert gradient.isfinite().all()
        assert gradient[1].eq(0).all()
        assert gradient[0].abs().sum() > 0

    nobody = study(lengths=(0,))
    patches = nobody["patches"].requires_grad_()
    loss = token_alignment_loss(**nobody, upstream=upstream)
    loss.backward()
    assert loss.item() == 0
    assert patches.grad.eq(0).all()


@pytest.mark.parametrize("upstream", MODES)
def test_order_and_norms_do_not_matter(upstream):
    tokens = study()
    loss = token_alignment_loss(**tokens, upstream=upstream).item()
    studies, words, patches = ([2, 0, 1], [3, 1, 4, 0, 2], [5, 2, 0, 1, 4, 3])
    in_another_order = {name: value[studies] for name, value in tokens.items()}
    for name in ("words", "word_keep", "word_weight"):
        in_another_order[name] = in_another_order[name][:, words]
    for name in ("patches", "patch_weight"):
        in_another_order[name] = in_another_order[name][:, patches]
    longer = tokens | {"words": 3 * tokens["words"], "patches": 0.5 * tokens["patches"]}
    for other in (in_another_order, longer):
        again = token_alignment_loss(**other, upstream=upstream).item()
        assert again == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("upstream", MODES)
def test_gradient_in_double_precision(upstream):
    tokens = study(lengths=(3, 1), slots=3, num_patches=4)
    words, patches = (tokens.pop(name).requires_grad_() for name in ("words", "patches"))

    def loss(words, patches):
        return token_alignment_loss(words, patches, **tokens, temperature=0.3, upstream=upstream)

    assert torch.autograd.gradcheck(loss, (words, patches))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single_precision(dtype):
    tokens = study(lengths=(5, 3, 0))
    half = {n: v if v.dtype == torch.bool else v.to(dtype) for n, v in tokens.items()}
    loss = token_alignment_loss(**half)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum(oracle(half)), rel=1e-5)


def test_autocast_does_not_reach_the_loss():
    tokens = {n: v if v.dtype == torch.bool else v.float() for n, v in study().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = token_alignment_loss(**tokens)
    assert torch.equal(loss, token_alignment_loss(**tokens))


@pytest.mark.parametrize("upstream", ["vit", "resnet"])
def test_upstream_takes_weights_on_padding_as_they_are(upstream):
    tokens = study()
    before = token_alignment_loss(**tokens, upstream=upstream).item()
    tokens["word_weight"] = torch.full_like(tokens["word_weight"], 0.2)
    loss = token_alignment_loss(**tokens, upstream=upstream).item()
    assert loss == pytest.approx(sum(oracle(tokens, upstream=upstream)), rel=1e-11)
    assert abs(loss - before) > 0.01


def test_a_tiny_temperature_stays_finite_and_keeps_padding_out():
    tokens = study(lengths=(1, 1), slots=1)  # patches far from the only word still read it
    more = padded(tokens, 9 * torch.randn(4, 4, dtype=torch.float64))
    assert token_alignment_loss(**more, temperature=1e-4).item() == pytest.approx(
        token_alignment_loss(**tokens, temperature=1e-4).item(), rel=1e-12
    )
    tokens = {n: v if v.dtype == torch.bool else v.float() for n, v in study().items()}
    words = tokens["words"].requires_grad_()
    loss = token_alignment_loss(**tokens, temperature=1e-3)
    loss.backward()
    assert loss.isfinite()
    assert words.grad.isfinite().all()


def test_the_patch_side_keeps_no_square_tensor_for_backward():
    tokens = study(lengths=(3, 2), slots=3, num_patches=40)
    tokens["patches"].requires_grad_()
    storages = set()

    def note(tensor):
        if tensor.numel() == 2 * 40 * 40:
            storages.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = token_alignment_loss(**tokens)
    assert loss.requires_grad
    assert not storages


def test_module_is_the_function():
    tokens = study()
    module = TokenAlignment(temperature=0.3, upstream="vit")
    expected = sum(oracle(tokens, temperature=0.3, upstream="vit"))
    assert module(**tokens).item() == pytest.approx(expected, rel=1e-11)
    assert not list(module.parameters())
    with pytest.raises(ValueError, match="upstream must be"):
        TokenAlignment(upstream="swin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": torch.ones(3, 5)}, r"words must be \(B, W, D\)"),
        ({"patches": torch.ones(3, 6, 7)}, "share batch size and width"),
        ({"patches": torch.ones(3, 0, 4)}, "must not be empty"),
        ({"word_keep": torch.ones(3, 4)}, r"word_keep must be \(3, 5\), got \(3, 4\)"),
        ({"word_weight": torch.ones(5)}, r"word_weight must be \(3, 5\)"),
        ({"patch_weight": torch.ones(3, 5)}, r"patch_weight must be \(3, 6\)"),
        ({"temperature": -0.1}, "temperature must be above 0"),
        ({"upstream": "ViT"}, "upstream must be None, 'vit' or 'resnet', got 'ViT'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        token_alignment_loss(**(study() | change))


# Importance weights


def slow_weights(attention, keep, low=0.1, high=0.9):
    weights = np.zeros(attention.shape)
    for b, row in enumerate(attention):
        counted = [i for i in range(len(row)) if keep[b, i] and row[i] != 0]
        if counted:
            bounds = np.percentile(row[counted], [100 * low, 100 * high])
            for i in counted:
                weights[b, i] = min(max(row[i], bounds[0]), bounds[1])
        else:
            weights[b] = keep[b]
        if weights[b].sum():
            weights[b] /= weights[b].sum()
    return weights


@pytest.mark.parametrize("quantiles", [(0.1, 0.9), (0.0, 1.0), (0.25, 0.25), (0.33, 0.71)])
def test_weights_equal_the_slow_loop(quantiles):
    rng = np.random.default_rng(0)
    attention = rng.random((40, 12)) * (rng.random((40, 12)) < 0.8)
    keep = np.arange(12) < rng.integers(0, 13, size=(40, 1))
    keep[0], attention[1] = False, 0.0
    low, high = quantiles
    weights = importance_weights(torch.from_numpy(attention), torch.from_numpy(keep), low=low, high=high)
    expected = slow_weights(attention, keep, low, high)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-13, atol=1e-15)


def test_weights_of_special_rows():
    attention = torch.tensor(
        [
            [0.0, 0.7, 0.0, 0.0],  # one entry that counts
            [0.3, 0.3, 0.3, 5.0],  # all equal, the last is not real
            [0.0, 0.0, 0.0, 2.0],  # all real entries are zero
            [0.1, 0.2, 0.3, 0.4],  # nothing is real
            [0.2, 0.6, torch.nan, torch.inf],  # nonsense where nothing is real
        ]
    )
    keep = torch.tensor(
        [
            [True, True, True, True],
            [True, True, True, False],
            [True, True, True, False],
            [False, False, False, False],
            [True, True, False, False],
        ]
    )
    weights = importance_weights(attention, keep, low=0.0, high=1.0)
    third = 1 / 3
    expected = torch.tensor(
        [
            [0.0, 1.0, 0.0, 0.0],
            [third, third, third, 0.0],
            [third, third, third, 0.0],
            [0.0, 0.0, 0.0, 0.0],
            [0.25, 0.75, 0.0, 0.0],
        ]
    )
    torch.testing.assert_close(weights, expected)


def test_weights_without_keep_count_every_entry():
    attention = torch.rand(3, 9, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(3, 9, dtype=torch.bool)
    assert torch.equal(importance_weights(attention, None), importance_weights(attention, everything))


def test_weights_carry_no_gradient_and_widen_half_precision():
    attention = torch.rand(2, 5, dtype=torch.float16).requires_grad_()
    weights = importance_weights(attention, torch.ones(2, 5, dtype=torch.bool))
    assert not weights.requires_grad
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_weights_follow_a_permutation():
    attention = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    keep = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    order = [4, 2, 0, 5, 1, 3]
    torch.testing.assert_close(
        importance_weights(attention[:, order], keep[:, order]),
        importance_weights(attention, keep)[:, order],
    )


def test_weights_name_bad_arguments():
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        importance_weights(torch.ones(1, 2), None, low=0.9, high=0.1)
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 3\)"):
        importance_weights(torch.ones(1, 2), torch.ones(1, 3))


# Attention maps


def test_maps_equal_the_slow_loop_and_sum_to_one_over_patches():
    tokens = study()
    maps = attention_maps(tokens["words"], tokens["patches"], temperature=0.2)
    assert maps.shape == (3, 5, 6)
    torch.testing.assert_close(maps.sum(dim=2), torch.ones(3, 5, dtype=torch.float64))
    for b in range(3):
        patches = [unit(patch) for patch in tokens["patches"][b].tolist()]
        for j in range(5):
            word = unit(tokens["words"][b, j].tolist())
            mass = [math.exp(dot(word, patch) / 0.2) for patch in patches]
            assert maps[b, j].tolist() == pytest.approx([m / sum(mass) for m in mass], rel=1e-11)


def test_maps_of_padding_are_zero_and_a_match_lights_up():
    patches = torch.eye(4).unsqueeze(0)
    maps = attention_maps(patches[:, :2], patches, word_keep=torch.tensor([[True, False]]))
    assert maps[0, 1].eq(0).all()
    expected = math.exp(10) / (math.exp(10) + 3)
    assert maps[0, 0, 0].item() == pytest.approx(expected, rel=1e-6)
