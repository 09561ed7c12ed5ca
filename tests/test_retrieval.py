"""Retrieval against a slow loop, hand-made cases, duplicates, ties and simulated chance."""

import numpy as np
import pytest
import torch

from mgca_lib.evaluation.retrieval import chance_recall, retrieval_recall


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


def test_interval_draws_groups_together():
    torch.manual_seed(2)
    image, report = torch.randn(40, 3), torch.randn(40, 3)
    result = retrieval_recall(image, report, groups=np.repeat(np.arange(10), 4), ks=(5,))
    assert result.image_to_report[5].n == 10


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
