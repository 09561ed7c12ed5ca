"""Published checkpoints: the right features come out, no code runs, and every fault is one clear line."""

import json
import os
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file
from torch import nn

from mgca_lib import published as module
from mgca_lib.checkpoint import CheckpointError
from mgca_lib.config import ModelConfig
from mgca_lib.encoders import ImageEncoder, build_image_encoder
from mgca_lib.published import (
    ARCHITECTURES,
    check_layout,
    convert_published,
    load_image_encoder,
    load_published_image_encoder,
    main,
    read_published,
)

PREFIX = "img_encoder_q.model."
SMALL_VIT = ModelConfig(backbone="test_vit", backbone_weights=False, stored_size=40, image_size=32)
WIDTH, DEPTH, HEADS, RATIO, PATCH = 64, 6, 2, 3, 16  # of timm's test_vit


class Block(nn.Module):
    """Pre-norm transformer block with the names of the published ViT, written from its description."""

    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)})
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, RATIO * WIDTH), "fc2": nn.Linear(RATIO * WIDTH, WIDTH)})

    def forward(self, tokens):
        query, key, value = self.attn["qkv"](self.norm1(tokens)).chunk(3, dim=-1)
        heads, size = [], WIDTH // HEADS
        for start in range(0, WIDTH, size):
            part = slice(start, start + size)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / size**0.5
            heads.append(scores.softmax(dim=-1) @ value[..., part])
        tokens = tokens + self.attn["proj"](torch.cat(heads, dim=-1))
        return tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))


class PublishedViT(nn.Module):
    """The published ViT at the size of timm's ``test_vit``: class token first, last norm on every token."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (32 // PATCH) ** 2, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images):
        patches = self.patch_embed["proj"](images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


def random_weights(network, seed=3):
    """Every parameter and running statistic random, so that a swapped pair shows."""
    torch.manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            spread = torch.rand_like(tensor) if name.endswith("running_var") else torch.randn_like(tensor)
            near_one = name.endswith("running_var") or tensor.ndim == 1 and name.endswith("weight")
            tensor.copy_(0.05 * spread + near_one)
    return network.eval()


def lightning(trunk, **others):
    """A file's content as PyTorch Lightning lays it out, the other parts of the model included."""
    state = OrderedDict((PREFIX + name, tensor) for name, tensor in trunk.items())
    state["img_encoder_q.global_embed.head.0.weight"] = torch.zeros(4, WIDTH)
    state["img_encoder_q.local_embed.head.0.weight"] = torch.zeros(4, WIDTH, 1)
    state["text_encoder_q.model.embeddings.word_embeddings.weight"] = torch.zeros(8, 4)
    state["text_encoder_q.model.embeddings.word_embeddings.bias"] = torch.zeros(8)
    state["prototype_layer.weight"] = torch.zeros(5, 4)
    settings = {"img_encoder": "vit_base", "lambda_1": 1.0, "lambda_2": 0.7, "gpus": 2, "logger": None, "lists": [1]}
    content = {"epoch": 20, "global_step": 33137, "pytorch-lightning_version": "1.5.10", "state_dict": state}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(7)}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    return content | {"hyper_parameters": settings, "optimizer_states": [optimizer]} | others


@pytest.fixture
def small(monkeypatch):
    """The converter with a ViT of 0.4 million weights in place of ViT-B/16."""
    monkeypatch.setitem(ARCHITECTURES, "vit", SMALL_VIT)


@pytest.fixture
def vit(small):
    return random_weights(PublishedViT())


@pytest.fixture
def checkpoint(tmp_path, vit):
    torch.save(lightning(vit.state_dict()), tmp_path / "vit_base.ckpt")
    return tmp_path / "vit_base.ckpt"


def fault(path, **settings):
    """The message with which loading fails: one line that starts with the file's name."""
    with pytest.raises(CheckpointError) as caught:
        load_published_image_encoder(path, **settings)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def changed(path, vit, change):
    """Write the checkpoint again with its trunk's weights changed."""
    weights = dict(vit.state_dict())
    change(weights)
    torch.save(lightning(weights), path)


