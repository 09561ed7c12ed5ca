"""What the prototypes learned: do studies of one disease gather around the same prototypes?"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from mgca_lib.evaluation.intervals import Interval, bootstrap_interval, wilson_interval

AGREEMENT_MEASURES = ("purity", "nmi", "homogeneity", "completeness")


@dataclass(frozen=True)
class Assignment:
    """The prototype of each study.

    Attributes:
        cluster: ``(N,)`` int64, number of the prototype with the highest probability.
        probability: ``(N,)`` float32, that probability; ``1 / K`` means undecided.
    """

    cluster: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """How well a clustering agrees with one label a study, beside what shuffled labels would reach.

    Attributes:
        measures: Interval of each of ``AGREEMENT_MEASURES``, over studies.
        chance: The same measures with the labels shuffled, mean over shuffles. Purity and NMI grow with the
            number of clusters, so they mean nothing without it.
        clusters: Number of prototypes that have at least one study.
    """

    measures: dict[str, Interval]
    chance: dict[str, float]
    clusters: int

    @property
    def v_measure(self) -> Interval:
        """Harmonic mean of homogeneity and completeness: another name for this NMI."""
        return self.measures["nmi"]

    def above_chance(self, name: str) -> Interval:
        """One of ``AGREEMENT_MEASURES`` minus its chance level, which counts as known."""
        found, chance = self.measures[name], self.chance[name]
        return Interval(found.mean - chance, found.low - chance, found.high - chance, found.n)


def assign_prototypes(embeddings: Tensor, prototypes: Tensor, *, temperature: float = 0.2) -> Assignment:
    """Give each study the prototype it most probably belongs to, by the softmax of the prototype loss.

    Args:
        embeddings: ``(N, D)`` projected image or report embeddings, any norm.
        prototypes: ``(K, D)`` prototypes, any norm.
        temperature: Positive softmax temperature; it changes the probabilities, never the assignment.

    Raises:
        ValueError: widths differ or the temperature is not positive.

    >>> assignment = assign_prototypes(torch.eye(2), torch.eye(2).flip(0))
    >>> assignment.cluster.tolist()
    [1, 0]
    """
    if embeddings.ndim != 2 or prototypes.ndim != 2 or embeddings.shape[1] != prototypes.shape[1]:
        raise ValueError(f"expected (N, D) and (K, D), found {tuple(embeddings.shape)} and {tuple(prototypes.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    probability = (_cosine(embeddings, prototypes) / temperature).softmax(dim=1)
    best = probability.max(dim=1)
    return Assignment(best.indices.numpy(), best.values.numpy())


def modality_agreement(
    image: Assignment,
    report: Assignment,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[Interval, float]:
    """Share of studies whose image and report choose the same prototype, and the share expected by chance.

    Chance is the agreement of two independent draws from the two modalities' own prototype frequencies, so
    a model that sends everything to one prototype has an agreement of 1 and a chance of 1. The interval is Wilson's
    where all studies agree or none does, else a bootstrap's.

    >>> one, other = (Assignment(np.array(c), np.ones(4)) for c in ([0, 0, 1, 1], [0, 1, 1, 1]))
    >>> agreement, chance = modality_agreement(one, other)
    >>> agreement.mean, chance
    (0.75, 0.5)
    """
    same = (image.cluster == report.cluster).astype(np.float64)
    count = 1 + int(max(image.cluster.max(), report.cluster.max()))
    shares = [np.bincount(part.cluster, minlength=count) / len(part.cluster) for part in (image, report)]
    if same.min() == same.max():  # all or none: resampled cases cannot differ, though others might
        units = len(same) if groups is None else len(set(groups))
        return wilson_interval(same[0] * units, units), float(shares[0] @ shares[1])
    interval = bootstrap_interval(
        lambda rows: same[rows].mean(), len(same), groups=groups, resamples=resamples, seed=seed
    )
    return interval, float(shares[0] @ shares[1])


def dominant_finding(
    labels: np.ndarray,
    names: Sequence[str],
    *,
    priority: Sequence[str] | None = None,
    none: str = "no finding",
) -> np.ndarray:
    """Reduce several labels a study to the one that a map can colour.

    Args:
        labels: ``(N, C)``; 1 is present, everything else (0, -1, NaN) is not.
        names: The ``C`` label names.
        priority: Names from first choice to last. Without it the rarest present finding of a study wins,
            since it tells the study apart most.
        none: Name for a study without any present finding.

    Returns:
        ``(N,)`` array of names.

    Raises:
        ValueError: ``names`` or ``priority`` do not fit the labels.

    >>> dominant_finding(np.array([[1, 0], [1, 1], [0, 0], [1, 0]]), ["edema", "nodule"]).tolist()
    ['edema', 'nodule', 'no finding', 'edema']
    """
    present = np.asarray(labels) == 1
    if present.ndim != 2 or present.shape[1] != len(names):
        raise ValueError(f"{len(names)} names for labels of shape {present.shape}")
    if priority is None:
        order = np.argsort(present.sum(axis=0), kind="stable")
    elif sorted(priority) == sorted(names):
        order = np.array([list(names).index(name) for name in priority])
    else:
        raise ValueError(f"priority must hold every label name once: {', '.join(names)}")
    first = order[present[:, order].argmax(axis=1)]
    return np.where(present.any(axis=1), np.asarray(names, dtype=object)[first], none).astype(str)


def cluster_agreement(
    clusters: np.ndarray,
    labels: Sequence[str] | np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 200,
    permutations: int = 100,
    seed: int = 0,
) -> Agreement:
    """Purity, normalised mutual information and its two halves, with intervals and a chance level.

    NMI uses the arithmetic mean of both entropies, which makes it the same number as the V-measure;
    homogeneity and completeness are the two halves of that mean. The intervals are normal ones (estimate
    plus and minus 1.96 bootstrap standard errors): a resample repeats studies, which raises all four
    measures, and percentiles of raised values would not surround the estimate.

    Args:
        clusters: ``(N,)`` cluster numbers or names.
        labels: ``(N,)`` one label a study, see `dominant_finding`.
        groups: ``N`` names, for example patients, that are drawn together by the bootstrap.
        resamples: Number of bootstrap resamples.
        permutations: Number of label shuffles behind the chance level.
        seed: Seed of both.

    Raises:
        ValueError: lengths differ.

    >>> result = cluster_agreement(np.array([0, 0, 1, 2]), ["a", "a", "b", "b"], resamples=20)
    >>> result.measures["purity"].mean, result.measures["completeness"].mean < 1, result.clusters
    (1.0, True, 3)
    """
    # Only which studies share one counts, so -1 for "none" is a cluster like any other.
    clusters, label_number = (np.unique(np.asarray(part), return_inverse=True)[1] for part in (clusters, labels))
    if clusters.shape != label_number.shape or clusters.ndim != 1:
        raise ValueError(f"{clusters.shape} clusters for {label_number.shape} labels")
    measures = {
        name: bootstrap_interval(
            lambda rows, name=name: _agreement(clusters[rows], label_number[rows], name),
            len(clusters),
            groups=groups,
            method="normal",
            resamples=resamples,
            seed=seed,
            bounds=(0.0, 1.0),
        )
        for name in AGREEMENT_MEASURES
    }
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(label_number) for _ in range(permutations)]
    chance = {
        name: float(np.mean([_agreement(clusters, shuffle, name) for shuffle in shuffled]))
        for name in AGREEMENT_MEASURES
    }
    return Agreement(measures, chance, len(np.unique(clusters)))


def kmeans_prototypes(embeddings: Tensor, count: int, *, seed: int = 0, restarts: int = 4) -> Tensor:
    """Prototypes of a model that has none: the k-means centres of its embeddings, put back on the unit sphere.

    They go where trained prototypes go, for example into `assign_prototypes` with the embeddings of other studies. On
    unit vectors the nearest centre and the centre of highest cosine differ for few studies only.

    Args:
        embeddings: ``(N, D)``, any norm; unit-normed here.
        count: Number of centres, at most ``N``.
        seed: Seed of the starts.
        restarts: Starts; the one with the tightest clusters is kept.

    Returns:
        ``(count, D)`` float32 unit vectors on the CPU.

    Raises:
        ValueError: ``count`` is out of range, or an embedding is not finite.

    >>> two = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, 1.0], [0.1, 3.0]])
    >>> assign_prototypes(two, kmeans_prototypes(two, 2)).cluster.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    True
    """
    if not 1 <= count <= len(embeddings):
        raise ValueError(f"count must lie between 1 and the {len(embeddings)} studies, found {count}")
    points = F.normalize(embeddings.detach().float().cpu(), dim=-1)
    if not torch.isfinite(points).all():
        raise ValueError("an embedding is not finite")
    # Threads help so few points little, and cost much on a busy computer.
    with threadpool_limits(limits=1):
        means = KMeans(count, n_init=restarts, random_state=seed).fit(points.numpy())
    return F.normalize(torch.from_numpy(means.cluster_centers_).float(), dim=-1)


def nearest_members(embeddings: Tensor, prototypes: Tensor, *, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The studies most similar to each prototype.

    Args:
        embeddings: ``(N, D)``, any norm.
        prototypes: ``(K, D)``, any norm.
        count: Studies a prototype, at most ``N``.

    Returns:
        Row numbers ``(K, count)``, most similar first, and their cosine similarities ``(K, count)``.

    >>> nearest_members(torch.eye(3), torch.tensor([[0.0, 2.0, 1.0]]), count=2)[0].tolist()
    [[1, 2]]
    """
    if not 1 <= count <= len(embeddings):
        raise ValueError(f"count must lie between 1 and the {len(embeddings)} studies, found {count}")
    best = _cosine(prototypes, embeddings).topk(count, dim=1)
    return best.indices.numpy(), best.values.numpy()


