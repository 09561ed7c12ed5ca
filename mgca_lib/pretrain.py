"""Pretraining: one loop on accelerate, from a laptop's CPU to many GPUs.

``python -m mgca_lib.pretrain --help`` lists every setting; notebook 06 calls the same :func:`pretrain`. What the
loop draws at random (order, crops, dropout) depends on the seed and the step alone, so a run that was killed and
resumed ends with the same weights, bit for bit, as one that was not.

Order, crops and the pairs of every step do not depend on the number of processes or loader workers, and neither do
losses and gradients, to rounding: contrast, Sinkhorn and BatchNorm span all processes (``gather``,
``sync_batchnorm``). What does depend on the number: rounding, and the masks of dropout (each process draws its own).
Bits repeat on the same machine with the same numbers of threads and processes; on a GPU only as far as its kernels do
(scatter-add and some backward passes add in the order of arrival).
"""

import math
import sys
import threading
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, PreTrainedTokenizerBase

from mgca_lib.alignment.distributed import gather
from mgca_lib.batch_norm import synchronise_batch_norm
from mgca_lib.checkpoint import CheckpointError, find_checkpoint, rebuild
from mgca_lib.config import AlignmentConfig, Config, ConfigError, ModelConfig, TrainingConfig, load_profile
from mgca_lib.data.pairs import EpochBatches, PairBatch, PairImages, RunBatches, paired_texts
from mgca_lib.data.studies import DatasetError, Studies, load_studies
from mgca_lib.data.tokenization import TokenizerError, load_tokenizer, train_tokenizer
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.encoders import EncoderError, Tokens
from mgca_lib.masked_language import Reading, train_masked_language
from mgca_lib.model import MGCA, Losses, build_model
from mgca_lib.run import progress, seen_by_git, training_precision
from mgca_lib.training_state import (
    MLM_FILE,
    PARTS,
    READING_FOLDER,
    Keeper,
    PretrainError,
    Pretraining,
    Progress,
    RunLog,
    alone_in,
    load_reading,
    open_run,
    restore,
    run_identity,
    save_reading,
    write_json,
)

_WARMUP_START = 1e-8


def pretrain(config: Config, studies: Studies, out: str | Path, *, seed: int, resume: bool = False) -> Pretraining:
    """Pretrain on the ``train`` split, validating on ``valid`` after each epoch.

    Follows section 4.1 of the paper: AdamW on all parameters, linear warm-up then cosine per step, early stop,
    prototypes frozen at first. With ``mlm_epochs`` the report encoder reads before all this
    (:mod:`mgca_lib.masked_language`); a run killed in the meantime goes on after its last whole pass.
    ``text_rate_factor`` is for what comes after. Differs from upstream: contrast over all processes (``gather``), bf16
    where the device is fast in it, MIMIC's test split not used for validation, anomaly detection off.

    Args:
        config: All settings.
        studies: A whole prepared dataset with reports.
        out: Folder for ``best/``, ``last/``, ``history.json``, ``tensorboard/`` and, with ``mlm_epochs``,
            ``masked_language.json`` (and ``reading/`` until ``last/`` is there).
        seed: Decides initial weights, order, crops and dropout.
        resume: Go on from ``last/``, or from ``reading/`` where that is not there yet; a finished run is returned as it
            is. ``False`` demands a folder without a run. Another number of processes may go on: ``batch_size`` follows,
            so that the batches over all of them stay.

    Returns:
        Where the checkpoints lie, and the history.

    Raises:
        PretrainError: ``out`` holds another run or cannot be written, another process trains there, the data are
            restricted and git sees ``out``, the split is too small, or the loss or a weight is not a finite number.
        ConfigError: the seed is negative or has more than 64 bits, or ``chunk_size`` is set for a backbone with
            BatchNorm.
        CheckpointError: a part of ``last/`` or ``reading/`` is missing or damaged, or a checkpoint cannot be written.
        DatasetError: the dataset has no reports or no ``valid`` split, or an image cannot be read. The run then stops
            rather than skips, since without that pair every later batch would be another.
        EncoderError, TokenizerError: published weights are wanted and cannot be had, or ``mlm_epochs`` with a model
            other than BERT.
    """
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed is {seed}: use a whole number from 0 to {2**64 - 1}")
    out = Path(out)
    if studies.card.restricted and seen_by_git(out):
        raise PretrainError(
            f"{out}: {studies.card.name!r} is restricted, so its outputs must lie in a folder that git ignores, such "
            "as runs/ or outputs/"
        )
    if torch.cuda.is_available():
        # Its backward pass may give NaN where a mask is passed, as reports do (pytorch issue 196678).
        torch.backends.cuda.enable_cudnn_sdp(False)
    AcceleratorState._reset_state()  # or a second run in this process could not have another precision
    accelerator = Accelerator(
        # Without this word, accelerate takes several processes without a GPU for as many lonely ones.
        cpu=not torch.cuda.is_available(),
        mixed_precision=_precision(config),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=_has_idle_parameters(config))],
    )
    with alone_in(out) if accelerator.is_main_process else nullcontext():
        return _pretrain(config, studies, out, accelerator, seed=seed, resume=resume)


