"""Prototype analysis against scikit-learn, hand-made cases and shuffled labels."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from mgca_lib.evaluation.prototypes import (
    AGREEMENT_MEASURES,
    FEWEST_SHUFFLED,
    Assignment,
    agreement_ceiling,
    agreement_difference,
    assign_prototypes,
    cluster_agreement,
    dominant_finding,
    kmeans_prototypes,
    modality_agreement,
    nearest_members,
    project,
    shuffled_labels,
)


def test_assignment_is_the_most_probable_prototype():
    torch.manual_seed(0)
    embeddings, prototypes = torch.randn(20, 5), torch.randn(7, 5)
    result = assign_prototypes(embeddings, prototypes, temperature=0.3)
    for row in range(20):
        cosine = [float(embeddings[row] @ p / embeddings[row].norm() / p.norm()) / 0.3 for p in prototypes]
        probability = np.exp(cosine) / np.exp(cosine).sum()
        assert result.cluster[row] == probability.argmax()
        assert result.probability[row] == pytest.approx(probability.max(), rel=1e-5)
    np.testing.assert_array_equal(assign_prototypes(embeddings, prototypes, temperature=9).cluster, result.cluster)


def test_measures_equal_scikit_learn():
    rng = np.random.default_rng(0)
    clusters, labels = rng.integers(0, 9, 120), rng.choice(["a", "b", "c"], 120)
    result = cluster_agreement(clusters, labels, resamples=5, permutations=2)
    expected = {
        "nmi": metrics.v_measure_score(labels, clusters),
        "homogeneity": metrics.homogeneity_score(labels, clusters),
        "completeness": metrics.completeness_score(labels, clusters),
        "purity": sum(max(np.sum(labels[clusters == c] == name) for name in "abc") for c in range(9)) / 120,
    }
    for name, value in expected.items():
        assert result.measures[name].mean == pytest.approx(value, abs=1e-12), name
    assert result.measures["nmi"].mean == pytest.approx(metrics.normalized_mutual_info_score(labels, clusters))
    assert result.clusters == 9
    assert result.v_measure.mean == pytest.approx(expected["nmi"], abs=1e-12)


def test_above_chance_shifts_the_whole_interval():
    rng = np.random.default_rng(4)
    result = cluster_agreement(rng.integers(0, 5, 80), rng.choice(["a", "b"], 80), resamples=20)
    for name in ("purity", "nmi"):
        whole, above = result.measures[name], result.above_chance(name)
        shifts = [getattr(whole, part) - getattr(above, part) for part in ("mean", "low", "high")]
        assert shifts == pytest.approx([result.chance[name]] * 3)
        assert above.n == 80


def test_nmi_with_shuffled_labels_grows_with_the_number_of_clusters():
    labels = np.random.default_rng(5).choice(["a", "b", "c"], 200)
    shuffled = [
        cluster_agreement(np.arange(200) % count, labels, resamples=2, permutations=50).chance["nmi"]
        for count in (2, 8, 32, 128)
    ]
    assert shuffled == sorted(shuffled)
    assert shuffled[0] < 0.02
    assert shuffled[-1] > 0.2


def test_kmeans_prototypes_find_blobs_and_judge_other_studies():
    centres, number, points = blobs()
    found = kmeans_prototypes(torch.tensor(points[:40]), 3)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.norm(dim=1), 1, rtol=1e-5)
    unit = torch.nn.functional.normalize(torch.tensor(centres).float(), dim=1)
    match = (found @ unit.T).max(dim=1)
    assert sorted(match.indices.tolist()) == [0, 1, 2]
    assert match.values.min() > 0.99
    clusters = assign_prototypes(torch.tensor(points[40:]), found).cluster
    assert metrics.adjusted_rand_score(number[40:], clusters) == 1
    scaled = torch.tensor(points[:40]) * torch.linspace(0.1, 10, 40)[:, None]
    np.testing.assert_allclose(kmeans_prototypes(scaled, 3), found, atol=1e-5)  # the norm carries no weight


def test_perfect_and_degenerate_clusterings():
    labels = np.repeat(["a", "b", "c"], 10)
    perfect = cluster_agreement(np.repeat([5, -1, 8], 10), labels, resamples=20)
    assert {name: round(interval.mean, 12) for name, interval in perfect.measures.items()} == {
        "purity": 1,
        "nmi": 1,
        "homogeneity": 1,
        "completeness": 1,
    }
    one = cluster_agreement(np.zeros(30, int), labels, resamples=20)
    assert one.measures["purity"].mean == pytest.approx(1 / 3)
    assert one.measures["nmi"].mean == 0
    assert one.measures["completeness"].mean == 1


def test_chance_level_and_interval_on_noise_and_on_signal():
    rng = np.random.default_rng(1)
    labels = rng.choice(["a", "b", "c", "d"], 300)
    noise = cluster_agreement(rng.integers(0, 40, 300), labels)
    for name, interval in noise.measures.items():
        assert interval.low < noise.chance[name] < interval.high, name
        assert interval.low < interval.mean < interval.high
    clusters = np.unique(labels, return_inverse=True)[1] * 10 + rng.integers(0, 10, 300)
    signal = cluster_agreement(clusters, labels)
    assert signal.measures["purity"].low > signal.chance["purity"] + 0.3


def test_bootstrap_repeats_and_groups_count():
    rng = np.random.default_rng(2)
    clusters, labels, groups = rng.integers(0, 4, 60), rng.choice(["a", "b"], 60), np.repeat(np.arange(20), 3)
    first, second = (cluster_agreement(clusters, labels, groups=groups, resamples=30) for _ in range(2))
    assert first == second
    assert first.measures["nmi"].n == 20


def test_patients_are_shuffled_whole():
    """Ten studies a patient, of one finding and in a cluster of their own: whoever swaps patients breaks no cluster."""
    patients = np.repeat(np.arange(20), 10)
    labels = np.repeat(list("abcd"), 50)
    whole = cluster_agreement(patients, labels, groups=patients, resamples=2)
    torn = cluster_agreement(patients, labels, groups=patients, shuffle_groups=False, resamples=2)
    assert whole.measures == torn.measures
    assert whole.chance["purity"] == 1
    assert whole.chance["homogeneity"] == pytest.approx(1, abs=1e-12)
    assert torn.chance["purity"] < 0.55  # the most frequent of four labels among ten draws
    assert whole.above_chance("nmi").mean == pytest.approx(0, abs=1e-12)
    assert torn.above_chance("nmi").low > 0.4


def test_patients_with_as_many_studies_swap_whole_and_others_join_the_next():
    counts = [1] * 12 + [2] * 12 + [3] * 4 + [7]  # three and seven are too few, and join the twos
    assert FEWEST_SHUFFLED == 10
    patients = np.random.default_rng(8).permutation(np.repeat(np.arange(len(counts)), counts))
    labels = patients.copy()  # a label says whose it was
    dealt = shuffled_labels(labels, groups=patients, count=400, seed=1)
    assert all(sorted(one) == sorted(labels) for one in dealt)
    few = patients < 12
    assert all(set(one[few]) == set(range(12)) for one in dealt)  # patients with one study swap among themselves
    assert np.mean([one[few] == labels[few] for one in dealt]) == pytest.approx(1 / 12, abs=0.02)
    most = patients == 28  # nobody else has seven studies, and yet they get others' labels as a rule
    assert np.mean([one[most] == 28 for one in dealt]) < 0.5
    twos = patients[patients < 24]
    swapped = shuffled_labels(twos, groups=twos, count=50)
    assert all(len(set(one[twos == name])) == 1 for one in swapped for name in range(24))


def test_labels_of_a_patient_keep_their_order():
    patients = np.tile(np.arange(15), 3)  # each patient's studies lie apart
    labels = np.array([f"{name} {number}" for name, number in zip(patients, np.repeat(range(3), 15), strict=True)])
    for dealt in shuffled_labels(labels, groups=[f"p{name}" for name in patients], count=20):
        for name in range(15):
            whose, numbers = zip(*(label.split() for label in dealt[patients == name]), strict=True)
            assert len(set(whose)) == 1
            assert numbers == ("0", "1", "2")


def test_a_patient_with_one_study_is_a_study():
    """Both ways of shuffling are then draws from the same distribution: their means agree."""
    rng = np.random.default_rng(9)
    clusters, labels, names = rng.integers(0, 12, 90), rng.choice(["a", "b", "c"], 90), [f"p{i}" for i in range(90)]
    whole, torn = (
        cluster_agreement(clusters, labels, groups=names, shuffle_groups=way, resamples=2, permutations=2000).chance
        for way in (True, False)
    )
    for name in AGREEMENT_MEASURES:  # standard errors of both means are below 0.001
        assert whole[name] == pytest.approx(torn[name], abs=0.005), name


@pytest.mark.parametrize(
    ("clusters", "labels", "nmi", "homogeneity", "completeness", "purity"),
    [
        ("AABB", "eenn", 1, 1, 1, 1),
        ("ABAB", "eenn", 1, 1, 1, 1),  # crossed: it tells nothing, but clusters of its sizes could tell all
        ("ABCD", "eenn", 2 / 3, 1, 1 / 2, 1),  # 2 bits and 1 bit
        ("ABCDEFGH", "aabbccdd", 4 / 5, 1, 2 / 3, 1),  # 3 bits and 2 bits
        ("AAAABBBB", "aabbccdd", 2 / 3, 1 / 2, 1, 1 / 2),  # 1 bit and 2 bits; two of four labels get a name
        ("AABC", "eenn", 4 / 5, 1, 2 / 3, 1),  # 1.5 bits and 1 bit
        ("AAAA", "eeen", 0, 0, 1, 3 / 4),
        ("AAAA", "eeee", 1, 1, 1, 1),
    ],
)
def test_ceiling_by_hand(clusters, labels, nmi, homogeneity, completeness, purity):
    expected = {"nmi": nmi, "homogeneity": homogeneity, "completeness": completeness, "purity": purity}
    found = cluster_agreement(np.array(list(clusters)), list(labels), resamples=2, permutations=2)
    assert found.ceiling == pytest.approx(expected, abs=1e-12)
    assert agreement_ceiling(np.array(list(clusters)), list(labels)) == found.ceiling
    for name in AGREEMENT_MEASURES:
        assert found.room(name) == pytest.approx(expected[name] - found.chance[name], abs=1e-12)


def test_no_clustering_passes_the_ceiling_and_pure_ones_reach_it():
    rng = np.random.default_rng(10)
    labels = rng.choice(list("abcde"), 300, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    rooms = []
    for count in (2, 5, 20, 80):
        found = cluster_agreement(rng.integers(0, count, 300), labels, resamples=2)
        assert all(found.measures[name].mean <= found.ceiling[name] + 1e-12 for name in AGREEMENT_MEASURES)
        rooms.append(found.room("nmi"))
    assert rooms[1] > rooms[2] > rooms[3]
    pure = np.array([f"{label}{row % 7}" for row, label in enumerate(labels)])
    found = cluster_agreement(pure, labels, resamples=2)
    assert {name: value.mean for name, value in found.measures.items()} == pytest.approx(found.ceiling, abs=1e-12)


def test_room_is_that_of_adjusted_mutual_information():
    """scikit-learn's adjusted score with the smaller entropy as its maximum is what is above chance over the room."""
    rng = np.random.default_rng(11)
    labels = rng.choice(["a", "b", "c"], 150)
    clusters = np.where(rng.random(150) < 0.5, np.unique(labels, return_inverse=True)[1], rng.integers(0, 15, 150))
    found = cluster_agreement(clusters, labels, resamples=2, permutations=3000)
    expected = metrics.adjusted_mutual_info_score(labels, clusters, average_method="min")
    assert found.above_chance("nmi").mean / found.room("nmi") == pytest.approx(expected, abs=0.003)


