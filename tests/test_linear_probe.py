"""The linear probe: exact fits, seeded label draws, intervals, and the published recipe."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import TensorDataset

from mgca_lib.data.tasks import Task
from mgca_lib.evaluation import linear_probe as module
from mgca_lib.evaluation.features import Features
from mgca_lib.evaluation.linear_probe import (
    UpstreamRecipe,
    draw_labels,
    linear_probe,
    probe_gain,
    probe_interval,
    score,
)

TWO = Task("two", "multilabel", ("edema", "nodule"), "auroc")
THREE = Task("three", "multiclass", ("normal", "pneumonia", "COVID-19"), "accuracy")


def make(n, *, task=TWO, width=8, signal=3.0, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, width)).astype(np.float32)
    direction = np.random.default_rng(99).normal(size=(width, len(task.classes)))
    logits = signal * values @ direction + (0 if math.isinf(signal) else rng.logistic(size=(n, len(task.classes))))
    targets = logits.argmax(axis=1) if task.kind == "multiclass" else (logits > 0).astype(np.float32)
    return Features(values, targets, tuple(map(str, range(n))))


def splits(**settings):
    return make(200, seed=1, **settings), make(80, seed=2, **settings), make(300, seed=3, **settings)


@pytest.mark.parametrize("task", [TWO, THREE])
def test_separable_features_reach_one_and_noise_stays_at_chance(task):
    easy = linear_probe(*splits(task=task, signal=1e4), task=task, fraction=1.0, seeds=[0])
    assert easy.mean > 0.95
    train, valid, test = splits(task=task, signal=0.0)
    noise = linear_probe(train, valid, test, task=task, fraction=1.0, seeds=[0])
    if task.kind == "multiclass":
        assert noise.mean == pytest.approx(np.bincount(test.targets).max() / 300, abs=0.1)
    else:
        assert noise.low < 0.5 < noise.high
    assert noise.spread == "test cases"
    assert noise.n == 300


def test_a_perfect_feature_gives_exactly_one():
    rng = np.random.default_rng(0)
    parts = []
    for n in (40, 20, 30):
        targets = np.stack([np.arange(n) % 2, np.arange(n) // 2 % 2], axis=1).astype(np.float32)
        values = np.concatenate([targets * 2 - 1 + 0.1 * rng.uniform(-1, 1, (n, 2)), np.ones((n, 1))], axis=1)
        parts.append(Features(values.astype(np.float32), targets, tuple(map(str, range(n)))))
    result = linear_probe(*parts, task=TWO, fraction=0.5, seeds=[0, 1])
    assert result.values == (1.0, 1.0)
    assert (result.low, result.high) == (1, 1)
    assert result.per_class == {"edema": 1.0, "nodule": 1.0}


def test_few_labels_in_the_span_of_the_images_equal_the_full_fit():
    """With fewer images than features the probe solves a smaller problem; its outputs must not differ."""
    train, valid, test = splits(width=50, signal=0.5)
    run = module._probe_features(train, valid, test, task=TWO, fraction=0.1, seed=4)
    x = train.values[run.rows].astype(np.float64)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    assert len(x) < x.shape[1]
    for number in range(2):
        model = LogisticRegression(C=1 / (run.strength * len(x)), tol=1e-10, max_iter=10000)
        model.fit((x - centre) / scale, train.targets[run.rows, number])
        expected = model.decision_function((test.values - centre) / scale)
        np.testing.assert_allclose(run.outputs[:, number], expected, rtol=5e-3, atol=5e-3)


def test_the_strength_with_the_least_validation_loss_is_chosen():
    train, valid, test = splits(width=30, signal=0.4)
    run = module._probe_features(train, valid, test, task=TWO, fraction=0.5, seed=0)
    x = train.values[run.rows].astype(np.float64)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    losses = []
    for strength in module.STRENGTHS:
        total = 0.0
        for number in range(2):
            model = LogisticRegression(C=1 / (strength * len(x)), max_iter=5000)
            model.fit((x - centre) / scale, train.targets[run.rows, number])
            p = model.predict_proba((valid.values - centre) / scale)[:, 1]
            y = valid.targets[:, number]
            total -= np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)) / 2
        losses.append(total)
    assert run.strength == module.STRENGTHS[int(np.argmin(losses))]
    assert run.strength not in (module.STRENGTHS[0], module.STRENGTHS[-1])


def test_interval_over_seeds_is_students_and_seeds_repeat():
    parts = splits(signal=0.7)
    first, again = (linear_probe(*parts, task=TWO, fraction=0.1, seeds=[0, 1, 2]) for _ in range(2))
    assert first == again
    assert (first.spread, first.n, len(set(first.subsets))) == ("seeds", 3, 3)
    expected = stats.ttest_1samp(first.values, 0).confidence_interval(0.95)
    assert first.low == pytest.approx(max(expected.low, 0))
    assert first.high == pytest.approx(min(expected.high, 1))
    assert first.mean == pytest.approx(np.mean(first.values))
    assert first.as_metric() == {"mean": first.mean, "low": first.low, "high": first.high, "n": 3}
    assert all(len(rows) == 20 for rows in first.subsets)


def test_gain_is_a_paired_interval_over_seeds():
    train, valid, test = splits(signal=0.7)
    worse = [Features(part.values[:, :4], part.targets, part.image_ids) for part in (train, valid, test)]
    settings = {"task": TWO, "fraction": 0.1, "seeds": [0, 1, 2, 3]}
    full, half = linear_probe(train, valid, test, **settings), linear_probe(*worse, **settings)
    gain = probe_gain(full, half, test.targets, TWO)
    expected = stats.ttest_rel(full.values, half.values).confidence_interval(0.95)
    assert gain.mean == pytest.approx(full.mean - half.mean)
    assert (gain.low, gain.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert gain.n == 4
    nothing = probe_gain(full, full, test.targets, TWO)
    assert (nothing.mean, nothing.low, nothing.high) == (0, 0, 0)


def test_gain_with_all_labels_is_paired_over_test_images():
    train, valid, test = splits(signal=0.7)
    twin = [Features(part.values * 2 + 1, part.targets, part.image_ids) for part in (train, valid, test)]
    settings = {"task": TWO, "fraction": 1.0, "seeds": [0, 1], "resamples": 50}
    ours, same = linear_probe(train, valid, test, **settings), linear_probe(*twin, **settings)
    gain = probe_gain(ours, same, test.targets, TWO, resamples=50)
    assert gain.n == 300
    assert ours.high - ours.low > 0.01  # each alone moves with the test images drawn, the difference does not
    assert max(abs(gain.mean), gain.high - gain.low) < 1e-3
    noise = [Features(part.values[::-1], part.targets, part.image_ids) for part in (train, valid, test)]
    lost = probe_gain(linear_probe(*noise, **settings), ours, test.targets, TWO, resamples=50)
    rows = np.arange(300)
    expected = score(linear_probe(*noise, **settings).outputs[0][rows], test.targets, TWO)[0] - ours.mean
    assert lost.mean == pytest.approx(expected)
    assert lost.high < 0


def test_gain_of_different_draws_is_refused():
    parts = splits()
    one, other = (linear_probe(*parts, task=TWO, fraction=0.1, seeds=seeds) for seeds in ([0, 1], [0, 2]))
    with pytest.raises(ValueError, match="same seeds"):
        probe_gain(one, other, parts[2].targets, TWO)
    with pytest.raises(ValueError, match="300 test outputs for 80 targets"):
        probe_gain(one, one, parts[1].targets, TWO)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    task = Task("one", "multilabel", ("x",), "auroc")
    truth = stats.norm.cdf(1 / math.sqrt(2))
    for _ in range(80):
        target = (rng.uniform(size=80) < 0.5).astype(np.float32)
        output = rng.normal(size=80) + target
        run = module._Run(output[:, None], np.arange(3), 1.0)
        result = module._summarise([run], target[:, None], task, same_result=False, groups=None, resamples=100)
        inside += result.low <= truth <= result.high
    assert inside / 80 == pytest.approx(0.95, abs=0.06)


def test_fast_auroc_of_the_bootstrap_equals_scikit_learn_with_ties_and_unknowns():
    rng = np.random.default_rng(5)
    outputs, targets = rng.normal(size=(60, 2)).round(1), rng.integers(0, 2, (60, 2)).astype(np.float32)
    targets[:5, 0] = np.nan
    expected = np.mean([roc_auc_score(targets[5:, 0], outputs[5:, 0]), roc_auc_score(targets[:, 1], outputs[:, 1])])
    assert module._resampled(outputs, targets, TWO) == pytest.approx(expected, abs=1e-12)
    assert score(outputs, targets, TWO)[0] == pytest.approx(expected, abs=1e-12)


def test_auroc_takes_no_numbers_for_truth():
    with pytest.raises(ValueError, match="must be bool, such as labels == 1, found int64"):
        module.rank_auroc(np.array([0.9, 0.4, 0.6, 0.1]), np.array([1, 1, 0, 0]))


def test_features_are_copied_for_no_class_with_known_labels(monkeypatch):
    """At full size each copy would take gigabytes, one for every class."""
    fitted = []

    class Watched(LogisticRegression):
        def fit(self, features, target):
            fitted.append(features)
            return super().fit(features, target)

    monkeypatch.setattr(module, "LogisticRegression", Watched)
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.tile(np.float32([0, 1]), (20, 1))
    y[:10] = 1 - y[:10]
    assert len(list(module._fit_path(x, y, TWO))) == len(module.STRENGTHS)
    assert len(fitted) == 2 * len(module.STRENGTHS)
    assert all(np.shares_memory(part, x) for part in fitted)


def test_all_labels_are_fitted_once_and_resampled():
    result = linear_probe(*splits(signal=0.7), task=TWO, fraction=1.0, seeds=[0, 1, 2], resamples=50)
    assert len(set(result.values)) == 1
    assert (result.spread, result.n) == ("test cases", 300)
    assert result.low < result.mean < result.high


def test_unknown_labels_count_neither_in_training_nor_in_the_metric():
    train, valid, test = splits(signal=1.0)
    known = np.arange(200) % 2 == 0
    masked, poisoned = train.targets.copy(), train.targets.copy()
    masked[~known, 0] = np.nan
    poisoned[~known, 0] = 1 - poisoned[~known, 0]
    outputs = [
        linear_probe(Features(train.values, t, train.image_ids), valid, test, task=TWO, fraction=1.0, seeds=[0])
        for t in (train.targets, masked, poisoned)
    ]
    assert outputs[1].per_class["edema"] > 0.8 > 0.7 > outputs[2].per_class["edema"]
    assert outputs[1].per_class["nodule"] == pytest.approx(outputs[0].per_class["nodule"], abs=0.02)
    test_targets = test.targets.copy()
    test_targets[:100] = np.nan
    part = Features(test.values[100:], test.targets[100:], test.image_ids[100:])
    whole = Features(test.values, test_targets, test.image_ids)
    a, b = (linear_probe(train, valid, x, task=TWO, fraction=1.0, seeds=[0], resamples=20) for x in (part, whole))
    assert a.mean == b.mean


@pytest.mark.parametrize("where", ["train", "test"])
def test_classes_that_cannot_be_scored_are_named(where):
    train, valid, test = splits()
    broken = train if where == "train" else test
    broken.targets[:, 1] = 0
    with pytest.warns(UserWarning, match="two: left out .*: nodule"):
        result = linear_probe(train, valid, test, task=TWO, fraction=1.0, seeds=[0], resamples=20)
    assert result.left_out == ("nodule",)
    assert result.mean == result.per_class["edema"]
    broken.targets[:] = 0
    with pytest.raises(ValueError, match="no class has both"):
        linear_probe(train, valid, test, task=TWO, fraction=1.0, seeds=[0])


def test_a_class_without_training_images_is_never_predicted():
    train, valid, test = splits(task=THREE)
    for missing in ([2], [0]):
        keep = ~np.isin(train.targets, missing)
        part = Features(train.values[keep], train.targets[keep], tuple(np.array(train.image_ids)[keep]))
        run = module._probe_features(part, valid, test, task=THREE, fraction=1.0, seed=0)
        assert not np.isin(run.outputs.argmax(axis=1), missing).any()
        others = ~np.isin(test.targets, missing)
        assert (run.outputs.argmax(axis=1) == test.targets)[others].mean() > 0.85


def test_multiclass_recall_and_accuracy_by_hand():
    outputs = np.eye(3)[[0, 0, 1, 1, 2]]
    value, per_class, left_out = score(outputs, np.array([0, 1, 1, 1, 0]), THREE)
    assert value == pytest.approx(3 / 5)
    assert per_class == {"normal": 0.5, "pneumonia": pytest.approx(2 / 3)}
    assert left_out == ("COVID-19",)


def test_label_draws_nest_repeat_and_hold_every_value():
    targets = np.zeros((400, 2), np.float32)
    targets[[3, 77], 0] = 1
    targets[::2, 1] = 1
    for seed in range(30):
        small, middle = (draw_labels(targets, TWO, fraction=f, seed=seed) for f in (0.01, 0.1))
        assert len(small) == 4
        assert len(middle) == 40
        np.testing.assert_array_equal(small, draw_labels(targets, TWO, fraction=0.01, seed=seed))
        for rows in (small, middle):
            assert len(np.unique(rows)) == len(rows)
            assert all(len(np.unique(targets[rows, c])) == 2 for c in range(2))
    np.testing.assert_array_equal(draw_labels(targets, TWO, fraction=1.0, seed=0), np.arange(400))
    balanced = np.stack([np.arange(400) % 2, np.arange(400) // 2 % 2], axis=1).astype(np.float32)
    one, ten = (set(draw_labels(balanced, TWO, fraction=f, seed=1)) for f in (0.05, 0.2))
    assert one < ten


def test_label_draws_are_uniform_where_nothing_is_missing():
    targets = np.stack([np.arange(40) % 2, np.arange(40) // 2 % 2], axis=1).astype(np.float32)
    counts = np.zeros(40)
    for seed in range(2000):
        counts[draw_labels(targets, TWO, fraction=0.5, seed=seed)] += 1
    assert np.abs(counts / 2000 - 0.5).max() < 4 * math.sqrt(0.25 / 2000)


def test_tiny_sets_draw_the_documented_minimum():
    targets = np.array([0, 1, 2] * 20)
    assert len(draw_labels(targets, THREE, fraction=0.01, seed=0)) == 3
    assert set(targets[draw_labels(targets, THREE, fraction=0.01, seed=5)]) == {0, 1, 2}
    assert len(draw_labels(np.zeros((10, 2), np.float32), TWO, fraction=0.01, seed=0)) == 1


class Identity(nn.Module):
    """An encoder without anything to learn; it counts its images."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.images = 0

    def forward(self, images):
        assert not self.training
        self.images += len(images)
        return SimpleNamespace(pooled=self.norm(images))


