"""From a head's logit to what it predicts."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Link: TypeAlias = Literal["sigmoid", "identity", "exp", "odds"]
"""sigmoid: a probability · identity: a number · exp: a positive number · odds: see `models.composition.Head`."""

F = TypeVar("F", bound=np.floating[Any])


def predicted(link: Link, logits: NDArray[F]) -> NDArray[F]:
    """The link applied: a probability, a number, a positive number. Of the logits' shape and type."""
    match link:
        case "sigmoid":
            out: NDArray[F] = np.exp(-np.logaddexp(0.0, -logits))  # without overflow
            return out
        case "exp" | "odds":
            positive: NDArray[F] = np.exp(logits)
            return positive
        case "identity":
            return logits
