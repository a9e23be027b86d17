"""How much a loss hangs on each head, by its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qkvc._coerce import as_array, bad, shape_text
from qkvc.analysis._given import check_layer
from qkvc.gradients import attention_backward

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from qkvc.models import LanguageModel
    from qkvc.multihead import MultiHeadAttention

    Reals = NDArray[np.float64]


def head_importance(
    attention: MultiHeadAttention,
    grad_out: ArrayLike,
    query: ArrayLike,
    key: ArrayLike | None = None,
    value: ArrayLike | None = None,
    **options: Any,
) -> NDArray[Any]:
    """How much the loss would change if a head of the layer were scaled: ``|dL/dxi_h|`` where head h is multiplied by ``xi_h = 1``.

    That is ``|sum over queries of dO_h . O_h|``, for each batch item; the paper's I_h is the mean over items.

    Parameters
    ----------
    attention : MultiHeadAttention
        Without an extra key.
    grad_out : array_like, shape (..., L, E)
        The derivative of the loss with respect to the layer's result.
    query, key, value, **options
        As of a call of it.

    Returns
    -------
    ndarray of the layer's dtype, shape (..., H)
        0 or more, in units of the loss.  0: to first order the head may go.

    Raises
    ------
    ValueError, TypeError
        As from `MultiHeadAttention.forward`; a gradient of another shape than the result's.

    References
    ----------
    Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?" (2019), equation 2.  Of a layer that is not trained any more, compare
    `ablate`, which needs no gradient and no first order.
    """
    check_layer(attention, "head_importance")
    out, trace = attention.forward(query, key, value, **options)
    grad = as_array("grad_out", grad_out, "head_importance")
    if grad.shape != out.shape:
        raise ValueError(bad("grad_out", f"shape {out.shape}, that of the result", shape_text(grad), "head_importance"))
    if grad.dtype != out.dtype:
        raise TypeError(bad("grad_out", f"{out.dtype}, as the result is", str(grad.dtype), "head_importance"))
    heads = (grad @ attention.out_weight).reshape(trace.heads.shape)
    operands = (heads, *trace.projected, trace.heads, trace.lse)
    found = attention_backward(*operands, layout="blhd", needs=("head_importance",), **trace.options).head_importance
    assert found is not None  # it was asked for
    return found


def model_importance(model: LanguageModel, ids: ArrayLike) -> Reals:
    """`head_importance` of every head of a model that learns, for the loss of its next tokens.

    What a head adds is linear in its columns of W_O, so ``dL/dxi_h = sum of W_O,h * dL/dW_O,h``: the gradient that training computes
    anyway says it, text by text.

    Parameters
    ----------
    model : LanguageModel
        Its gradients are set to zero, its weights stay.
    ids : array_like of int, shape (texts, L + 1) or (L + 1,)
        Token numbers; each is to be foretold from those before it.

    Returns
    -------
    ndarray of float64, shape (layers, H)
        The mean over texts of ``|dL/dxi_h|``, in nats a token; 0 or more.

    Raises
    ------
    ValueError, TypeError
        Ids of another shape, no text, none with two tokens, numbers that are no token's; W_O frozen.

    References
    ----------
    Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?" (2019), equation 2.
    """
    from qkvc.models import LanguageModel
    from qkvc.nn import cross_entropy

    if not isinstance(model, LanguageModel):
        raise TypeError(bad("model", "a qkvc.models.LanguageModel, which has gradients", type(model).__name__, "model_importance"))
    texts = np.atleast_2d(as_array("ids", ids, "model_importance"))
    if texts.ndim != 2 or not len(texts) or texts.shape[1] < 2:
        raise ValueError(bad("ids", "shape (texts, 2 tokens or more)", shape_text(ids), "model_importance"))
    layers = [block.attention for block in model.blocks]
    if any("out_weight" in layer.heads.frozen for layer in layers):
        raise ValueError(bad("model", "one whose W_O learns", "one that is frozen", "model_importance"))
    total = np.zeros((len(layers), layers[0].heads.num_heads))
    for text in texts:
        model.zero_grad()
        loss = cross_entropy(model.forward(text[np.newaxis, :-1]), text[np.newaxis, 1:])
        model.backward(loss.grad)
        for found, layer in zip(total, layers, strict=True):
            weight = layer.parameters()["out_weight"]
            assert weight.grad is not None  # backward has just put it there
            product = weight.value.astype(np.float64) * weight.grad
            found += np.abs(product.reshape(len(weight.value), len(found), -1).sum(axis=(0, 2)))
    model.zero_grad()
    return total / len(texts)


__all__ = ["head_importance", "model_importance"]
