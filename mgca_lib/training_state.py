"""What a pretraining run leaves in its folder, and how another process goes on from there.

``last/`` is the newest checkpoint with the optimiser's state, ``best/`` the one with the lowest validation loss; both
are replaced as wholes. Before the first of them, a run that begins with masked words keeps its newest pass over the
reports in ``reading/``. ``finished.json`` marks the end, ``tensorboard/`` is a log that nothing reads back.

A run is the same run while its seed, data and settings are the same, but for settings of *how* it is computed. Another
number of processes may go on with it as long as the pairs of one forward pass, ``batch_size`` times processes, stay.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedTokenizerBase

from mgca_lib.checkpoint import (
    CONFIG_FILE,
    COUNTERS_FILE,
    MODEL_FILE,
    STATE_FILE,
    CheckpointError,
    find_checkpoint,
    load_weights,
    optimizer_tensors,
    read_state,
    restore_optimizer,
    save_checkpoint,
)
from mgca_lib.config import LATER, TOKEN_SWITCHES, Config
from mgca_lib.data.studies import Studies
from mgca_lib.masked_language import Reading
from mgca_lib.model import MGCA
from mgca_lib.run import package_versions

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PARTS = ("instance", "token", "prototype", "total")
HISTORY_FILE = "history.json"
FINISHED_FILE = "finished.json"
MLM_FILE = "masked_language.json"
READING_FOLDER = "reading"

# Loader processes notice five seconds late that the process which started them was killed, and hold its lock so long.
_LINGERING_SECONDS = 10.0

# These decide how a run is computed, not what. batch_size belongs to them since its product with the number of
# processes is compared instead.
_HOW = ("batch_size", "chunk_size", "workers", "keep_images", "checkpoint_steps")


class PretrainError(ValueError):
    """Pretraining cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Pretraining:
    """A finished pretraining run.

    Attributes:
        best: Checkpoint with the lowest validation loss.
        last: Checkpoint of the last step.
        history: One dictionary an epoch: ``epoch``, ``step``, ``learning_rate``, ``pairs_per_second``, ``seconds``,
            and ``train/PART``, ``valid/PART`` for each loss part, ``valid/top1`` and ``valid/top5`` (in-batch
            retrieval, mean of both directions).
        trained: ``False`` when the run was found finished and nothing was computed.
    """

    best: Path
    last: Path
    history: list[dict[str, float]]
    trained: bool


@dataclass
class Progress:
    """Where a run stands; stored as json with every checkpoint."""

    step: int = 0
    best_loss: float = math.inf
    epochs_without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    steps_summed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Keeper:
    """Writes the checkpoints of a run, from the main process alone."""

    out: Path
    model: MGCA
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    identity: dict[str, Any]
    accelerator: Accelerator

    def save_best(self, state: Progress) -> None:
        """Write ``best/``."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.out / "best", self.model, self.tokenizer, provenance=self._provenance(state))

    def save_last(self, state: Progress) -> None:
        """Write ``last/`` with all that training needs to go on, and the history beside it."""
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.out / "last",
                self.model,
                self.tokenizer,
                provenance=self._provenance(state),
                state=optimizer_tensors(self.optimizer),
                counters=asdict(state),
            )
            write_json(self.out / HISTORY_FILE, state.history)
            _forget_reading(self.out)
        self.accelerator.wait_for_everyone()

    def finish(self, state: Progress) -> Pretraining:
        """Mark the run as finished."""
        if self.accelerator.is_main_process:
            write_json(self.out / HISTORY_FILE, state.history)
            write_json(self.out / FINISHED_FILE, {"identity": self.identity, "history": state.history})
            _forget_reading(self.out)
        self.accelerator.wait_for_everyone()
        return Pretraining(best=self.out / "best", last=self.out / "last", history=state.history, trained=True)

    def _provenance(self, state: Progress) -> dict[str, Any]:
        return self.identity | {"step": state.step, "versions": package_versions()}


class RunLog:
    """TensorBoard's log of a run; does nothing where ``folder`` is ``None``.

    Args:
        folder: ``tensorboard/`` of the run.
        first_step: What a killed run logged from this step on is logged again.
    """

    def __init__(self, folder: Path | None, first_step: int) -> None:
        self.folder = folder
        self._writer = None
        if folder is not None:
            with _writing(folder):
                self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by name."""
        if self._writer is not None:
            with _writing(self.folder):
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Put on disk what was logged."""
        if self._writer is not None:
            with _writing(self.folder):
                self._writer.flush()

    def close(self) -> None:
        """End the log."""
        if self._writer is not None:
            with _writing(self.folder):
                self._writer.close()


def run_identity(config: Config, studies: Studies, seed: int, processes: int) -> dict[str, Any]:
    """Return what makes two runs the same run, ready for JSON."""
    spelled_out = config.alignment.spelled_out()
    return {
        "seed": seed,
        "settings": config.to_dict(),
        "processes": processes,
        # What a name of upstream's stands for may change; the run that it named does not.
        "switches": {name: getattr(spelled_out, name) for name in TOKEN_SWITCHES} if config.alignment.upstream else {},
        "data": {
            "name": studies.card.name,
            "sha256": studies.card.table_sha256,
            "source": studies.card.source,
            "restricted": studies.card.restricted,
        },
    }


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the folder of a run, and make it where needed; a second process there would spoil the checkpoints.

    The lock ends with the process, however that ends, and leaves no file. Where the file system has no locks for
    folders (NFS, Windows), nothing is held.

    Raises:
        PretrainError: another process holds the folder, or it cannot be made.
    """
    _make(out)
    if fcntl is None:
        yield
        return
    descriptor = os.open(out, os.O_RDONLY)
    try:
        _lock(descriptor, out)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing would leave it to loader processes that still live
        os.close(descriptor)


