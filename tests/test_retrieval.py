"""Retrieval against a slow loop, hand-made cases, duplicates, ties and simulated chance."""

import numpy as np
import pytest
import torch

from mgca_lib.evaluation.retrieval import (
    chance_precision,
    chance_recall,
    recall_in_batches,
    retrieval_precision,
    retrieval_recall,
)


def slow_rank(scores, correct):
    """Rank by sorting: a wrong candidate of equal score comes first."""
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], j in correct))
    return 1 + min(place for place, j in enumerate(order) if j in correct)


def test_recall_and_ranks_equal_a_slow_loop():
    torch.manual_seed(0)
    image, report = torch.randn(30, 4).round() + 0.25, torch.randn(30, 4).round() + 0.25
    texts = [f"text {number % 23}" for number in range(30)]
    result = retrieval_recall(image, report, texts=texts, ks=(1, 3, 7), resamples=20, batch_size=7)
    a, b = torch.nn.functional.normalize(image, dim=1), torch.nn.functional.normalize(report, dim=1)
    for scores, ranks, recall in (
        (a @ b.T, result.image_ranks, result.image_to_report),
        (b @ a.T, result.report_ranks, result.report_to_image),
    ):
        expected = []
        for i in range(30):
            correct = {j for j in range(30) if texts[j] == texts[i]}
            rounded = (scores[i].double() * 1e6).round().tolist()
            expected.append(slow_rank(rounded, correct))
        np.testing.assert_array_equal(ranks, expected)
        for k in (1, 3, 7):
            assert recall[k].mean == pytest.approx(sum(rank <= k for rank in expected) / 30)


def test_hand_made_case():
    image = torch.eye(3)
    report = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.5, 0.0], [0.0, 0.0, 1.0]])
    result = retrieval_recall(image, report, ks=(1, 2), resamples=10)
    # image 1 sees report 1 first (0.53 to 0.11); report 1 sees image 0 first (0.85 to 0.53)
    assert result.image_ranks.tolist() == [1, 1, 1]
    assert result.report_ranks.tolist() == [1, 2, 1]
    assert result.report_to_image[1].mean == pytest.approx(2 / 3)
    assert result.report_to_image[2].mean == 1


def test_equal_texts_are_correct_for_each_other():
    image, report = torch.eye(4), torch.eye(4)[[1, 0, 2, 3]]
    assert retrieval_recall(image, report, ks=(1,), resamples=5).image_to_report[1].mean == 0.5
    texts = ["normal", "normal", "edema", "nodule"]
    assert retrieval_recall(image, report, texts=texts, ks=(1,), resamples=5).image_to_report[1].mean == 1
    texts = ["normal", "other", "normal", "nodule"]
    assert retrieval_recall(image, report, texts=texts, ks=(1,), resamples=5).image_to_report[1].mean == 0.5


def test_a_collapsed_encoder_gets_nothing_below_n():
    result = retrieval_recall(torch.ones(20, 3), torch.ones(20, 3), ks=(1, 19, 20), resamples=5)
    assert [result.image_to_report[k].mean for k in (1, 19, 20)] == [0, 0, 1]


def test_batch_size_norm_and_joint_permutation_change_nothing():
    torch.manual_seed(1)
    image, report = torch.randn(40, 6), torch.randn(40, 6)
    first = retrieval_recall(image, report, resamples=5)
    order = torch.randperm(40)
    other = retrieval_recall(3 * image[order], 0.1 * report[order], resamples=5, batch_size=9)
    np.testing.assert_array_equal(first.image_ranks[order.numpy()], other.image_ranks)


def test_chance_level_equals_a_simulation():
    rng = np.random.default_rng(0)
    texts = ["normal"] * 9 + ["effusion"] * 2 + [f"only {number}" for number in range(9)]
    expected = chance_recall(20, texts=texts, ks=(1, 5))
    hits = {1: [], 5: []}
    for _ in range(4000):
        query = rng.integers(20)
        ranking = [texts[j] for j in rng.permutation(20)]
        for k in hits:
            hits[k].append(texts[query] in ranking[:k])
    for k, values in hits.items():
        assert np.mean(values) == pytest.approx(expected[k], abs=4 * np.std(values) / np.sqrt(len(values)))


def test_random_embeddings_reach_chance_within_the_interval():
    torch.manual_seed(3)
    result = retrieval_recall(torch.randn(300, 16), torch.randn(300, 16), ks=(10,))
    for recall in (result.image_to_report[10], result.report_to_image[10]):
        assert recall.low <= result.chance[10] <= recall.high
        assert recall.n == 300
    assert chance_recall(300)[10] == pytest.approx(10 / 300)


