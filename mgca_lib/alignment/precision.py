"""Alignment losses are computed in single precision or better, whatever the encoders run in."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with autocast off and all floating tensors in one dtype of 32 bits or more.

    A temperature of 0.07 or an epsilon of 0.05 magnifies rounding 14 to 20 times, and
    ``exp(1 / 0.05)`` overflows float16. So bfloat16 and float16 arguments become float32; float64
    stays float64, and mixed arguments take the widest dtype among them. Boolean and integer tensors
    pass through.

    >>> @full_precision
    ... def product(a, b):
    ...     return a @ b
    >>> product(torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(2, 2)).dtype
    torch.float32

    Raises:
        TypeError: When the wrapped function is called without any tensor.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not tensors:
            raise TypeError(f"{function.__name__} takes tensors; use torch.from_numpy on arrays")
        floating = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
        dtype = functools.reduce(torch.promote_types, floating, torch.float32)

        def widen(value: object) -> object:
            is_float = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if is_float else value

        with torch.autocast(device_type=tensors[0].device.type, enabled=False):
            return function(
                *(widen(value) for value in args),
                **{name: widen(value) for name, value in kwargs.items()},
            )

    return wrapper


def check_positive(name: str, value: float) -> None:
    """Raise ``ValueError`` unless ``value`` is above zero.

    >>> check_positive("temperature", 0.07)
    """
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")