def _lock(descriptor: int, out: Path) -> None:
    deadline = time.monotonic() + _LINGERING_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise PretrainError(
                    f"{out}: another process trains there; wait for it, or choose another folder"
                ) from None
            time.sleep(0.1)
        except OSError:  # no locks here
            return None


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PretrainError(f"{out}: cannot be made ({error.strerror}); choose another folder") from None


def open_run(out: Path, identity: dict[str, Any], *, resume: bool) -> tuple[int, Pretraining | None]:
    """Make the folder of a run, or recognise the run in it.

    Args:
        out: The folder.
        identity: Of the run that is wanted, see :func:`run_identity`.
        resume: Whether the folder may hold that run already.

    Returns:
        Pairs per process and forward pass, which another number of processes changes; and the run if it is finished.

    Raises:
        PretrainError: the folder holds another run, or this one in pieces, or cannot be made.
    """
    marker, last = out / FINISHED_FILE, out / "last"
    reading = out / READING_FOLDER
    begun = find_checkpoint(last) or find_checkpoint(reading)
    if not resume and (marker.exists() or last.is_dir() or reading.is_dir() or begun is not None):
        raise PretrainError(f"{out}: already holds a run; use --resume to go on with it, or choose another folder")
    for folder in (last, reading):
        if folder.is_dir() and find_checkpoint(folder) is None and not marker.exists():
            raise PretrainError(
                f"{folder / MODEL_FILE}: missing, so the run cannot go on; put it back, or delete {out} to train anew"
            )
    wanted = identity["settings"]["training"]["batch_size"]
    stored, history = None, None
    try:
        if marker.exists():
            content = json.loads(marker.read_text(encoding="utf-8"))
            stored, history = dict(content["identity"]), content["history"]
        elif begun is not None:
            stored = dict(json.loads((begun / CONFIG_FILE).read_text(encoding="utf-8"))["provenance"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PretrainError(f"{out}: its run cannot be read ({error}); choose another folder") from None
    if stored is None:
        _make(out)
        return wanted, None
    _check_same(out, identity, stored)
    batch_size = _batch_size(out, identity, stored, finished=history is not None)
    if history is None:
        return batch_size, None
    return batch_size, Pretraining(best=out / "best", last=last, history=history, trained=False)


def save_reading(
    out: Path,
    model: MGCA,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    identity: Mapping[str, Any],
    accelerator: Accelerator,
) -> None:
    """Write ``reading/`` with the weights of a model whose report encoder has made one pass more."""
    if accelerator.is_main_process:
        save_checkpoint(
            out / READING_FOLDER,
            model,
            tokenizer,
            provenance=dict(identity) | {"versions": package_versions()},
            state=reading.tensors,
            counters={"history": reading.history, "schedule": reading.schedule},
        )
    accelerator.wait_for_everyone()


def load_reading(folder: Path, model: MGCA) -> Reading:
    """Put the weights of ``reading/`` into a model; returns what masked language modelling needs to go on.

    Raises:
        CheckpointError: a part is missing or damaged; the message names the file.
    """
    tensors, counters = read_state(folder)
    load_weights(model, folder / MODEL_FILE)
    if set(counters) != {"history", "schedule"} or not isinstance(counters["history"], list):
        raise CheckpointError(f"{folder / COUNTERS_FILE}: is not what passes over the reports leave")
    return Reading(tensors=tensors, path=folder / STATE_FILE, **counters)


def _forget_reading(out: Path) -> None:
    """Remove ``reading/``, and what a kill left of it: nobody goes on from there any more."""
    for suffix in ("", ".old", ".part"):
        shutil.rmtree(out / f"{READING_FOLDER}{suffix}", ignore_errors=True)


def restore(folder: Path, model: MGCA, optimizer: torch.optim.Optimizer) -> Progress:
    """Put weights and optimiser state of a checkpoint back; returns where the run stood.

    Raises:
        CheckpointError: a part is missing or damaged, or belongs to another architecture; the message names the file.
    """
    tensors, counters = read_state(folder)
    load_weights(model, folder / MODEL_FILE)
    restore_optimizer(optimizer, tensors, folder / STATE_FILE)
    try:
        return Progress(**counters)
    except TypeError as error:
        raise CheckpointError(f"{folder}: its training state is of another version ({error})") from None


def _check_same(out: Path, identity: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raise unless both are the same run, whatever computes it."""
    for key in ("seed", "settings", "switches", "data"):
        ours, theirs = identity[key], stored.get(key, {})
        if key == "settings":
            ours, theirs = _flat_settings(ours), _flat_settings(theirs)
        if ours != theirs:
            known = isinstance(ours, dict) and isinstance(theirs, dict)
            names = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n)) if known else []
            detail = f" ({names[0]}: {theirs.get(names[0])!r}, now {ours.get(names[0])!r})" if names else ""
            raise PretrainError(
                f"{out}: holds a run with other {key}; choose another folder, or delete this one to train anew{detail}"
            )


def _flat_settings(settings: Any) -> dict[str, Any]:
    """Settings by name, without those of how a run is computed; empty if these are no settings."""
    parts = settings.values() if isinstance(settings, dict) else ()
    flat = {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}
    if not flat:
        return {}
    return {name: value for name, value in (LATER | flat).items() if name not in _HOW}


def _batch_size(out: Path, identity: Mapping[str, Any], stored: Mapping[str, Any], *, finished: bool) -> int:
    """Pairs per process with which these processes keep the batches of the stored run."""
    processes, started_with = identity["processes"], stored.get("processes", 1)
    wanted, stored_size = (run["settings"]["training"]["batch_size"] for run in (identity, stored))
    pairs = stored_size * started_with
    if wanted * processes == pairs or (finished and wanted == stored_size):
        batch_size = wanted
    elif wanted != stored_size:
        raise PretrainError(
            f"batch_size = {wanted} on {processes} processes makes batches of {wanted * processes} pairs; the run in "
            f"{out} has {pairs}, and keeps its order only with them"
        )
    elif pairs % processes or pairs // processes < 2:
        raise PretrainError(
            f"{out}: its batches of {pairs} pairs cannot be shared among {processes} processes; use a number that "
            "divides them into shares of at least 2"
        )
    else:
        batch_size = pairs // processes
    if processes != started_with and not finished:
        alignment, training = identity["settings"]["alignment"], identity["settings"]["training"]
        for alone, reason in (
            (not alignment["gather"], "gather is off"),
            (not training["sync_batchnorm"], "sync_batchnorm is off"),
        ):
            if alone:
                raise PretrainError(
                    f"{out}: was started with {started_with} processes and cannot go on with {processes}, since its "
                    f"losses depend on their number ({reason})"
                )
    return batch_size


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PretrainError(
            f"{path}: cannot be written ({error.strerror or error}); the checkpoints are whole: mend that, and go on "
            "with --resume"
        ) from None


def write_json(path: Path, content: Any) -> None:
    """Write a small file as a whole, or raise :class:`PretrainError` and leave what was there."""
    part = path.with_name(path.name + ".part")
    with _writing(path):
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)
