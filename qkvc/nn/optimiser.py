"""AdamW, and how fast it may go."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, isfinite, pi, sqrt

import numpy as np

from qkvc._coerce import as_above_zero, as_count, as_finite, bad
from qkvc._passes import adamw, square_sum
from qkvc.nn.layer import Array, Parameter, take_up

WHO = "AdamW"


class AdamW:
    """Adam with decoupled weight decay (Kingma & Ba, 2015; Loshchilov & Hutter, 2019), and a limit for the gradient's length.

    Parameters
    ----------
    parameters : dict of Parameter
        As of `Layer.parameters`.
    lr : float, default 3e-4
        How far a step goes.
    betas : pair of float, default (0.9, 0.95)
        How much of the means of the gradient and of its square stays.
    eps : float, default 1e-8
        Added to the root of the mean square.
    weight_decay : float, default 0.1
        Of arrays of two axes or more; norms and biases do not decay.
    clip : float, optional
        The gradient of all parameters together is shortened to this length (Pascanu, Mikolov & Bengio, 2013).

    Attributes
    ----------
    steps : int
        How many have been made.

    Raises
    ------
    ValueError, TypeError
        Numbers that make no sense; the message names the argument, what came and what was wanted.

    Notes
    -----
    With g the shortened gradient, t the step, m and v zero to begin with, and lr of this step::

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        w = (1 - lr weight_decay) w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    in one pass over the four arrays; torch.optim.AdamW with the same numbers goes the same way.  The length is summed in order, in float64
    from 1024 numbers on, so no number of threads changes a bit.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        *,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        clip: float | None = None,
    ) -> None:
        if not isinstance(parameters, Mapping) or not all(isinstance(p, Parameter) for p in parameters.values()):
            raise TypeError(bad("parameters", "a dict of Parameter, as Layer.parameters gives it", type(parameters).__name__, WHO))
        self.parameters = dict(parameters)
        self.lr, self.eps = as_above_zero("lr", lr, WHO), as_above_zero("eps", eps, WHO)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(bad("betas", "a pair of numbers", repr(betas)[:40], WHO))
        first, second = (as_finite("betas", beta, WHO) for beta in betas)
        if not (0 <= first < 1 and 0 <= second < 1):
            raise ValueError(bad("betas", "two numbers from 0 to below 1", str(betas), WHO))
        self.betas, self.weight_decay = (first, second), as_finite("weight_decay", weight_decay, WHO)
        if self.weight_decay < 0:
            raise ValueError(bad("weight_decay", "a number of 0 or more", str(weight_decay), WHO))
        self.clip = None if clip is None else as_above_zero("clip", clip, WHO)
        self.steps = 0
        self._means = {name: (np.zeros_like(p.value), np.zeros_like(p.value)) for name, p in self.parameters.items()}

    def step(self, lr: float | None = None) -> float:
        """Move the parameters that have a gradient.

        Parameters
        ----------
        lr : float, optional
            For this step.

        Returns
        -------
        float
            How long the gradient was.

        Raises
        ------
        FloatingPointError
            A gradient with numbers that are not finite; then nothing has moved.
        """
        lr = self.lr if lr is None else as_above_zero("lr", lr, WHO)
        moving = {name: (p, p.grad) for name, p in self.parameters.items() if p.grad is not None and not p.frozen}
        squares = {name: square_sum(grad) for name, (_, grad) in moving.items()}
        length = sqrt(sum(squares.values()))
        if not isfinite(length):
            worst = next((name for name, square in squares.items() if not isfinite(square)), "all together")
            raise FloatingPointError(bad(f"gradient of {worst}", "finite numbers", "others, or too large ones", WHO))
        self.steps += 1
        correction = [1 - beta**self.steps for beta in self.betas]
        clip = 1.0 if self.clip is None or length <= self.clip else self.clip / length
        for name, (parameter, grad) in moving.items():
            keep = 1 - lr * self.weight_decay if parameter.value.ndim > 1 else 1.0
            root = 1 / sqrt(correction[1])
            adamw(grad, parameter.value, *self._means[name], clip, *self.betas, lr / correction[0], root, self.eps, keep)
        return length

    def state(self) -> dict[str, Array]:
        """Copies of the means, "first.<parameter>" and "second.<parameter>"; `steps` belongs to them."""
        return {f"{kind}.{name}": mean.copy() for name, means in self._means.items() for kind, mean in zip(KINDS, means, strict=True)}

    def load(self, state: Mapping[str, Array], steps: int) -> None:
        """Take up what `state` and `steps` were; ValueError or TypeError where they do not fit, and then nothing has changed."""
        steps = 0 if steps == 0 else as_count("steps", steps, WHO)
        own = {f"{kind}.{name}": mean for name, means in self._means.items() for kind, mean in zip(KINDS, means, strict=True)}
        take_up(own, state, WHO)
        self.steps = steps


KINDS = ("first", "second")


def warmed_cosine(step: int, steps: int, *, lr: float, warmup: int = 0, floor: float = 0.1) -> float:
    """The learning rate of a step, the first being 0: up to `lr` in a straight line, then down to ``floor * lr`` along a cosine.

    Parameters
    ----------
    step, steps : int
        Which one, of how many.
    lr : float
        The highest.
    warmup : int, default 0
        How many steps go up.
    floor : float, default 0.1
        The share of `lr` that is left at the end (Loshchilov & Hutter, 2017).

    Returns
    -------
    float
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lr * (floor + (1 - floor) * (1 + cos(pi * share)) / 2)
