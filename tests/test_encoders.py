"""Encoders against direct computations: attention rows, merged words, masked statistics, shapes and dimensions."""

import copy
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel

from mgca_lib.config import load_profile
from mgca_lib.data.tokenization import TokenizerError, load_tokenizer
from mgca_lib.encoders import (
    EncoderError,
    GlobalProjection,
    ImageEncoder,
    LocalProjection,
    MaskedBatchNorm,
    ReportEncoder,
    build_image_encoder,
    build_report_encoder,
    merge_pieces,
)


def images(batch=2, size=64, channels=1):
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def encoder(name, size=64, **settings):
    torch.manual_seed(0)
    return ImageEncoder(name, pretrained=False, image_size=size, **settings).eval()


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_patch_weights_are_the_class_token_s_attention(name):
    """Against timm's own softmax in the last block, made visible by switching fused attention off."""
    model = encoder(name)
    for parameter in model.trunk.blocks[-1].attn.qkv.parameters():
        parameter.data.normal_(std=0.2)  # at initialisation attention is almost uniform
    with torch.no_grad():
        tokens = model(images())
    attention = model.trunk.blocks[-1].attn
    attention.fused_attn = False
    seen = []
    attention.attn_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        model.trunk(images().expand(-1, 3, -1, -1))
    prefix = model.trunk.num_prefix_tokens
    expected = seen[0].mean(dim=1)[:, 0, prefix:]
    assert expected.std(dim=1).min() > 0.005
    torch.testing.assert_close(tokens.weight, expected, rtol=1e-5, atol=1e-7)
    assert not tokens.weight.requires_grad


def test_a_vit_gives_class_token_and_patches():
    model = encoder("test_vit")
    with torch.no_grad():
        tokens = model(images())
        every = model.trunk.forward_features(images().expand(-1, 3, -1, -1))
        pooled = model.trunk(images().expand(-1, 3, -1, -1))
    assert torch.equal(tokens.pooled, pooled)
    torch.testing.assert_close(tokens.pooled, model.trunk.fc_norm(every[:, 0]), rtol=1e-6, atol=1e-6)
    assert torch.equal(tokens.local, every[:, 1:])


