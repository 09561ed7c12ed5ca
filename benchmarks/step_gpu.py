"""A full training step on a GPU: share of the card's own bf16 rate, at batch 144 and at the largest batch that fits.

Also what the losses take of it, and time and memory against batch size (a figure beside the results). Without a GPU
it says so, writes nothing and stops with exit code 3.
"""

import gc
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import (
    NOT_HERE,
    Options,
    both_clocks,
    chosen,
    matrix_product,
    parse_options,
    time_in_turn,
    write_result,
)
from benchmarks.steps import baseline_step, build, count_operations, losses_alone, paper_config, training_step
from benchmarks.synthetic import make_batch
from mgca_lib.config import Config
from mgca_lib.data.pairs import PairBatch
from mgca_lib.figures import curves, save_figure

PUBLISHED_BATCH, LARGE_BATCH, CHUNK = 144, 1024, 128
RATE_TARGET, LOSSES_TARGET = 0.45, 0.03
EPOCHS, PAIRS = 50, 217_000  # of the published run
# What torch and the libraries below it say when they find the card full.
_FULL = re.compile(
    r"out of memory|CUBLAS_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)|unable to find an engine", re.IGNORECASE
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; writes ``step_gpu_144.json``, ``step_gpu_largest.json``, ``step_gpu_losses.json`` and the figure."""
    options = parse_options(__doc__, arguments)
    if not torch.cuda.is_available():
        print("step_gpu: torch sees no GPU on this computer, so there is nothing to measure")
        return NOT_HERE
    device = torch.device("cuda")
    # The allocator then stops before other libraries find no room for themselves.
    torch.cuda.set_per_process_memory_fraction(0.95)
    config = paper_config(quick=options.quick)
    published = options.pick(PUBLISHED_BATCH, 16)
    if _try(published, config, options, device) is None:
        print(f"step_gpu: {published} pairs do not fit this card, so there is nothing to compare with")
        return NOT_HERE
    # The search for the largest batch comes last: what is written before it stays, whatever a full card does.
    _rate("step_gpu_144", published, config, options, device, baseline=True)
    _free()
    _losses(published, options.pick(LARGE_BATCH, 32), config, options, device)
    batches = _fitting(published, config, options, device)
    _rate("step_gpu_largest", max(batches), config, options, device, curve=batches)
    return 0


def _batch(size: int, config: Config, device: torch.device) -> PairBatch:
    """Pairs on the card; a large batch repeats those of a smaller one, since drawing takes longer than a step."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = make_batch(Path(folder), config.model, min(size, PUBLISHED_BATCH)).to(device)
    rows = torch.arange(size, device=device) % len(drawn)
    tensors = {name: value[rows] for name, value in vars(drawn).items() if isinstance(value, torch.Tensor)}
    return replace(drawn, **tensors)


def _rate(
    name: str,
    batch_size: int,
    config: Config,
    options: Options,
    device: torch.device,
    *,
    baseline: bool = False,
    curve: dict[int, dict[str, float]] | None = None,
) -> None:
    batch = _batch(batch_size, config, device)
    model = build(config).to(device)
    step = training_step(model, batch, bf16=True)
    operations, padding = count_operations(step, model, batch)
    multiply, product_operations = _product(options, device)
    sides = {"matrix products": multiply, "step": step}
    if baseline:
        sides["baseline step"] = baseline_step(config, batch, quick=options.quick)
    seconds = time_in_turn(sides, options, device=device)
    taken = chosen(seconds, options)
    own, rate = operations / taken["step"], product_operations / taken["matrix products"]
    medians = {
        **both_clocks(seconds),
        "pairs per second": batch_size / taken["step"],
        f"hours for {EPOCHS} epochs of {PAIRS:,} pairs": EPOCHS * PAIRS * taken["step"] / batch_size / 3600,
        "operations of a step, TFLOP": operations / 1e12,
        "of these on padded word pieces, TFLOP": padding / 1e12,
        "rate of a step, TFLOP/s": own / 1e12,
        "rate of a matrix product, TFLOP/s": rate / 1e12,
    }
    if baseline:
        medians["baseline step over step"] = taken["baseline step"] / taken["step"]
    if curve is not None:
        medians["against batch size"] = {f"{size} pairs": row for size, row in curve.items()}
    write_result(
        name,
        options,
        claim=f"A training step of {batch_size} pairs runs at this share of the rate at which the card multiplies "
        "matrices.",
        ratio=own / rate,
        target=RATE_TARGET,
        medians=medians,
        device=device,
        notes={"batch": batch_size, "precision": "bf16 autocast"},
    )
    if curve is not None:
        _plot(curve, options.out / "step_gpu_curve.png")


def _losses(published: int, large: int, config: Config, options: Options, device: torch.device) -> None:
    """Share of the losses in a step; the larger batch is encoded in chunks, as it would be trained."""
    medians = {}
    for batch_size, chunk in ((published, 0), (large, min(CHUNK, large // 2))):
        batch = _batch(batch_size, config, device)
        model = build(config.override(batch_size=batch_size, chunk_size=chunk)).to(device)
        sides = {
            "step": training_step(model, batch, bf16=True),
            "losses": losses_alone(model, batch, bf16=True),
        }
        taken = chosen(time_in_turn(sides, options, device=device), options)
        medians[f"{batch_size} pairs"] = {
            "seconds of a step": taken["step"],
            "seconds of the losses": taken["losses"],
            "share": taken["losses"] / taken["step"],
            "pairs encoded at a time": chunk or batch_size,
        }
        del batch, model, sides
        _free()
    write_result(
        "step_gpu_losses",
        options,
        claim="The three losses together take this share of a training step (the larger one of both batches).",
        ratio=max(row["share"] for row in medians.values()),
        target=LOSSES_TARGET,
        at_most=True,
        medians=medians,
        device=device,
        notes={"precision": "encoders in bf16 autocast, losses in fp32"},
    )


def _fitting(published: int, config: Config, options: Options, device: torch.device) -> dict[int, dict[str, float]]:
    """Time and memory of a step against batch size, doubled until it no longer fits."""
    found: dict[int, dict[str, float]] = {}
    size = published // 8
    while size <= published * options.pick(64, 2):
        row = _try(size, config, options, device)
        if row is None:
            between = 3 * size // 4  # halfway between the last that fits and the first that does not
            row = _try(between, config, options, device) if found else None
            return found if row is None else found | {between: row}
        found[size] = row
        size *= 2
    return found


def _try(size: int, config: Config, options: Options, device: torch.device) -> dict[str, float] | None:
    try:
        return _one_size(size, config, options, device)
    except RuntimeError as error:  # torch's own is one, too
        if not _FULL.search(str(error)):
            raise
        return None
    finally:
        _free()


def _one_size(size: int, config: Config, options: Options, device: torch.device) -> dict[str, float]:
    multiply, _ = _product(options, device)  # its matrices lie there while the rate is measured
    step = training_step(build(config).to(device), _batch(size, config, device), bf16=True)
    multiply()
    step()
    torch.cuda.reset_peak_memory_stats(device)
    seconds = time_in_turn({"step": step}, options, device=device)["step"].wall
    return {
        "seconds of a step": seconds,
        "pairs per second": size / seconds,
        "memory, GB": torch.cuda.max_memory_allocated(device) / 2**30,
    }


def _product(options: Options, device: torch.device) -> tuple[Callable[[], None], int]:
    return matrix_product(options.pick(8192, 256), device=device, times=20)


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _plot(curve: dict[int, dict[str, float]], path: Path) -> None:
    series = {name: [row[name] for row in curve.values()] for name in ("seconds of a step", "memory, GB")}
    # Each as a share of its largest value: two units do not fit one axis.
    shares = {f"{name} (1 = {max(values):.3g})": [v / max(values) for v in values] for name, values in series.items()}
    figure = curves(list(curve), shares, x_label="batch size, pairs", y_label="share of the largest value")
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
