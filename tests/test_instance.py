"""Instance alignment against a slow loop, closed forms and invariances."""

import math

import pytest
import torch

from mgca_lib.alignment import InstanceAlignment, instance_alignment_loss, same_text


def slow_loop(image, report, temperature, exclude=None):
    """Both directions of InfoNCE from the equation, one scalar at a time."""
    image, report = image.double().tolist(), report.double().tolist()
    size = len(image)

    def cosine(a, b):
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return product / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    def removed(i, j):
        return exclude is not None and i != j and bool(exclude[i, j])

    total = 0.0
    for i in range(size):
        hit = math.exp(cosine(image[i], report[i]) / temperature)
        reports = sum(math.exp(cosine(image[i], report[j]) / temperature) for j in range(size) if not removed(i, j))
        images = sum(math.exp(cosine(image[j], report[i]) / temperature) for j in range(size) if not removed(j, i))
        total += -math.log(hit / reports) - math.log(hit / images)
    return total / size


def pair(batch=7, dim=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, dim, generator=generator, dtype=dtype)
    return image, torch.randn(batch, dim, generator=generator, dtype=dtype)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_equals_the_slow_loop(batch, temperature):
    image, report = pair(batch)
    expected = slow_loop(image, report, temperature)
    loss = instance_alignment_loss(image, report, temperature=temperature).item()
    assert loss == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_default_temperature_is_upstreams():
    image, report = pair()
    assert instance_alignment_loss(image, report).item() == pytest.approx(slow_loop(image, report, 0.07), rel=1e-12)


@pytest.mark.parametrize("batch", [1, 3, 72])
def test_ties_cost_twice_the_logarithm_of_the_batch(batch):
    tie = torch.ones(batch, 4, dtype=torch.float64)
    loss = instance_alignment_loss(tie, tie).item()
    assert loss == pytest.approx(2 * math.log(batch), rel=1e-14, abs=1e-14)


def test_orthogonal_pairs_have_a_closed_form():
    eye = torch.eye(5, dtype=torch.float64)
    expected = 2 * math.log(1 + 4 * math.exp(-1 / 0.07))
    assert instance_alignment_loss(eye, eye).item() == pytest.approx(expected, rel=1e-9)


def test_is_symmetric_and_ignores_order_and_norms():
    image, report = pair()
    loss = instance_alignment_loss(image, report)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    scale = torch.arange(1, 8, dtype=torch.float64)[:, None]
    for other in (
        instance_alignment_loss(report, image),
        instance_alignment_loss(image[order], report[order]),
        instance_alignment_loss(image * scale, report / scale),
    ):
        assert other.item() == pytest.approx(loss.item(), rel=1e-12)
    mismatched = instance_alignment_loss(image[order], report)
    assert abs(mismatched.item() - loss.item()) > 0.1


def test_gradient_in_double_precision():
    image, report = (tensor.requires_grad_() for tensor in pair(4))
    exclude = same_text(torch.tensor([0, 1, 0, 2]))
    assert torch.autograd.gradcheck(instance_alignment_loss, (image, report))
    assert torch.autograd.gradcheck(lambda a, b: instance_alignment_loss(a, b, exclude=exclude), (image, report))


def test_excluded_pairs_equal_the_slow_loop_and_carry_no_gradient():
    image, report = pair()
    exclude = torch.zeros(7, 7, dtype=torch.bool)
    exclude[0, 3] = exclude[5, 1] = exclude[2, 2] = True
    loss = instance_alignment_loss(image, report, exclude=exclude).item()
    assert loss == pytest.approx(slow_loop(image, report, 0.07, exclude), rel=1e-12)
    assert abs(loss - slow_loop(image, report, 0.07)) > 1e-6

    image.requires_grad_()
    everything = torch.ones(7, 7, dtype=torch.bool)
    loss = instance_alignment_loss(image, report, exclude=everything)
    loss.backward()
    assert loss.item() == 0
    assert image.grad.eq(0).all()


