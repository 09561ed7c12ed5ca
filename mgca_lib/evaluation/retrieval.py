"""Image-report retrieval: is a study's own report among the first K, and are the first K of its class?

MGCA logs top-1 and top-5 accuracy inside a training batch, which depends on the batch size. Here every
image is ranked against every report of the test set and the other way round. Reports of equal text count as
equally correct: two normal films can carry the very same words, and no model can tell which of the two
reports belongs to which.

Precision at K asks for less than recall: do the first K reports speak of the image's disease? ConVIRT and GLoRIA
report it; classes are exclusive there, as in CheXpert 5x200.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mgca_lib.evaluation.intervals import Interval, bootstrap_interval, hit_rate_interval


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


@dataclass(frozen=True)
class BatchRecall:
    """Mean recall at K inside random batches of one size.

    Attributes:
        image_to_report: For each K, the share of images whose report is among the first K of its batch.
        report_to_image: The other direction.
        chance: For each K, the expected recall of a random ranking inside a batch.
    """

    image_to_report: dict[int, float]
    report_to_image: dict[int, float]
    chance: dict[int, float]


@dataclass(frozen=True)
class RetrievalPrecision:
    """Precision at K of one test set.

    Attributes:
        image_to_report: For each K, the mean share of the K most similar reports that are of the image's class.
        report_to_image: For each K, the mean share of the K most similar images that are of the report's class.
        chance: Expected precision of a random ranking, the same for every K and both directions.
        image_precisions: For each K, the ``(N,)`` precision of each image.
        report_precisions: For each K, the ``(N,)`` precision of each report.
    """

    image_to_report: dict[int, Interval]
    report_to_image: dict[int, Interval]
    chance: float
    image_precisions: dict[int, np.ndarray]
    report_precisions: dict[int, np.ndarray]


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

    Where every query or none hits, the interval is Wilson's: a bootstrap would have no width.

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
    image, report, same = _checked(image, report, texts)
    n = len(image)
    ranks = [_first_ranks(a, b, same, batch_size) for a, b in ((image, report), (report, image))]
    recalls: list[dict[int, Interval]] = []
    for rank in ranks:
        recalls.append({})
        for k in ks:
            recalls[-1][k] = hit_rate_interval(rank <= k, groups=groups, resamples=resamples, seed=seed)
    return Retrieval(*recalls, chance_recall(n, texts=texts, ks=ks), *ranks)


def chance_recall(
    n: int, *, texts: Sequence[Hashable] | None = None, ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """Expected recall at K of a random ranking of ``n`` candidates.

    A query with ``m`` correct candidates misses all of them with probability ``C(n - m, K) / C(n, K)``.

    Args:
        n: Number of candidates.
        texts: The ``n`` report texts; equal texts are correct for each other.
        ks: Cut-offs.

    Raises:
        ValueError: there is no candidate, a K is below 1, or ``texts`` has another length.

    >>> chance_recall(100)
    {1: 0.01, 5: 0.05, 10: 0.1}
    >>> chance_recall(4, texts=["normal", "normal", "edema", "nodule"], ks=(1,))  # (2/4 + 2/4 + 1/4 + 1/4) / 4
    {1: 0.375}
    """
    if any(k < 1 for k in ks):
        raise ValueError(f"recall at K needs K >= 1, found {tuple(ks)}")
    if n < 1:
        raise ValueError(f"a ranking needs at least one candidate, found {n}")
    if texts is not None and len(texts) != n:
        raise ValueError(f"{len(texts)} texts for {n} candidates")
    copies = Counter(Counter(texts).values()) if texts is not None else {1: n}
    chance = {}
    for k in ks:
        total = sum(
            many * m * (1 - math.comb(n - m, min(k, n)) / math.comb(n, min(k, n))) for m, many in copies.items()
        )
        chance[k] = round(total / n, 12)
    return chance


def recall_in_batches(
    image: Tensor,
    report: Tensor,
    *,
    batch_size: int,
    texts: Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    draws: int = 10,
    seed: int = 0,
) -> BatchRecall:
    """Recall at K when every query is ranked inside a random batch only, as MGCA logs it and BenchX reports it.

    The fewer candidates, the higher the recall, of any model and of none. It is here to be shown beside
    `retrieval_recall`, not to be reported.

    Args:
        image: ``(N, D)`` image embeddings; row ``i`` belongs to report ``i``.
        report: ``(N, D)`` report embeddings.
        batch_size: Candidates of each query, 1 to ``N``; an incomplete last batch is dropped.
        texts: The ``N`` report texts; equal texts in a batch are correct for each other.
        ks: Cut-offs, each at least 1.
        draws: So many times the test set is shuffled and cut into batches.
        seed: Seed of the shuffles.

    Raises:
        ValueError: the batch does not fit the set, ``draws`` is not positive, or as in `retrieval_recall`.

    >>> result = recall_in_batches(torch.ones(8, 3), torch.ones(8, 3), batch_size=2, ks=(1, 2))  # all ties
    >>> result.image_to_report, result.chance
    ({1: 0.0, 2: 1.0}, {1: 0.5, 2: 1.0})
    """
    image, report, same = _checked(image, report, texts)
    n = len(image)
    if not 1 <= batch_size <= n:
        raise ValueError(f"batches of {batch_size} do not fit {n} pairs")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, found {draws}")
    rng = np.random.default_rng(seed)
    ranks: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    chances = []
    for _ in range(draws):
        order = torch.from_numpy(rng.permutation(n)[: n - n % batch_size])
        for rows in order.split(batch_size):
            ranks[0].append(_first_ranks(image[rows], report[rows], same[rows], batch_size))
            ranks[1].append(_first_ranks(report[rows], image[rows], same[rows], batch_size))
            chances.append(chance_recall(batch_size, texts=same[rows].tolist(), ks=ks))
    recalls = [{k: float((np.concatenate(part) <= k).mean()) for k in ks} for part in ranks]
    return BatchRecall(*recalls, {k: float(np.mean([one[k] for one in chances])) for k in ks})


def retrieval_precision(
    image: Tensor,
    report: Tensor,
    *,
    labels: Sequence[Hashable] | None = None,
    texts: Sequence[str] | None = None,
    ks: Sequence[int] = (5, 10, 100),
    leave_out_own: bool = False,
    groups: Sequence[Hashable] | None = None,
    batch_size: int = 512,
    resamples: int = 1000,
    seed: int = 0,
) -> RetrievalPrecision:
    """Precision at K over the whole test set, in both directions, with bootstrap intervals over queries.

    The share of the first K candidates that are of the query's class. Of equal scores the wrong candidates come
    first, as in `retrieval_recall`. Unlike BenchX, candidates are ranked over the whole test set, not inside
    each batch.

    Args:
        image: ``(N, D)`` image embeddings, any norm (unit-normed here); row ``i`` belongs to report ``i``.
        report: ``(N, D)`` report embeddings.
        labels: The ``N`` classes, one a pair. Give either these or ``texts``.
        texts: The ``N`` report texts; equal texts are then a class.
        ks: Cut-offs between 1 and the number of candidates: with fewer than K candidates no ranking could reach
            a precision of 1.
        leave_out_own: Take each query's own partner out of its candidates. By default it stays, as in GLoRIA,
            and finding it is one hit of the K.
        groups: ``N`` names, for example patients, that are drawn together by the bootstrap.
        batch_size: Queries compared at a time; the result does not depend on it.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: shapes differ, a value is not finite, a K does not fit, or the classes do not.

    >>> image, report = torch.eye(3), torch.eye(3)[[0, 2, 1]]  # images 1 and 2 find each other's report
    >>> result = retrieval_precision(image, report, labels=["edema", "nodule", "nodule"], ks=(1,), resamples=10)
    >>> result.image_to_report[1].mean, round(result.chance, 3)  # chance (1/3 + 2/3 + 2/3) / 3
    (1.0, 0.556)
    """
    image, report = torch.as_tensor(image), torch.as_tensor(report)
    if image.shape != report.shape or image.ndim != 2 or not len(image):
        raise ValueError(f"expected two embeddings of one shape (N, D), found {image.shape} and {report.shape}")
    if not (torch.isfinite(image).all() and torch.isfinite(report).all()):
        raise ValueError("an embedding is not finite; retrieval would rank it arbitrarily")
    if (labels is None) == (texts is None):
        raise ValueError("precision needs the class of each pair: give either labels or texts")
    numbers = _class_numbers(labels if texts is None else texts)
    n = len(image)
    if len(numbers) != n:
        raise ValueError(f"{len(numbers)} {'labels' if texts is None else 'texts'} for {n} pairs")
    candidates = n - leave_out_own
    if any(not 1 <= k <= candidates for k in ks):
        raise ValueError(f"precision at K needs K from 1 to {candidates}, the number of candidates; found {tuple(ks)}")
    image, report = (F.normalize(part.detach().cpu().double(), dim=-1) for part in (image, report))
    chance = chance_precision(numbers, leave_out_own=leave_out_own)
    intervals, precisions = [], []
    for queries, others in ((image, report), (report, image)):
        precisions.append(_precisions(queries, others, torch.tensor(numbers), ks, leave_out_own, batch_size))
        intervals.append(
            {
                k: bootstrap_interval(
                    lambda rows, values=values: values[rows].mean(), n, groups=groups, resamples=resamples, seed=seed
                )
                for k, values in precisions[-1].items()
            }
        )
    return RetrievalPrecision(*intervals, chance, *precisions)


def chance_precision(labels: Sequence[Hashable], *, leave_out_own: bool = False) -> float:
    """Expected precision of a random ranking, at any K.

    Every place holds each candidate equally often, so a query whose class has ``m`` of the ``n`` members expects
    ``m / n``, or ``(m - 1) / (n - 1)`` without its own partner.

    Args:
        labels: The class of each pair.
        leave_out_own: As in `retrieval_precision`.

    Raises:
        ValueError: a label is NaN or not one name, or there are too few labels.

    >>> chance_precision(["edema"] * 200 + ["nodule"] * 200)
    0.5
    >>> round(chance_precision(["edema", "edema", "nodule"], leave_out_own=True), 3)  # (1/2 + 1/2 + 0) / 3
    0.333
    """
    numbers = _class_numbers(labels)
    own = int(leave_out_own)
    if len(numbers) <= own:
        raise ValueError(f"{len(numbers)} labels leave no candidate to rank")
    return sum(m * (m - own) for m in Counter(numbers).values()) / (len(numbers) * (len(numbers) - own))


def _checked(image: Tensor, report: Tensor, texts: Sequence[str] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit float32 embeddings on the CPU, and a number a text."""
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
    return image, report, same