@torch.no_grad()
def test_the_vit_gives_the_published_features(checkpoint, vit):
    images = torch.randn(2, 3, 32, 32)
    encoder = load_published_image_encoder(checkpoint, architecture="vit")
    assert not encoder.training
    tokens, expected = encoder(images), vit(images)
    assert expected.std() > 0.1
    torch.testing.assert_close(tokens.pooled, expected[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.local, expected[:, 1:], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_resnet_gives_torchvisions_features_at_299_pixels(tmp_path):
    network = random_weights(torchvision.models.resnet50(weights=None))
    weights = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    torch.save(lightning(weights), tmp_path / "resnet_50.ckpt")
    encoder = load_published_image_encoder(tmp_path / "resnet_50.ckpt", architecture="resnet50")
    images = torch.randn(1, 3, 224, 224)
    tokens = encoder(images)
    cells = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=True)
    for name, layer in network.named_children():
        if name == "avgpool":
            break
        cells = layer(cells)
        if name == "layer3":
            local = cells
    assert tokens.local.shape == (1, 361, 1024)
    assert tokens.pooled.shape == (1, 2048)
    scale = local.abs().max()
    torch.testing.assert_close(tokens.local / scale, local.flatten(2).mT / scale, rtol=0, atol=1e-5)
    scale = cells.abs().max()
    torch.testing.assert_close(tokens.pooled / scale, cells.mean(dim=(2, 3)) / scale, rtol=0, atol=1e-5)
    assert "holds a resnet50, not a vit" in fault(tmp_path / "resnet_50.ckpt", architecture="vit")


def published_vit_b():
    """Names and shapes of the published ViT-B/16, from its description."""
    layout = {"cls_token": (1, 1, 768), "pos_embed": (1, 197, 768), "norm.weight": (768,), "norm.bias": (768,)}
    layout |= {"patch_embed.proj.weight": (768, 3, 16, 16), "patch_embed.proj.bias": (768,)}
    linear = {"attn.qkv": (2304, 768), "attn.proj": (768, 768), "mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
    for number in range(12):
        for name, shape in linear.items():
            layout |= {f"blocks.{number}.{name}.weight": shape, f"blocks.{number}.{name}.bias": shape[:1]}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            layout[f"blocks.{number}.{name}"] = (768,)
    return layout


def test_the_full_sized_vit_has_the_published_layout():
    """The published width, without its memory: tensors of the meta device."""
    with torch.device("meta"):
        encoder = build_image_encoder(ARCHITECTURES["vit"])
        image = {name: torch.empty(shape) for name, shape in published_vit_b().items()}
        check_layout(image, encoder, source="vit_base.ckpt")
        assert len(image) == 150
        assert len(encoder.trunk.blocks) == encoder.trunk.blocks[0].attn.num_heads == 12
        assert encoder.trunk.norm.eps == encoder.trunk.blocks[0].norm1.eps == 1e-6
        image["pos_embed"] = torch.empty(1, 577, 768)
        with pytest.raises(CheckpointError, match=r"pos_embed \(1, 577, 768\) for \(1, 197, 768\)"):
            check_layout(image, encoder, source="vit_base.ckpt")


def test_what_the_file_says_is_reported(checkpoint, vit):
    published = read_published(checkpoint)
    assert published.image.keys() == vit.state_dict().keys()
    assert published.left_out == {
        "img_encoder_q.global_embed": 1,
        "img_encoder_q.local_embed": 1,
        "text_encoder_q.model": 2,
        "prototype_layer": 1,
    }
    counters = {"epoch": 20, "global_step": 33137, "pytorch-lightning_version": "1.5.10"}
    assert published.recorded == counters | {"img_encoder": "vit_base", "lambda_1": 1.0, "lambda_2": 0.7, "gpus": 2}


@pytest.mark.parametrize("old_format", [False, True])
def test_a_bare_state_dict_needs_no_frame(tmp_path, vit, old_format):
    path = tmp_path / "weights.pth"
    torch.save(lightning(vit.state_dict())["state_dict"], path, _use_new_zipfile_serialization=not old_format)
    if old_format:
        assert "torch.save writes zip archives" in fault(path)
    else:
        weights = load_published_image_encoder(path).trunk.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in vit.state_dict().items())


def test_the_written_folder_holds_the_same_encoder(tmp_path, checkpoint):
    out = tmp_path / "new" / "vit"
    convert_published(checkpoint, out)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "image_encoder.safetensors"]
    assert [path.name for path in out.parent.iterdir()] == ["vit"]
    content = json.loads((out / "config.json").read_text())
    assert content["provenance"]["file"] == "vit_base.ckpt"
    assert content["provenance"]["recorded"]["lambda_2"] == 0.7
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        one, two = (make(images) for make in (load_published_image_encoder(checkpoint), load_image_encoder(out)))
    assert torch.equal(one.pooled, two.pooled)
    assert not load_image_encoder(out).training


