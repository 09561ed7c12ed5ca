"""Linear probing: how much can be read off frozen features with a few labels (the paper's table 1)?

Two protocols share one front door, `linear_probe`:

- ``"fast"`` fits a logistic regression exactly on features that were extracted once. Every seed draws other
  labelled images.
- ``"upstream"`` is the published recipe: one linear layer trained by AdamW on augmented images that pass
  through the frozen encoder again in every epoch.
"""

import copy
import math
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import expit, logsumexp
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from mgca_lib.data.tasks import Task
from mgca_lib.evaluation.features import Features, encoder_device, extract_features, frozen
from mgca_lib.evaluation.intervals import Interval, bootstrap_interval, t_interval

STRENGTHS = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001, 0.0001)


@dataclass(frozen=True)
class ProbeResult:
    """Result of one probe: one encoder, one task, one share of the labels.

    Attributes:
        mean: Mean of the task's metric over seeds: macro AUROC or accuracy on the test split.
        low: Lower end of the 95 % interval.
        high: Upper end.
        n: Number of units behind the interval.
        spread: ``"seeds"``: t interval over seeds. ``"test cases"``: bootstrap over test images, or over patients
            if they were named, where there is only one seed, or all labels are used and the fast protocol
            therefore gives every seed the same result.
        values: The metric for each seed.
        per_class: For each class the mean over seeds of its AUROC, or of its share of images classified
            correctly (recall).
        left_out: Classes that cannot be scored because train or test lack positive or negative images.
        subsets: For each seed the rows of the training split whose labels were used.
        strengths: For each seed the L2 strength that the validation split chose; for the upstream protocol
            the best epoch.
        outputs: For each seed the ``(N, C)`` logits of the test images; a column of NaN marks a class that
            could not be trained.
    """

    mean: float
    low: float
    high: float
    n: int
    spread: Literal["seeds", "test cases"]
    values: tuple[float, ...]
    per_class: dict[str, float]
    left_out: tuple[str, ...]
    subsets: tuple[tuple[int, ...], ...]
    strengths: tuple[float, ...]
    outputs: tuple[np.ndarray, ...] = field(repr=False, compare=False)

    def as_metric(self) -> dict[str, float]:
        """Return the form that ``metrics.json`` holds."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True)
class UpstreamRecipe:
    """Settings of the published linear probe.

    Attributes:
        learning_rate: Of AdamW, without schedule.
        weight_decay: Of AdamW.
        batch_size: Images a batch.
        epochs: Most epochs.
        patience: Epochs without a better validation loss before training stops.
        drop_last: Upstream drops the last incomplete batch of the training *and* the validation images.
        subset_seed: Upstream always draws the same labelled images, with this random state of pandas; the
            seeds of the probe only change initial weights, order and augmentation.
        num_workers: Loader processes.
    """

    learning_rate: float = 5e-4
    weight_decay: float = 1e-6
    batch_size: int = 48
    epochs: int = 50
    patience: int = 10
    drop_last: bool = True
    subset_seed: int = 42
    num_workers: int = 0


def linear_probe(
    train: Features | Dataset,
    valid: Features | Dataset,
    test: Features | Dataset,
    *,
    task: Task,
    fraction: float,
    seeds: Sequence[int],
    protocol: Literal["fast", "upstream"] = "fast",
    encoder: nn.Module | None = None,
    recipe: UpstreamRecipe | None = None,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
) -> ProbeResult:
    """Probe a frozen encoder with a share of the training labels.

    The validation split is used whole at every fraction, as upstream does: it chooses the L2 strength or
    the epoch.

    Args:
        train: Training split: `Features` for the fast protocol, a dataset of ``(image, target)`` with the
            augmenting transform for the upstream protocol.
        valid: Validation split; `Features`, or a dataset with the evaluation transform.
        test: Test split; as ``valid``.
        task: Names the classes, their kind and the metric.
        fraction: Share of the training labels in (0, 1]. See `draw_labels` for small sets.
        seeds: One probe each.
        protocol: ``"fast"`` or ``"upstream"``.
        encoder: Image encoder; the upstream protocol needs it.
        recipe: Settings of the upstream protocol.
        groups: Patient of each test image, where the interval is one over test cases: films of one patient are
            not independent. Without it every image is drawn alone.
        resamples: Bootstrap resamples, where the interval is one over test cases.

    Returns:
        Mean and 95 % interval, and what is behind them.

    Raises:
        ValueError: the inputs do not fit the protocol or the task, or no class can be scored.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], found {fraction}")
    if not len(seeds):
        raise ValueError("a probe needs at least one seed")
    are_features = [isinstance(part, Features) for part in (train, valid, test)]
    if protocol == "fast":
        if not all(are_features):
            raise ValueError("protocol 'fast' probes Features; make them with extract_features")
        settings = {"task": task, "fraction": fraction}
        # The fits are small: threads cost them more than they gain, many times more on a busy computer.
        with threadpool_limits(limits=1):
            if fraction == 1:  # every seed draws all labels and the solution is exact, so one fit stands for all
                runs = [_probe_features(train, valid, test, seed=seeds[0], **settings)] * len(seeds)
            else:
                runs = [_probe_features(train, valid, test, seed=seed, **settings) for seed in seeds]
    elif protocol == "upstream":
        if any(are_features) or encoder is None:
            raise ValueError("protocol 'upstream' trains on augmented images; pass datasets of images and encoder=")
        valid, test = (extract_features(encoder, part, batch_size=64) for part in (valid, test))
        recipe = recipe or UpstreamRecipe()
        runs = [
            _probe_images(encoder, train, valid, test, task=task, fraction=fraction, seed=seed, recipe=recipe)
            for seed in seeds
        ]
    else:
        raise ValueError(f"protocol must be 'fast' or 'upstream', found {protocol!r}")
    same_result = protocol == "fast" and fraction == 1
    return _summarise(runs, test.targets, task, same_result=same_result, groups=groups, resamples=resamples)


