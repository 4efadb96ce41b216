"""DeepFM. Guo et al., "DeepFM: a factorization-machine based neural network for CTR prediction", IJCAI 2017, section 2.

logit = w0 + sum_i w_i x_i + sum_{i<j} <v_i x_i, v_j x_j> + MLP([v_1, ..., v_F, numbers])

The factorization machine and the network read one embedding: both branches' gradients meet in the same rows, and no cross
is made by hand. A number takes part in the machine as its value times a vector of its own (as in `fm`); the network reads
the value itself, since a vector that is the same for all rows but for a factor tells it nothing more.
"""

from __future__ import annotations

from finerank.models.base import Tower
from finerank.models.fm import FM
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named

DEEPFM = named(
    Composition(
        name="deepfm",
        representation=Plain.Options(embedding=EmbeddingOptions(width=10)),
        interactions=(
            Linear.Options(),
            FM.Options(),
            Tower.Options(hidden=(400, 400, 400), activation="relu", dropout=0.5),
        ),
        heads=TaskHeads.Options(),
        paper="1703.04247",
    )
)
