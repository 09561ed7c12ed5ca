"""Features of the frozen image encoder, computed once and kept.

A linear probe asks for the same features for every share of labels and every seed. They are stored as
``.safetensors`` under a name that hashes everything they depend on: the weights and the architecture, the
rows and labels of the dataset, the image files' sizes and the preprocessing. Whatever changes, the name
changes, so an outdated cache is never read.
"""

import hashlib
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from mgca_lib.data.pairs import PairBatch, PairImages
from mgca_lib.data.studies import DatasetError, Studies
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.model import MGCA

FEATURES_VERSION = 1  # raised whenever this module computes different features from the same input


@dataclass(frozen=True)
class PooledOnly:
    """What :func:`extract_features` asks of an encoder's output.

    Attributes:
        pooled: ``(B, width)``.
    """

    pooled: Tensor


class Thumbnail(nn.Sequential):
    """The shortcut to beat: a film shrunk to a few pixels, in place of an encoder.

    Args:
        side: Pixels a side.

    >>> Thumbnail(4)(torch.zeros(2, 1, 64, 64)).pooled.shape
    torch.Size([2, 16])
    """

    def __init__(self, side: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(side), nn.Flatten())

    def forward(self, images: Tensor) -> PooledOnly:
        """Return the pixels of ``(B, 1, S, S)`` images, row by row."""
        return PooledOnly(super().forward(images))


@dataclass(frozen=True)
class Features:
    """Frozen features with their targets.

    Attributes:
        values: ``(N, D)`` float32 pooled features of the image trunk, before any projection head.
        targets: Multilabel: float32 ``(N, C)``, NaN where unknown. Multiclass: int64 ``(N,)``.
        image_ids: ``N`` names; row numbers as text where the dataset has no names.
    """

    values: np.ndarray
    targets: np.ndarray
    image_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)


def extract_features(
    encoder: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    cache_dir: str | Path | None = None,
    key: str | None = None,
    num_workers: int = 0,
) -> Features:
    """Run a dataset once through the frozen encoder, or read the result of an earlier run.

    The encoder works in eval mode, without gradient and in float32; afterwards its training mode is what it
    was. Upstream re-encodes the images in every epoch of every probe instead, because it augments them;
    that is ``linear_probe(..., protocol="upstream")``.

    Args:
        encoder: Image encoder whose output has a ``pooled`` tensor ``(B, D)``.
        dataset: Map-style dataset of ``(image, target)``, as `mgca_lib.data.tasks.TaskImages`; its
            transform must not be random.
        batch_size: Images at a time.
        device: Where to compute; by default where the encoder's weights are.
        cache_dir: Folder of the cache; without it nothing is stored.
        key: Text that identifies dataset and preprocessing. By default it is derived from the ``studies``,
            ``task`` and ``transform`` of the dataset.
        num_workers: Loader processes.

    Returns:
        Features in the order of the dataset.

    Raises:
        ValueError: the dataset is empty, the transform is random or has no stable description, or a feature
            is not finite.
    """
    if not len(dataset):
        raise ValueError("cannot extract features of an empty dataset")
    if getattr(getattr(dataset, "transform", None), "augmentation", "none") != "none":
        raise ValueError("features are extracted once, so the transform must not be random; use augmentation='none'")
    studies = getattr(dataset, "studies", None)
    image_ids = tuple(studies.table["image_id"]) if studies is not None else tuple(map(str, range(len(dataset))))
    path = None
    if cache_dir is not None:
        path = Path(cache_dir) / f"{_cache_name(encoder, dataset, key)}.safetensors"
        cached = _read(path, image_ids)
        if cached is not None:
            return cached
    values, targets = _encode(encoder, dataset, batch_size, device, num_workers)
    wrong = (~torch.isfinite(values)).any(dim=1).nonzero()
    if len(wrong):
        raise ValueError(f"the features of image {image_ids[int(wrong[0])]!r} are not finite; the encoder has diverged")
    features = Features(values.numpy(), targets.numpy(), image_ids)
    if path is not None:
        _write(path, features)
    return features


def model_transform(model: MGCA) -> ImageTransform:
    """Return what a model's films go through in evaluation: the centre crop at its own sizes."""
    return ImageTransform(model.config.model.stored_size, model.config.model.image_size)


def model_pairs(model: MGCA, tokenizer: PreTrainedTokenizerBase, studies: Studies) -> PairImages:
    """Return image-report pairs as a model reads them in evaluation."""
    transform = model_transform(model)
    return PairImages(studies, tokenizer, transform, max_pieces=model.config.model.max_pieces, seed=0)


