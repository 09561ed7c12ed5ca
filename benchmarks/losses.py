"""The three losses alone, forward and backward: time and memory against batch size, against the baseline's.

From 16 to 1,024 pairs with 196 patches and up to 111 words. The second claim is about token alignment, whose
similarities of all patches of a study, (B, P, P), are the largest tensor of all losses.
"""

import sys
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baseline import SLOTS, baseline_losses
from benchmarks.harness import chosen, parse_options, peak_memory, time_in_turn, write_result
from benchmarks.synthetic import report_lengths
from mgca_lib.alignment import (
    importance_weights,
    instance_alignment_loss,
    prototype_alignment_loss,
    token_alignment_loss,
)

BATCH_SIZES = (16, 64, 256, 1024)
PATCHES, DIM, PROTOTYPES = 196, 128, 500
SPEED_TARGET = 1.0  # no slower than the baseline, at any size


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; writes ``losses.json`` and ``losses_memory.json``."""
    options = parse_options(__doc__, arguments)
    medians, memory = {}, {}
    for batch_size in options.pick(BATCH_SIZES, (4,)):
        ours, baseline, token = _sides(batch_size)
        taken = chosen(time_in_turn({"ours": ours, "baseline": baseline}, options), options)
        square = batch_size * PATCHES**2 * 4
        peaks = [peak_memory(call, large=square) for call in (ours, baseline, token)]
        medians[f"{batch_size} pairs"] = {
            "seconds": taken["ours"],
            "seconds, baseline": taken["baseline"],
            "ratio": taken["baseline"] / taken["ours"],
            "peak MB": peaks[0].bytes / 1e6,
            "peak MB, baseline": peaks[1].bytes / 1e6,
        }
        memory[f"{batch_size} pairs"] = {
            "most (B, P, P) tensors at once in CTA": peaks[2].large,
            "all that CTA allocates, in (B, P, P) tensors": peaks[2].bytes / square,
            "all that the baseline's losses allocate, in (B, P, P) tensors": peaks[1].bytes / square,
            "most (B, P, P) tensors at once in the baseline's losses": peaks[1].large,
        }
    notes = {"patches": PATCHES, "words": "as many as MIMIC's reports have pieces, at most 111", "precision": "fp32"}
    write_result(
        "losses",
        options,
        claim="Forward and backward pass of ITA + CTA + CPA are so many times faster than the baseline's "
        "(the least of all batch sizes).",
        ratio=min(row["ratio"] for row in medians.values()),
        target=SPEED_TARGET,
        medians=medians,
        notes=notes,
    )
    write_result(
        "losses_memory",
        options,
        claim="CTA never holds more than one (B, P, P) tensor in fp32: so many at once, at any batch size.",
        ratio=float(max(row["most (B, P, P) tensors at once in CTA"] for row in memory.values())),
        target=1.0,
        at_most=True,
        medians=memory,
        repeats=1,
        notes=notes
        | {
            "memory": "by torch's profiler on one thread, scratch space inside operators included; measured once",
            "why": "the logits exist for at most half of the studies at a time, in two tensors",
        },
    )
    return 0


def _sides(batch_size: int) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """Return all losses, the baseline's, and token alignment alone, forward and backward."""
    torch.manual_seed(0)
    image, report = (_unit(batch_size, DIM) for _ in range(2))
    patches, words = _unit(batch_size, PATCHES, DIM), _unit(batch_size, SLOTS - 1, DIM)
    prototypes = nn.Parameter(F.normalize(torch.randn(PROTOTYPES, DIM), dim=1))
    lengths = torch.tensor(report_lengths(batch_size))[:, None] - 1
    keep = torch.arange(SLOTS - 1)[None] < lengths
    word_attention = torch.rand(keep.shape) * keep
    patch_attention = torch.rand(batch_size, PATCHES)
    most = int(keep.sum(dim=1).max())

    def token_loss() -> Tensor:
        return token_alignment_loss(
            words[:, :most],
            patches,
            word_keep=keep[:, :most],
            word_weight=importance_weights(word_attention[:, :most], keep[:, :most]),
            patch_weight=importance_weights(patch_attention, None),
        )

    def token() -> None:
        token_loss().backward()

    def ours() -> None:
        loss = instance_alignment_loss(image, report) + prototype_alignment_loss(image, report, prototypes)
        (loss + token_loss()).backward()

    def baseline() -> None:
        with torch.autograd.set_detect_anomaly(True):
            baseline_losses(
                image,
                report,
                patches,
                words,
                prototypes,
                empty=~keep,
                word_attention=word_attention,
                patch_attention=patch_attention,
            ).backward()

    return ours, baseline, token


def _unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1).requires_grad_()


if __name__ == "__main__":
    sys.exit(main())
