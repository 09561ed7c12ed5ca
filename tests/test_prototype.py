"""Prototype alignment and Sinkhorn against slow loops, closed forms and invariances."""

import math

import pytest
import torch
import torch.nn.functional as F

from mgca_lib.alignment import (
    FeatureQueue,
    PrototypeAlignment,
    Prototypes,
    prototype_alignment_loss,
    prototype_scores,
    sinkhorn,
    swapped_prediction_loss,
)


def slow_sinkhorn(scores, epsilon, iterations):
    """The textbook form: a K x B table, rows scaled to 1 / K, columns to 1 / B, no logarithms."""
    batch, clusters = len(scores), len(scores[0])
    table = [[math.exp(scores[i][k] / epsilon) for i in range(batch)] for k in range(clusters)]
    total = sum(map(sum, table))
    table = [[entry / total for entry in row] for row in table]
    for _ in range(iterations):
        table = [[entry / sum(row) / clusters for entry in row] for row in table]
        columns = [sum(row[i] for row in table) for i in range(batch)]
        table = [[row[i] / columns[i] / batch for i in range(batch)] for row in table]
    columns = [sum(row[i] for row in table) for i in range(batch)]
    return [[table[k][i] / columns[i] for k in range(clusters)] for i in range(batch)]


def slow_scores(embeddings, prototypes):
    def unit(vector):
        norm = math.sqrt(sum(x * x for x in vector))
        return [x / norm for x in vector]

    rows, centres = map(unit, embeddings.tolist()), [unit(c) for c in prototypes.tolist()]
    return [[sum(x * y for x, y in zip(row, c, strict=True)) for c in centres] for row in rows]


def slow_loss(image, report, prototypes, temperature=0.2, epsilon=0.05, iterations=3):
    scores = [slow_scores(side.double(), prototypes.double()) for side in (image, report)]
    codes = [slow_sinkhorn(z, epsilon, iterations) for z in scores]
    total = 0.0
    for i in range(len(image)):
        for code, other in ((codes[0][i], scores[1][i]), (codes[1][i], scores[0][i])):
            mass = sum(math.exp(z / temperature) for z in other)
            for q, z in zip(code, other, strict=True):
                total -= 0.5 * q * math.log(math.exp(z / temperature) / mass)
    return total / len(image)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


SHAPES = pytest.mark.parametrize(("batch", "clusters"), [(6, 4), (4, 9), (1, 5), (3, 1), (1, 1)])


@SHAPES
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.5, 1), (0.05, 0), (0.1, 20)])
def test_sinkhorn_equals_the_slow_loop(batch, clusters, epsilon, iterations):
    scores = random(batch, clusters).tanh()
    codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    expected = torch.tensor(slow_sinkhorn(scores.tolist(), epsilon, iterations))
    torch.testing.assert_close(codes, expected.double(), rtol=1e-6, atol=0)
    assert (codes.sum(dim=1) - 1).abs().max() < 1e-12


def test_sinkhorn_defaults_are_upstreams():
    scores = random(6, 4).tanh()
    assert torch.equal(sinkhorn(scores), sinkhorn(scores, epsilon=0.05, iterations=3))


def test_sinkhorn_fills_the_clusters_equally_and_never_worse():
    scores = random(12, 5).tanh()
    errors = []
    for iterations in range(60):
        codes = sinkhorn(scores, epsilon=0.2, iterations=iterations)
        assert (codes.sum(dim=1) - 1).abs().max() < 1e-12
        errors.append((codes.sum(dim=0) - 12 / 5).abs().sum().item())
    assert errors[0] > 1
    assert errors[-1] < 1e-8
    assert all(after <= before + 1e-12 for before, after in zip(errors, errors[1:], strict=False))