@torch.inference_mode()
def embed_pairs(model: MGCA, pairs: PairImages, *, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Embed image-report pairs in the joint space, for retrieval and prototypes.

    Args:
        model: A model; it works where it is, in eval mode and float32, and gets its training mode back.
        pairs: Image-report pairs with the evaluation transform.
        batch_size: Pairs at a time.

    Returns:
        Unit vectors of the images and of the reports, each float32 ``(N, D)`` on the CPU, in the order of
        ``pairs``.
    """
    parts = []
    with frozen(model), torch.autocast(encoder_device(model).type, enabled=False):
        for batch in pair_batches(model, pairs, batch_size):
            image, report = model.encode_image(batch.images), model.encode_report(batch)
            parts.append((image.pooled.float().cpu(), report.pooled.float().cpu()))
    images, reports = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(reports)


def pair_batches(model: nn.Module, pairs: PairImages, batch_size: int) -> Iterator[PairBatch]:
    """Yield all pairs in order, on the device of the model.

    Raises:
        ValueError: the transform crops at random.
    """
    if pairs.transform.augmentation != "none":
        raise ValueError("evaluation needs fixed images; give PairImages a transform with augmentation='none'")
    device = encoder_device(model)
    for batch in DataLoader(pairs, batch_size=batch_size, collate_fn=pairs.collate, generator=torch.Generator()):
        yield batch.to(device)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers that ``state_dict`` holds.

    It does not depend on the device the module is on.

    >>> layer = nn.Linear(2, 2)
    >>> before = weights_hash(layer)
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(1.0)
    >>> len(before), before == weights_hash(layer)
    (64, False)
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def frozen(encoder: nn.Module) -> Iterator[nn.Module]:
    """Eval mode within the block; every submodule gets its own training mode back afterwards."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield encoder
    finally:
        for module, training in modes:
            module.training = training


def encoder_device(encoder: nn.Module) -> torch.device:
    """Device of the encoder's first parameter; the CPU where it has none."""
    return next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))


def _encode(
    encoder: nn.Module, dataset: Dataset, batch_size: int, device: torch.device | str | None, num_workers: int
) -> tuple[Tensor, Tensor]:
    home = encoder_device(encoder)
    device = torch.device(device) if device is not None else home
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # a loader draws from the global one otherwise, and training would notice
    )
    values, targets = [], []
    encoder.to(device)
    try:
        with frozen(encoder), torch.inference_mode(), torch.autocast(device.type, enabled=False):
            for images, target in loader:
                values.append(encoder(images.to(device, non_blocking=True)).pooled.float().cpu())
                targets.append(target)
    finally:
        encoder.to(home)
    return torch.cat(values), torch.cat(targets)


def _cache_name(encoder: nn.Module, dataset: Dataset, key: str | None) -> str:
    if key is None:
        key = _describe(dataset)
    # A parameter-free part (an activation, a grey scale, a resize) leaves no trace in the weights, but it does in the
    # printed module.
    architecture = re.sub(r" at 0x[0-9a-f]+", "", repr(encoder))
    parts = [str(FEATURES_VERSION), weights_hash(encoder), architecture, key, str(len(dataset))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _describe(dataset: Dataset) -> str:
    missing = [name for name in ("studies", "task", "transform") if not hasattr(dataset, name)]
    if missing:
        raise ValueError(
            f"{type(dataset).__name__} has no {missing[0]!r} to name its cache by; pass key= or no cache_dir"
        )
    transform = repr(dataset.transform)
    if " at 0x" in transform:
        raise ValueError(f"the transform describes itself as {transform}, which changes with every run; pass key=")
    studies = dataset.studies
    content = {
        "card": vars(studies.card),
        "images": [(image_id, _file_size(studies, row)) for row, image_id in enumerate(studies.table["image_id"])],
        "task": repr(dataset.task),
        "transform": transform,
    }
    return json.dumps(content, sort_keys=True, default=str)


def _file_size(studies: Studies, row: int) -> int:
    path = studies.image_path(row)
    try:
        return path.stat().st_size
    except OSError:
        raise DatasetError(f"{path}: image {studies.table['image_id'].iat[row]!r} (row {row}) is missing") from None


def _read(path: Path, image_ids: tuple[str, ...]) -> Features | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            values, targets = file.get_tensor("values"), file.get_tensor("targets")
            stored_ids = tuple(json.loads((file.metadata() or {})["image_ids"]))
        if stored_ids != image_ids or len(values) != len(image_ids) or len(targets) != len(image_ids):
            raise ValueError("it holds other images")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        warnings.warn(f"{path}: unreadable feature cache, computing the features again ({error})", stacklevel=3)
        return None
    return Features(values.numpy(), targets.numpy(), image_ids)


def _write(path: Path, features: Features) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"values": torch.from_numpy(features.values), "targets": torch.from_numpy(features.targets)}
    # A private temporary name: two runs may fill the same cache at once, and a reader must never see half a
    # file.
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"image_ids": json.dumps(features.image_ids)})
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