def test_the_channels_last_resnet_survives_the_folder(tmp_path, monkeypatch):
    config = ModelConfig(backbone="resnet50", backbone_channels=[4, 8, 12, 16], backbone_weights=False, upsample_to=64)
    monkeypatch.setitem(ARCHITECTURES, "resnet50", config)
    encoder = random_weights(build_image_encoder(config))
    torch.save(lightning(encoder.trunk.state_dict()), tmp_path / "resnet_50.ckpt")
    convert_published(tmp_path / "resnet_50.ckpt", tmp_path / "out")
    loaded = load_image_encoder(tmp_path / "out")
    assert loaded.upsample_to == 64
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in encoder.state_dict().items())
    assert weights.keys() == load_file(tmp_path / "out" / "image_encoder.safetensors").keys()


class Malicious:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("place", ["callbacks", "state_dict", "whole"])
def test_a_malicious_file_is_refused_and_does_not_run(tmp_path, vit, place):
    trap = tmp_path / "ran"
    content = lightning(vit.state_dict())
    if place == "state_dict":
        content["state_dict"][PREFIX + "norm.bias"] = Malicious(trap)
    else:
        content = Malicious(trap) if place == "whole" else content | {"callbacks": Malicious(trap)}
    torch.save(content, tmp_path / "vit_base.ckpt")
    message = fault(tmp_path / "vit_base.ckpt")
    assert f"holds Python objects, {os.mkdir.__module__}.mkdir, that only unpickling could restore" in message
    assert "refused" in message
    assert "save {'state_dict': ...} alone" in message
    assert not trap.exists()
    torch.load(tmp_path / "vit_base.ckpt", weights_only=False)
    assert trap.exists()  # the trap works


def test_the_reader_itself_runs_nothing(tmp_path, vit, monkeypatch):
    """Torch's list of the objects in a file may overlook one; its weights-only reader is the wall behind it."""
    monkeypatch.setattr(torch.serialization, "get_unsafe_globals_in_checkpoint", lambda path: [])
    torch.save(lightning(vit.state_dict()) | {"callbacks": Malicious(tmp_path / "ran")}, tmp_path / "vit_base.ckpt")
    assert "not a checkpoint of tensors and plain values (Weights only load failed" in fault(tmp_path / "vit_base.ckpt")
    assert not (tmp_path / "ran").exists()