def datasets(task=TWO, signal=1e4):
    return [
        TensorDataset(torch.from_numpy(part.values), torch.from_numpy(part.targets))
        for part in splits(task=task, signal=signal)
    ]


@pytest.mark.parametrize("task", [TWO, THREE])
def test_upstream_protocol_learns_and_leaves_the_encoder_alone(task):
    encoder = Identity().train()
    recipe = UpstreamRecipe(learning_rate=0.05, epochs=30)
    settings = {"task": task, "fraction": 1.0, "protocol": "upstream", "encoder": encoder, "recipe": recipe}
    before = torch.random.get_rng_state()
    first = linear_probe(*datasets(task), seeds=[0, 1], **settings)
    assert first.mean > 0.9
    assert encoder.training
    assert encoder.norm.num_batches_tracked == 0
    assert torch.equal(before, torch.random.get_rng_state())
    assert (first.spread, first.n) == ("seeds", 2)
    assert first == linear_probe(*datasets(task), seeds=[0, 1], **settings)


def test_upstream_draw_is_pandas_with_state_42():
    recipe = UpstreamRecipe(epochs=1)
    result = linear_probe(
        *datasets(), task=TWO, fraction=0.5, seeds=[7], protocol="upstream", encoder=Identity(), recipe=recipe
    )
    expected = pd.DataFrame({"x": range(200)}).sample(frac=0.5, random_state=42).index
    assert result.subsets == (tuple(sorted(expected)),)