def test_difference_is_that_of_both_above_chance_and_paired():
    rng = np.random.default_rng(12)
    number = rng.integers(0, 4, 240)
    labels, patients = np.array(list("abcd"))[number], np.repeat(np.arange(80), 3)
    noisy = np.where(rng.random(240) < 0.5, number, rng.integers(0, 4, 240))
    better = np.where(rng.random(240) < 0.3, number, noisy)  # the same, and some more put right
    for measure in ("nmi", "purity"):
        settings = {"groups": patients, "seed": 3}
        found = agreement_difference(better, noisy, labels, measure=measure, **settings)
        one, other = (cluster_agreement(part, labels, **settings).above_chance(measure) for part in (better, noisy))
        assert found.mean == pytest.approx(one.mean - other.mean, abs=1e-12)
        assert found.n == 80
        assert found.low > 0
        assert found.high - found.low < np.hypot(one.high - one.low, other.high - other.low)
        back = agreement_difference(noisy, better, labels, measure=measure, **settings)
        assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low), abs=1e-12)
    same = agreement_difference(noisy, noisy + 7, labels, groups=patients)
    assert (same.mean, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_modality_agreement_and_its_chance():
    rng = np.random.default_rng(3)
    a, b = rng.choice(3, 4000, p=[0.6, 0.3, 0.1]), rng.choice(3, 4000, p=[0.2, 0.2, 0.6])
    agreement, chance = modality_agreement(Assignment(a, a), Assignment(b, b), resamples=200)
    assert chance == pytest.approx(0.6 * 0.2 + 0.3 * 0.2 + 0.1 * 0.6, abs=0.02)
    assert agreement.low - 0.01 < chance < agreement.high + 0.01


@pytest.mark.parametrize(("shift", "share"), [(0, 1.0), (1, 0.0)])
def test_agreement_of_all_or_none_still_has_an_interval(shift, share):
    a = np.arange(12) % 3
    one, other = Assignment(a, a), Assignment((a + shift) % 3, a)
    found, _ = modality_agreement(one, other, groups=np.arange(12) // 2, resamples=10)
    z2 = 1.959964**2  # Wilson: the far end lies z^2 / (n + z^2) away, of n = 6 patients
    assert (found.mean, found.n) == (share, 6)
    assert abs(share - (found.low if share else found.high)) == pytest.approx(z2 / (6 + z2), abs=1e-6)


def test_dominant_finding_prefers_the_rarest_or_the_priority():
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, -1, np.nan], [0, 1, 0]])
    names = ["effusion", "edema", "nodule"]
    assert dominant_finding(labels, names).tolist() == ["effusion", "edema", "nodule", "no finding", "edema"]
    assert dominant_finding(labels, names, priority=names).tolist() == [
        "effusion",
        "effusion",
        "effusion",
        "no finding",
        "edema",
    ]
    with pytest.raises(ValueError, match="every label name once"):
        dominant_finding(labels, names, priority=["edema"])
    with pytest.raises(ValueError, match="2 names"):
        dominant_finding(labels, names[:2])


