"""What every layer is: it computes, it remembers what its gradient needs, and it names what it learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkvc._coerce import as_array, as_operand, bad, shape_text

Array = NDArray[Any]

evaluating: ContextVar[bool] = ContextVar("evaluating", default=False)  # inside a call of a layer, whatever forwards that runs


class Parameter:
    """An array that is learned.

    Parameters
    ----------
    value : ndarray of float32 or float64
        C-contiguous and writeable; changed in place by an optimiser.

    Attributes
    ----------
    value : ndarray
        The array itself: ``parameter.value[...] = x`` changes what is in it.
    grad : ndarray, shape and dtype of `value`, or None
        What backward passes have added up since `Layer.zero_grad`.
    frozen : bool
        If set, it takes no gradient, and so learns nothing.

    Raises
    ------
    ValueError, TypeError
        Another kind of array, a gradient of another shape or dtype: kernels take both by their addresses.
    """

    def __init__(self, value: Array) -> None:
        if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float64) or not value.dtype.isnative:
            raise TypeError(
                bad("value", "an ndarray of float32 or float64", str(getattr(value, "dtype", type(value).__name__)), "Parameter")
            )
        if not (value.flags.c_contiguous and value.flags.behaved):
            raise ValueError(bad("value", "a C-contiguous, aligned and writeable array", "another", "Parameter"))
        self._value = value
        self._grad: Array | None = None
        self.frozen = False

    @property
    def value(self) -> Array:
        """The array itself."""
        return self._value

    @property
    def grad(self) -> Array | None:
        """The sum of its gradients."""
        return self._grad

    @grad.setter
    def grad(self, grad: Array | None) -> None:
        self._grad = None if grad is None else self._own(grad)

    def add(self, grad: Array) -> None:
        """Add a gradient, which becomes the parameter's own."""
        if not self.frozen:
            own = self._own(grad)
            self._grad = own if self._grad is None else np.asarray(self._grad + own)

    def _own(self, grad: Any) -> Array:
        array = as_array("grad", grad, "Parameter")
        if array.dtype != self._value.dtype:
            raise TypeError(bad("grad", f"{self._value.dtype}, as the parameter is", str(array.dtype), "Parameter"))
        if array.shape != self._value.shape:
            raise ValueError(bad("grad", f"shape {self._value.shape}", shape_text(array), "Parameter"))
        return np.asarray(array, order="C")


class Layer:
    """A step of a model, with its own gradient.

    ``layer.forward(x)`` is training: it drops what dropout drops, and remembers what ``layer.backward(grad)`` needs, which returns the
    gradient with respect to `x` and adds those of its parameters to theirs.  ``layer(x)`` is evaluation: it computes the same, but drops
    nothing and remembers nothing, here and in every layer inside.  There is no mode to be set, and no graph: a layer of layers calls them
    one after another, and their backwards in reverse.
    """

    _kept: tuple[Any, ...] | None = None

    def forward(self, x: Any, /, *more: Any) -> Array:
        """Compute as in training, and remember."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def __call__(self, x: Any, /, *more: Any) -> Array:
        """Compute without dropout, and forget."""
        before = evaluating.set(True)
        try:
            return self.forward(x, *more)
        finally:
            evaluating.reset(before)
            self.forget()

    def parts(self) -> Iterator[tuple[str, Parameter | Layer]]:
        """Parameters and layers by the names of the attributes that hold them, or lists or tuples of them, in the order of assignment."""
        for name, part in vars(self).items():
            if isinstance(part, (Parameter, Layer)):
                yield name, part
            elif isinstance(part, (list, tuple)):
                yield from ((f"{name}.{index}", inner) for index, inner in enumerate(part) if isinstance(inner, (Parameter, Layer)))

    def parameters(self) -> dict[str, Parameter]:
        """Everything that is learned, under names such as "blocks.0.attention.q_weight"; what two layers share, under the first alone."""
        found: dict[str, Parameter] = {}
        for name, part in self.parts():
            inner = {"": part} if isinstance(part, Parameter) else part.parameters()
            found |= {f"{name}.{rest}" if rest else name: parameter for rest, parameter in inner.items()}
        firsts = {id(parameter): name for name, parameter in reversed(found.items())}  # or an optimiser would move it twice a step
        return {name: parameter for name, parameter in found.items() if firsts[id(parameter)] == name}

    def num_parameters(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.value.size for parameter in self.parameters().values())

    def zero_grad(self) -> None:
        """Begin to add gradients up anew."""
        for parameter in self.parameters().values():
            parameter.grad = None

    def forget(self) -> None:
        """Let go of what `forward` remembers."""
        self._kept = None
        for _, part in self.parts():
            if isinstance(part, Layer):
                part.forget()

    def state(self) -> dict[str, Array]:
        """Copies of all parameters, for a checkpoint."""
        return {name: parameter.value.copy() for name, parameter in self.parameters().items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the parameters from what `state` gave.

        Parameters
        ----------
        state : dict of array_like
            Every parameter's array, of its shape; converted to its dtype.

        Raises
        ------
        ValueError, TypeError
            A name too many or too few, another shape, what is no array of numbers; then no parameter has changed.
        """
        take_up({name: parameter.value for name, parameter in self.parameters().items()}, state, f"{type(self).__name__}.load")

    def _recall(self) -> tuple[Any, ...]:
        """What `forward` has kept.  It is needed once: a backward lets go of it when it has found nothing to refuse."""
        if self._kept is None:
            raise RuntimeError(f"{type(self).__name__}.backward: expected a forward before it, got none since the last backward")
        return self._kept


def take_up(arrays: Mapping[str, Array], state: Any, who: str) -> None:
    """Write a state into the arrays of the same names, whole or not at all."""
    if not isinstance(state, Mapping):
        raise TypeError(bad("state", "a dict of arrays", type(state).__name__, who))
    if wrong := sorted(arrays.keys() ^ state.keys(), key=str):
        raise ValueError(bad(f"state, {wrong[0]}", *(("an array", "none") if wrong[0] in arrays else ("none", "an array")), who))
    given = {name: as_operand(f"state, {name}", x, who) for name, x in state.items()}
    for name, array in arrays.items():
        if given[name].shape != array.shape:
            raise ValueError(bad(f"state, {name}", f"shape {array.shape}", shape_text(given[name]), who))
    for name, array in arrays.items():
        array[...] = given[name]


def as_rows(x: Array) -> Array:
    """(..., width) as (tokens, width)."""
    return x.reshape(-1, x.shape[-1])


def as_input(x: Any, width: int, dtype: np.dtype[Any], who: str, name: str = "x") -> Array:
    """An array (..., width) of the layer's own dtype."""
    array = as_array(name, x, who)
    if array.dtype != dtype:
        raise TypeError(bad(name, f"{dtype}, as the parameters are", str(array.dtype), who))
    if array.ndim == 0 or array.shape[-1] != width:
        raise ValueError(bad(name, f"shape (..., {width})", shape_text(array), who))
    return array


def as_grad(grad: Any, shape: tuple[int, ...], dtype: np.dtype[Any], who: str) -> Array:
    """The gradient of what a layer gave, C-contiguous."""
    array = as_input(grad, shape[-1], dtype, who, "grad")
    if array.shape != shape:
        raise ValueError(bad("grad", f"shape {shape}, that of the result", shape_text(array), who))
    return np.ascontiguousarray(array)