@pytest.mark.parametrize(("drop_last", "expected"), [(True, 192), (False, 200)])
def test_upstream_drops_the_last_batch_as_published(drop_last, expected):
    encoder = Identity()
    recipe = UpstreamRecipe(epochs=3, drop_last=drop_last)
    linear_probe(*datasets(), task=TWO, fraction=1.0, seeds=[0], protocol="upstream", encoder=encoder, recipe=recipe)
    assert encoder.images == 80 + 300 + 3 * expected


def test_upstream_stops_early_and_tests_the_best_weights(monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 1.5, 0.5])
    heads = []

    def validation_loss(head, valid, task, recipe):
        heads.append(head.weight.detach().clone())
        return next(losses)

    monkeypatch.setattr(module, "_validation_loss", validation_loss)
    train, valid, test = splits()
    run = module._probe_images(
        Identity().eval(),
        datasets()[0],
        valid,
        test,
        task=TWO,
        fraction=1.0,
        seed=0,
        recipe=UpstreamRecipe(patience=2, learning_rate=0.05),
    )
    assert len(heads) == 4
    assert run.strength == 2
    differences = run.outputs - test.values @ heads[1].numpy().T
    assert np.abs(differences - differences[0]).max() < 1e-5


def test_upstream_loss_leaves_unknown_labels_out():
    outputs, targets = torch.randn(6, 2), torch.tensor([[0.0, 1.0]] * 6)
    targets[2, 0] = targets[5, 1] = float("nan")
    values = [
        -math.log(torch.sigmoid(o if t == 1 else -o))
        for o, t in zip(outputs.flatten().tolist(), targets.flatten().tolist(), strict=True)
        if not math.isnan(t)
        for o in [torch.tensor(o)]
    ]
    assert module._torch_loss(outputs, targets, TWO).item() == pytest.approx(np.mean(values), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 0.0}, r"\(0, 1\]"),
        ({"fraction": 1.5}, r"\(0, 1\]"),
        ({"seeds": []}, "at least one seed"),
        ({"protocol": "slow"}, "'fast' or 'upstream'"),
        ({"protocol": "upstream"}, "pass datasets of images"),
        ({"task": THREE}, "class numbers"),
        ({"task": Task("one", "multilabel", ("x",), "auroc")}, "map uncertain labels"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(*splits(), **({"task": TWO, "fraction": 1.0, "seeds": [0]} | change))


def test_datasets_and_features_are_not_mixed_up():
    with pytest.raises(ValueError, match="make them with extract_features"):
        linear_probe(*datasets(), task=TWO, fraction=1.0, seeds=[0])
    with pytest.raises(ValueError, match="10 training images do not fill one batch of 48"):
        linear_probe(*datasets(), task=TWO, fraction=0.05, seeds=[0], protocol="upstream", encoder=Identity())
    train, valid, test = splits()
    train.targets[0, 0] = -1
    with pytest.raises(ValueError, match="map uncertain labels first"):
        linear_probe(train, valid, test, task=TWO, fraction=1.0, seeds=[0])


def test_interval_over_patients_draws_whole_patients_and_averages_the_seeds():
    train, valid, test = splits()
    probes = linear_probe(train, valid, test, task=TWO, fraction=0.2, seeds=[0, 1, 2], resamples=10)
    patients = np.repeat(np.arange(30), 10)
    found = probe_interval(probes, test.targets, TWO, groups=patients, resamples=60)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(60):  # written out with scikit-learn's AUROC
        rows = np.concatenate([np.flatnonzero(patients == one) for one in rng.integers(30, size=30)])
        scores = [
            roc_auc_score(test.targets[rows, c], outputs[rows, c]) for outputs in probes.outputs for c in range(2)
        ]
        drawn.append(np.mean(scores))
    assert found.mean == pytest.approx(np.mean(probes.values), abs=1e-9)
    np.testing.assert_allclose([found.low, found.high], np.quantile(drawn, [0.025, 0.975]), atol=1e-9)
    assert found.n == 30


def test_probes_and_gains_draw_patients_where_they_are_named():
    """Each film ten times over: copies are no new evidence, so the interval is that of the films themselves."""
    train, valid, test = splits(width=30, signal=0.4)
    few = Features(test.values[:60], test.targets[:60], test.image_ids[:60])
    copies = Features(*(np.repeat(part, 10, axis=0) for part in (few.values, few.targets)), tuple(map(str, range(600))))
    settings = {"task": TWO, "fraction": 1.0, "seeds": [0], "resamples": 300}
    once = linear_probe(train, valid, few, **settings)
    patients = np.repeat(np.arange(60), 10)
    grouped = linear_probe(train, valid, copies, groups=patients, **settings)
    assert (grouped.n, grouped.spread) == (60, "test cases")
    assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high), abs=1e-9)
    alone = linear_probe(train, valid, copies, **settings)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    weak = [Features(part.values[:, :5], part.targets, part.image_ids) for part in (train, valid, copies)]
    weaker = linear_probe(*weak, **settings)
    gains = [probe_gain(alone, weaker, copies.targets, TWO, groups=group, resamples=300) for group in (patients, None)]
    assert [gain.n for gain in gains] == [60, 600]
    assert gains[0].high - gains[0].low > 2 * (gains[1].high - gains[1].low)