def test_nearest_members_equal_a_sort():
    torch.manual_seed(1)
    embeddings, prototypes = torch.randn(15, 4), torch.randn(3, 4)
    rows, similarity = nearest_members(embeddings, prototypes, count=4)
    for k, prototype in enumerate(prototypes):
        cosine = torch.cosine_similarity(embeddings, prototype[None])
        assert rows[k].tolist() == sorted(range(15), key=lambda i: -cosine[i])[:4]
        np.testing.assert_allclose(similarity[k], cosine[rows[k]], rtol=1e-5)
    with pytest.raises(ValueError, match="15 studies"):
        nearest_members(embeddings, prototypes, count=16)


def blobs():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12))
    number = rng.integers(0, 3, 60)
    return centres, number, centres[number] + 0.05 * rng.normal(size=(60, 12))


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_projections_keep_clusters_and_seeds(method):
    centres, number, points = blobs()
    images, reports, prototypes = project(points[:40], torch.tensor(points[40:]), centres, method=method)
    assert (images.shape, reports.shape, prototypes.shape) == ((40, 2), (20, 2), (3, 2))
    plane = np.concatenate([images, reports])
    distance = np.linalg.norm(plane[:, None] - plane[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (number[distance.argmin(axis=1)] == number).mean() > 0.95
    again = project(points[:40], points[40:], centres, method=method)
    np.testing.assert_array_equal(images, again[0])


def test_perplexity_is_handed_on_and_cut_for_few_points():
    _, _, points = blobs()
    usual, wide, cut = (project(points, method="tsne", perplexity=value)[0] for value in (5, 19, 1000))
    assert not np.allclose(usual, wide)
    np.testing.assert_array_equal(cut, project(points, method="tsne", perplexity=59 / 3)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: project(np.ones((3, 2)), method="tsne"), "at least 8 points"),
        (lambda: project(np.random.default_rng(0).normal(size=(9, 2)), method="pca"), "'tsne' or 'umap'"),
        (lambda: project(np.full((9, 2), np.nan), method="tsne"), "not finite"),
        (lambda: assign_prototypes(torch.ones(2, 3), torch.ones(2, 4)), "expected"),
        (lambda: assign_prototypes(torch.ones(2, 3), torch.ones(2, 3), temperature=0), "positive"),
        (lambda: cluster_agreement(np.zeros(3, int), ["a"]), "clusters for"),
        (lambda: shuffled_labels(np.zeros(3), groups=["p"]), "1 group names for 3 labels"),
        (lambda: agreement_ceiling(np.zeros(3, int), ["a"]), "clusters for"),
        (lambda: agreement_difference(np.zeros(2, int), np.zeros(3, int), ["a", "b"]), "clusters for"),
        (lambda: agreement_difference(np.zeros(1, int), np.zeros(1, int), ["a"], measure="NMI"), "not one of purity"),
        (lambda: kmeans_prototypes(torch.ones(3, 2), 4), "between 1 and the 3 studies"),
        (lambda: kmeans_prototypes(torch.full((3, 2), torch.nan), 2), "not finite"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