def project(
    *parts: Tensor | np.ndarray, method: str, seed: int = 0, perplexity: float = 30.0, neighbours: int = 15
) -> list[np.ndarray]:
    """Lay several sets of embeddings out in one common plane.

    t-SNE and UMAP keep neighbours together and little else: distances between far groups, sizes of groups
    and the axes carry no meaning. The same seed gives the same map on the same machine.

    Args:
        *parts: Arrays ``(N_i, D)``, for example images, reports and prototypes; unit-normed here.
        method: ``"tsne"`` (scikit-learn, PCA start) or ``"umap"`` (one thread so that the seed holds).
        seed: Seed of the layout.
        perplexity: Of t-SNE, roughly the number of neighbours that count; cut to a third of the points.
        neighbours: Of UMAP, at least 2; cut to the number of other points.

    Returns:
        For each part its ``(N_i, 2)`` float32 coordinates.

    Raises:
        ValueError: unknown method, fewer than 8 points, or a value that is not finite.
    """
    tensors = [torch.as_tensor(part).detach().float().cpu() for part in parts]
    points = F.normalize(torch.cat(tensors), dim=-1).numpy()
    if len(points) < 8:
        raise ValueError(f"a projection needs at least 8 points, found {len(points)}")
    if not np.isfinite(points).all():
        raise ValueError("an embedding is not finite")
    if method == "tsne":
        perplexity = min(perplexity, (len(points) - 1) / 3)
        # Threads help so few points little, and cost much on a busy computer.
        with threadpool_limits(limits=1):
            layout = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(points)
    elif method == "umap":
        from umap import UMAP  # numba makes this import slow, so only who asks for UMAP waits

        neighbours = min(neighbours, len(points) - 1)
        layout = UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(points)
    else:
        raise ValueError(f"method must be 'tsne' or 'umap', found {method!r}")
    return np.split(np.asarray(layout, dtype=np.float32), np.cumsum([len(part) for part in tensors])[:-1])


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = (F.normalize(part.detach().float().cpu(), dim=-1) for part in (a, b))
    return a @ b.T


def _agreement(clusters: np.ndarray, labels: np.ndarray, name: str) -> float:
    """One of ``AGREEMENT_MEASURES``, straight from the table of counts: a bootstrap asks a thousand times."""
    width = int(labels.max()) + 1
    table = np.bincount(clusters * width + labels, minlength=(int(clusters.max()) + 1) * width).reshape(-1, width)
    if name == "purity":
        return float(table.max(axis=1).sum() / len(labels))
    joint, cluster, label = (_entropy(counts) for counts in (table.ravel(), table.sum(axis=1), table.sum(axis=0)))
    shared = cluster + label - joint
    ceiling = {"nmi": (cluster + label) / 2, "homogeneity": label, "completeness": cluster}[name]
    return float(min(max(shared / ceiling, 0.0), 1.0)) if ceiling > 0 else 1.0


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())
