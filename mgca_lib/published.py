"""The authors' published checkpoints, read without running a line of them, as image encoders of this package.

``python -m mgca_lib.published --checkpoint vit_base.ckpt --out outputs/published_vit`` writes a folder of
``image_encoder.safetensors`` and ``config.json``; :func:`load_image_encoder` gives the encoder to the probe, detection
and segmentation. A published file is a pickle, which may hold any program: only torch's weights-only reader touches
it, and a file that wants more than tensors and plain values is refused.

Only the image encoder is converted. Its layout is certain: behind the prefix ``img_encoder_q.model.`` the ViT-B/16
has the names of timm's ``vit_base_patch16_224`` and the ResNet-50 those of torchvision, which timm's ``resnet50``
shares; neither has a classifier. Report encoder, heads and prototypes, whose layout is not established, stay behind
and are counted in the result.
"""

import json
import os
import shutil
import struct
import sys
import zipfile
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mgca_lib.checkpoint import CheckpointError, load_weights
from mgca_lib.config import ModelConfig
from mgca_lib.data.studies import file_sha256
from mgca_lib.encoders import ImageEncoder, build_image_encoder
from mgca_lib.messages import first_line

Architecture = Literal["vit", "resnet50"]

ARCHITECTURES: dict[Architecture, ModelConfig] = {
    "vit": ModelConfig(backbone="vit_base_patch16_224", backbone_weights=False),
    "resnet50": ModelConfig(backbone="resnet50", backbone_weights=False, upsample_to=299),
}
IMAGE_PREFIX = "img_encoder_q.model."
WEIGHTS_FILE = "image_encoder.safetensors"
CONFIG_FILE = "config.json"
_TELLTALE: dict[Architecture, str] = {"vit": "cls_token", "resnet50": "layer1.0.conv1.weight"}
# What torch's reader raises on a pickle that is not as torch.save writes it; it has no class of its own for that.
_UNREADABLE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
_NAMED = 4  # weights that a message names before it only counts


@dataclass(frozen=True)
class PublishedWeights:
    """What a published checkpoint holds.

    Attributes:
        image: Weights of the image trunk by timm name.
        left_out: Tensors that are not the image trunk's: how many, by part of the published model.
        recorded: Training settings and counters that the file states (plain values only), such as the weights
            ``lambda_1`` to ``lambda_3`` of the three terms.
    """

    image: dict[str, Tensor]
    left_out: dict[str, int]
    recorded: dict[str, Any]


def read_published(path: str | Path) -> PublishedWeights:
    """Read a published checkpoint through torch's weights-only reader; no code in the file is run.

    Args:
        path: A ``.ckpt`` of PyTorch Lightning or a ``.pth``: a dictionary with ``state_dict``, or that alone.

    Raises:
        CheckpointError: the file cannot be read, is cut short or damaged, is not a checkpoint, holds Python objects
            that only unpickling could restore, or has no image trunk or not-finite weights in it.
    """
    content = _read_weights_only(Path(path))
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{path}: holds no state_dict, so it is not a published checkpoint")
    image = {name.removeprefix(IMAGE_PREFIX): value for name, value in state.items() if name.startswith(IMAGE_PREFIX)}
    if not image:
        raise CheckpointError(f"{path}: no weight's name starts with {IMAGE_PREFIX!r}: not a published MGCA checkpoint")
    for name, value in image.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{path}: weight {IMAGE_PREFIX + name!r} is not a plain tensor")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: weight {IMAGE_PREFIX + name!r} holds values that are not finite")
    others = (name.split(".") for name in state if not name.startswith(IMAGE_PREFIX))
    # The encoders' own heads lie one level deeper than the other parts.
    left_out = Counter(".".join(parts[:2]) if parts[0].endswith("_encoder_q") else parts[0] for parts in others)
    return PublishedWeights(image=image, left_out=dict(left_out), recorded=_recorded(content))


def load_published_image_encoder(path: str | Path, *, architecture: Architecture | None = None) -> ImageEncoder:
    """Load the image encoder of a published checkpoint.

    The ViT reads 224-pixel images; the ResNet-50 resizes its input to 299 pixels first, as in its pretraining.

    Args:
        path: A published checkpoint.
        architecture: What it must hold; ``None`` takes what it holds.

    Returns:
        The encoder in eval mode, on the CPU.

    Raises:
        CheckpointError: see :func:`read_published`; or the file is of another architecture, or weights are missing,
            unexpected or of another shape.
    """
    image = read_published(path).image
    return build_published(image, find_architecture(image, source=path, wanted=architecture), source=path)