def _class_numbers(labels: Sequence[Hashable]) -> list[int]:
    # Elements of a tensor hash by identity: equal ones would be different classes.
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    number_of: dict[Hashable, int] = {}
    for row, value in enumerate(values):
        if not isinstance(value, Hashable) or value is None or value != value:
            raise ValueError(f"label {value!r} (row {row}) is not one class; leave such rows out of both embeddings")
        number_of.setdefault(value, len(number_of))
    return [number_of[value] for value in values]


def _precisions(
    queries: Tensor, candidates: Tensor, classes: Tensor, ks: Sequence[int], leave_out_own: bool, batch_size: int
) -> dict[int, np.ndarray]:
    parts: dict[int, list[Tensor]] = {k: [] for k in ks}
    for rows in torch.arange(len(queries)).split(batch_size):
        # Rounded to float32, so that equal candidates tie although sums of float64 depend on the batch's shape.
        scores = (queries[rows] @ candidates.T).float()
        correct = classes[rows, None] == classes[None, :]
        if leave_out_own:
            scores[torch.arange(len(rows)), rows] = -math.inf
        best = scores.topk(max(ks), dim=1).values
        for k in ks:
            last = best[:, k - 1, None]
            above, tied = scores > last, scores == last
            # Wrong candidates take the places that the tie shares out; correct ones get what is left.
            left = k - above.sum(dim=1) - (tied & ~correct).sum(dim=1)
            parts[k].append(((above & correct).sum(dim=1) + left.clamp(min=0)).double() / k)
    return {k: torch.cat(part).numpy() for k, part in parts.items()}


def _first_ranks(queries: Tensor, candidates: Tensor, same: Tensor, batch_size: int) -> np.ndarray:
    ranks = []
    for rows in torch.arange(len(queries)).split(batch_size):
        scores = queries[rows] @ candidates.T
        correct = same[rows, None] == same[None, :]
        best = scores.masked_fill(~correct, -math.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + ((scores >= best) & ~correct).sum(dim=1))
    return torch.cat(ranks).numpy()
