"""A full training step on a GPU: share of the card's own bf16 rate, at batch 144 and at the largest batch that fits.

Without a GPU it says so and stops with exit code 3.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness import NOT_HERE, Options, both_clocks, chosen, matrix_product, parse_options, time_in_turn
from benchmarks.harness import write_result as write
from benchmarks.steps import baseline_step, build, count_operations, paper_config, training_step
from benchmarks.synthetic import make_batch

PUBLISHED_BATCH, TARGET = 144, 0.45


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; writes ``step_gpu_144.json`` and ``step_gpu_largest.json``."""
    options = parse_options(__doc__, arguments)
    if not torch.cuda.is_available():
        print("step_gpu: torch sees no GPU on this computer, so there is nothing to measure")
        return NOT_HERE
    first = options.pick(PUBLISHED_BATCH, 8)
    _measure("step_gpu_144", first, options, baseline=True)
    _measure("step_gpu_largest", _largest_batch(first, options), options, baseline=False)
    return 0


def _measure(name: str, batch_size: int, options: Options, *, baseline: bool) -> None:
    device = torch.device("cuda")
    config = paper_config(quick=options.quick)
    with tempfile.TemporaryDirectory() as folder:
        batch = make_batch(Path(folder), config.model, batch_size).to(device)
    model = build(config).to(device)
    step = training_step(model, batch, bf16=True)
    operations, padding = count_operations(step, model, batch)
    multiply, product_operations = matrix_product(options.pick(8192, 256), device)
    sides = {"matrix product": multiply, "step": step}
    if baseline:
        sides["baseline step"] = baseline_step(config, batch, quick=options.quick)
    torch.cuda.reset_peak_memory_stats()
    step()
    peak = torch.cuda.max_memory_allocated()
    seconds = time_in_turn(sides, options, device=device)
    taken = chosen(seconds, options)
    medians = {
        **both_clocks(seconds),
        "pairs per second": batch_size / taken["step"],
        "memory, GB": peak / 2**30,
        "operations of a step, TFLOP": operations / 1e12,
        "of these on padded word pieces, TFLOP": padding / 1e12,
    }
    if baseline:
        medians["baseline step over step"] = taken["baseline step"] / taken["step"]
    write(
        name,
        options,
        claim=f"A training step of {batch_size} pairs runs at this share of the rate at which the card multiplies "
        "matrices.",
        ratio=(operations / taken["step"]) / (product_operations / taken["matrix product"]),
        target=TARGET,
        medians=medians,
        device=device,
        notes={"batch": batch_size, "precision": "bf16 autocast"},
    )


def _largest_batch(first: int, options: Options) -> int:
    """Double the batch until it does not fit; three quarters between the last two is tried, too."""
    largest = first
    while _fits(2 * largest, options):
        largest *= 2
    return 3 * largest // 2 if _fits(3 * largest // 2, options) else largest


def _fits(batch_size: int, options: Options) -> bool:
    config = paper_config(quick=options.quick)
    try:
        with tempfile.TemporaryDirectory() as folder:
            batch = make_batch(Path(folder), config.model, batch_size).to("cuda")
        step = training_step(build(config).to("cuda"), batch, bf16=True)
        step()
        step()  # the optimiser's state exists from the second on
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


if __name__ == "__main__":
    sys.exit(main())
