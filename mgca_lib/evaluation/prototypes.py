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
FEWEST_SHUFFLED = 10
"""So many patients, at least, swap labels with one another; see `shuffled_labels`."""


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
    """How well a clustering agrees with one label a study, between what shuffled labels and pure clusters would reach.

    Attributes:
        measures: Interval of each of ``AGREEMENT_MEASURES``, over studies.
        chance: The same measures with the labels shuffled, mean over shuffles. Purity and NMI grow with the
            number of clusters, so they mean nothing without it.
        ceiling: The same measures of pure clusters that are as uneven as these, see `agreement_ceiling`.
        clusters: Number of prototypes that have at least one study.
    """

    measures: dict[str, Interval]
    chance: dict[str, float]
    ceiling: dict[str, float]
    clusters: int

    @property
    def v_measure(self) -> Interval:
        """Harmonic mean of homogeneity and completeness: another name for this NMI."""
        return self.measures["nmi"]

    def above_chance(self, name: str) -> Interval:
        """One of ``AGREEMENT_MEASURES`` minus its chance level, which counts as known."""
        found, chance = self.measures[name], self.chance[name]
        return Interval(found.mean - chance, found.low - chance, found.high - chance, found.n)

    def room(self, name: str) -> float:
        """The most that `above_chance` could be: ceiling minus chance level."""
        return self.ceiling[name] - self.chance[name]


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
    shuffle_groups: bool = True,
    resamples: int = 200,
    permutations: int = 100,
    seed: int = 0,
) -> Agreement:
    """Purity, normalised mutual information and its two halves, with intervals, a chance level and a ceiling.

    NMI uses the arithmetic mean of both entropies, which makes it the same number as the V-measure;
    homogeneity and completeness are the two halves of that mean. The intervals are normal ones (estimate
    plus and minus 1.96 bootstrap standard errors): a resample repeats studies, which raises all four
    measures, and percentiles of raised values would not surround the estimate.

    The labels behind the chance level are shuffled by whole groups where there are groups, see `shuffled_labels`.

    Args:
        clusters: ``(N,)`` cluster numbers or names.
        labels: ``(N,)`` one label a study, see `dominant_finding`.
        groups: ``N`` names, for example patients, that are drawn together by the bootstrap and shuffled together.
        shuffle_groups: False shuffles study by study in spite of ``groups``.
        resamples: Number of bootstrap resamples.
        permutations: Number of label shuffles behind the chance level.
        seed: Seed of both.

    Raises:
        ValueError: lengths differ.

    >>> result = cluster_agreement(np.array([0, 0, 1, 2]), ["a", "a", "b", "b"], resamples=20)
    >>> result.measures["purity"].mean, result.measures["completeness"].mean < 1, result.clusters
    (1.0, True, 3)
    """
    clusters, label_number = _numbered(clusters, labels)
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
    shuffled = shuffled_labels(label_number, groups=groups if shuffle_groups else None, count=permutations, seed=seed)
    chance = {
        name: float(np.mean([_agreement(clusters, shuffle, name) for shuffle in shuffled]))
        for name in AGREEMENT_MEASURES
    }
    return Agreement(measures, chance, agreement_ceiling(clusters, label_number), len(np.unique(clusters)))