def test_k_beyond_n_is_always_a_hit():
    assert chance_recall(3, ks=(5,)) == {5: 1.0}
    assert retrieval_recall(torch.eye(3), torch.eye(3), ks=(5,), resamples=5).image_to_report[5].mean == 1


def test_chance_needs_a_text_for_each_candidate():
    with pytest.raises(ValueError, match="50 texts for 100 candidates"):
        chance_recall(100, texts=["normal"] * 50)
    with pytest.raises(ValueError, match="at least one candidate, found 0"):
        chance_recall(0)


def test_interval_draws_groups_together():
    torch.manual_seed(2)
    image, report = torch.randn(40, 3), torch.randn(40, 3)
    result = retrieval_recall(image, report, groups=np.repeat(np.arange(10), 4), ks=(5,))
    assert result.image_to_report[5].n == 10


def test_no_hit_at_all_is_not_certainty():
    """Ten patients without a hit: Wilson's upper end is z^2 / (10 + z^2), by hand."""
    result = retrieval_recall(torch.ones(40, 3), torch.ones(40, 3), groups=np.repeat(np.arange(10), 4), ks=(1, 40))
    none, every = result.image_to_report[1], result.report_to_image[40]
    assert (none.mean, none.low, every.mean, every.high) == (0, 0, 1, 1)
    assert none.high == pytest.approx(1.959964**2 / (10 + 1.959964**2), abs=1e-6)
    assert every.low == pytest.approx(1 - none.high, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((torch.ones(3, 2), torch.ones(4, 2)), {}, "one shape"),
        ((torch.ones(0, 2), torch.ones(0, 2)), {}, "one shape"),
        ((torch.ones(2, 2), torch.full((2, 2), torch.nan)), {}, "not finite"),
        ((torch.ones(2, 2), torch.ones(2, 2)), {"texts": ["a"]}, "1 texts for 2 pairs"),
        ((torch.ones(2, 2), torch.ones(2, 2)), {"ks": (0,)}, "K >= 1"),
    ],
)
def test_bad_input_is_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        retrieval_recall(*arguments, **settings)


def test_a_batch_of_everything_is_the_whole_test_set():
    torch.manual_seed(7)
    image, report = torch.randn(30, 4), torch.randn(30, 4)
    texts = [f"text {number % 23}" for number in range(30)]
    whole = retrieval_recall(image, report, texts=texts, resamples=5)
    one = recall_in_batches(image, report, texts=texts, batch_size=30, draws=2)
    for k in (1, 5, 10):
        assert one.image_to_report[k] == pytest.approx(whole.image_to_report[k].mean, abs=1e-12)
        assert one.report_to_image[k] == pytest.approx(whole.report_to_image[k].mean, abs=1e-12)
        assert one.chance[k] == pytest.approx(whole.chance[k], abs=1e-12)


def test_recall_in_pairs_equals_every_pair_by_hand():
    # In a batch of two, image i finds its report iff it prefers it to that of its companion: over many draws the
    # mean over all ordered pairs.
    torch.manual_seed(8)
    image, report = torch.randn(6, 3), torch.randn(6, 3)
    unit = [torch.nn.functional.normalize(part, dim=1) for part in (image, report)]
    scores = unit[0] @ unit[1].T
    wins = [float(scores[i, i] > scores[i, j]) for i in range(6) for j in range(6) if i != j]
    back = [float(scores[i, i] > scores[j, i]) for i in range(6) for j in range(6) if i != j]
    found = recall_in_batches(image, report, batch_size=2, ks=(1, 2), draws=2000)
    assert found.image_to_report[1] == pytest.approx(np.mean(wins), abs=0.025)  # four standard errors
    assert found.report_to_image[1] == pytest.approx(np.mean(back), abs=0.025)
    assert found.image_to_report[2] == found.chance[2] == 1
    assert found.chance[1] == 0.5


def test_smaller_batches_flatter_and_the_last_incomplete_one_is_dropped():
    torch.manual_seed(9)
    image = torch.randn(50, 8)
    report = image + 2 * torch.randn(50, 8)
    values = [recall_in_batches(image, report, batch_size=size, ks=(1,)).image_to_report[1] for size in (5, 20, 50)]
    assert values[0] > values[1] > values[2]
    # 50 = 2 x 20 + 10: of each draw 40 queries count, so a single draw is a multiple of 1/40
    once = recall_in_batches(image, report, batch_size=20, ks=(1,), draws=1)
    assert (once.image_to_report[1] * 40) == pytest.approx(round(once.image_to_report[1] * 40), abs=1e-9)
    assert once == recall_in_batches(image, report, batch_size=20, ks=(1,), draws=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batches of 0 do not fit 3 pairs"),
        ({"batch_size": 4}, "batches of 4 do not fit 3 pairs"),
        ({"batch_size": 2, "draws": 0}, "draws must be at least 1"),
        ({"batch_size": 2, "texts": ["a"]}, "1 texts for 3 pairs"),
    ],
)
def test_batches_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        recall_in_batches(torch.eye(3), torch.eye(3), **settings)


