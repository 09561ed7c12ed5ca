"""Instance-level alignment (ITA), the first of MGCA's three terms: which report fits this image?"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgca_lib.alignment.distributed import check_groups, gather, gather_with_gradient
from mgca_lib.alignment.precision import check_positive, full_precision


@full_precision
def instance_alignment_loss(
    image: Tensor, report: Tensor, *, temperature: float = 0.07, exclude: Tensor | None = None
) -> Tensor:
    r"""Symmetric InfoNCE that matches each study to its own report.

    With unit-norm :math:`v_i, t_j` and :math:`s_{ij} = v_i \cdot t_j / \tau`,

    .. math:: L = -\frac1B \sum_i \log\frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}
                  -\frac1B \sum_i \log\frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}}

    Args:
        image: ``(B, D)`` image embeddings of any norm; row ``i`` belongs to report ``i``.
        report: ``(B, D)`` report embeddings of any norm.
        temperature: Positive softmax temperature; upstream default 0.07.
        exclude: ``(B, B)`` bool, True where report ``j`` must not serve as a negative of image
            ``i``, for instance because both texts are equal (see :func:`same_text`). The diagonal
            is ignored.

    Returns:
        Scalar in ``[0, inf)``, float32 or float64: both directions *added*, as upstream MGCA does
        (CLIP averages them). A network that knows nothing scores ``2 ln B``.

    Raises:
        ValueError: The shapes do not fit, the batch is empty or the temperature is not positive.

    >>> tie = torch.ones(4, 8)  # every pair ties, so the loss is 2 * ln(4)
    >>> round(instance_alignment_loss(tie, tie).item(), 3)
    2.773
    >>> everything = torch.ones(4, 4, dtype=torch.bool)  # no negatives are left
    >>> instance_alignment_loss(tie, tie, exclude=everything).item()
    0.0
    """
    if image.ndim != 2 or image.shape != report.shape or len(image) == 0:
        raise ValueError(
            f"image and report must both be (B, D) with B > 0, got {tuple(image.shape)} and {tuple(report.shape)}"
        )
    check_positive("temperature", temperature)
    logits = F.normalize(image, dim=-1) @ F.normalize(report, dim=-1).T / temperature
    if exclude is not None:
        if exclude.shape != logits.shape:
            raise ValueError(f"exclude must be {tuple(logits.shape)}, got {tuple(exclude.shape)}")
        negatives = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(exclude.bool() & negatives, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


def same_text(text_id: Tensor) -> Tensor:
    """Mark pairs of studies whose reports read alike; for ``exclude`` of the instance loss.

    Two views of one study, and the many reports that say only "no acute process", are false
    negatives: the loss pushes an image away from a text that fits it. Upstream leaves them in.

    Args:
        text_id: ``(B,)`` integers, equal where the cleaned report texts are equal.

    Returns:
        ``(B, B)`` bool, True where the texts are equal (the diagonal always is).

    >>> same_text(torch.tensor([7, 3, 7])).int().tolist()
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    return text_id[:, None] == text_id[None, :]


class InstanceAlignment(nn.Module):
    """Instance alignment over the batch of this process or, with ``gather``, of all processes.

    Args:
        temperature: See :func:`instance_alignment_loss`.
        gather: Take negatives from all processes. Every process then returns the same loss over the
            global batch, and DDP's averaged gradients equal those of one process (see
            :mod:`mgca_lib.alignment.distributed`). Upstream does not gather.
        local_groups: Cut the batch into so many shares, one behind the other, each with negatives of its own, and
            return the mean of their losses: what as many GPUs do that do not gather. Only without ``gather``.
    """

    def __init__(self, *, temperature: float = 0.07, gather: bool = True, local_groups: int = 1) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_groups(local_groups, gathered=gather)
        self.temperature = temperature
        self.gather = gather
        self.local_groups = local_groups

    def forward(self, image: Tensor, report: Tensor, *, text_id: Tensor | None = None) -> Tensor:
        """Return the scalar loss.

        Args:
            image: ``(B, D)`` embeddings of this process.
            report: ``(B, D)`` embeddings of this process.
            text_id: ``(B,)`` int64; equal texts are then no negatives of each other. Give it on
                every process or on none.
        """
        if self.gather:
            image, report = gather_with_gradient(image), gather_with_gradient(report)
            text_id = None if text_id is None else gather(text_id)
        if self.local_groups == 1:
            return self._loss(image, report, text_id)
        shares = torch.arange(len(image), device=image.device).tensor_split(self.local_groups)
        losses = [self._loss(image[own], report[own], None if text_id is None else text_id[own]) for own in shares]
        return torch.stack(losses).mean()

    def _loss(self, image: Tensor, report: Tensor, text_id: Tensor | None) -> Tensor:
        exclude = None if text_id is None else same_text(text_id)
        return instance_alignment_loss(image, report, temperature=self.temperature, exclude=exclude)
