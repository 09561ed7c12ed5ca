"""Lets torchvision be imported where its compiled operators were built for another build of torch.

A CPU build of torch beside the package index's torchvision (compiled against CUDA) is a common pair on laptops.
torchvision then fails at import with ``operator torchvision::nms does not exist``, and timm, which imports it,
fails too. Nothing in this package calls the compiled operators, so declaring those whose absence stops the
import is enough. Where the pair matches, nothing is changed.

Modules that use timm, torchvision or models of transformers import this one first.
"""

import importlib

import torch

# The operators that torchvision registers shape functions for at import, without asking whether they exist.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_DECLARED: list[torch.library.Library] = []  # a Library takes its operators with it when it is collected


def import_torchvision() -> None:
    """Import torchvision, declaring its operators first where the compiled extension is unusable.

    Raises:
        RuntimeError: torchvision fails for any other reason; the error is torchvision's own.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _DECLARED.append(library)
        importlib.import_module("torchvision")


import_torchvision()