def rewrite_pickle(path, program):
    """Replace the pickle of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, program if name.endswith("data.pkl") else content)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x80\x02.",
        b"\x80\x02R.",
        b"\x80\x02h\x07.",
        b"\x80\x02(}s.",
        b"\x80\x02X\x07",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02)K\x01b.",
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93.",  # names a function without the opcode that torch looks for
    ],
)
def test_a_hand_made_pickle_is_one_clear_line(checkpoint, program):
    rewrite_pickle(checkpoint, program)
    assert "not a checkpoint of tensors and plain values (" in fault(checkpoint)


def flip_a_weight(path):
    content = bytearray(path.read_bytes())
    where = content.index(struct.pack("<f", 1234.5))
    content[where] ^= 1
    path.write_bytes(content)


def test_a_damaged_weight_is_noticed(checkpoint, vit):
    with torch.no_grad():
        vit.norm.bias[0] = 1234.5
    changed(checkpoint, vit, lambda weights: None)
    load_published_image_encoder(checkpoint)
    flip_a_weight(checkpoint)
    assert "is damaged at 'vit_base/data/" in fault(checkpoint)


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.9999])
def test_a_truncated_file(checkpoint, keep):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(keep * len(content))])
    assert "is cut short; download it again" in fault(checkpoint)


def not_a_zip(path):
    path.write_text("<html>Sign in to continue</html>")


def torchscript(path):
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


def other_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (not_a_zip, "not a checkpoint: torch.save writes zip archives"),
        (lambda path: path.write_bytes(b""), "not a checkpoint: torch.save writes zip archives"),
        (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
        (lambda path: None, "cannot be read (No such file or directory)"),
        (torchscript, "not a checkpoint of tensors and plain values (Expected input to be a checkpoint"),
        (other_archive, "not a checkpoint of tensors and plain values ("),
        (lambda path: torch.save(torch.zeros(3), path), "holds no state_dict"),
        (lambda path: torch.save([1, 2], path), "holds no state_dict"),
        (lambda path: torch.save({"state_dict": [1]}, path), "holds no state_dict"),
        (lambda path: torch.save({"state_dict": {1: torch.zeros(3)}}, path), "holds no state_dict"),
        (lambda path: torch.save({"state_dict": {}}, path), "no weight's name starts with 'img_encoder_q.model.'"),
        (lambda path: torch.save(lightning({}), path), "no weight's name starts with 'img_encoder_q.model.'"),
        (
            lambda path: torch.save(lightning({"stem.weight": torch.zeros(3)}), path),
            "neither a vit nor a resnet50: no weight is called 'img_encoder_q.model.cls_token' or",
        ),
    ],
)
def test_what_is_no_published_checkpoint(tmp_path, write, problem):
    write(tmp_path / "file.ckpt")
    assert problem in fault(tmp_path / "file.ckpt")


def drop_blocks(weights):
    for name in [name for name in weights if name.startswith("blocks.5.")]:
        weights.pop(name)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda w: w.pop("norm.bias"), "image encoder: img_encoder_q.model.norm.bias missing"),
        (drop_blocks, "blocks.5.attn.qkv.weight, img_encoder_q.model.blocks.5.attn.qkv.bias and 8 more missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "image encoder: img_encoder_q.model.extra unexpected"),
        (
            lambda w: w.update({"norm.bias": torch.zeros(3)}),
            "image encoder: img_encoder_q.model.norm.bias (3,) for (64,) of another shape",
        ),
        (
            lambda w: w.update({"extra": w.pop("norm.bias"), "norm.weight": torch.zeros(1, 64)}),
            "norm.bias missing; img_encoder_q.model.extra unexpected; "
            "img_encoder_q.model.norm.weight (1, 64) for (64,) of another shape",
        ),
        (lambda w: w.update({"norm.bias": "text"}), "weight 'img_encoder_q.model.norm.bias' is not a plain tensor"),
        (
            lambda w: w.update({"norm.bias": torch.zeros(64).to_sparse()}),
            "weight 'img_encoder_q.model.norm.bias' is not a plain tensor",
        ),
        (
            lambda w: w.update({"norm.bias": torch.full((64,), torch.nan)}),
            "weight 'img_encoder_q.model.norm.bias' holds values that are not finite",
        ),
    ],
)
def test_every_wrong_weight_is_named(checkpoint, vit, change, problem):
    changed(checkpoint, vit, change)
    assert problem in fault(checkpoint)


def test_the_wrong_architecture(checkpoint):
    message = fault(checkpoint, architecture="resnet50")
    assert message.endswith("holds a vit, not a resnet50; set architecture to 'vit'")
    with pytest.raises(CheckpointError, match="architecture 'vgg': must be one of vit, resnet50"):
        load_published_image_encoder(checkpoint, architecture="vgg")


def test_the_command(tmp_path, checkpoint, capsys):
    out = tmp_path / "out"
    assert main(["--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"image encoder of 78 tensors: {out}"
    assert lines[1:] == [
        "left out: img_encoder_q.global_embed (1 tensors)",
        "left out: img_encoder_q.local_embed (1 tensors)",
        "left out: prototype_layer (1 tensors)",
        "left out: text_encoder_q.model (2 tensors)",
    ]
    assert isinstance(load_image_encoder(out), ImageEncoder)
    assert main(["--checkpoint", str(checkpoint), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {out}: already exists; name another folder, or remove it\n"
    assert main(["--checkpoint", "absent.ckpt", "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err == "error: absent.ckpt: cannot be read (No such file or directory)\n"
    (tmp_path / "file").touch()
    assert main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.endswith("cannot be written (Not a directory)\n")


def test_a_failed_writing_leaves_no_folder(tmp_path, checkpoint, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
        convert_published(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setitem(ARCHITECTURES, "vit", SMALL_VIT)
    convert_published(checkpoint, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "vit_base.ckpt"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: cannot be read (No such file or directory)"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not the configuration of an image encoder"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: not the configuration of an image encoder"),
        (
            lambda f: (f / "config.json").write_text('{"model": {"backbone": "nonet"}}'),
            "config.json: not the configuration of an image encoder (backbone 'nonet': timm",
        ),
        (lambda f: (f / "image_encoder.safetensors").unlink(), "not a readable safetensors file"),
        (lambda f: (f / "image_encoder.safetensors").write_bytes(b"12"), "not a readable safetensors file"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, checkpoint, damage, problem):
    convert_published(checkpoint, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(CheckpointError) as caught:
        load_image_encoder(tmp_path / "out")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
