"""The three alignment terms of MGCA: pure functions, and modules only for state and processes.

====  =================================  ============================  ======================
term  question                           equation                      module
====  =================================  ============================  ======================
ITA   which report fits this image?      ``instance_alignment_loss``   ``InstanceAlignment``
CTA   which word looks at which patch?   ``token_alignment_loss``      ``TokenAlignment``
CPA   which disease cluster is this?     ``prototype_alignment_loss``  ``PrototypeAlignment``
====  =================================  ============================  ======================

In place of CTA, ``grounded_alignment_loss`` and ``gloria_local_loss`` (``PairwiseAlignment``) compare the words of a
report with the patches of other studies too.
"""

from mgca_lib.alignment.distributed import gather_with_gradient
from mgca_lib.alignment.instance import InstanceAlignment, instance_alignment_loss, same_text
from mgca_lib.alignment.pairwise import (
    PairwiseAlignment,
    gloria_local_loss,
    grounded_alignment_loss,
    pair_scores,
)
from mgca_lib.alignment.prototype import (
    FeatureQueue,
    PrototypeAlignment,
    Prototypes,
    prototype_alignment_loss,
    prototype_scores,
    sinkhorn,
    swapped_prediction_loss,
)
from mgca_lib.alignment.token import (
    TokenAlignment,
    TokenAlignmentParts,
    attention_maps,
    importance_weights,
    token_alignment_loss,
    token_alignment_parts,
)

__all__ = [
    "FeatureQueue",
    "InstanceAlignment",
    "PairwiseAlignment",
    "PrototypeAlignment",
    "Prototypes",
    "TokenAlignment",
    "TokenAlignmentParts",
    "attention_maps",
    "gather_with_gradient",
    "gloria_local_loss",
    "grounded_alignment_loss",
    "importance_weights",
    "instance_alignment_loss",
    "pair_scores",
    "prototype_alignment_loss",
    "prototype_scores",
    "same_text",
    "sinkhorn",
    "swapped_prediction_loss",
    "token_alignment_loss",
    "token_alignment_parts",
]