def slow_precision(scores, labels, query, k, *, leave_out_own):
    """Share of the first k after a full sort in which a wrong candidate of equal score comes first."""
    candidates = [j for j in range(len(labels)) if not (leave_out_own and j == query)]
    order = sorted(candidates, key=lambda j: (-scores[j], labels[j] == labels[query]))
    return sum(labels[j] == labels[query] for j in order[:k]) / k


@pytest.mark.parametrize("leave_out_own", [False, True])
def test_precision_equals_a_slow_loop(leave_out_own):
    torch.manual_seed(0)
    image, report = torch.randn(40, 3).round() + 0.25, torch.randn(40, 3).round() + 0.25  # many ties
    labels = [f"class {number}" for number in torch.randint(4, (40,)).tolist()]
    settings = {"ks": (1, 6, 39), "leave_out_own": leave_out_own, "resamples": 20, "batch_size": 7}
    result = retrieval_precision(image, report, labels=labels, **settings)
    a, b = (torch.nn.functional.normalize(part.double(), dim=1) for part in (image, report))
    for scores, values, interval in (
        (a @ b.T, result.image_precisions, result.image_to_report),
        (b @ a.T, result.report_precisions, result.report_to_image),
    ):
        rounded = (scores * 1e6).round().tolist()
        assert len({score for row in rounded for score in row}) < 800  # there are ties to be counted
        for k in (1, 6, 39):
            expected = [slow_precision(rounded[i], labels, i, k, leave_out_own=leave_out_own) for i in range(40)]
            np.testing.assert_allclose(values[k], expected, rtol=0, atol=1e-12)
            assert interval[k].mean == pytest.approx(np.mean(expected), abs=1e-12)
            assert interval[k].low <= interval[k].mean <= interval[k].high


def test_hand_made_precision():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    report = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0]])
    result = retrieval_precision(image, report, labels=["edema", "nodule", "edema"], ks=(1, 2, 3), resamples=10)
    # image 0 ranks 0 1 2, image 1 ranks 2 1 0, image 2 ranks 1 0 2 (cosines .83, .77, .77 with a tie of 0 and 2)
    assert result.image_precisions[1].tolist() == [1, 0, 0]
    assert result.image_precisions[2].tolist() == [0.5, 0.5, 0.5]
    np.testing.assert_allclose(result.image_precisions[3], [2 / 3, 1 / 3, 2 / 3], atol=1e-12)
    # report 0 ranks 0 2 1; report 1 ranks 0 2 1; report 2 ranks 1 2 0
    assert result.report_precisions[1].tolist() == [1, 0, 0]
    assert result.report_precisions[2].tolist() == [1, 0, 0.5]


def test_equal_texts_make_a_class():
    torch.manual_seed(4)
    image, report = torch.randn(12, 3), torch.randn(12, 3)
    texts = [f"text {number % 5}" for number in range(12)]
    by_text = retrieval_precision(image, report, texts=texts, ks=(3,), resamples=5)
    numbers = torch.arange(12) % 5
    for labels in (numbers, numbers.numpy(), numbers.tolist()):
        by_label = retrieval_precision(image, report, labels=labels, ks=(3,), resamples=5)
        np.testing.assert_array_equal(by_text.image_precisions[3], by_label.image_precisions[3])
        assert by_text.chance == by_label.chance == (3 * 3 * 2 + 2 * 2 * 3) / 144


def test_a_collapsed_encoder_has_no_precision_until_the_wrong_ones_are_used_up():
    labels = ["edema"] * 6 + ["nodule"] * 4
    result = retrieval_precision(torch.ones(10, 3), torch.ones(10, 3), labels=labels, ks=(4, 5, 10), resamples=5)
    assert result.image_precisions[4].tolist() == [0] * 10
    np.testing.assert_allclose(result.image_precisions[5], [1 / 5] * 6 + [0] * 4)  # 4 and 6 wrong ones come first
    np.testing.assert_allclose(result.report_precisions[10], [0.6] * 6 + [0.4] * 4)


