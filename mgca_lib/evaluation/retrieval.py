"""Image-report retrieval: is a study's own report among the first K of the whole test set?

MGCA logs top-1 and top-5 accuracy inside a training batch, which depends on the batch size. Here every
image is ranked against every report of the test set and the other way round. Reports of equal text count as
equally correct: two normal films can carry the very same words, and no model can tell which of the two
reports belongs to which.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgca_lib.evaluation.intervals import Interval, bootstrap_interval


@dataclass(frozen=True)
class Retrieval:
    """Recall at K of one test set.

    Attributes:
        image_to_report: For each K, the share of images whose report is among the K most similar reports.
        report_to_image: For each K, the share of reports that have one of their images among the K most
            similar images.
        chance: For each K, the expected recall of a random ranking, equal texts counted; the same in both
            directions.
        image_ranks: ``(N,)`` rank of the first correct report of each image, 1 = first.
        report_ranks: ``(N,)`` rank of the first correct image of each report.
    """

    image_to_report: dict[int, Interval]
    report_to_image: dict[int, Interval]
    chance: dict[int, float]
    image_ranks: np.ndarray
    report_ranks: np.ndarray


def retrieval_recall(
    image: Tensor,
    report: Tensor,
    *,
    texts: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    groups: Sequence[Hashable] | None = None,
    batch_size: int = 512,
    resamples: int = 1000,
    seed: int = 0,
) -> Retrieval:
    """Recall at K over the whole test set, in both directions, with bootstrap intervals over queries.

    The rank of a query is 1 plus the number of wrong candidates that score at least as high as its best
    correct candidate. A tie with a wrong candidate thus counts against the model, so an encoder that maps
    everything to one point gets no recall rather than all of it.

    Args:
        image: ``(N, D)`` image embeddings, any norm (unit-normed here); row ``i`` belongs to report ``i``.
        report: ``(N, D)`` report embeddings.
        texts: The ``N`` report texts; rows of equal text are correct answers for each other. Without it
            every row stands alone.
        ks: Cut-offs, each at least 1.
        groups: ``N`` names, for example patients, that are drawn together by the bootstrap.
        batch_size: Queries compared at a time; the result does not depend on it.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: shapes differ, a value is not finite, or ``texts`` has another length.

    >>> same = torch.ones(4, 3)  # every pair ties: rank 4 of 4, not 1
    >>> result = retrieval_recall(same, same, ks=(1, 4), resamples=10)
    >>> result.image_to_report[1].mean, result.image_to_report[4].mean, result.chance
    (0.0, 1.0, {1: 0.25, 4: 1.0})
    """
    image, report = torch.as_tensor(image), torch.as_tensor(report)
    if image.shape != report.shape or image.ndim != 2 or not len(image):
        raise ValueError(f"expected two embeddings of one shape (N, D), found {image.shape} and {report.shape}")
    if not (torch.isfinite(image).all() and torch.isfinite(report).all()):
        raise ValueError("an embedding is not finite; retrieval would rank it arbitrarily")
    n = len(image)
    if texts is not None and len(texts) != n:
        raise ValueError(f"{len(texts)} texts for {n} pairs")
    number_of: dict[str, int] = {}
    same = torch.tensor(
        [number_of.setdefault(text, len(number_of)) for text in texts] if texts is not None else range(n)
    )
    image, report = (F.normalize(part.detach().float().cpu(), dim=-1) for part in (image, report))
    ranks = [_first_ranks(a, b, same, batch_size) for a, b in ((image, report), (report, image))]
    recalls: list[dict[int, Interval]] = []
    for rank in ranks:
        recalls.append({})
        for k in ks:
            hit = (rank <= k).astype(np.float64)
            recalls[-1][k] = bootstrap_interval(
                lambda rows, hit=hit: hit[rows].mean(), n, groups=groups, resamples=resamples, seed=seed
            )
    return Retrieval(*recalls, chance_recall(n, texts=texts, ks=ks), *ranks)


def chance_recall(n: int, *, texts: Sequence[str] | None = None, ks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Expected recall at K of a random ranking of ``n`` candidates.

    A query with ``m`` correct candidates misses all of them with probability ``C(n - m, K) / C(n, K)``.

    Args:
        n: Number of candidates.
        texts: The ``n`` report texts; equal texts are correct for each other.
        ks: Cut-offs.

    >>> chance_recall(100)
    {1: 0.01, 5: 0.05, 10: 0.1}
    >>> chance_recall(4, texts=["normal", "normal", "edema", "nodule"], ks=(1,))  # (2/4 + 2/4 + 1/4 + 1/4) / 4
    {1: 0.375}
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"recall at K needs K >= 1, found {tuple(ks)}")
    copies = Counter(Counter(texts).values()) if texts is not None else {1: n}
    chance = {}
    for k in ks:
        total = sum(
            many * m * (1 - math.comb(n - m, min(k, n)) / math.comb(n, min(k, n))) for m, many in copies.items()
        )
        chance[k] = round(total / n, 12)
    return chance


def _first_ranks(queries: Tensor, candidates: Tensor, same: Tensor, batch_size: int) -> np.ndarray:
    ranks = []
    for rows in torch.arange(len(queries)).split(batch_size):
        scores = queries[rows] @ candidates.T
        correct = same[rows, None] == same[None, :]
        best = scores.masked_fill(~correct, -math.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + ((scores >= best) & ~correct).sum(dim=1))
    return torch.cat(ranks).numpy()
