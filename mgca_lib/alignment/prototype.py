r"""Prototype-level alignment (CPA), the third of MGCA's three terms: which disease cluster is this?

With unit-norm embeddings :math:`v_i, t_i` and prototypes :math:`c_k`, scores
:math:`z^v_{ik} = v_i \cdot c_k` (and :math:`z^t` likewise), codes
:math:`q = \mathrm{Sinkhorn}(z / \varepsilon)` without gradient and probabilities
:math:`p = \mathrm{softmax}(z / \tau)`, each modality predicts the other's code:

.. math:: L = -\frac{1}{2B} \sum_i \big[ q^v_i \cdot \log p^t_i + q^t_i \cdot \log p^v_i \big]
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mgca_lib.alignment.distributed import ProcessGroup, active_group, check_groups, gather, logsumexp_across
from mgca_lib.alignment.precision import check_positive, full_precision


@torch.no_grad()
@full_precision
def sinkhorn(
    scores: Tensor,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    group: ProcessGroup | None = None,
) -> Tensor:
    r"""Spread a batch over the prototypes: soft codes under which all clusters are equally full.

    Starts from :math:`Q \propto \exp(z / \varepsilon)` and repeats: scale each prototype to total
    :math:`1 / K`, then each sample to total :math:`1 / B`. Samples are finally scaled to sum 1. The
    work is done on logarithms, where the scaling is a subtraction and the constants cancel: nothing
    overflows or vanishes, however small epsilon is. (Upstream exponentiates; in half precision
    ``exp(1 / 0.05)`` overflows.)

    Args:
        scores: ``(B, K)`` similarities of samples and prototypes, usually in ``[-1, 1]``.
        epsilon: Positive; towards 0 the codes become one-hot, towards infinity uniform.
        iterations: At least 0; more make the clusters more equal. Upstream uses 3.
        group: Processes to share the prototypes' totals with; the ``B`` samples are then this
            process's share of a larger batch (shares need not be equal). ``None`` stays on this
            process.

    Returns:
        ``(B, K)`` codes without gradient, float32 or float64; rows sum to 1.

    Raises:
        ValueError: ``scores`` is not ``(B, K)`` or empty, or a setting is out of range.

    >>> scores = torch.tensor([[1.0, 0.9], [1.0, 0.5]])  # both samples like prototype 0 best
    >>> sinkhorn(scores, iterations=50).round().tolist()  # but it has room for one
    [[0.0, 1.0], [1.0, 0.0]]
    """
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must be (B, K) and not empty, got {tuple(scores.shape)}")
    check_positive("epsilon", epsilon)
    if iterations < 0:
        raise ValueError(f"iterations must be 0 or more, got {iterations}")
    log_plan = scores / epsilon
    for _ in range(iterations):
        log_plan = log_plan - logsumexp_across(log_plan, dim=0, group=group)
        log_plan = log_plan.log_softmax(dim=1)
    return log_plan.softmax(dim=1)


@full_precision
def prototype_scores(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine similarity of every embedding with every prototype.

    Args:
        embeddings: ``(B, D)`` of any norm.
        prototypes: ``(K, D)`` of any norm.

    Returns:
        ``(B, K)`` in ``[-1, 1]``, float32 or float64.

    Raises:
        ValueError: The shapes do not fit.

    >>> prototype_scores(torch.tensor([[3.0, 4.0]]), torch.eye(2)).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    if embeddings.ndim != 2 or prototypes.ndim != 2 or embeddings.shape[1] != prototypes.shape[1]:
        raise ValueError(
            "embeddings must be (B, D) and prototypes (K, D), "
            f"got {tuple(embeddings.shape)} and {tuple(prototypes.shape)}"
        )
    return F.normalize(embeddings, dim=-1) @ F.normalize(prototypes, dim=-1).T


@full_precision
def swapped_prediction_loss(
    image_scores: Tensor,
    report_scores: Tensor,
    image_codes: Tensor,
    report_codes: Tensor,
    *,
    temperature: float = 0.2,
) -> Tensor:
    """Cross-entropy of each modality's probabilities with the *other* modality's codes, averaged.

    Args:
        image_scores: ``(B, K)`` cosine similarities of images and prototypes.
        report_scores: ``(B, K)`` the same of reports.
        image_codes: ``(B, K)``, rows sum to 1.
        report_codes: ``(B, K)``, rows sum to 1.
        temperature: Positive softmax temperature.

    Returns:
        Scalar; ``ln K`` when all scores are equal.

    >>> scores, codes = torch.zeros(2, 4), torch.full((2, 4), 0.25)
    >>> round(swapped_prediction_loss(scores, scores, codes, codes).item(), 3)  # ln 4
    1.386
    """
    check_positive("temperature", temperature)
    report_learns = (image_codes * (report_scores / temperature).log_softmax(dim=1)).sum(dim=1)
    image_learns = (report_codes * (image_scores / temperature).log_softmax(dim=1)).sum(dim=1)
    return -0.5 * (report_learns + image_learns).mean()


def prototype_alignment_loss(
    image: Tensor,
    report: Tensor,
    prototypes: Tensor,
    *,
    temperature: float = 0.2,
    epsilon: float = 0.05,
    iterations: int = 3,
) -> Tensor:
    """Swapped prediction of cluster codes between image and report.

    Same value as upstream's, with ``log_softmax`` instead of the logarithm of a softmax. The
    gradient differs in one respect: upstream overwrites the prototypes with unit vectors and
    differentiates the plain product, while here the normalisation is part of the function, so the
    gradient has no component along a prototype.

    Args:
        image: ``(B, D)`` image embeddings of any norm; row ``i`` belongs to report ``i``.
        report: ``(B, D)`` report embeddings of any norm.
        prototypes: ``(K, D)`` cluster centres of any norm; ``K`` may exceed ``B``.
        temperature: Positive temperature of the probabilities.
        epsilon: Positive smoothing of the codes, see :func:`sinkhorn`.
        iterations: Rounds of :func:`sinkhorn`.

    Returns:
        Scalar in ``[0, inf)``, float32 or float64; ``ln K`` when every study likes all prototypes
        alike.

    Raises:
        ValueError: The shapes do not fit, the batch is empty or a setting is out of range.

    >>> tie = torch.ones(4, 8)
    >>> round(prototype_alignment_loss(tie, tie, torch.ones(10, 8)).item(), 3)  # ln 10
    2.303
    """
    _check_pair(image, report)
    image_scores = prototype_scores(image, prototypes)
    report_scores = prototype_scores(report, prototypes)
    return swapped_prediction_loss(
        image_scores,
        report_scores,
        sinkhorn(image_scores, epsilon=epsilon, iterations=iterations),
        sinkhorn(report_scores, epsilon=epsilon, iterations=iterations),
        temperature=temperature,
    )


class Prototypes(nn.Module):
    """``K`` cluster centres on the unit sphere, shared by images and reports.

    Attributes:
        weight: ``(K, D)`` parameter, float32.

    >>> scores = Prototypes(5, 8)(torch.randn(3, 8))
    >>> tuple(scores.shape)
    (3, 5)
    """

    def __init__(self, num_prototypes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_prototypes, dim))
        self.normalize_()

    @torch.no_grad()
    def normalize_(self) -> None:
        """Put every prototype back on the unit sphere, in place.

        The scores do not depend on the prototypes' norms, but Adam's step does: a vector that has
        grown long turns slowly. Upstream does this at the start of every forward pass.
        """
        # Through .data, because a second forward pass before the backward pass must not invalidate
        # the first one's graph; on rows of unit norm the change is of rounding size.
        self.weight.data.copy_(F.normalize(self.weight.data, dim=-1))

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the ``(B, K)`` cosine similarities of ``(B, D)`` embeddings and prototypes."""
        return prototype_scores(embeddings, self.weight)


