"""One way to compute a problem, and what the rivals need to put a problem in their own terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from .cases import BYTES
from .problems import CannotExpress, Floats, Problem

P = ParamSpec("P")
Setting = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Form:
    """One way to compute a problem."""

    name: str
    call: Callable[[], Any]
    result: Callable[[Any], NDArray[Any]] = np.asarray  # what `call` returned, as (B, H, L, D)
    setting: Setting = nullcontext  # entered around the calls, outside the time measured


Rival = Callable[[Any, int], Iterator[Form]]  # the problem is of the kind that it competes in


def room_for_scores(problem: Problem) -> bool:
    """Whether all L_q×L_k scores fit into memory three times over: as scores, masked or shifted, and as weights."""
    c = problem.case
    try:
        free = int(import_module("psutil").virtual_memory().available)
    except ModuleNotFoundError:
        free = 4 << 30
    return 3 * BYTES[c.dtype] * c.batch * c.heads * c.queries * c.keys <= free


def reported(build: Callable[P, Form]) -> Callable[P, Form]:
    """A form that cannot be built becomes one whose call says why, so that those after it still get their chance."""

    @wraps(build)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Form:
        try:
            return build(*args, **kwargs)
        except Exception as error:  # anything a framework's compiler may raise
            return Form(str(args[0]), partial(_refuse, error))

    return wrapper


def _refuse(error: Exception) -> None:
    raise error


def native_causal(problem: Problem) -> bool:
    """Whether the frameworks' `is_causal`, whose diagonal starts top-left, says all there is to say."""
    c = problem.case
    return bool(c.causal) and c.diagonal == 0 and not c.mask and not c.window


def additive_mask(problem: Problem, causal_too: bool = False) -> Floats | None:
    """Biases and masks as one float array to add; None where there is nothing to say, or nothing that `is_causal` does not say."""
    c = problem.case
    if c.sees_all or (native_causal(problem) and not causal_too):
        return None
    if not c.causal and not c.window and problem.mask is None:
        return problem.bias
    bias = np.zeros((), c.dtype) if problem.bias is None else problem.bias
    return np.where(problem.allowed, bias, -np.inf).astype(c.dtype, copy=False)


def without(problem: Problem, *options: str) -> None:
    """Refuse what the rival does not know.

    Raises
    ------
    CannotExpress
        The case has one of these options.
    """
    if problem.case.option in options:
        raise CannotExpress(f"it has no {problem.case.option}")


def stacked_heads(problem: Problem) -> tuple[tuple[int, int, int, int], Floats | None] | None:
    """Shape of the query with the heads of a group stacked into its length, and the mask for it; None where that is wrong or of no use.

    It makes a group read its keys once.  With an explicit mask it is offered for few queries only: the causal half that it makes a kernel
    compute costs more than it saves when there are many.
    """
    c = problem.case
    shape = (c.batch, c.kv_heads, c.group * c.queries, c.dim)
    if c.group == 1:
        return None
    if c.sees_all:
        return shape, None
    extra = additive_mask(problem)
    if extra is None or extra.shape[1] > 1 or c.queries > 64:
        return None
    rows = np.broadcast_to(extra, (*extra.shape[:2], c.queries, c.keys))
    return shape, np.tile(rows, (1, 1, c.group, 1))


def flat_heads(x: NDArray[Any]) -> NDArray[Any]:
    """(B, H, L, D) as contiguous (B, L, H·D); no copy if it lies so already."""
    return np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape[0], x.shape[2], -1)
