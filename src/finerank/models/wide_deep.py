"""Wide & Deep. Cheng et al., "Wide & deep learning for recommender systems", DLRS 2016, section 3.

logit = w·[x, phi(x)] + MLP(embeddings of x) + b, the two branches trained jointly: one loss, whose gradient reaches both.
The wide branch sums a weight per id and per cross (`kind = "cross"` in the schema: phi); the deep branch embeds every field
but the crosses and reads the numbers. In the paper each branch has an optimiser of its own, which a recipe gives by group:

    [training]
    first_order = {kind = "ftrl", alpha = 0.1, l1 = 1.0}               # the wide branch: FTRL-Proximal with L1
    tables = {kind = "adagrad", lr = 0.05, initial_accumulator = 0.1}  # the deep branch: its embeddings ...
    dense = {kind = "adagrad", lr = 0.05, initial_accumulator = 0.1}   # ... and its layers

Both read the sum of a step's rows, which such settings are meant for (`training.row_optim`). Numbers are not in the wide
branch: it then has no weight that is not a row of FTRL's. The paper cuts numbers into their quantiles (`kind = "bucketed"`),
which makes ids of them.
"""

from __future__ import annotations

from finerank.models.base import Tower
from finerank.models.lr import Linear
from finerank.models.plain import EmbeddingOptions, Plain, TaskHeads
from finerank.models.registry import Composition, named

WIDE_DEEP = named(
    Composition(
        name="wide_deep",
        representation=Plain.Options(embedding=EmbeddingOptions(width=32), crosses=False),
        interactions=(Linear.Options(numbers=False), Tower.Options(hidden=(1024, 512, 256), activation="relu")),
        heads=TaskHeads.Options(),
        paper="1606.07792",
    )
)