class FeatureQueue(nn.Module):
    """The last ``size`` embeddings, in a ring of registered buffers that checkpoints include.

    Sinkhorn asks for equally full clusters. With 72 samples and 500 prototypes that is an extreme
    demand; past embeddings lend it a larger sample. They get codes that nobody uses, and never a
    gradient.

    Args:
        size: Number of embeddings to remember, at least 1.
        dim: Width ``D``.

    >>> queue = FeatureQueue(3, 1)
    >>> queue.push(torch.tensor([[1.0], [2.0]]))
    >>> queue.push(torch.tensor([[3.0], [4.0]]))
    >>> queue.stored().flatten().tolist()  # 4 took the place of 1
    [4.0, 2.0, 3.0]
    """

    features: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a feature queue needs a size of at least 1, got {size}")
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Store ``(B, D)`` embeddings over the oldest; of more than ``size`` only the last."""
        size, count = len(self.features), len(embeddings)
        newest = embeddings.detach()[-size:].to(self.features.dtype)
        slots = torch.arange(count - len(newest), count, device=self.features.device)
        self.features[(self.pushed + slots) % size] = newest
        self.pushed += count

    def stored(self) -> Tensor:
        """Return what has been stored so far, ``(n, D)`` with ``n <= size``."""
        return self.features[: min(int(self.pushed), len(self.features))]


class PrototypeAlignment(nn.Module):
    """Prototype alignment with its prototypes and, if wanted, a memory and company for Sinkhorn.

    While training, each call first puts the prototypes back on the unit sphere, and afterwards
    stores its embeddings in the queues; in evaluation mode nothing is changed, though the queues
    still take part.

    Args:
        num_prototypes: Number ``K`` of clusters; upstream uses 500.
        dim: Width ``D`` of the embeddings.
        temperature: See :func:`prototype_alignment_loss`.
        epsilon: See :func:`sinkhorn`.
        iterations: See :func:`sinkhorn`.
        queue_size: Embeddings remembered per modality (over all processes together); 0 is none, as
            upstream.
        distributed: Balance the clusters over the batches of all processes, as upstream intends but
            never does. The loss stays the mean over this process's samples; DDP's average over
            processes makes gradients those of the global batch (see
            :mod:`mgca_lib.alignment.distributed`).
        local_groups: Cut the batch into so many shares, one behind the other, and balance the clusters over each
            alone: what as many GPUs do that do not exchange totals. Only without ``distributed``.
    """

    def __init__(
        self,
        num_prototypes: int,
        dim: int,
        *,
        temperature: float = 0.2,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_size: int = 0,
        distributed: bool = True,
        local_groups: int = 1,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_positive("epsilon", epsilon)
        check_groups(local_groups, gathered=distributed)
        self.prototypes = Prototypes(num_prototypes, dim)
        self.temperature = temperature
        self.epsilon = epsilon
        self.iterations = iterations
        self.distributed = distributed
        self.local_groups = local_groups
        self.image_queue = FeatureQueue(queue_size, dim) if queue_size else None
        self.report_queue = FeatureQueue(queue_size, dim) if queue_size else None

    def forward(self, image: Tensor, report: Tensor) -> Tensor:
        """Return the scalar loss of ``(B, D)`` image and report embeddings of this process."""
        _check_pair(image, report)
        if self.training:
            self.prototypes.normalize_()
        image_scores, report_scores = self.prototypes(image), self.prototypes(report)
        loss = swapped_prediction_loss(
            image_scores,
            report_scores,
            self._codes(image_scores, self.image_queue),
            self._codes(report_scores, self.report_queue),
            temperature=self.temperature,
        )
        if self.training and self.image_queue is not None and self.report_queue is not None:
            self._remember(image, self.image_queue)
            self._remember(report, self.report_queue)
        return loss

    @torch.no_grad()
    def _codes(self, scores: Tensor, queue: FeatureQueue | None) -> Tensor:
        group = active_group() if self.distributed else None
        past_scores = scores[:0]
        if queue is not None:
            past = queue.stored()
            if group is not None:
                # All processes hold the same queue (DDP copies buffers from rank 0), so each brings
                # its share.
                past = past[dist.get_rank(group) :: dist.get_world_size(group)]
            past_scores = self.prototypes(past)
        codes = [
            sinkhorn(torch.cat([own, past_scores]), epsilon=self.epsilon, iterations=self.iterations, group=group)
            for own in scores.tensor_split(self.local_groups)
        ]
        return torch.cat([own_codes[: len(own_codes) - len(past_scores)] for own_codes in codes])

    def _remember(self, embeddings: Tensor, queue: FeatureQueue) -> None:
        # Gathered even where Sinkhorn is local: DDP would overwrite queues that differ between
        # processes.
        queue.push(gather(F.normalize(embeddings.to(queue.features.dtype), dim=-1)))


def _check_pair(image: Tensor, report: Tensor) -> None:
    if image.ndim != 2 or image.shape != report.shape or len(image) == 0:
        raise ValueError(
            f"image and report must both be (B, D) with B > 0, got {tuple(image.shape)} and {tuple(report.shape)}"
        )