def test_sinkhorn_closed_forms():
    # One study must fill all clusters alike; equal scores leave nothing to choose.
    torch.testing.assert_close(sinkhorn(random(1, 4)), torch.full((1, 4), 0.25).double())
    torch.testing.assert_close(sinkhorn(torch.ones(3, 4)), torch.full((3, 4), 0.25))
    # A symmetric table is balanced from the start: its codes are a plain softmax.
    symmetric = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(symmetric), (symmetric / 0.05).softmax(dim=1))


def test_sinkhorn_forgets_shifts_and_follows_permutations():
    scores = random(7, 5).tanh()
    codes = sinkhorn(scores)
    torch.testing.assert_close(sinkhorn(scores + 3), codes)
    torch.testing.assert_close(sinkhorn(scores + random(5, seed=1)), codes)  # per cluster
    order, clusters = [3, 0, 6, 1, 5, 2, 4], [4, 2, 0, 1, 3]
    torch.testing.assert_close(sinkhorn(scores[order][:, clusters]), codes[order][:, clusters])


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sinkhorn_survives_a_small_epsilon(dtype, epsilon):
    scores = F.normalize(random(16, 30), dim=1).to(dtype)
    scores[:, 0] = 1.0
    scores[:, 1] = -1.0
    codes = sinkhorn(scores, epsilon=epsilon)
    assert codes.dtype == torch.float32
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(16))


def test_sinkhorn_has_no_gradient():
    assert not sinkhorn(random(4, 3).requires_grad_()).requires_grad


@pytest.mark.parametrize(
    ("scores", "settings", "message"),
    [
        ((4,), {}, r"scores must be \(B, K\)"),
        ((0, 3), {}, "not empty"),
        ((2, 3), {"epsilon": 0.0}, "epsilon must be above 0"),
        ((2, 3), {"iterations": -1}, "iterations must be 0 or more"),
    ],
)
def test_sinkhorn_names_bad_arguments(scores, settings, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(torch.ones(scores), **settings)


@SHAPES
def test_loss_equals_the_slow_loop(batch, clusters):
    image, report = random(batch, 6), random(batch, 6, seed=1)
    prototypes = random(clusters, 6, seed=2)
    loss = prototype_alignment_loss(image, report, prototypes).item()
    expected = slow_loss(image, report, prototypes)
    assert loss == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_every_setting_reaches_the_slow_loop():
    inputs = random(5, 6), random(5, 6, seed=1), random(4, 6, seed=2)
    default = slow_loss(*inputs)
    for settings in ({"temperature": 0.5}, {"epsilon": 0.3}, {"iterations": 1}):
        loss = prototype_alignment_loss(*inputs, **settings).item()
        assert loss == pytest.approx(slow_loss(*inputs, **settings), rel=1e-11)
        assert abs(loss - default) > 1e-4


@pytest.mark.parametrize("clusters", [1, 10, 500])
def test_ties_cost_the_logarithm_of_the_number_of_prototypes(clusters):
    tie = torch.ones(4, 8, dtype=torch.float64)
    loss = prototype_alignment_loss(tie, tie, torch.ones(clusters, 8).double()).item()
    assert loss == pytest.approx(math.log(clusters), rel=1e-12, abs=1e-12)


def test_loss_is_symmetric_and_ignores_order_and_norms():
    image, report, prototypes = random(7, 6), random(7, 6, seed=1), random(4, 6, seed=2)
    loss = prototype_alignment_loss(image, report, prototypes).item()
    order = [3, 0, 6, 1, 5, 2, 4]
    for other in (
        prototype_alignment_loss(report, image, prototypes),
        prototype_alignment_loss(image[order], report[order], prototypes),
        prototype_alignment_loss(image, report, prototypes[[2, 0, 3, 1]]),
        prototype_alignment_loss(3 * image, 0.1 * report, 7 * prototypes),
    ):
        assert other.item() == pytest.approx(loss, rel=1e-12)
    assert abs(prototype_alignment_loss(image[order], report, prototypes).item() - loss) > 1e-3


def test_gradient_in_double_precision():
    scores = random(4, 3), random(4, 3, seed=1)
    codes = sinkhorn(scores[0].tanh(), epsilon=0.5), sinkhorn(scores[1].tanh(), epsilon=0.5)

    def loss(image_scores, report_scores):
        return swapped_prediction_loss(image_scores, report_scores, *codes)

    assert torch.autograd.gradcheck(loss, [score.requires_grad_() for score in scores])

    inputs = [random(4, 5, seed=seed).requires_grad_() for seed in (3, 4, 5)]

    def with_constant_codes(image, report, prototypes):
        return swapped_prediction_loss(
            prototype_scores(image, prototypes),
            prototype_scores(report, prototypes),
            fixed[0],
            fixed[1],
        )

    fixed = [sinkhorn(prototype_scores(inputs[side], inputs[2])) for side in (0, 1)]
    assert torch.autograd.gradcheck(with_constant_codes, inputs)
    expected = torch.autograd.grad(with_constant_codes(*inputs), inputs)
    gradients = torch.autograd.grad(prototype_alignment_loss(*inputs), inputs)
    torch.testing.assert_close(gradients, expected, rtol=1e-12, atol=1e-14)


def test_half_precision_and_autocast_are_computed_in_single_precision():
    inputs = [random(8, 16, seed=seed).bfloat16() for seed in (0, 1, 2)]
    loss = prototype_alignment_loss(*inputs)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loss(*inputs), rel=1e-5)
    single = [tensor.float() for tensor in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prototype_alignment_loss(*single), loss)