def probe_gain(
    result: ProbeResult,
    baseline: ProbeResult,
    targets: np.ndarray,
    task: Task,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    resamples: int = 1000,
) -> Interval:
    """Gain of one encoder over another, paired: same labelled images, same test images.

    A paired interval asks whether one is better; two overlapping intervals of their own do not answer that,
    since luck in the draw of labels may move both encoders alike.

    Args:
        result: Probes of the encoder in question.
        baseline: Probes of the other encoder, with the same seeds, share of labels and protocol.
        targets: Targets of the test split, as in `Features`.
        task: Names kind and classes.
        groups: As in :func:`linear_probe`.
        resamples: Bootstrap resamples, where the interval is one over test cases.

    Returns:
        Mean difference with a t interval over seeds; where both results say ``"test cases"``, a bootstrap
        interval over test images or patients instead.

    Raises:
        ValueError: the results are of different labelled images, of different spread, or of other test images.
    """
    if result.subsets != baseline.subsets or result.spread != baseline.spread:
        raise ValueError("a paired gain needs probes of the same seeds, share of labels and training images")
    if len(result.outputs[0]) != len(targets) or len(baseline.outputs[0]) != len(targets):
        raise ValueError(f"{len(result.outputs[0])} test outputs for {len(targets)} targets")
    if result.spread == "seeds":
        return t_interval(np.subtract(result.values, baseline.values), bounds=(-1.0, 1.0))
    ours, theirs = result.outputs[0], baseline.outputs[0]
    return bootstrap_interval(
        lambda rows: _resampled(ours[rows], targets[rows], task) - _resampled(theirs[rows], targets[rows], task),
        len(targets),
        groups=groups,
        resamples=resamples,
    )