def convert_published(
    path: str | Path, out: str | Path, *, architecture: Architecture | None = None
) -> PublishedWeights:
    """Write the image encoder of a published checkpoint as a folder for :func:`load_image_encoder`.

    Args:
        path: A published checkpoint.
        out: Folder to write, which must not exist; it appears complete or not at all.
        architecture: What the checkpoint must hold; ``None`` takes what it holds.

    Returns:
        What the checkpoint held.

    Raises:
        CheckpointError: see :func:`load_published_image_encoder`; or ``out`` exists or cannot be written.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise CheckpointError(f"{out}: already exists; name another folder, or remove it")
    published = read_published(path)
    found = find_architecture(published.image, source=path, wanted=architecture)
    encoder = build_published(published.image, found, source=path)
    provenance = {"file": path.name, "sha256": file_sha256(path), "recorded": published.recorded}
    content = {"model": asdict(ARCHITECTURES[found]), "provenance": provenance}
    part = out.with_name(out.name + ".part")
    try:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
        save_file(weights, part / WEIGHTS_FILE)
        (part / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(part, out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror})") from None
    except SafetensorError as error:  # its own writing, for example to a full disk
        raise CheckpointError(f"{out}: cannot be written ({error})") from None
    return published


def load_image_encoder(folder: str | Path, *, device: torch.device | str = "cpu") -> ImageEncoder:
    """Load an image encoder that :func:`convert_published` wrote, in eval mode.

    Raises:
        CheckpointError: the folder is incomplete, or its weights do not fit its configuration.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        config = ModelConfig(**json.loads(path.read_text(encoding="utf-8"))["model"])
        encoder = build_image_encoder(config)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not the configuration of an image encoder ({error})") from None
    load_weights(encoder, Path(folder) / WEIGHTS_FILE)
    return encoder.to(device).eval()


def find_architecture(
    image: Mapping[str, Tensor], *, source: str | Path, wanted: Architecture | None = None
) -> Architecture:
    """Tell the architecture of an image trunk by the names of its weights.

    Args:
        image: Weights of the trunk by name.
        source: File that a message names.
        wanted: What the trunk must be; ``None`` takes either.

    Raises:
        CheckpointError: it is neither of the two, or not the wanted one.
    """
    if wanted is not None and wanted not in ARCHITECTURES:
        raise CheckpointError(f"architecture {wanted!r}: must be one of {', '.join(ARCHITECTURES)}")
    found = next((name for name, telltale in _TELLTALE.items() if telltale in image), None)
    if found is None:
        raise CheckpointError(
            f"{source}: the image encoder is neither a vit nor a resnet50: no weight is called "
            + " or ".join(repr(IMAGE_PREFIX + telltale) for telltale in _TELLTALE.values())
        )
    if wanted not in (None, found):
        raise CheckpointError(f"{source}: holds a {found}, not a {wanted}; set architecture to {found!r}")
    return found


def check_layout(image: Mapping[str, Tensor], encoder: ImageEncoder, *, source: str | Path) -> None:
    """Compare names and shapes with the trunk of an encoder; tensors on the meta device will do.

    Raises:
        CheckpointError: weights are missing, unexpected or of another shape; one line names each kind.
    """
    expected = encoder.trunk.state_dict()
    problems = {
        "missing": [IMAGE_PREFIX + name for name in expected if name not in image],
        "unexpected": [IMAGE_PREFIX + name for name in image if name not in expected],
        "of another shape": [
            f"{IMAGE_PREFIX}{name} {tuple(image[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in image and image[name].shape != tensor.shape
        ],
    }
    found = [f"{_listed(names)} {kind}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{source}: not the published image encoder: {'; '.join(found)}")


def build_published(image: Mapping[str, Tensor], architecture: Architecture, *, source: str | Path) -> ImageEncoder:
    """Build an image encoder, in eval mode, from the weights of a published trunk.

    Raises:
        CheckpointError: see :func:`check_layout`.
    """
    encoder = build_image_encoder(ARCHITECTURES[architecture])
    check_layout(image, encoder, source=source)
    encoder.trunk.load_state_dict(image)
    return encoder.eval()


def _read_weights_only(path: Path) -> Any:
    """Read a file of ``torch.save`` that holds tensors and plain values, and nothing else."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if start != b"PK\x03\x04":
        raise CheckpointError(f"{path}: not a checkpoint: torch.save writes zip archives (since torch 1.6)")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: is cut short; download it again")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not compare the checksums
        if damaged is None:
            objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
            if not objects:
                # Mapped into memory: the optimiser's state, two thirds of the file, is never read.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        reason = first_line(error)
        raise CheckpointError(f"{path}: not a checkpoint of tensors and plain values ({reason})") from None
    if damaged is not None:
        raise CheckpointError(f"{path}: is damaged at {damaged!r}; download it again")
    raise CheckpointError(
        f"{path}: holds Python objects, {_listed(objects)}, that only unpickling could restore, and that may run any "
        "program; refused. If you trust it, load it elsewhere and save {'state_dict': ...} alone with torch.save"
    )


def _recorded(content: Mapping[str, Any]) -> dict[str, Any]:
    names = ("epoch", "global_step", "pytorch-lightning_version")
    recorded = {name: content[name] for name in names if name in content}
    settings = content.get("hyper_parameters")
    recorded.update(settings if isinstance(settings, dict) else {})
    return {str(name): value for name, value in recorded.items() if isinstance(value, str | int | float)}


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert from the command line; returns the exit code, 2 for anything the user can mend."""
    parser = ArgumentParser(
        prog="python -m mgca_lib.published",
        description="Convert the image encoder of a published MGCA checkpoint, without unpickling.",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="published .ckpt or .pth file")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write; must not exist")
    parser.add_argument(
        "--architecture", choices=get_args(Architecture), help="what the file must hold (default: what it holds)"
    )
    options = parser.parse_args(arguments)
    try:
        published = convert_published(options.checkpoint, options.out, architecture=options.architecture)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"image encoder of {len(published.image)} tensors: {options.out}")
    for part, count in sorted(published.left_out.items()):
        print(f"left out: {part} ({count} tensors)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
