r"""Token alignment over pairs: words and patches of *different* studies are compared as well.

MGCA's token term (:mod:`mgca_lib.alignment.token`) contrasts the words of one study with each other. To win, a word
needs a context that differs from its neighbours' contexts; it need not be at the right place, and the network learns
to give every word a fixed place of its own. The two terms of this module ask another question: does this report
belong to this image? For a report with unit-norm words :math:`w_j` and an image with patches :math:`p_k`,

.. math::
    c_j = \mathrm{unit}\Big(\sum_k \alpha_{jk}\, p_k\Big), \qquad
    z = \log \sum_j \exp(\sigma\, w_j \cdot c_j)

is computed for every report with every image of the batch, and :math:`z / \tau` are the logits of a cross-entropy in
both directions, whose answer is the diagonal. A context now has to hold what only the word's own image shows. The sum
over words stands inside the logarithm, so a pair is told apart by the words that can tell; "the" and "no" may pass.

===============================  =================================================  ==========  ============
term                             attention :math:`\alpha`                           sharpness   :math:`\tau`
===============================  =================================================  ==========  ============
:func:`grounded_alignment_loss`  softmax over patches of :math:`w \cdot p / 0.1`,   5           0.1
                                 as in MGCA
:func:`gloria_local_loss`        softmax over words of :math:`w \cdot p`, times 4,  5           0.1
                                 softmax over patches
===============================  =================================================  ==========  ============

The second is the local loss of GLoRIA (Huang et al., ICCV 2021, equations 5 to 8), here on unit-norm tokens (GLoRIA
does not normalise them).
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mgca_lib.alignment.distributed import gather, gather_with_gradient
from mgca_lib.alignment.precision import check_positive, full_precision

_MASKED = -1e30


@full_precision
def pair_scores(
    words: Tensor,
    patches: Tensor,
    *,
    word_keep: Tensor,
    temperature: float = 0.1,
    sharpness: float = 5.0,
    words_compete: bool = False,
    chunk: int = 0,
) -> Tensor:
    r"""How well each report fits each image, by its words: :math:`z` of the module's equation.

    Args:
        words: ``(R, W, D)`` word embeddings of ``R`` reports, any norm; padded slots may hold anything.
        patches: ``(I, P, D)`` patch embeddings of ``I`` images, any norm.
        word_keep: ``(R, W)`` bool, True where a word is real.
        temperature: Positive, of the attention over patches.
        sharpness: Positive; large: the best word decides, small: all words count alike.
        words_compete: Take a softmax over the words of each patch first, as GLoRIA does.
        chunk: Reports at a time, recomputed in the backward pass, so that memory holds ``I * P`` numbers for each of
            their words; 0: all at once.

    Returns:
        ``(R, I)`` float32 or float64; a report without any real word scores 0 everywhere.

    Raises:
        ValueError: The shapes do not fit, or a setting is not positive.

    >>> scores = pair_scores(torch.eye(2).view(2, 1, 2), torch.eye(2).view(2, 1, 2), word_keep=torch.ones(2, 1) > 0)
    >>> scores  # five times the cosine of word and patch
    tensor([[5., 0.],
            [0., 5.]])
    """
    shapes = f"got words {tuple(words.shape)}, patches {tuple(patches.shape)} and word_keep {tuple(word_keep.shape)}"
    if words.ndim != 3 or patches.ndim != 3 or words.shape[2] != patches.shape[2] or word_keep.shape != words.shape[:2]:
        raise ValueError(f"words must be (R, W, D), patches (I, P, D) and word_keep (R, W), {shapes}")
    if 0 in words.shape or 0 in patches.shape:
        raise ValueError(f"words and patches must not be empty, {shapes}")
    check_positive("temperature", temperature)
    check_positive("sharpness", sharpness)
    if chunk < 0:
        raise ValueError(f"chunk must not be negative, got {chunk}")
    keep = word_keep.bool()
    words = F.normalize(words.masked_fill(~keep.unsqueeze(-1), 0.0), dim=-1)
    patches = F.normalize(patches, dim=-1)
    score = partial(_scores, temperature=temperature, sharpness=sharpness, words_compete=words_compete)
    if not chunk or chunk >= len(words):
        return score(words, keep, patches)
    parts = zip(words.split(chunk), keep.split(chunk), strict=True)
    return torch.cat([checkpoint(score, part, kept, patches, use_reentrant=False) for part, kept in parts])


def grounded_alignment_loss(
    words: Tensor,
    patches: Tensor,
    *,
    word_keep: Tensor,
    temperature: float = 0.1,
    sharpness: float = 5.0,
    chunk: int = 0,
    across_processes: bool = False,
) -> Tensor:
    """MGCA's attention and contexts, contrasted over the pairs of the batch (``cta_grounded``).

    The smallest change to CTA that makes its words point: the same two products, another set of negatives and one
    logarithm of a sum over words. Word and patch weights drop out.

    Args:
        words: ``(B, W, D)`` word embeddings of any norm; row ``i`` belongs to row ``i`` of ``patches``.
        patches: ``(B, P, D)`` patch embeddings of any norm.
        word_keep: ``(B, W)`` bool, True where a word is real.
        temperature: Positive, of the attention and of the contrast alike, as in CTA.
        sharpness: See :func:`pair_scores`.
        chunk: See :func:`pair_scores`.
        across_processes: Contrast the pairs of all processes, see :class:`PairwiseAlignment`.

    Returns:
        Scalar in ``[0, inf)``: both directions added; ``2 ln B`` for a network that knows nothing.

    Raises:
        ValueError: As :func:`pair_scores`, or the batch sizes differ.

    >>> words = torch.ones(4, 3, 8)
    >>> loss = grounded_alignment_loss(words, torch.ones(4, 9, 8), word_keep=torch.ones(4, 3, dtype=torch.bool))
    >>> round(loss.item(), 3)  # 2 ln 4
    2.773
    """
    scores, has_words = _square_scores(
        words,
        patches,
        word_keep,
        temperature=temperature,
        sharpness=sharpness,
        words_compete=False,
        chunk=chunk,
        across_processes=across_processes,
    )
    return _both_directions(scores / temperature, has_words)


def gloria_local_loss(
    words: Tensor,
    patches: Tensor,
    *,
    word_keep: Tensor,
    attention_sharpness: float = 4.0,
    word_sharpness: float = 5.0,
    pair_sharpness: float = 10.0,
    chunk: int = 0,
    across_processes: bool = False,
) -> Tensor:
    """GLoRIA's local loss (equations 5 to 8 of its paper) on unit-norm words and patches.

    Differs from GLoRIA: its tokens are not normalised before the attention, and [CLS] counts as a word there.

    Args:
        words: ``(B, W, D)``; row ``i`` belongs to row ``i`` of ``patches``.
        patches: ``(B, P, D)``.
        word_keep: ``(B, W)`` bool, True where a word is real.
        attention_sharpness: ``T1``, times the attention over words before the softmax over patches.
        word_sharpness: ``T2``, inside the sum over words.
        pair_sharpness: ``T3``, of the contrast over pairs.
        chunk: See :func:`pair_scores`.
        across_processes: Contrast the pairs of all processes, see :class:`PairwiseAlignment`.

    Returns:
        Scalar in ``[0, inf)``: both directions added.

    Raises:
        ValueError: As :func:`pair_scores`, or the batch sizes differ.
    """
    check_positive("attention_sharpness", attention_sharpness)
    check_positive("pair_sharpness", pair_sharpness)
    scores, has_words = _square_scores(
        words,
        patches,
        word_keep,
        temperature=1 / attention_sharpness,
        sharpness=word_sharpness,
        words_compete=True,
        chunk=chunk,
        across_processes=across_processes,
    )
    return _both_directions(scores * pair_sharpness, has_words)


class PairwiseAlignment(nn.Module):
    """A pairwise token term with the call of :class:`mgca_lib.alignment.token.TokenAlignment`; it holds no state.

    Words that are to take no part, such as those of denials (``skip_denied_words`` in the configuration), are left out
    of ``word_keep``; a report of such words alone asks no question.

    Args:
        form: ``"cta_grounded"`` or ``"gloria"``.
        temperature: Of ``"cta_grounded"``.
        chunk: See :func:`pair_scores`.
        gather: Contrast the pairs of all processes: each one holds its own reports against the images of all, and their
            scores are put together; time and memory of a process grow with the number of images. Every process then
            returns the same loss, and DDP's averaged gradients equal those of one process (see
            :mod:`mgca_lib.alignment.distributed`). GLoRIA's own code contrasts within a GPU.
    """

    def __init__(self, form: str, *, temperature: float = 0.1, chunk: int = 0, gather: bool = True) -> None:
        super().__init__()
        if form == "cta_grounded":
            self.loss = partial(grounded_alignment_loss, temperature=temperature)
        elif form == "gloria":
            self.loss = gloria_local_loss
        else:
            raise ValueError(f"form must be 'cta_grounded' or 'gloria', got {form!r}")
        self.chunk = chunk
        self.gather = gather

    def forward(
        self,
        words: Tensor,
        patches: Tensor,
        *,
        word_keep: Tensor,
        word_weight: Tensor | None = None,
        patch_weight: Tensor | None = None,
    ) -> Tensor:
        """Return the scalar loss; the weights of the tokens have no say in it."""
        return self.loss(words, patches, word_keep=word_keep, chunk=self.chunk, across_processes=self.gather)


def _scores(
    words: Tensor, keep: Tensor, patches: Tensor, *, temperature: float, sharpness: float, words_compete: bool
) -> Tensor:
    own = words[keep]  # (N, D): all real words in a row, since padding would cost as much as they do
    cosine = torch.einsum("nd,ipd->inp", own, patches)
    logits = _shares_of_words(cosine, keep) if words_compete else cosine
    attention = (logits / temperature).softmax(dim=2)
    # The context is a mean of patches, so its product with the word, and its norm, follow from products that are
    # there already; writing the contexts out would need D numbers for every word of every pair.
    gram = patches @ patches.transpose(1, 2)
    square = ((attention @ gram) * attention).sum(dim=2)
    fit = (attention * cosine).sum(dim=2) * torch.rsqrt(square.clamp(min=1e-12))
    padded = fit.new_full((len(patches), *keep.shape), _MASKED)
    padded[:, keep] = sharpness * fit
    return padded.logsumexp(dim=2).T.masked_fill(~keep.any(dim=1)[:, None], 0.0)


def _shares_of_words(cosine: Tensor, keep: Tensor) -> Tensor:
    """Softmax over the words of each report, for every patch: ``(I, N, P)`` to ``(I, N, P)``."""
    report_of = keep.nonzero()[:, 0]
    share = cosine.exp()  # cosines are small numbers: no maximum has to come off first
    total = share.new_zeros(len(cosine), len(keep), cosine.shape[2]).index_add(1, report_of, share)
    return share / total.index_select(1, report_of)


def _square_scores(
    words: Tensor, patches: Tensor, word_keep: Tensor, *, across_processes: bool, **settings: object
) -> tuple[Tensor, Tensor]:
    """Scores of each report with each image, and which reports have words; of this process or of all."""
    if len(words) != len(patches):
        raise ValueError(f"{len(words)} reports for {len(patches)} images")
    has_words = word_keep.bool().any(dim=1)
    if not across_processes:
        return pair_scores(words, patches, word_keep=word_keep, **settings), has_words
    # Patches travel and words stay, so that each pair is compared once, by the process that has the report.
    scores = pair_scores(words, gather_with_gradient(patches), word_keep=word_keep, **settings)
    return gather_with_gradient(scores), gather(has_words.to(torch.uint8)).bool()


def _both_directions(logits: Tensor, has_words: Tensor) -> Tensor:
    """Cross-entropies of rows and columns, means over the studies that have words."""
    answer = torch.arange(len(logits), device=logits.device).masked_fill(~has_words, -100)
    rows = F.cross_entropy(logits, answer, reduction="sum")
    columns = F.cross_entropy(logits.T, answer, reduction="sum")
    return (rows + columns) / has_words.sum().clamp(min=1)
