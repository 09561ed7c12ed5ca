"""A full training step on the CPU: share of the processor's own bf16 rate, and speed against the baseline.

ViT-B/16 at 224 px and a 6-layer BERT from scratch, 16 pairs, reports as long as MIMIC's: forward pass, backward pass
and AdamW. The rate is that of a product of two square bf16 matrices, timed in turn with the steps.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness import both_clocks, chosen, matrix_product, parse_options, time_in_turn, write_result
from benchmarks.steps import baseline_step, build, count_operations, losses_alone, paper_config, training_step
from benchmarks.synthetic import make_batch
from mgca_lib.run import cpu_is_fast_in_bf16

BATCH_SIZE = 16
RATE_TARGET, SPEED_TARGET = 0.45, 4.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both; writes ``step_cpu_rate.json`` and ``step_cpu.json``."""
    options = parse_options(__doc__, arguments)
    config = paper_config(quick=options.quick)
    with tempfile.TemporaryDirectory() as folder:
        batch = make_batch(Path(folder), config.model, options.pick(BATCH_SIZE, 4))
    model = build(config)
    bf16 = cpu_is_fast_in_bf16()
    step = training_step(model, batch, bf16=bf16)
    operations, padding = count_operations(step, model, batch)
    multiply, product_operations = matrix_product(
        options.pick(4096, 256), dtype=torch.bfloat16 if bf16 else torch.float32
    )
    sides = {
        "matrix product": multiply,
        "step": step,
        "losses alone": losses_alone(model, batch, bf16=bf16),
        "baseline step": baseline_step(config, batch, quick=options.quick),
    }
    seconds = time_in_turn(sides, options)
    taken = chosen(seconds, options)
    rate, own = product_operations / taken["matrix product"], operations / taken["step"]
    notes = {
        "batch": len(batch),
        "mean pieces": float(batch.piece_keep.sum() / len(batch)),
        "precision": "bf16 autocast" if bf16 else "fp32: this processor has no instructions for bf16",
        "operations": "matrix products that the step executes, by torch.utils.flop_counter",
    }
    write_result(
        "step_cpu_rate",
        options,
        claim="A training step runs at this share of the rate at which the same processor multiplies matrices.",
        ratio=own / rate,
        target=RATE_TARGET,
        medians={
            **both_clocks(seconds),
            "operations of a step, TFLOP": operations / 1e12,
            "of these on padded word pieces, TFLOP": padding / 1e12,
            "rate of a step, TFLOP/s": own / 1e12,
            "rate of a matrix product, TFLOP/s": rate / 1e12,
            "share without the operations on padding": own / rate * (1 - padding / operations),
            "share of the losses in the step's time": taken["losses alone"] / taken["step"],
        },
        notes=notes,
    )
    write_result(
        "step_cpu",
        options,
        claim="A training step is so many times faster than one written the way the published code works.",
        ratio=taken["baseline step"] / taken["step"],
        target=SPEED_TARGET,
        medians={
            **both_clocks(seconds),
            "pairs per second": len(batch) / taken["step"],
            "pairs per second, baseline": len(batch) / taken["baseline step"],
        },
        notes=notes,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