def test_one_class_teaches_nothing():
    parts = [
        Features(np.eye(4, dtype=np.float32), np.array(targets), tuple("abcd")) for targets in ([0] * 4, [0, 1, 2, 0])
    ]
    task = Task("three", "multiclass", ("a", "b", "c"), "accuracy")
    with pytest.raises(ValueError, match="three: all training images are of one class"):
        linear_probe(parts[0], parts[1], parts[1], task=task, fraction=1.0, seeds=[0])


def test_interval_of_a_gain_is_paired():
    train, valid, test = splits()
    probes = linear_probe(train, valid, test, task=TWO, fraction=0.2, seeds=[0, 1], resamples=10)
    same = probe_interval(probes, test.targets, TWO, baseline=probes, resamples=20)
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)
    noisy = [Features(part.values[:, ::-1].copy(), part.targets, part.image_ids) for part in (train, valid, test)]
    noisy[0].values[:] = np.random.default_rng(5).normal(size=noisy[0].values.shape)
    worse = linear_probe(*noisy, task=TWO, fraction=0.2, seeds=[0, 1], resamples=10)
    gain = probe_interval(probes, test.targets, TWO, baseline=worse, resamples=50)
    assert gain.mean == pytest.approx(np.mean(probes.values) - np.mean(worse.values), abs=1e-9)
    assert gain.low > 0
    other = linear_probe(train, valid, test, task=TWO, fraction=0.2, seeds=[7, 8], resamples=10)
    with pytest.raises(ValueError, match="same seeds"):
        probe_interval(probes, test.targets, TWO, baseline=other)
    with pytest.raises(ValueError, match="300 test outputs for 299 targets"):
        probe_interval(probes, test.targets[:-1], TWO)


def test_the_test_split_has_no_say_in_the_strength():
    train, valid, test = splits(width=30, signal=0.4)

    def flipped(part):
        return Features(part.values, 1 - part.targets, part.image_ids)

    def strengths(held_out, tested):
        return linear_probe(train, held_out, tested, task=TWO, fraction=0.5, seeds=[0, 1], resamples=10).strengths

    assert strengths(valid, test) == strengths(valid, flipped(test)) != strengths(flipped(valid), test)