def _pretrain(
    config: Config, studies: Studies, out: Path, accelerator: Accelerator, *, seed: int, resume: bool
) -> Pretraining:
    """What :func:`pretrain` does in its folder."""
    processes = accelerator.num_processes
    batch_size, finished = open_run(out, run_identity(config, studies, seed, processes), resume=resume)
    if finished is not None:
        return finished
    config = config.override(batch_size=batch_size)
    identity = run_identity(config, studies, seed, processes)
    training = config.training

    train = _limit(studies.split("train"), training.max_train_pairs, seed)
    valid = studies.split("valid")
    shares = processes * config.alignment.local_groups
    if len(valid) < 2 * shares:
        raise PretrainError(
            f"{studies.root}: {len(valid)} validation pairs; every process, and each of its local_groups, needs 2, "
            "since contrast needs a second pair"
        )
    steps_per_epoch = len(train) // (training.batch_size * processes) // training.accumulation
    if steps_per_epoch == 0:
        needed = training.batch_size * processes * training.accumulation
        raise PretrainError(
            f"{studies.root}: {len(train)} training pairs do not fill one step of {needed}; lower batch_size"
        )
    resume_from = find_checkpoint(out / "last") if resume else None
    if resume_from is None and training.mlm_epochs:
        model, tokenizer = _learn_to_read(train, valid, config, seed, out, identity, accelerator, resume=resume)
    elif resume_from is None:
        tokenizer = _tokenizer(config, train)
        model = build_model(config, tokenizer, seed=seed)
    else:  # a run goes on with the text encoder it has, wherever that came from
        model, tokenizer = rebuild(resume_from, config)
    if training.sync_batchnorm and processes > 1:
        synchronise_batch_norm(model)
    optimizer = _optimizer(model, training)
    state = Progress() if resume_from is None else restore(resume_from, model, optimizer)
    _check_all_there(state.step, out, accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer)

    train_pairs = _pairs(train, tokenizer, config, seed, augmentation="crop")
    valid_loader = validation_loader(config, valid, tokenizer, seed=seed, accelerator=accelerator)
    start = EpochBatches(
        size=len(train_pairs),
        batch_size=training.batch_size,
        seed=seed,
        rank=accelerator.process_index,
        processes=processes,
    )
    total_steps = steps_per_epoch * training.epochs

    log = RunLog(out / "tensorboard" if accelerator.is_main_process else None, first_step=state.step + 1)
    bar = progress(total=total_steps, description="pretraining", initial=state.step)
    keeper = Keeper(out, model, tokenizer, optimizer, identity, accelerator)
    epoch, done_in_epoch = divmod(state.step, steps_per_epoch)
    start = replace(start, epoch=epoch, first=done_in_epoch * training.accumulation)
    left = RunBatches(start, epochs=training.epochs, per_epoch=steps_per_epoch * training.accumulation)
    # Loader processes start here, and a run that died just before its end needs none.
    batches = iter(_loader(train_pairs, left, config) if _goes_on(state, total_steps, training.patience) else ())
    while _goes_on(state, total_steps, training.patience):
        epoch, done_in_epoch = divmod(state.step, steps_per_epoch)
        for _ in range(done_in_epoch, steps_per_epoch):
            started = time.perf_counter()
            rate = learning_rate_at(state.step, total_steps, training)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            # Seeding each step by its number, not once, is what makes a resumed run draw the same dropout.
            torch.manual_seed(_step_seed(seed, state.step, accelerator.process_index))
            losses = _optimiser_step(wrapped, optimizer, batches, config, accelerator, frozen=_frozen(config, epoch))
            _check_finite(losses, f"step {state.step}", out)
            state.step += 1
            state.steps_summed += 1
            for name, value in losses.items():
                state.sums[name] += value
            state.seconds += time.perf_counter() - started
            _report_step(bar, log, losses, rate, state, config, accelerator)
            if state.step % training.checkpoint_steps == 0 and state.step % steps_per_epoch:
                log.flush()
                _check_weights(model, f"step {state.step}", out)
                keeper.save_last(state)

        measured = evaluate(wrapped, valid_loader, accelerator)
        _check_finite({name: measured[name] for name in PARTS}, f"step {state.step}", out)
        _close_epoch(state, epoch, rate, measured, config, accelerator)
        log.add({f"epoch/{name}": value for name, value in state.history[-1].items()}, state.step)
        log.flush()
        if measured["total"] < state.best_loss:
            state.best_loss, state.epochs_without_gain = measured["total"], 0
            keeper.save_best(state)
        else:
            state.epochs_without_gain += 1
        keeper.save_last(state)
    bar.close()
    log.close()
    return keeper.finish(state)


