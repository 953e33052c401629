"""GPTQ: weights are rounded one column after another, and the later ones make up for the error.

E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023.
"""

from __future__ import annotations

import numpy as np

from graphopt.compression.quantization.scheme import Array, Format, quantize, rounded

_DAMPING = 0.01
"""Of the Gram matrix's mean diagonal: keeps columns that are nearly equal apart."""
_BLOCK = 128
"""Columns whose updates of the rest are applied together."""


def gptq(weight: Array, gram: Array, scale: Array, zero: Array, form: Format) -> Array:
    """Integers for one matrix of weights.

    Args:
        weight: (rows, columns). gram: (columns, columns), see gram.py.
        scale, zero: broadcast to the weights' shape.
    """
    weight = weight.astype(np.float64).copy()
    columns = weight.shape[1]
    scale, zero = np.broadcast_to(scale, weight.shape), np.broadcast_to(zero, weight.shape)
    hessian = gram.astype(np.float64).copy()
    dead = np.diag(hessian) == 0
    hessian[dead, dead] = 1
    # Columns that matter most are rounded first, while there are others to make up for them.
    order = np.argsort(-np.diag(hessian), kind="stable")
    weight, scale, zero = weight[:, order], scale[:, order], zero[:, order]
    hessian = hessian[np.ix_(order, order)]
    hessian[np.diag_indices(columns)] += _DAMPING * np.mean(np.diag(hessian))
    inverse = np.linalg.cholesky(np.linalg.inv(hessian)).T  # upper triangular
    codes = np.empty(weight.shape, form.dtype)
    for start in range(0, columns, _BLOCK):
        end = min(start + _BLOCK, columns)
        errors = np.zeros((weight.shape[0], end - start))
        for place in range(start, end):
            value, steps, middle = weight[:, place], scale[:, place], zero[:, place]
            codes[:, place] = quantize(value, steps, middle, form)
            kept = rounded(value, steps, middle, form).astype(np.float64)
            error = (value - kept) / inverse[place, place]
            weight[:, place:end] -= np.outer(error, inverse[place, place:end])
            errors[:, place - start] = error
        weight[:, end:] -= errors @ inverse[start:end, end:]
    back = np.empty_like(order)
    back[order] = np.arange(columns)
    return codes[:, back]