def test_precision_does_not_depend_on_batches_norms_and_order():
    torch.manual_seed(5)
    image, report, labels = torch.randn(60, 5), torch.randn(60, 5), torch.arange(60) % 7
    report[30:] = report[:30]  # equal candidates must tie in every batch
    first = retrieval_precision(image, report, labels=labels, ks=(5, 20), resamples=5)
    order = torch.randperm(60)
    for size in (1, 13, 60):
        other = retrieval_precision(
            3 * image[order], 0.1 * report[order], labels=labels[order], ks=(20, 5), resamples=5, batch_size=size
        )
        for k in (5, 20):
            np.testing.assert_array_equal(first.image_precisions[k][order], other.image_precisions[k])
            np.testing.assert_array_equal(first.report_precisions[k][order], other.report_precisions[k])


def test_leaving_out_the_own_partner_leaves_out_exactly_that():
    kept = retrieval_precision(torch.eye(6), torch.eye(6), labels=[0, 0, 1, 1, 2, 2], ks=(1,), resamples=5)
    left = retrieval_precision(
        torch.eye(6), torch.eye(6), labels=[0, 0, 1, 1, 2, 2], ks=(1, 5), leave_out_own=True, resamples=5
    )
    assert kept.image_to_report[1].mean == 1
    assert left.image_to_report[1].mean == 0  # the others all tie, and wrong ones come first
    assert left.image_to_report[5].mean == pytest.approx(1 / 5)


@pytest.mark.parametrize("leave_out_own", [False, True])
def test_chance_precision_equals_a_simulation(leave_out_own):
    rng = np.random.default_rng(1)
    labels = np.array(["edema"] * 9 + ["effusion"] * 5 + ["nodule"])
    expected = chance_precision(labels, leave_out_own=leave_out_own)
    values = []
    for _ in range(6000):
        query = rng.integers(15)
        order = [j for j in rng.permutation(15) if not (leave_out_own and j == query)]
        values.append(np.mean(labels[order[:4]] == labels[query]))
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(6000))


def test_random_embeddings_reach_chance_precision():
    torch.manual_seed(6)
    labels = np.arange(250) % 5
    result = retrieval_precision(torch.randn(250, 16), torch.randn(250, 16), labels=labels, ks=(10, 100))
    assert result.chance == pytest.approx(0.2)
    for precision in (*result.image_to_report.values(), *result.report_to_image.values()):
        # queries share their candidates, so the interval over queries alone is a little too narrow
        assert precision.mean == pytest.approx(0.2, abs=0.03)
    grouped = retrieval_precision(
        torch.randn(250, 4),
        torch.randn(250, 4),
        labels=labels,
        ks=(5,),
        groups=np.repeat(np.arange(50), 5),
        resamples=5,
    )
    assert grouped.image_to_report[5].n == 50


ONES = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((ONES, torch.ones(4, 2)), {"labels": [0, 1, 2]}, "one shape"),
        ((ONES, torch.full((3, 2), torch.inf)), {"labels": [0, 1, 2]}, "not finite"),
        ((ONES, ONES), {}, "either labels or texts"),
        ((ONES, ONES), {"labels": [0, 1, 2], "texts": ["a", "b", "c"]}, "either labels or texts"),
        ((ONES, ONES), {"labels": [0, 1]}, "2 labels for 3 pairs"),
        ((ONES, ONES), {"texts": ["a"]}, "1 texts for 3 pairs"),
        ((ONES, ONES), {"labels": [0.0, np.nan, 1.0]}, r"nan \(row 1\) is not one class"),
        ((ONES, ONES), {"labels": ["a", "b", None]}, r"None \(row 2\) is not one class"),
        ((ONES, ONES), {"labels": np.eye(3)}, r"\[1.0, 0.0, 0.0\] \(row 0\) is not one class"),
        ((ONES, ONES), {"labels": [0, 1, 2], "ks": (0,)}, "from 1 to 3"),
        ((ONES, ONES), {"labels": [0, 1, 2], "ks": (4,)}, "from 1 to 3"),
        ((ONES, ONES), {"labels": [0, 1, 2], "ks": (3,), "leave_out_own": True}, "from 1 to 2"),
        ((ONES, ONES), {"labels": [0, 1, 2], "ks": (1,), "groups": ["a"]}, "1 group names for 3"),
    ],
)
def test_bad_input_of_precision_is_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        retrieval_precision(*arguments, **({"ks": (1,)} | settings))


def test_chance_precision_needs_candidates():
    with pytest.raises(ValueError, match="1 labels leave no candidate"):
        chance_precision(["edema"], leave_out_own=True)