def shuffled_labels(
    labels: np.ndarray, *, groups: Sequence[Hashable] | None = None, count: int = 100, seed: int = 0
) -> list[np.ndarray]:
    """Deal the same labels out anew, so that they have nothing to do with the studies any more.

    Studies of one patient look alike and share findings. Shuffled one by one, both are torn apart, and what a cluster
    of one patient's studies seems to know stands above chance though nothing was learned about findings. So patients
    are shuffled whole: each gets all labels of another with as many studies, in their order. Where fewer than
    :data:`FEWEST_SHUFFLED` patients have a number of studies, those with the next larger number join them (the last
    ones join those before them). Their labels are laid end to end in one random order and dealt out in another, and
    only there a patient's labels may be divided. What goes along with the number of studies itself is not shuffled
    away.

    Args:
        labels: ``(N,)`` one label a study.
        groups: ``N`` names, for example patients, that are shuffled whole. Without it every study is shuffled alone.
        count: Number of shuffles.
        seed: Seed of them.

    Returns:
        ``count`` arrays ``(N,)``, each with every label as often as ``labels``.

    Raises:
        ValueError: the group names do not fit.

    >>> (dealt,) = shuffled_labels(np.array(["a", "a", "b", "b"]), groups=["p", "p", "q", "q"], count=1)
    >>> dealt.tolist() in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
    True
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        return [rng.permutation(labels) for _ in range(count)]
    if len(groups) != len(labels):
        raise ValueError(f"{len(groups)} group names for {len(labels)} labels")
    sets = _sets_of_groups(groups)
    shuffled = []
    for _ in range(count):
        dealt = labels.copy()
        for members in sets:
            givers, takers = (np.concatenate([members[n] for n in rng.permutation(len(members))]) for _ in range(2))
            dealt[takers] = labels[givers]
        shuffled.append(dealt)
    return shuffled


def agreement_ceiling(clusters: np.ndarray, labels: Sequence[str] | np.ndarray) -> dict[str, float]:
    """What perfectly pure clusters, as many and as uneven as these, would reach.

    Clusters cannot tell more about labels than the labels hold, nor more than the clusters hold. So the most that they
    can share is the smaller of the two entropies, and in the ceiling of NMI it takes the place of what they do share:
    ``min(H_cluster, H_label) / ((H_cluster + H_label) / 2)``. It falls as clusters become more than labels, so NMI
    above chance has less and less room. Where clusters have the larger entropy, it is the NMI of clusters with one
    label each; else of clusters that divide no label. Entropies count, not the sizes one by one: whether the labels
    can be dealt out so that every size is met is not asked, so the true ceiling may lie a little lower.

    Args:
        clusters: ``(N,)`` cluster numbers or names.
        labels: ``(N,)`` one label a study.

    Returns:
        The ceiling of each of ``AGREEMENT_MEASURES``. That of purity is the share of studies with one of the ``K`` most
        frequent labels, for ``K`` clusters in use, since each cluster names itself after one label.

    Raises:
        ValueError: lengths differ.

    >>> ceiling = agreement_ceiling(np.arange(4), ["a", "a", "b", "b"])  # every study alone: 1 bit of 2
    >>> round(ceiling["nmi"], 3), ceiling["homogeneity"], ceiling["completeness"]
    (0.667, 1.0, 0.5)
    """
    cluster_sizes, label_sizes = (np.bincount(part) for part in _numbered(clusters, labels))
    cluster, label = _entropy(cluster_sizes), _entropy(label_sizes)
    named = np.sort(label_sizes)[::-1][: len(cluster_sizes)].sum() / label_sizes.sum()
    parts = {"nmi": (cluster + label) / 2, "homogeneity": label, "completeness": cluster}
    most = min(cluster, label)
    return {"purity": float(named)} | {name: most / whole if whole > 0 else 1.0 for name, whole in parts.items()}


def agreement_difference(
    one: np.ndarray,
    other: np.ndarray,
    labels: Sequence[str] | np.ndarray,
    *,
    measure: str = "nmi",
    groups: Sequence[Hashable] | None = None,
    resamples: int = 200,
    permutations: int = 100,
    seed: int = 0,
) -> Interval:
    """How much further one clustering stands above its chance level than another of the same studies.

    Both are measured on the same resamples and held against the same shuffles, so what makes a sample easy for both
    drops out, and the interval is as a rule narrower than two intervals side by side suggest. The chance levels count
    as known. Clusterings with different numbers of clusters have different ceilings (`agreement_ceiling`), too, and
    no interval takes that out.

    Args:
        one: ``(N,)`` cluster numbers or names.
        other: The same studies in other clusters.
        labels: ``(N,)`` one label a study.
        measure: One of ``AGREEMENT_MEASURES``.
        groups: As in `cluster_agreement`; whole groups are drawn and shuffled.
        resamples: Number of bootstrap resamples.
        permutations: Number of label shuffles.
        seed: Seed of both.

    Returns:
        ``one`` minus ``other``, with a normal interval; positive where ``one`` agrees better.

    Raises:
        ValueError: lengths differ or the measure is unknown.

    >>> pure, crossed = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    >>> round(agreement_difference(pure, crossed, ["a", "a", "b", "b"], resamples=20).mean)  # about: 100 shuffles
    1
    """
    if measure not in AGREEMENT_MEASURES:
        raise ValueError(f"measure {measure!r} is not one of {', '.join(AGREEMENT_MEASURES)}")
    (one, label_number), (other, _) = _numbered(one, labels), _numbered(other, labels)

    def apart(rows: np.ndarray) -> float:
        first, second = (_agreement(part[rows], label_number[rows], measure) for part in (one, other))
        return first - second

    found = bootstrap_interval(
        apart, len(one), groups=groups, method="normal", resamples=resamples, seed=seed, bounds=(-1.0, 1.0)
    )
    shuffled = shuffled_labels(label_number, groups=groups, count=permutations, seed=seed)
    chance = float(np.mean([_agreement(one, part, measure) - _agreement(other, part, measure) for part in shuffled]))
    return Interval(found.mean - chance, found.low - chance, found.high - chance, found.n)


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


def _numbered(clusters: np.ndarray, labels: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Only which studies share one counts, so -1 for "none" is a cluster like any other.
    clusters, label_number = (np.unique(np.asarray(part), return_inverse=True)[1] for part in (clusters, labels))
    if clusters.shape != label_number.shape or clusters.ndim != 1:
        raise ValueError(f"{clusters.shape} clusters for {label_number.shape} labels")
    return clusters, label_number


def _sets_of_groups(groups: Sequence[Hashable]) -> list[list[list[int]]]:
    """Rows of each group, in sets of groups that swap labels: with as many rows, or joined because they are too few."""
    rows_of: dict[Hashable, list[int]] = {}
    for row, name in enumerate(groups):
        rows_of.setdefault(name, []).append(row)
    sets: list[list[list[int]]] = [[]]
    for rows in sorted(rows_of.values(), key=len):
        if len(sets[-1]) >= FEWEST_SHUFFLED and len(sets[-1][-1]) < len(rows):
            sets.append([])
        sets[-1].append(rows)
    if len(sets) > 1 and len(sets[-1]) < FEWEST_SHUFFLED:
        few = sets.pop()
        sets[-1] += few
    return sets


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