def test_small_epsilon_and_more_prototypes_than_studies_stay_finite():
    inputs = [random(*shape).float().requires_grad_() for shape in ((3, 8), (3, 8), (500, 8))]
    loss = prototype_alignment_loss(*inputs, epsilon=1e-3)
    loss.backward()
    assert loss.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)


def test_loss_names_bad_arguments():
    with pytest.raises(ValueError, match="image and report must both be"):
        prototype_alignment_loss(torch.ones(2, 3), torch.ones(3, 3), torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"prototypes \(K, D\), got \(2, 3\) and \(4, 5\)"):
        prototype_alignment_loss(torch.ones(2, 3), torch.ones(2, 3), torch.ones(4, 5))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        prototype_alignment_loss(*[torch.ones(2, 3)] * 3, temperature=0)


# Modules


def test_prototypes_return_to_the_unit_sphere():
    prototypes = Prototypes(6, 4)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(6))
    with torch.no_grad():
        prototypes.weight.mul_(torch.arange(1.0, 7.0)[:, None])
    embeddings = torch.randn(3, 4)
    scores = prototypes(embeddings)
    prototypes.normalize_()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(prototypes(embeddings), scores)
    assert prototypes.weight.requires_grad


def test_module_normalises_while_training_only_and_equals_the_function():
    module = PrototypeAlignment(5, 6, temperature=0.3, epsilon=0.1, iterations=2)
    with torch.no_grad():
        module.prototypes.weight.mul_(3)
    image, report = random(4, 6).float(), random(4, 6, seed=1).float()
    expected = slow_loss(image, report, module.prototypes.weight, 0.3, 0.1, 2)
    assert module.eval()(image, report).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(module.prototypes.weight.norm(dim=1), torch.full((5,), 3.0))
    assert module.train()(image, report).item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(module.prototypes.weight.norm(dim=1), torch.ones(5))


def test_two_forward_passes_may_precede_one_backward_pass():
    module = PrototypeAlignment(5, 6)
    first = module(random(4, 6).float(), random(4, 6, seed=1).float())
    second = module(random(4, 6, seed=2).float(), random(4, 6, seed=3).float())
    (first + second).backward()
    assert module.prototypes.weight.grad.abs().sum() > 0