def test_channels_of_a_resnet():
    """Stem and stages have the widths that were asked for; by default timm's."""
    settings = {"pretrained": False, "image_size": 64}
    narrow = ImageEncoder("resnet10t", channels=(8, 16, 24, 40), stem_width=8, **settings)
    stem = [module for module in narrow.trunk.conv1 if isinstance(module, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in stem] == [6, 8, 16]
    assert (narrow.local_dim, narrow.feature_dim) == (24, 40)
    tokens = narrow(images())
    assert (tokens.local.shape, tokens.pooled.shape) == ((2, 16, 24), (2, 40))
    published = ImageEncoder("resnet10t", **settings).trunk
    assert [conv.out_channels for conv in published.conv1 if isinstance(conv, torch.nn.Conv2d)] == [24, 32, 64]
    for other in ({"stem_width": 8}, {"channels": (8, 16, 24, 40)}):
        with pytest.raises(EncoderError, match=r"backbone 'test_vit': does not take these settings"):
            ImageEncoder("test_vit", **other, **settings)


def test_patches_of_another_stage():
    """The cells of the stage that was asked for, whatever is pooled."""
    settings = {"channels": (8, 16, 24, 40), "pretrained": False, "image_size": 64}
    torch.manual_seed(0)
    fine = ImageEncoder("resnet10t", local_stride=8, **settings).eval()
    torch.manual_seed(0)
    coarse = ImageEncoder("resnet10t", **settings).eval()
    assert (fine.local_dim, coarse.local_dim) == (16, 24)
    with torch.no_grad():
        tokens = fine(images())
        assert torch.equal(tokens.pooled, coarse(images()).pooled)
        stage = fine.trunk.layer2(fine.trunk.layer1(fine.trunk.maxpool(stem(fine.trunk, images()))))
    assert tokens.local.shape == (2, 64, 16)
    torch.testing.assert_close(tokens.local[1, 13], stage[1, :, 1, 5])
    torch.testing.assert_close(tokens.weight, torch.full((2, 64), 1 / 64))
    with pytest.raises(EncoderError, match=r"local_stride = 6: backbone 'resnet10t' .* it has 2, 4, 8, 16, 32"):
        ImageEncoder("resnet10t", local_stride=6, **settings)
    with pytest.raises(EncoderError, match=r"local_stride = 8: backbone 'test_vit' has one stage"):
        ImageEncoder("test_vit", pretrained=False, image_size=64, local_stride=8)


def test_finer_patches_with_context():
    """A cell of stride 8, and behind it the map of stride 16, which four neighbours share bilinearly."""
    settings = {"channels": (8, 16, 24, 40), "pretrained": False, "image_size": 64}
    torch.manual_seed(0)
    both = ImageEncoder("resnet10t", local_stride=8, local_context=True, **settings).eval()
    torch.manual_seed(0)
    fine = ImageEncoder("resnet10t", local_stride=8, **settings).eval()
    torch.manual_seed(0)
    coarse = ImageEncoder("resnet10t", **settings).eval()
    with torch.no_grad():
        tokens, narrow, wide = both(images()), fine(images()), coarse(images())
    assert both.local_dim == 16 + 24
    assert tokens.local.shape == (2, 64, 40)
    assert torch.equal(tokens.pooled, coarse(images()).pooled)
    assert torch.equal(tokens.local[..., :16], narrow.local)
    grid = wide.local.unflatten(1, (4, 4))
    # The middle of fine cell (2, 5) lies a quarter of a coarse cell up from that of (1, 2) and as much to the right.
    expected = 0.75 * (0.75 * grid[:, 1, 2] + 0.25 * grid[:, 1, 3]) + 0.25 * (
        0.75 * grid[:, 0, 2] + 0.25 * grid[:, 0, 3]
    )
    torch.testing.assert_close(tokens.local[:, 2 * 8 + 5, 16:], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        tokens.local[:, 0, 16:], grid[:, 0, 0], rtol=1e-5, atol=1e-6
    )  # a corner has none but its own
    with pytest.raises(EncoderError, match=r"local_context = True: needs a local_stride below 16, got 16"):
        both.set_local_stride(16)
    with pytest.raises(EncoderError, match=r"local_context = True: backbone 'test_vit' has one stage"):
        ImageEncoder("test_vit", pretrained=False, image_size=64, local_context=True)


def stem(trunk: torch.nn.Module, films: torch.Tensor) -> torch.Tensor:
    return trunk.act1(trunk.bn1(trunk.conv1(films.expand(-1, 3, -1, -1))))


def test_the_hook_leaves_with_the_forward_pass():
    model = encoder("test_vit")
    before = copy.deepcopy(model.trunk.blocks[-1].attn._forward_pre_hooks)
    model(images())
    with pytest.raises(RuntimeError):
        model(images(channels=2))
    assert model.trunk.blocks[-1].attn._forward_pre_hooks == before


def test_patch_weights_carry_no_gradient_and_patches_do():
    model = encoder("test_vit").train()
    tokens = model(images())
    assert not tokens.weight.requires_grad
    tokens.local.sum().backward()
    assert model.trunk.patch_embed.proj.weight.grad.abs().sum() > 0


CNNS = ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050", "test_mambaout", "fastvit_t8"]


@pytest.mark.parametrize("name", CNNS)
def test_a_cnn_pools_as_timm_does(name):
    model = encoder(name)
    with torch.no_grad():
        tokens = model(images())
        expected = model.trunk(images().expand(-1, 3, -1, -1))
    torch.testing.assert_close(tokens.pooled, expected, rtol=1e-5, atol=1e-6)
    assert tokens.pooled.shape == (2, model.feature_dim)


@pytest.mark.parametrize("name", CNNS)
def test_a_cnn_s_patches_are_its_stride_16_stage(name):
    """Against what comes out of the module that timm's feature extractor names."""
    model = encoder(name)
    stages = timm.create_model(name, features_only=True, pretrained=False).feature_info
    stage = stages.reduction().index(16)
    seen = []
    module = model.trunk.get_submodule(stages.module_name()[stage])
    module.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        tokens = model(images())
    cells = seen[0].movedim(-1, 1) if name == "test_mambaout" else seen[0]
    assert model.local_dim == stages.channels()[stage]
    assert cells.shape == (2, model.local_dim, 4, 4)
    # Token number 4 * row + column is the cell at (row, column).
    torch.testing.assert_close(tokens.local, torch.stack([cells[:, :, n // 4, n % 4] for n in range(16)], dim=1))
    torch.testing.assert_close(tokens.weight, torch.full((2, 16), 1 / 16))


@pytest.mark.parametrize(
    ("name", "size", "settings", "pooled", "patches", "local"),
    [
        ("test_vit", 64, {}, 64, 16, 64),
        ("test_vit", 48, {"upsample_to": 96}, 64, 36, 64),
        ("test_resnet", 64, {}, 96, 16, 192),
        ("test_resnet", 96, {}, 96, 36, 192),
        ("test_resnet", 48, {"upsample_to": 80}, 96, 25, 192),
        ("resnet10t", 96, {"channels": (8, 16, 24, 32)}, 32, 36, 24),
        ("test_convnext", 64, {}, 64, 16, 48),
        ("swin_tiny_patch4_window7_224", 224, {}, 768, 196, 384),
        ("vit_little_patch16_reg1_gap_256", 64, {}, 320, 16, 320),  # registers, but no class token
        ("deit_tiny_distilled_patch16_224", 64, {}, 192, 16, 192),
    ],
)
def test_shapes(name, size, settings, pooled, patches, local):
    model = encoder(name, size, **settings)
    assert (model.feature_dim, model.local_dim) == (pooled, local)
    with torch.no_grad():
        tokens = model(images(size=size))
    assert tokens.pooled.shape == (2, pooled)
    assert tokens.local.shape == (2, patches, local)
    assert tokens.keep.shape == tokens.weight.shape == (2, patches)
    assert tokens.keep.all()
    assert tokens.weight.dtype == torch.float32
    assert (tokens.weight > 0).all()
    assert (tokens.weight.sum(1) <= 1 + 1e-5).all()


def test_without_a_class_token_weights_are_equal():
    tokens = encoder("vit_little_patch16_reg1_gap_256")(images())
    torch.testing.assert_close(tokens.weight, torch.full((2, 16), 1 / 16))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_one_channel_is_three_equal_ones(name):
    model = encoder(name)
    one, three = model(images()), model(images().expand(-1, 3, -1, -1))
    assert torch.equal(one.pooled, three.pooled)
    assert torch.equal(one.local, three.local)


def test_upsampling_is_bilinear_with_aligned_corners():
    small = encoder("test_resnet", 48, upsample_to=96)
    large = encoder("test_resnet", 96)
    large.load_state_dict(small.state_dict())
    grown = F.interpolate(images(size=48), size=(96, 96), mode="bilinear", align_corners=True)
    torch.testing.assert_close(small(images(size=48)).local, large(grown).local)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_evaluation_is_deterministic_and_per_image(name):
    model = encoder(name)
    with torch.no_grad():
        first, again, alone = model(images(3)), model(images(3)), model(images(3)[1:2])
    assert torch.equal(first.pooled, again.pooled)
    assert torch.equal(first.local, again.local)
    torch.testing.assert_close(first.local[1:2], alone.local, rtol=1e-4, atol=1e-5)


def test_the_published_vit():
    """ViT-B/16 at 224: 196 patches of 768, 85.8 million parameters, initialised as the paper's settings say."""
    model = build_image_encoder(load_profile("paper", backbone_weights=False).model).eval()
    assert (model.feature_dim, model.local_dim) == (768, 768)
    assert sum(p.numel() for p in model.parameters()) == 85_798_656
    with torch.no_grad():
        tokens = model(images(1, 224))
    assert tokens.local.shape == (1, 196, 768)
    assert tokens.weight.shape == (1, 196)


def test_the_published_resnet():
    """ResNet-50 on 299 pixels: 1024 x 19 x 19 cells and 2048 features."""
    config = load_profile("paper", backbone="resnet50", backbone_weights=False, upsample_to=299).model
    model = build_image_encoder(config).eval()
    assert (model.feature_dim, model.local_dim) == (2048, 1024)
    assert sum(p.numel() for p in model.parameters()) == 23_508_032
    with torch.no_grad():
        tokens = model(images(1, 224))
    assert tokens.pooled.shape == (1, 2048)
    assert tokens.local.shape == (1, 19 * 19, 1024)


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("resnet5000", {}, "knows no such model"),
        ("test_resnet.nonsense", {}, "cannot be built"),
        ("test_vit", {"channels": (8, 8)}, "does not take these settings"),
        ("eva02_tiny_patch14_224", {}, "its attention is not a plain ViT's"),
    ],
)
def test_backbones_that_cannot_be(name, settings, problem):
    with pytest.raises(EncoderError) as caught:
        ImageEncoder(name, pretrained=False, image_size=224, **settings)
    assert str(caught.value).startswith(f"backbone {name!r}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["test_vit", "resnet10t"])
def test_weights_without_network_say_what_to_do(name):
    with pytest.raises(EncoderError) as caught:
        ImageEncoder(name, pretrained=True, image_size=160)
    assert str(caught.value).startswith(f"backbone {name!r}: the weights are not on this computer")
    assert "set backbone_weights to false" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- reports


def bert(layers=2, dropout=0.0, vocabulary=50):
    torch.manual_seed(1)
    sizes = BertConfig(
        vocab_size=vocabulary,
        hidden_size=24,
        num_hidden_layers=layers,
        num_attention_heads=3,
        intermediate_size=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=20,
    )
    model = BertModel(sizes, add_pooling_layer=False)
    for name, parameter in model.named_parameters():
        if "query" in name or "key" in name:
            parameter.data.normal_(std=0.5)  # so that attention is far from uniform
    return model.eval()


def report_batch():
    """Three reports: 8, 5 and 4 pieces long; words 0 1 1 2 3 3, 0 0 0 and 0 1."""
    pieces = torch.tensor([[2, 7, 8, 9, 10, 11, 12, 3], [2, 13, 14, 15, 3, 0, 0, 0], [2, 16, 17, 3, 0, 0, 0, 0]])
    words = torch.tensor([[-1, 0, 1, 1, 2, 3, 3, -1], [-1, 0, 0, 0, -1, -1, -1, -1], [-1, 0, 1, -1, -1, -1, -1, -1]])
    keep = torch.tensor([[True] * 8, [True] * 5 + [False] * 3, [True] * 4 + [False] * 4])
    return pieces, keep, words


def test_word_weights_are_the_attention_of_cls():
    """Against transformers' own eager attention."""
    model = bert()
    pieces, keep, words = report_batch()
    with torch.no_grad():
        tokens = ReportEncoder(model)(pieces, keep, words, 4)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        output = eager(input_ids=pieces, attention_mask=keep.long(), output_attentions=True)
    attention = output.attentions[-1].mean(dim=1)[:, 0]
    expected, local = torch.zeros(3, 4), torch.zeros(3, 4, 24)
    for row in range(3):
        for piece in range(8):
            word = words[row, piece]
            if word >= 0:
                expected[row, word] += attention[row, piece]
                local[row, word] += output.last_hidden_state[row, piece]
    assert expected[0].std() > 0.01
    torch.testing.assert_close(tokens.weight, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(tokens.local, local, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokens.pooled, output.last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
    assert tokens.keep.tolist() == [[True] * 4, [True, False, False, False], [True, True, False, False]]
    assert not tokens.weight.requires_grad
    assert (tokens.weight[1, 1:] == 0).all()


def test_padding_does_not_change_a_report():
    model = ReportEncoder(bert())
    pieces, keep, words = report_batch()
    with torch.no_grad():
        short = model(pieces, keep, words, 4)
        long = model(F.pad(pieces, (0, 5), value=9), F.pad(keep, (0, 5)), F.pad(words, (0, 5), value=-1), 7)
    torch.testing.assert_close(long.pooled, short.pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(long.local[:, :4], short.local, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(long.weight[:, :4], short.weight, rtol=1e-5, atol=1e-7)
    assert not long.keep[:, 4:].any()
    assert (long.local[:, 4:] == 0).all()


@pytest.mark.parametrize("settings", [{}, {"word_window": 2}, {"shifted_weights": True, "full_length": 8}])
def test_groups_of_equal_length_give_what_the_whole_batch_gives(settings, monkeypatch):
    """Training reads short reports apart from long ones; the same to double precision, gradients too."""
    pieces, keep, words = (part[[1, 0, 2, 1, 2, 0, 1]] for part in report_batch())
    model = ReportEncoder(bert(), **settings).double()
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    sizes, outcomes = [], []
    for training in (False, True):
        model.train(training).zero_grad()
        read = model.read
        monkeypatch.setattr(model, "read", lambda *one, read=read: sizes.append(tuple(one[0].shape)) or read(*one))
        tokens = model(pieces, keep, words, 4)
        monkeypatch.undo()
        (tokens.local.sin().sum() + tokens.pooled.square().sum()).backward()
        gradient = torch.cat([part.grad.flatten() for part in model.parameters() if part.grad is not None])
        outcomes.append((*vars(tokens).values(), gradient))
    assert sizes == [(7, 8), (2, 4), (2, 5), (2, 8), (1, 8)]
    for whole, grouped in zip(*outcomes, strict=True):
        exact = whole.dtype != torch.float32  # weights are of single precision whatever the model has
        torch.testing.assert_close(grouped, whole, rtol=1e-10 if exact else 1e-6, atol=1e-12 if exact else 1e-7)


def test_shifted_weights_are_those_of_the_right_neighbour():
    """Upstream's slip: the row of attentions without its first entry, against the pieces with theirs."""
    model = bert()
    pieces, keep, words = report_batch()
    with torch.no_grad():
        right = ReportEncoder(model)(pieces, keep, words, 4)
        shifted = ReportEncoder(model, shifted_weights=True)(pieces, keep, words, 4)
    for name in ("pooled", "local", "keep"):
        assert torch.equal(getattr(shifted, name), getattr(right, name))
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        output = eager(input_ids=pieces, attention_mask=keep.long(), output_attentions=True)
    a = output.attentions[-1].mean(dim=1)[:, 0]
    expected = torch.zeros(3, 4)
    expected[0] = torch.stack([a[0, 2], a[0, 3] + a[0, 4], a[0, 5], a[0, 6] + a[0, 7]])  # the last one is [SEP]'s
    expected[1, 0] = a[1, 2] + a[1, 3] + a[1, 4]
    expected[2, :2] = torch.stack([a[2, 2], a[2, 3]])
    torch.testing.assert_close(shifted.weight, expected, rtol=1e-5, atol=1e-7)
    assert (shifted.weight - right.weight)[0].abs().max() > 0.01


def test_a_full_report_loses_its_last_word_where_asked():
    model = bert()
    pieces, keep, words = report_batch()  # 8, 5 and 4 pieces long
    with torch.no_grad():
        whole = ReportEncoder(model)(pieces, keep, words, 4)
        unharmed = ReportEncoder(model, full_length=9)(pieces, keep, words, 4)
        lossy = ReportEncoder(model, full_length=8)(pieces, keep, words, 4)
    for name in ("pooled", "local", "keep", "weight"):
        assert torch.equal(getattr(unharmed, name), getattr(whole, name))
    assert lossy.keep.tolist() == [[True, True, True, False], [True] + [False] * 3, [True, True, False, False]]
    assert torch.equal(lossy.pooled, whole.pooled)
    assert torch.equal(lossy.local[:, :3], whole.local[:, :3])
    assert torch.equal(lossy.weight[:, :3], whole.weight[:, :3])
    assert not lossy.local[0, 3].any()
    assert lossy.weight[0, 3] == 0


def slow_merge(values, word_ids, num_words):
    words = torch.zeros(len(values), num_words, values.shape[2], dtype=values.dtype)
    keep = torch.zeros(len(values), num_words, dtype=torch.bool)
    for row in range(len(values)):
        for piece in range(values.shape[1]):
            if word_ids[row, piece] >= 0:
                words[row, word_ids[row, piece]] += values[row, piece]
                keep[row, word_ids[row, piece]] = True
    return words, keep


@pytest.mark.parametrize("seed", range(5))
def test_merging_equals_a_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 11, 3, generator=generator, dtype=torch.float64)
    word_ids = torch.randint(-1, 6, (4, 11), generator=generator)
    found, keep = merge_pieces(values, word_ids, 8)
    expected, expected_keep = slow_merge(values, word_ids, 8)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(keep, expected_keep)


def test_merging_passes_gradcheck():
    word_ids = torch.tensor([[-1, 0, 0, 2, -1], [-1, 1, 1, 1, 0]])
    values = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: merge_pieces(x, word_ids, 3)[0], values)


def test_building_from_sizes():
    config = load_profile("smoke", text_layers=3, text_width=24, text_heads=4, max_pieces=30, text_dropout=0.2).model
    model = build_report_encoder(config, vocabulary=77, padding=0).model
    sizes = model.config
    assert (sizes.num_hidden_layers, sizes.hidden_size, sizes.num_attention_heads) == (3, 24, 4)
    assert (sizes.vocab_size, sizes.max_position_embeddings, sizes.intermediate_size) == (77, 30, 96)
    assert (sizes.hidden_dropout_prob, sizes.attention_probs_dropout_prob) == (0.2, 0.2)
    assert len(model.encoder.layer) == 3


def test_only_the_first_layers_of_a_folder_are_used(tmp_path):
    """As upstream, which reads 6 of the 12 layers of Bio_ClinicalBERT."""
    whole = bert(layers=4)
    whole.save_pretrained(tmp_path)
    config = load_profile("smoke", text_model=str(tmp_path), text_layers=2, max_pieces=20).model
    short = build_report_encoder(config, vocabulary=50, padding=0).eval()
    assert len(short.model.encoder.layer) == 2
    pieces, keep, words = report_batch()
    whole.encoder.layer = whole.encoder.layer[:2]
    with torch.no_grad():
        found = short(pieces, keep, words, 4)
        expected = whole(input_ids=pieces, attention_mask=keep.long()).last_hidden_state
    # One uses fused attention, the other not: fp32 rounding apart.
    torch.testing.assert_close(found.pooled, expected[:, 0], rtol=1e-5, atol=1e-6)
    last = bert(layers=4)
    last.encoder.layer = last.encoder.layer[2:]
    assert not torch.allclose(found.pooled, last(input_ids=pieces, attention_mask=keep.long()).last_hidden_state[:, 0])


def test_text_models_that_cannot_be(tmp_path):
    def build(**settings):
        config = load_profile("smoke", **{"max_pieces": 20} | settings).model
        return build_report_encoder(config, vocabulary=50, padding=0)

    with pytest.raises(EncoderError) as caught:
        build(text_model="emilyalsentzer/Bio_ClinicalBERT")
    message = str(caught.value)
    assert message.startswith("text_model 'emilyalsentzer/Bio_ClinicalBERT': the weights are not on this computer")
    assert "hf download emilyalsentzer/Bio_ClinicalBERT --local-dir FOLDER" in message
    assert "\n" not in message

    bert(layers=2).save_pretrained(tmp_path / "two")
    with pytest.raises(EncoderError, match=r"has 2 layers, text_layers = 3"):
        build(text_model=str(tmp_path / "two"), text_layers=3)
    with pytest.raises(EncoderError, match=r"reads \d+ pieces, max_pieces = 21"):
        build(text_model=str(tmp_path / "two"), max_pieces=21)
    bert(layers=2, vocabulary=49).save_pretrained(tmp_path / "few")
    with pytest.raises(EncoderError, match=r"knows 49 pieces, its tokenizer has 50"):
        build(text_model=str(tmp_path / "few"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text("{}")
    with pytest.raises(EncoderError, match="text_model"):
        build(text_model=str(tmp_path / "empty"))
    sizes = DistilBertConfig(vocab_size=50, dim=24, n_layers=2, n_heads=3, hidden_dim=32)
    DistilBertModel(sizes).save_pretrained(tmp_path / "other")
    with pytest.raises(EncoderError, match="is not a BERT-type model"):
        build(text_model=str(tmp_path / "other"))


@pytest.mark.parametrize("name", ["./models/text", "../text", "/models/text", "~/text", "models/text/last"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(EncoderError) as caught:
        build_report_encoder(load_profile("smoke", text_model=name).model, vocabulary=50, padding=0)
    message = str(caught.value)
    assert message.startswith(f"text_model {name!r}: no such folder")
    assert message.endswith("put the model there (config.json, weights, vocabulary), or name a hub id")
    assert "hf download" not in message
    assert ("'~' is not replaced" in message) == name.startswith("~")


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(EncoderError, match="holds nothing that can be read"):
        build_report_encoder(load_profile("smoke", text_model=str(tmp_path)).model, vocabulary=50, padding=0)


def test_code_of_a_stranger_is_not_run(tmp_path, monkeypatch):
    """A model that brings its own code along is refused, and whoever sits at a terminal is not even asked."""
    folder, trace = tmp_path / "model", tmp_path / "trace"
    folder.mkdir()
    names = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": names}))
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(EncoderError, match="text_model"):
        build_report_encoder(load_profile("smoke", text_model=str(folder)).model, vocabulary=50, padding=0)
    with pytest.raises(TokenizerError, match="tokenizer"):
        load_tokenizer(folder)
    assert not trace.exists()


# ---- heads


def twin_norms(width=5, affine=True):
    ours, theirs = MaskedBatchNorm(width, affine=affine), nn.BatchNorm1d(width, affine=affine)
    if affine:
        for norm in (ours, theirs):
            torch.manual_seed(3)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return ours.double(), theirs.double()


@pytest.mark.parametrize("affine", [True, False])
def test_masked_batch_norm_is_batch_norm_when_all_is_real(affine):
    ours, theirs = twin_norms(affine=affine)
    keep = torch.ones(4, 6, dtype=torch.bool)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        values = 3 + 2 * torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
        mine, flat = values.clone().requires_grad_(), values.flatten(0, 1).requires_grad_()
        found, expected = ours(mine, keep), theirs(flat)
        torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-10, atol=1e-10)
        found.square().mul(torch.arange(5)).sum().backward()
        expected.square().mul(torch.arange(5)).sum().backward()
        torch.testing.assert_close(mine.grad.flatten(0, 1), flat.grad, rtol=1e-9, atol=1e-9)
        if affine:
            torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-12, atol=1e-12)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 3
    ours.eval(), theirs.eval()
    values = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = theirs(values.flatten(0, 1)).view(2, 3, 5)
    torch.testing.assert_close(ours(values, keep[:2, :3]), expected, rtol=1e-10, atol=1e-10)


def test_masked_batch_norm_sees_real_slots_only():
    """Neither the content nor the amount of padding matters: only the real slots, given to plain BatchNorm."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 4, 5, generator=generator)
    keep = torch.tensor([[True, True, True, True], [True, False, False, False], [True, True, False, False]])
    plain = nn.BatchNorm1d(5)
    expected = plain(values[keep])
    for padded, mask in (
        (values, keep),
        (torch.where(keep[..., None], values, 1e4), keep),
        (F.pad(values, (0, 0, 0, 9), value=-7.0), F.pad(keep, (0, 9))),
    ):
        norm = MaskedBatchNorm(5)
        torch.testing.assert_close(norm(padded, mask)[mask], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_mean, plain.running_mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var, plain.running_var, rtol=1e-5, atol=1e-6)


def test_one_real_slot_gives_no_nan():
    norm = MaskedBatchNorm(3)
    out = norm(torch.ones(1, 2, 3), torch.tensor([[True, False]]))
    assert out.isfinite().all()
    assert norm.running_var.isfinite().all()


def test_global_head_by_hand():
    torch.manual_seed(0)
    head = GlobalProjection(6, hidden=7, joint=4)
    values = torch.randn(5, 6)
    first, last = head.layers[0], head.layers[3]

    def standard(x):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()

    hidden = standard(values @ first.weight.T + first.bias).clamp(min=0)
    out = standard(hidden @ last.weight.T + last.bias)
    torch.testing.assert_close(head(values), out / out.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_local_head_equals_the_global_one_on_real_slots():
    torch.manual_seed(0)
    head, twin = LocalProjection(6, hidden=7, joint=4), GlobalProjection(6, hidden=7, joint=4)
    twin.layers[0].load_state_dict(head.enter.state_dict())
    twin.layers[3].load_state_dict(head.leave.state_dict())
    values = torch.randn(3, 5, 6)
    keep = torch.arange(5) < torch.tensor([[5], [2], [3]])
    found = head(values, keep)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[keep], twin(values[keep]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3, 5))


@pytest.mark.parametrize("extra", [0, 4])
def test_a_padded_local_head_lets_every_slot_into_its_statistics(extra):
    torch.manual_seed(0)
    head, twin = LocalProjection(6, hidden=7, joint=4, padded=True), GlobalProjection(6, hidden=7, joint=4)
    twin.layers[0].load_state_dict(head.enter.state_dict())
    twin.layers[3].load_state_dict(head.leave.state_dict())
    keep = torch.arange(5 + extra) < torch.tensor([[5], [2], [3]])
    values = torch.randn(3, 5 + extra, 6).masked_fill(~keep[..., None], 0.0)
    found = head(values, keep)
    torch.testing.assert_close(found.flatten(0, 1), twin(values.flatten(0, 1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.enter_norm.running_mean, twin.layers[1].running_mean)
    torch.testing.assert_close(head.leave_norm.running_var, twin.layers[4].running_var)
    padding = found[~keep]
    torch.testing.assert_close(padding, padding[:1].expand_as(padding))  # one and the same vector everywhere
    head.padded = False
    assert (head(values, keep)[keep] - found[keep]).abs().max() > 0.05


@pytest.mark.parametrize("kind", [GlobalProjection, LocalProjection])
def test_heads_give_single_precision_under_autocast(kind):
    head = kind(6, hidden=7, joint=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = torch.randn(3, 2, 6)
        out = head(values[:, 0]) if kind is GlobalProjection else head(values, torch.ones(3, 2, dtype=torch.bool))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(out.shape[:-1]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_word_knows_the_pieces_within_its_window_in_each_layer_and_cls_knows_all(attention):
    """Change one piece after the other: what depends on it is what lies within two layers of two pieces."""
    model = ReportEncoder(bert(), word_window=2).double()  # some pieces pay others very little attention
    model.model.set_attn_implementation(attention)
    pieces = torch.tensor([[2, *range(5, 16), 3]])
    keep, words = torch.ones(1, 13, dtype=torch.bool), torch.tensor([[-1, *range(11), -1]])
    with torch.no_grad():
        before = model(pieces, keep, words, 11)
        for place in range(13):
            changed = pieces.clone()
            changed[0, place] = 17
            after = model(changed, keep, words, 11)
            moved = (after.local - before.local)[0].abs().amax(dim=1) > 1e-12
            near = [place > 0 and abs(word + 1 - place) <= 4 for word in range(11)]
            assert moved.tolist() == near, place
            assert (after.pooled - before.pooled).abs().max() > 1e-12


def test_the_window_is_the_same_for_every_way_to_compute_attention_and_ignores_padding():
    pieces, keep, words = report_batch()
    eager = ReportEncoder(bert(), word_window=1)
    fused = ReportEncoder(bert(), word_window=1)
    fused.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        one, two = eager(pieces, keep, words, 4), fused(pieces, keep, words, 4)
        long = eager(F.pad(pieces, (0, 5), value=9), F.pad(keep, (0, 5)), F.pad(words, (0, 5), value=-1), 4)
        whole = ReportEncoder(bert())(pieces, keep, words, 4)
    for other in (two, long):
        for name in ("pooled", "local", "weight"):
            torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-4, atol=1e-5)
    assert (one.local - whole.local)[0].abs().max() > 1e-3


def test_the_pooled_head_computes_in_single_precision():
    torch.manual_seed(0)
    head, values = GlobalProjection(6, hidden=7, joint=4), torch.randn(32, 6)
    expected = head(values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(values), expected)