def probe_interval(
    result: ProbeResult,
    targets: np.ndarray,
    task: Task,
    *,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    baseline: ProbeResult | None = None,
    resamples: int = 1000,
) -> Interval:
    """Mean metric over seeds with a bootstrap interval over test patients, for a small test split.

    The intervals of a `ProbeResult` with several seeds say what another draw of labels would do. This one says what
    other test patients would do to the same probes.

    Args:
        result: Probes of one encoder.
        targets: Targets of the test split, as in `Features`.
        task: Names kind and classes.
        groups: Patient of each test image; without it every image is drawn alone.
        baseline: Of another encoder, with the same labelled images; the interval is then one of the gain over it.
        resamples: Bootstrap resamples.

    Raises:
        ValueError: the results are of different labelled images or of other test images.
    """
    if baseline is not None and result.subsets != baseline.subsets:
        raise ValueError("a paired gain needs probes of the same seeds, share of labels and training images")
    for one in (result, baseline):
        if one is not None and len(one.outputs[0]) != len(targets):
            raise ValueError(f"{len(one.outputs[0])} test outputs for {len(targets)} targets")

    def metric(probes: ProbeResult, rows: np.ndarray) -> float:
        # Where all labels were used, all seeds gave the same outputs, and one stands for them.
        distinct = {id(outputs): outputs for outputs in probes.outputs}.values()
        return float(np.mean([_resampled(outputs[rows], targets[rows], task) for outputs in distinct]))

    return bootstrap_interval(
        lambda rows: metric(result, rows) - (metric(baseline, rows) if baseline is not None else 0.0),
        len(targets),
        groups=groups,
        resamples=resamples,
    )