def test_queue_is_a_ring():
    queue = FeatureQueue(4, 1)
    seen = []
    for values in ([1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0, 11.0], [12.0]):
        queue.push(torch.tensor(values)[:, None])
        seen.append(sorted(queue.stored().flatten().tolist()))
    assert seen == [
        [1],
        [1, 2, 3],
        [2, 3, 4, 5],
        [8, 9, 10, 11],
        [9, 10, 11, 12],
    ]


def test_queue_travels_with_the_state_dict():
    queue, other = FeatureQueue(4, 2), FeatureQueue(4, 2)
    queue.push(torch.randn(3, 2))
    other.load_state_dict(queue.state_dict())
    more = torch.randn(2, 2)
    for each in (queue, other):
        each.push(more)
    assert torch.equal(queue.stored(), other.stored())
    assert len(other.stored()) == 4
    with pytest.raises(ValueError, match="size of at least 1"):
        FeatureQueue(0, 2)


def test_queued_features_share_the_clusters_but_not_the_loss():
    module = PrototypeAlignment(5, 6, queue_size=7)
    batches = [(random(4, 6, seed=s).float(), random(4, 6, seed=9 + s).float()) for s in range(4)]
    past = []
    for image, report in batches:
        centres = module.prototypes.weight.detach()
        window = past[-7:]
        codes, scores = [], []
        for side, embeddings in enumerate((image, report)):
            everything = torch.stack([*embeddings, *[pair[side] for pair in window]])
            table = slow_sinkhorn(slow_scores(everything.double(), centres.double()), 0.05, 3)
            codes.append(torch.tensor(table[: len(embeddings)]))
            scores.append(torch.tensor(slow_scores(embeddings.double(), centres.double())))
        log_probs = [(side / 0.2).log_softmax(dim=1) for side in scores]
        expected = -0.5 * (codes[0] * log_probs[1] + codes[1] * log_probs[0]).sum(dim=1).mean()
        assert module(image, report).item() == pytest.approx(expected.item(), rel=1e-5)
        past += list(zip(image, report, strict=True))
    alone = slow_loss(*batches[-1], module.prototypes.weight)
    assert abs(alone - expected.item()) > 1e-3


def test_evaluation_reads_the_queue_and_leaves_it_alone():
    module = PrototypeAlignment(5, 6, queue_size=8)
    image, report = random(4, 6).float(), random(4, 6, seed=1).float()
    module(image, report)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.eval()
    first, second = module(report, image), module(report, image)
    assert torch.equal(first, second)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    alone = prototype_alignment_loss(report, image, module.prototypes.weight)
    assert abs(first.item() - alone.item()) > 1e-4


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_local_groups_balance_each_share_alone(groups):
    image, report = random(6, 4), random(6, 4, seed=1)
    module = PrototypeAlignment(5, 4, distributed=False, local_groups=groups).double().eval()
    shares = zip(image.chunk(groups), report.chunk(groups), strict=True)
    expected = sum(slow_loss(own_image, own_report, module.prototypes.weight) for own_image, own_report in shares)
    assert module(image, report).item() == pytest.approx(expected / groups, rel=1e-11)


def test_local_groups_each_have_the_queue_for_company():
    image, report = random(6, 4), random(6, 4, seed=1)
    module = PrototypeAlignment(5, 4, queue_size=7, distributed=False, local_groups=2).double()
    module(random(4, 4, seed=2), random(4, 4, seed=3))
    module.eval()
    scores = {"image": module.prototypes(image), "report": module.prototypes(report)}
    codes = {}
    for name, queue in (("image", module.image_queue), ("report", module.report_queue)):
        past = module.prototypes(queue.stored())
        halves = [sinkhorn(torch.cat([own, past]))[:3] for own in scores[name].split(3)]
        codes[name] = torch.cat(halves)
    expected = swapped_prediction_loss(scores["image"], scores["report"], codes["image"], codes["report"])
    assert torch.equal(module(image, report), expected)


def test_local_groups_name_what_they_contradict():
    with pytest.raises(ValueError, match="local_groups = 2 contradicts"):
        PrototypeAlignment(5, 4, local_groups=2)