def test_excluding_nothing_changes_nothing():
    image, report = pair()
    nothing = torch.eye(7, dtype=torch.bool)
    assert torch.equal(
        instance_alignment_loss(image, report, exclude=nothing),
        instance_alignment_loss(image, report),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single_precision(dtype):
    image, report = (tensor.to(dtype) for tensor in pair(batch=32))
    loss = instance_alignment_loss(image, report)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loop(image, report, 0.07), rel=1e-5)


def test_autocast_does_not_reach_the_loss():
    image, report = pair(batch=32, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = instance_alignment_loss(image, report)
    assert torch.equal(loss, instance_alignment_loss(image, report))


def test_float64_stays_and_mixed_dtypes_take_the_wider():
    image, report = pair()
    assert instance_alignment_loss(image, report).dtype == torch.float64
    assert instance_alignment_loss(image.float(), report).dtype == torch.float64


@pytest.mark.parametrize(
    ("image", "report", "settings", "message"),
    [
        ((3, 4), (2, 4), {}, r"\(3, 4\) and \(2, 4\)"),
        ((3, 4, 1), (3, 4, 1), {}, r"\(B, D\)"),
        ((0, 4), (0, 4), {}, "B > 0"),
        ((3, 4), (3, 4), {"temperature": 0.0}, "temperature must be above 0"),
        ((3, 4), (3, 4), {"exclude": torch.zeros(2, 2, dtype=torch.bool)}, "exclude must be"),
    ],
)
def test_bad_arguments_are_named(image, report, settings, message):
    with pytest.raises(ValueError, match=message):
        instance_alignment_loss(torch.ones(image), torch.ones(report), **settings)


def test_arrays_are_refused_with_advice():
    with pytest.raises(TypeError, match="from_numpy"):
        instance_alignment_loss(torch.ones(2, 2).numpy(), torch.ones(2, 2).numpy())


def test_module_on_one_process_is_the_function():
    image, report = pair()
    text_id = torch.tensor([4, 9, 4, 1, 2, 9, 3])
    for gather in (True, False):
        module = InstanceAlignment(temperature=0.2, gather=gather)
        assert torch.equal(module(image, report), instance_alignment_loss(image, report, temperature=0.2))
        exclude = torch.tensor([[int(a) == int(b) for b in text_id.tolist()] for a in text_id.tolist()])
        assert module(image, report, text_id=text_id).item() == pytest.approx(
            slow_loop(image, report, 0.2, exclude), rel=1e-12
        )


@pytest.mark.parametrize(("groups", "shares"), [(1, [7]), (2, [4, 3]), (3, [3, 2, 2])])
def test_local_groups_are_so_many_lonely_processes(groups, shares):
    image, report = pair()
    module = InstanceAlignment(temperature=0.2, gather=False, local_groups=groups)
    parts = zip(image.split(shares), report.split(shares), strict=True)
    expected = sum(slow_loop(own_image, own_report, 0.2) for own_image, own_report in parts) / groups
    assert module(image, report).item() == pytest.approx(expected, rel=1e-12)


def test_equal_texts_are_masked_inside_a_local_group():
    image, report = pair()
    text_id = torch.tensor([4, 9, 4, 1, 9, 2, 3])  # the two nines fall into different shares
    module = InstanceAlignment(temperature=0.2, gather=False, local_groups=2)
    exclude = torch.zeros(4, 4)
    exclude[0, 2] = exclude[2, 0] = 1
    expected = slow_loop(image[:4], report[:4], 0.2, exclude) + slow_loop(image[4:], report[4:], 0.2)
    assert module(image, report, text_id=text_id).item() == pytest.approx(expected / 2, rel=1e-12)


def test_local_groups_name_what_they_contradict():
    with pytest.raises(ValueError, match="local_groups = 2 contradicts"):
        InstanceAlignment(local_groups=2)
    with pytest.raises(ValueError, match="local_groups must be 1 or more, got 0"):
        InstanceAlignment(gather=False, local_groups=0)