def draw_labels(targets: np.ndarray, task: Task, *, fraction: float, seed: int) -> np.ndarray:
    """Draw the images whose labels a probe may use.

    A seeded permutation is cut after ``round(fraction * N)`` images (at least one), so 1 % lies within 10 %
    of the same seed, and two encoders see the same images. Where a label would be all positive or all
    negative in that part, the first image in the permutation that has the missing value takes the place of
    the last ones. **Small sets:** the least that can be drawn is thus one image of each value of each
    class, up to ``2 C`` images for C labels and ``C`` for C exclusive classes, even where the fraction asks
    for fewer. Unlike upstream's draw, no run can be without positives.

    Args:
        targets: As in `Features`.
        task: Names kind and classes.
        fraction: Share of the images in (0, 1].
        seed: Seed of the permutation.

    Returns:
        Sorted row numbers.

    >>> task = Task("toy", "multilabel", ("nodule",), "auroc")
    >>> targets = np.zeros((100, 1), np.float32)
    >>> targets[7] = 1
    >>> rows = draw_labels(targets, task, fraction=0.05, seed=0)
    >>> len(rows), 7 in rows
    (5, True)
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    count = max(1, round(fraction * len(targets)))
    cover = []
    for wanted in _values(targets, task):
        places = np.flatnonzero(wanted[order])
        cover += [places[0]] if len(places) else []
    cover = np.unique(np.array(cover, dtype=np.int64))
    others = np.setdiff1d(np.arange(len(order)), cover)
    return np.sort(order[np.concatenate([cover, others[: max(0, count - len(cover))]])])


def score(outputs: np.ndarray, targets: np.ndarray, task: Task) -> tuple[float, dict[str, float], tuple[str, ...]]:
    """Metric of a task on test outputs.

    Args:
        outputs: ``(N, C)`` logits; a column of NaN marks a class that could not be trained.
        targets: As in `Features`; NaN is left out.
        task: Names kind, classes and metric.

    Returns:
        The metric (NaN if undefined), the same for each class, and the names of the classes that are left
        out: without both values an AUROC does not exist, and without images there is no recall.

    >>> task = Task("toy", "multilabel", ("edema", "nodule"), "auroc")
    >>> score(np.array([[0.1, 0], [0.2, 0], [0.3, 0]]), np.array([[0, 0], [1, 0], [np.nan, 0]]), task)
    (1.0, {'edema': 1.0}, ('nodule',))
    """
    per_class: dict[str, float] = {}
    if task.kind == "multiclass":
        right = outputs.argmax(axis=1) == targets
        for number, name in enumerate(task.classes):
            if (targets == number).any():
                per_class[name] = float(right[targets == number].mean())
        value = float(right.mean())
    else:
        for name, output, target in zip(task.classes, outputs.T, targets.T, strict=True):
            known = ~np.isnan(target)
            if np.isfinite(output).all() and len(np.unique(target[known])) == 2:
                per_class[name] = float(roc_auc_score(target[known], output[known]))
        value = float(np.mean(list(per_class.values()))) if per_class else math.nan
    return value, per_class, tuple(name for name in task.classes if name not in per_class)


def rank_auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the AUROC by rank sums, equal scores counting half; NaN without both kinds.

    scikit-learn's takes ten times as long, and the bootstrap asks for thousands.

    Args:
        scores: ``(N,)`` finite numbers.
        positive: ``(N,)`` bool.

    Raises:
        ValueError: ``positive`` holds something else.

    >>> rank_auroc(np.array([0.9, 0.4, 0.6, 0.1]), np.array([True, True, False, False]))
    0.75
    """
    if positive.dtype != bool:  # numbers would be taken for places
        raise ValueError(f"positive must be bool, such as labels == 1, found {positive.dtype}")
    pairs = positive.sum() * (~positive).sum()
    if not pairs:
        return math.nan
    wins = rankdata(scores)[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(wins / pairs)


@dataclass(frozen=True)
class _Run:
    outputs: np.ndarray
    rows: np.ndarray
    strength: float


def _probe_features(
    train: Features, valid: Features, test: Features, *, task: Task, fraction: float, seed: int
) -> _Run:
    for part, name in ((train, "training"), (valid, "validation"), (test, "test")):
        _check_targets(part.targets, task, name)
    rows = draw_labels(train.targets, task, fraction=fraction, seed=seed)
    x, y = train.values[rows].astype(np.float64), train.targets[rows]
    if task.kind == "multiclass" and len(np.unique(y)) < 2:
        raise ValueError(f"{task.name}: all training images are of one class, so there is nothing to learn")
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale < 1e-8] = 1.0  # a constant feature carries nothing and must not become noise
    x = (x - centre) / scale
    held_out = [(part.values - centre) / scale for part in (valid, test)]
    if len(x) < x.shape[1]:
        # The L2-regularised solution lies in the span of the few labelled images: solve there, exactly, in
        # fewer unknowns.
        basis = np.linalg.svd(x, full_matrices=False)[2].T
        x, *held_out = (part @ basis for part in (x, *held_out))
    best_loss, best, strength, worse = math.inf, None, math.nan, 0
    for candidate, fit in _fit_path(x, y, task):
        loss = _loss(_outputs(fit, held_out[0]), valid.targets, task)
        if loss < best_loss:  # of equal losses the stronger regularisation, which comes first
            best_loss, best, strength, worse = loss, fit, candidate, 0
        else:
            worse += 1
        if worse == 2:  # weaker still would only overfit more, and takes longest to fit
            break
    return _Run(_outputs(best, held_out[1]), rows, strength)


_Fit = tuple[np.ndarray, np.ndarray]  # weight (C, D) and bias (C,)


