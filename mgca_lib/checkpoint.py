"""Checkpoints: weights as safetensors, settings as json, nothing that needs unpickling.

A checkpoint is a folder: ``model.safetensors``, ``config.json``, ``text/`` (tokenizer and sizes of
the report encoder) and, where training may go on,
``state.safetensors`` with ``state.json`` (optimiser, random generators, counters). It is written under another
name and renamed when complete, so that a folder of the right name is a whole checkpoint.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mgca_lib.config import Config, ConfigError
from mgca_lib.data.tokenization import load_tokenizer
from mgca_lib.encoders import EncoderError
from mgca_lib.model import MGCA, build_model

MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
STATE_FILE = "state.safetensors"
COUNTERS_FILE = "state.json"
TEXT_FOLDER = "text"


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, of another model or cannot be written; the message names the file."""


def save_checkpoint(
    folder: Path,
    model: MGCA,
    tokenizer: PreTrainedTokenizerBase,
    *,
    provenance: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    counters: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint; the folder appears complete or not at all, and replaces one of the same name.

    Args:
        folder: Where the checkpoint shall lie.
        model: Its weights and configuration are written.
        tokenizer: Written beside the weights, since its ids mean nothing without it.
        provenance: Seed, data hash, versions: JSON-compatible.
        state: Tensors that training needs to go on.
        counters: Numbers that training needs to go on, JSON-compatible.

    Raises:
        CheckpointError: the folder cannot be written, for instance because the disk is full. What was there before
            stays whole, and what was written of the new checkpoint is removed.
    """
    folder = Path(folder)
    part = folder.with_name(folder.name + ".part")
    try:
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        _fill(part, model, tokenizer, provenance, state, counters)
        _reach_disk(part)
        _replace(folder, part)
    except Exception as error:  # of no narrower class: tokenizers raises this very one when the disk is full
        shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(f"{folder}: cannot be written ({error}); what was there before is whole") from None


def _fill(
    part: Path,
    model: MGCA,
    tokenizer: PreTrainedTokenizerBase,
    provenance: Mapping[str, Any],
    state: Mapping[str, Tensor] | None,
    counters: Mapping[str, Any] | None,
) -> None:
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, part / MODEL_FILE)
    content = {"config": model.config.to_dict(), "provenance": dict(provenance)}
    (part / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    model.report_encoder.model.config.save_pretrained(part / TEXT_FOLDER)
    tokenizer.save_pretrained(part / TEXT_FOLDER)
    if state is not None:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, part / STATE_FILE)
        (part / COUNTERS_FILE).write_text(json.dumps(dict(counters or {})) + "\n", encoding="utf-8")


def _reach_disk(part: Path) -> None:
    """Wait until the files are on the disk, since a power cut may keep the new names and lose what is behind them."""
    for path in (*part.rglob("*"), part):
        if path.is_dir() and os.name == "nt":
            continue  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(folder: Path, part: Path) -> None:
    # A folder cannot replace another in one step: the old one steps aside first. A kill between the two renames
    # leaves the whole old checkpoint under ".old", where load looks as well.
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        _discard(old)
        os.replace(folder, old)
    os.replace(part, folder)
    _discard(old)


def _discard(folder: Path) -> None:
    """Remove a folder, or the link to one that lies elsewhere."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def find_checkpoint(folder: str | Path) -> Path | None:
    """Return the folder that holds a complete checkpoint of this name, or ``None``."""
    folder = Path(folder)
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / MODEL_FILE).is_file():
            return candidate
    return None


def load_checkpoint(
    folder: str | Path, *, device: torch.device | str = "cpu"
) -> tuple[MGCA, PreTrainedTokenizerBase, dict[str, Any]]:
    """Load model, tokenizer and provenance of a checkpoint; nothing is unpickled and nothing downloaded.

    Raises:
        CheckpointError: the checkpoint is missing or incomplete, or its weights do not fit its configuration.
    """
    found = find_checkpoint(folder)
    if found is None:
        raise CheckpointError(
            f"{folder}: no checkpoint ({MODEL_FILE} is missing); run notebook 06, or python -m mgca_lib.pretrain"
        )
    config, provenance = read_config(found)
    model, tokenizer = rebuild(found, config)
    load_weights(model, found / MODEL_FILE)
    return model.to(device).eval(), tokenizer, provenance


def rebuild(folder: Path, config: Config) -> tuple[MGCA, PreTrainedTokenizerBase]:
    """Build the tokenizer and the untrained model of a checkpoint; nothing is downloaded.

    Args:
        folder: The checkpoint.
        config: Its settings.

    Raises:
        CheckpointError: a file of the text encoder is missing or damaged, or the settings describe no model.
        ConfigError: two settings contradict each other.
    """
    text = folder / TEXT_FOLDER
    for name in ("tokenizer.json", "tokenizer_config.json", CONFIG_FILE):
        if not (text / name).is_file():  # transformers would look for it on the hub
            raise CheckpointError(f"{text / name}: missing; the checkpoint is incomplete")
    try:
        tokenizer = load_tokenizer(text)
        return build_model(config, tokenizer, architecture=text), tokenizer
    except EncoderError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from None
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{text}: not a readable tokenizer and configuration ({error})") from None


def read_config(folder: str | Path) -> tuple[Config, dict[str, Any]]:
    """Return configuration and provenance of a checkpoint.

    Raises:
        CheckpointError: the file is missing, not JSON, or holds unknown settings.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Config.from_dict(content["config"]), dict(content["provenance"])
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not the configuration of a checkpoint ({error})") from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a model whose parameters must match it exactly.

    Raises:
        CheckpointError: the file cannot be read, or names or shapes differ; the message names the first.
    """
    weights = read_tensors(path)
    expected = model.state_dict()
    for name in sorted(set(expected) ^ set(weights)):
        side = "is missing" if name in expected else "is unknown to this architecture"
        raise CheckpointError(f"{path}: weight {name!r} {side}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: weight {name!r} is {tuple(tensor.shape)}, this architecture has {tuple(expected[name].shape)}"
            )
    model.load_state_dict(weights)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten AdamW's state to named tensors, which safetensors can hold."""
    slots = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, slot in slots.items() for name, value in slot.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Put AdamW's state back.

    Args:
        optimizer: Over the parameters that the state belongs to, in the same order.
        tensors: As :func:`optimizer_tensors` returns them.
        path: Where they come from, for messages.

    Raises:
        CheckpointError: names or shapes do not fit the parameters, or a part is missing.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdigit() or int(index) >= len(parameters):
            raise CheckpointError(f"{path}: {key!r} is unknown to this architecture")
        like = torch.zeros(()) if name == "step" else parameters[int(index)]
        if tensor.shape != like.shape:
            raise CheckpointError(
                f"{path}: {key!r} is {tuple(tensor.shape)}, this architecture has {tuple(like.shape)}"
            )
        # The fused optimiser walks through memory and takes it that state and parameter lie there in the same order,
        # which for channels-last kernels is not the order of the file.
        tensor = torch.empty_like(like, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        slots.setdefault(int(index), {})[name] = tensor
    for index, slot in slots.items():
        if set(slot) != {"step", "exp_avg", "exp_avg_sq"}:
            raise CheckpointError(f"{path}: holds only {sorted(slot)} of parameter {index}")
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def read_state(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and counters that training needs to go on from a checkpoint.

    Raises:
        CheckpointError: the checkpoint holds no training state, or it is damaged.
    """
    path = Path(folder) / COUNTERS_FILE
    try:
        counters = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise CheckpointError(f"{path}: missing, so training cannot go on from this checkpoint") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    return read_tensors(Path(folder) / STATE_FILE), counters