def learning_rate_at(step: int, total_steps: int, training: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine, both from and to 1e-8.

    Args:
        step: Optimiser step, counted from 0.
        total_steps: Steps of the whole run.
        training: Peak rate and share of warm-up steps.

    >>> training = TrainingConfig(learning_rate=1.0, warmup_fraction=0.5)
    >>> [round(learning_rate_at(step, 8, training), 2) for step in range(8)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 0.85, 0.5, 0.15]
    """
    warmup = math.floor(training.warmup_fraction * total_steps)
    if step < warmup:
        return _WARMUP_START + (training.learning_rate - _WARMUP_START) * step / warmup
    share = (step - warmup) / max(1, total_steps - warmup)
    return _WARMUP_START + (training.learning_rate - _WARMUP_START) * (1 + math.cos(math.pi * share)) / 2


def validation_loader(
    config: Config, valid: Studies, tokenizer: PreTrainedTokenizerBase, *, seed: int, accelerator: Accelerator
) -> DataLoader:
    """Return the batches on which :func:`pretrain` measures the validation loss: one fixed permutation."""
    pairs = _pairs(valid, tokenizer, config, seed, augmentation="none")
    processes = accelerator.num_processes
    batches = EpochBatches(
        size=len(pairs),
        batch_size=min(config.training.batch_size, len(pairs) // processes),
        seed=seed,
        rank=accelerator.process_index,
        processes=processes,
        shuffle=False,
    )
    return _loader(pairs, batches, config)


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader, accelerator: Accelerator) -> dict[str, float]:
    """Return the mean loss parts and in-batch retrieval accuracies over a loader, model in evaluation mode.

    A batch is that of all processes together, in retrieval too.
    """
    model.eval()
    sums: dict[str, float] = {}
    for batch in loader:
        losses, image, report = model(batch.to(accelerator.device))
        everybody = [replace(tokens, pooled=gather(tokens.pooled)) for tokens in (image, report)]
        values = losses.named() | retrieval_accuracy(*everybody)
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(accelerator.reduce(value, "mean"))
    model.train()
    return {name: value / len(loader) for name, value in sums.items()}


def retrieval_accuracy(image: Tokens, report: Tokens) -> dict[str, Tensor]:
    """Return in-batch retrieval accuracy among the ``B`` pairs, mean of both directions, in [0, 1].

    Returns:
        ``top1`` and ``top5`` (with fewer than five pairs, all of them count).
    """
    scores = image.pooled @ report.pooled.T
    own = scores.diagonal()[:, None]
    found = {}
    for k in (1, 5):
        hits = [((direction > own).sum(dim=1) < k).float().mean() for direction in (scores, scores.T)]
        found[f"top{k}"] = (hits[0] + hits[1]) / 2
    return found


def _optimiser_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Any,
    config: Config,
    accelerator: Accelerator,
    *,
    frozen: bool,
) -> dict[str, float]:
    """One optimiser step over ``accumulation`` batches; returns the loss parts, averaged over them and processes."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    accumulation = config.training.accumulation
    parts = torch.zeros(len(PARTS), device=accelerator.device)
    for micro in range(accumulation):
        batch: PairBatch = next(batches).to(accelerator.device)
        last = micro == accumulation - 1
        # Gradients are exchanged between processes once, after the last batch.
        with accelerator.no_sync(model) if not last else nullcontext():
            losses: Losses = model(batch)[0]
            accelerator.backward(losses.total / accumulation)
        parts += torch.stack([losses.named()[name] for name in PARTS]) / accumulation
    if frozen:
        accelerator.unwrap_model(model).prototypes.grad = None  # AdamW leaves such a parameter alone, decay included
    if config.training.clip_norm:
        accelerator.clip_grad_norm_(model.parameters(), config.training.clip_norm)
    optimizer.step()
    return dict(zip(PARTS, accelerator.reduce(parts, "mean").tolist(), strict=True))


def _check_all_there(step: int, out: Path, accelerator: Accelerator) -> None:
    """Raise where a node goes on and another begins: it would hang, or mix two runs.

    Before the first step, while the report encoder reads: -1 before its first pass, -2 after it, and so on.
    """
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        found = ", ".join(
            f"step {step}" if step >= 0 else f"{-1 - step} of the passes over the reports" for step in steps
        )
        raise PretrainError(f"{out}: the processes found different checkpoints ({found}); all nodes must share it")


def _tokenizer(config: Config, train: Studies) -> PreTrainedTokenizerBase:
    if config.model.text_model:
        return load_tokenizer(config.model.text_model)
    # Sorted, so that neither the order of the table nor repeated reports change the vocabulary.
    return train_tokenizer(sorted(set(paired_texts(train))), vocabulary=config.model.text_vocabulary)


def _learn_to_read(
    train: Studies,
    valid: Studies,
    config: Config,
    seed: int,
    out: Path,
    identity: dict[str, Any],
    accelerator: Accelerator,
    *,
    resume: bool,
) -> tuple[MGCA, PreTrainedTokenizerBase]:
    """A model whose report encoder has filled in masked words, at the run's own rate and batch size."""
    texts = [paired_texts(studies) for studies in (train, valid)]
    found = find_checkpoint(out / READING_FOLDER) if resume else None
    begin = None
    if found is None:
        tokenizer = _tokenizer(config, train)
        model = build_model(config, tokenizer, seed=seed)
    else:
        model, tokenizer = rebuild(found, config)
        begin = load_reading(found, model)
    _check_all_there(-1 - (len(begin.history) if begin else 0), out, accelerator)
    model.to(accelerator.device)

    def keep(reading: Reading) -> None:
        newest = reading.history[-1]
        losses = {f"{side} masked-word": newest[side] for side in ("train", "valid")}
        _check_finite(losses, f"pass {newest['epoch']} over the reports", out)
        save_reading(out, model, tokenizer, reading, identity, accelerator)

    learned = train_masked_language(
        model.report_encoder,
        tokenizer,
        *texts,
        epochs=config.training.mlm_epochs,
        batch_size=config.training.batch_size * accelerator.num_processes,
        learning_rate=config.training.learning_rate,
        max_pieces=config.model.max_pieces,
        seed=seed,
        accelerator=accelerator,
        begin=begin,
        keep=keep,
    )
    if accelerator.is_main_process:
        write_json(out / MLM_FILE, learned)
    return model, tokenizer


def _optimizer(model: MGCA, training: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over all parameters; those of the report encoder apart, with a factor of their own, if there is one."""
    # Groups decide the numbers of the parameters in a checkpoint, so without a factor there has to be one, as ever.
    groups = [{"params": list(model.parameters()), "factor": 1.0}]
    if training.text_rate_factor != 1:
        text = list(model.report_encoder.parameters())
        among_text = {id(parameter) for parameter in text}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in among_text]
        groups = [{"params": rest, "factor": 1.0}, {"params": text, "factor": training.text_rate_factor}]
    return torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True)


def _pairs(
    studies: Studies, tokenizer: PreTrainedTokenizerBase, config: Config, seed: int, *, augmentation: str
) -> PairImages:
    transform = ImageTransform(config.model.stored_size, config.model.image_size, augmentation)
    return PairImages(
        studies,
        tokenizer,
        transform,
        max_pieces=config.model.max_pieces,
        seed=seed,
        keep_images=config.training.keep_images,
        denials=config.alignment.skip_denied_words,
    )


def _loader(pairs: PairImages, batches: EpochBatches | RunBatches, config: Config) -> DataLoader:
    return DataLoader(
        pairs,
        batch_sampler=batches,
        collate_fn=pairs.collate,
        num_workers=config.training.workers,
        pin_memory=torch.cuda.is_available(),
        # Of its own, because a loader draws from torch's global generator otherwise.
        generator=torch.Generator().manual_seed(0),
    )


def _limit(studies: Studies, largest: int, seed: int) -> Studies:
    if not largest or largest >= len(studies):
        return studies
    rows = np.random.default_rng(seed).permutation(len(studies))[:largest]
    return studies.select(np.sort(rows))


def _precision(config: Config) -> str:
    """As accelerate calls it."""
    return "bf16" if training_precision(config.training.precision) == "bf16" else "no"


def _has_idle_parameters(config: Config) -> bool:
    alignment = config.alignment
    return not (alignment.instance_weight and alignment.token_weight and alignment.prototype_weight)


def _frozen(config: Config, epoch: int) -> bool:
    return epoch < config.alignment.freeze_prototypes_epochs


def _step_seed(seed: int, step: int, process: int) -> int:
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0])


def _goes_on(state: Progress, total_steps: int, patience: int) -> bool:
    return state.step < total_steps and not (patience and state.epochs_without_gain >= patience)


def _check_finite(losses: dict[str, float], when: str, out: Path) -> None:
    for name, value in losses.items():
        if not math.isfinite(value):
            raise _diverged(when, f"the {name} loss is {value}", out)


def _check_weights(model: nn.Module, when: str, out: Path) -> None:
    """Raise where the last update ruined a weight, which the loss shows a step later: too late for the checkpoint."""
    if not torch.stack([weight.isfinite().all() for weight in model.parameters()]).all():
        raise _diverged(when, "a weight is no finite number any more", out)


def _diverged(when: str, problem: str, out: Path) -> PretrainError:
    return PretrainError(
        f"{when}: {problem}. The checkpoints in {out} are from before; lower learning_rate, or set clip_norm, and "
        "train anew"
    )


def _report_step(
    bar: Any,
    log: RunLog,
    losses: dict[str, float],
    rate: float,
    state: Progress,
    config: Config,
    accelerator: Accelerator,
) -> None:
    bar.update(1)
    bar.set_postfix(
        {name: f"{value:.2f}" for name, value in losses.items()} | {"pairs/s": _speed(state, config, accelerator)}
    )
    log.add({f"train/{name}": value for name, value in losses.items()} | {"learning_rate": rate}, state.step)


def _speed(state: Progress, config: Config, accelerator: Accelerator) -> int:
    pairs = state.steps_summed * config.training.batch_size * config.training.accumulation * accelerator.num_processes
    return round(pairs / max(state.seconds, 1e-9))


def _close_epoch(
    state: Progress,
    epoch: int,
    rate: float,
    measured: dict[str, float],
    config: Config,
    accelerator: Accelerator,
) -> None:
    """Append the epoch to the history and start the sums of the next one."""
    row: dict[str, float] = {
        "epoch": epoch + 1,
        "step": state.step,
        "learning_rate": rate,
        "pairs_per_second": _speed(state, config, accelerator),
        "seconds": round(state.seconds, 2),
    }
    row |= {f"train/{name}": value / state.steps_summed for name, value in state.sums.items()}
    row |= {f"valid/{name}": value for name, value in measured.items()}
    state.history.append(row)
    state.sums = dict.fromkeys(PARTS, 0.0)
    state.steps_summed, state.seconds = 0, 0.0


@dataclass(frozen=True)
class PretrainArguments:
    """Data, output and the profile that the other settings start from."""

    data: str = field(metadata={"help": "folder of a prepared dataset with reports"})
    out: str = field(metadata={"help": "folder for checkpoints and logs"})
    profile: str = field(default="paper", metadata={"help": "smoke, demo, full_width or paper; sets all others"})
    seed: int = field(default=42, metadata={"help": "decides initial weights, order, crops and dropout"})
    resume: bool = field(
        default=False, metadata={"help": "go on from OUT/last (or OUT/reading); a finished run is left as it is"}
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run pretraining from the command line; returns the exit code, 2 for anything the user can mend."""
    first = ArgumentParser(add_help=False)
    first.add_argument("--profile", default="paper")
    try:
        profile = load_profile(first.parse_known_args(arguments)[0].profile)
        parser = HfArgumentParser(
            (PretrainArguments, ModelConfig, AlignmentConfig, TrainingConfig),
            prog="python -m mgca_lib.pretrain",
            description="Pretrain MGCA on a prepared dataset of image-report pairs.",
        )
        parser.set_defaults(**asdict(profile.model), **asdict(profile.alignment), **asdict(profile.training))
        for action in parser._actions:
            action.nargs = "*" if action.nargs == "+" else action.nargs  # or no list of a profile could be emptied
            if action.option_strings[0].startswith("--no_"):  # it would have the help of what it switches off
                action.help = f"switch off --{action.dest}"
        options, model, alignment, training, unknown = parser.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True
        )
        if unknown:
            raise ConfigError(f"unknown option {unknown[0]!r}; see python -m mgca_lib.pretrain --help")
        config = Config(profile=options.profile, model=model, alignment=alignment, training=training)
        # TensorBoard writes from a thread of its own, which would print a traceback before its error gets here.
        threading.excepthook = lambda _: None
        result = pretrain(config, load_studies(options.data), options.out, seed=options.seed, resume=options.resume)
    except (CheckpointError, ConfigError, DatasetError, EncoderError, PretrainError, TokenizerError) as error:
        # A loader process hands on its whole traceback as the message; the last line is the error's own.
        print(f"error: {str(error).splitlines()[-1]}", file=sys.stderr)
        return 2
    finally:
        threading.excepthook = threading.__excepthook__
    state = "trained" if result.trained else "already trained"
    print(f"{state} {len(result.history)} epochs; best checkpoint: {result.best}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