def _fit_path(x: np.ndarray, y: np.ndarray, task: Task) -> Iterator[tuple[float, _Fit]]:
    """Fit one model for each of ``STRENGTHS``, strongest first, each starting from the one before."""
    columns = [y] if task.kind == "multiclass" else list(y.T)
    problems = []
    for column in columns:
        known = ~np.isnan(column)
        problems.append((known, column[known].astype(np.int64), LogisticRegression(warm_start=True, max_iter=2000)))
    for strength in STRENGTHS:
        parts = []
        for known, target, model in problems:
            if len(np.unique(target)) < 2:
                parts.append((np.full((1, x.shape[1]), np.nan), np.full(1, np.nan)))
                continue
            # One copy at a time, and only where labels are unknown: CheXpert's features of a ResNet-50 take 3 GB.
            features = x if known.all() else x[known]
            # scikit-learn adds the losses up instead of averaging them, so its C depends on the number of
            # images.
            model.set_params(C=1 / (strength * len(target))).fit(features, target)
            weight, bias = model.coef_.copy(), model.intercept_.copy()
            if task.kind == "multiclass":
                weight, bias = _all_classes(weight, bias, model.classes_, len(task.classes))
            parts.append((weight, bias))
        weights, biases = zip(*parts, strict=True)
        yield strength, (np.concatenate(weights), np.concatenate(biases))


def _all_classes(weight: np.ndarray, bias: np.ndarray, present: np.ndarray, count: int) -> _Fit:
    """Give classes without training images a logit far below all others; two classes come as one row."""
    if len(present) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full_weight, full_bias = np.zeros((count, weight.shape[1])), np.full(count, -1e4)
    full_weight[present], full_bias[present] = weight, bias
    return full_weight, full_bias


def _outputs(fit: _Fit, x: np.ndarray) -> np.ndarray:
    weight, bias = fit
    return x @ weight.T + bias


def _loss(outputs: np.ndarray, targets: np.ndarray, task: Task) -> float:
    """Mean cross-entropy over the known targets; the validation loss that chooses the strength."""
    if task.kind == "multiclass":
        own = outputs[np.arange(len(targets)), targets]
        return float((logsumexp(outputs, axis=1) - own).mean())
    known = ~np.isnan(targets) & np.isfinite(outputs)
    if not known.any():
        return 0.0
    probability = np.clip(expit(outputs[known]), 1e-12, 1 - 1e-12)
    return float(-(targets[known] * np.log(probability) + (1 - targets[known]) * np.log1p(-probability)).mean())


def _probe_images(
    encoder: nn.Module,
    train: Dataset,
    valid: Features,
    test: Features,
    *,
    task: Task,
    fraction: float,
    seed: int,
    recipe: UpstreamRecipe,
) -> _Run:
    rows = pd.Series(range(len(train))).sample(frac=fraction, random_state=recipe.subset_seed).to_numpy()
    for part, name in ((len(rows), "training"), (len(valid), "validation")):
        if part < (recipe.batch_size if recipe.drop_last else 1):
            raise ValueError(
                f"{part} {name} images do not fill one batch of {recipe.batch_size}, and upstream drops "
                "incomplete batches; set drop_last=False or a smaller batch_size in UpstreamRecipe"
            )
    for part, name in ((valid, "validation"), (test, "test")):
        _check_targets(part.targets, task, name)
    device = encoder_device(encoder)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        head = nn.Linear(valid.values.shape[1], len(task.classes)).to(device)
        optimizer = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        loader = DataLoader(
            Subset(train, rows.tolist()),
            batch_size=recipe.batch_size,
            shuffle=True,
            drop_last=recipe.drop_last,
            num_workers=recipe.num_workers,
        )
        best_loss, best_head, best_epoch = math.inf, copy.deepcopy(head.state_dict()), 0
        with frozen(encoder):
            for epoch in range(1, recipe.epochs + 1):
                for images, targets in loader:
                    with torch.no_grad():
                        pooled = encoder(images.to(device)).pooled.float()
                    optimizer.zero_grad()
                    _torch_loss(head(pooled), targets.to(device), task).backward()
                    optimizer.step()
                loss = _validation_loss(head, valid, task, recipe)
                if loss < best_loss:
                    best_loss, best_head, best_epoch = loss, copy.deepcopy(head.state_dict()), epoch
                elif epoch - best_epoch >= recipe.patience:
                    break
    head.load_state_dict(best_head)
    with torch.no_grad():
        outputs = head.cpu()(torch.from_numpy(test.values)).double().numpy()
    return _Run(outputs, np.sort(rows), float(best_epoch))


def _validation_loss(head: nn.Linear, valid: Features, task: Task, recipe: UpstreamRecipe) -> float:
    count = len(valid) - len(valid) % recipe.batch_size if recipe.drop_last else len(valid)
    device = head.weight.device
    values, targets = (torch.from_numpy(part[:count]).to(device) for part in (valid.values, valid.targets))
    with torch.no_grad():
        return float(_torch_loss(head(values), targets, task))


def _torch_loss(outputs: Tensor, targets: Tensor, task: Task) -> Tensor:
    if task.kind == "multiclass":
        return F.cross_entropy(outputs, targets)
    known = ~torch.isnan(targets)
    losses = F.binary_cross_entropy_with_logits(outputs, targets.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


def _summarise(
    runs: Sequence[_Run],
    targets: np.ndarray,
    task: Task,
    *,
    same_result: bool,
    groups: Sequence[Hashable] | np.ndarray | None,
    resamples: int,
) -> ProbeResult:
    scores = [score(run.outputs, targets, task) for run in runs]
    left_out = tuple(name for name in task.classes if any(name in missing for _, _, missing in scores))
    values = tuple(value for value, _, _ in scores)
    if not np.isfinite(values).all():
        raise ValueError(f"{task.name}: no class has both positive and negative images in training and test split")
    if left_out:
        warnings.warn(
            f"{task.name}: left out for want of positive or negative images: {', '.join(left_out)}",
            stacklevel=3,
        )
    per_class = {
        name: float(np.mean([part[name] for _, part, _ in scores if name in part]))
        for name in task.classes
        if any(name in part for _, part, _ in scores)
    }
    if len(runs) > 1 and not same_result:
        interval, spread = t_interval(values, bounds=(0.0, 1.0)), "seeds"
    else:
        outputs = runs[0].outputs
        interval = bootstrap_interval(
            lambda cases: _resampled(outputs[cases], targets[cases], task),
            len(targets),
            groups=groups,
            resamples=resamples,
        )
        spread = "test cases"
    return ProbeResult(
        mean=interval.mean,
        low=interval.low,
        high=interval.high,
        n=interval.n,
        spread=spread,
        values=values,
        per_class=per_class,
        left_out=left_out,
        subsets=tuple(tuple(run.rows.tolist()) for run in runs),
        strengths=tuple(run.strength for run in runs),
        outputs=tuple(run.outputs for run in runs),
    )


def _resampled(outputs: np.ndarray, targets: np.ndarray, task: Task) -> float:
    """The metric of `score`, for the bootstrap."""
    if task.kind == "multiclass":
        return float((outputs.argmax(axis=1) == targets).mean())
    aurocs = []
    for output, target in zip(outputs.T, targets.T, strict=True):
        if np.isfinite(output).all():
            known = ~np.isnan(target)
            aurocs.append(rank_auroc(output[known], target[known] == 1))
    aurocs = [auroc for auroc in aurocs if not math.isnan(auroc)]
    return float(np.mean(aurocs)) if aurocs else math.nan


def _values(targets: np.ndarray, task: Task) -> list[np.ndarray]:
    """One boolean mask over the images for every value of every class."""
    if task.kind == "multiclass":
        return [targets == number for number in range(len(task.classes))]
    return [column == value for column in targets.T for value in (0.0, 1.0)]


def _check_targets(targets: np.ndarray, task: Task, name: str) -> None:
    count = len(task.classes)
    if task.kind == "multiclass":
        if targets.ndim != 1 or not np.isin(targets, np.arange(count)).all():
            raise ValueError(f"{task.name}: the {name} targets must be class numbers 0 ... {count - 1}")
    elif targets.ndim != 2 or targets.shape[1] != count or not (np.isnan(targets) | np.isin(targets, (0, 1))).all():
        raise ValueError(
            f"{task.name}: the {name} targets must be (N, {count}) of 0, 1 or NaN; map uncertain labels first"
        )
