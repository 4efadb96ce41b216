"""What can be set about a training, with defaults that are advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from finerank.data.order import Budget
from finerank.errors import UserError


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name} = {value}; accepted: a number above 0")


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam; on tables its lazy form, which moves only touched rows (`row_optim.LazyAdam`).

    betas       decay of the running means of gradient and squared gradient
    eps         added to the denominator
    correction  of tables: what the bias correction counts, all steps ("global") or a row's own ("row")
    """

    kind: ClassVar[str] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    correction: Literal["global", "row"] = "global"

    def __post_init__(self) -> None:
        _positive(lr=self.lr)
        if not (0 <= self.betas[0] < 1 and 0 <= self.betas[1] < 1 and self.eps >= 0):
            raise UserError(
                f"betas = {list(self.betas)}, eps = {self.eps}; accepted: betas in [0, 1), eps of at least 0"
            )


@dataclass(frozen=True, kw_only=True)
class FTRL:
    """FTRL-Proximal per coordinate, for tables (McMahan et al., KDD 2013, algorithm 1), by the sum of a step's rows.

    alpha   the rate of learning; .05 to .1 is usual
    beta    softens the first steps; 1 is usual
    l1, l2  penalties; above 0, l1 makes weights exactly 0
    """

    kind: ClassVar[str] = "ftrl"
    alpha: float = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        _positive(alpha=self.alpha, beta=self.beta)
        if not (self.l1 >= 0 and self.l2 >= 0):
            raise UserError(f"l1 = {self.l1}, l2 = {self.l2}; accepted: 0 or more")


@dataclass(frozen=True, kw_only=True)
class Adagrad:
    """Adagrad per coordinate, by the sum of a step's rows.

    initial_accumulator  of the sum of squared gradients; above 0 the first steps are smaller, 0 makes it blind to their scale.
                         The start of code that takes a mean over B rows (DeepMCP's: .1, 128) is here B² times as large
    """

    kind: ClassVar[str] = "adagrad"
    lr: float = 0.05
    initial_accumulator: float = 0.0

    def __post_init__(self) -> None:
        _positive(lr=self.lr)
        if not self.initial_accumulator >= 0:
            raise UserError(f"initial_accumulator = {self.initial_accumulator}; accepted: 0 or more")


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Plain gradient descent."""

    kind: ClassVar[str] = "sgd"
    lr: float = 0.1

    def __post_init__(self) -> None:
        _positive(lr=self.lr)


@dataclass(frozen=True, kw_only=True)
class MiniBatchAware:
    """DIN's regulariser of tables (section 5.1): only rows in the batch, the rarer the stronger.

    strength  lambda; the paper's .01, for batches of single rows. What a request of N rows has in common (its user, its past)
              pays 1/N as much here, for its rows come together. Search from .001 to 10: on Amazon Grocery 1 does what L2 of
              whole tables in the loss does, and .01 next to nothing (benchmarks/README.md)
    """

    kind: ClassVar[str] = "mini_batch_aware"
    strength: float = 0.01


@dataclass(frozen=True, kw_only=True)
class L2:
    """Decay of whole tables, decoupled from the optimiser, caught up when a row is next touched.

    strength  a row shrinks by the factor 1 - lr * strength at every step: by Adam at .001, .01 takes a tenth off it in 10,000
              steps, 1e-5 a ten-thousandth. Try .01 to 1. Numbers of libraries that add L2 to the loss mean much more: they
              are those of `l2_in_loss`
    """

    kind: ClassVar[str] = "l2"
    strength: float = 0.01


@dataclass(frozen=True, kw_only=True)
class L2InLoss:
    """strength / 2 times the sum of squares of whole tables, in the mean loss: to train as published settings were.

    FuxiCTR's and BARS' `embedding_regularizer`, weight_decay of PyTorch's Adam (there of all parameters). Every row's gradient
    is its own of the mean loss plus strength * w, absent rows too, and all of them are moved at every step: a pass over the
    tables and memory for their gradient. A step of Adam takes 10 ms for 1,000,000 rows of 10 on two cores, of which 60,000
    are read (6 with `l2`), one of Adagrad 60, of SGD 30. Take it for published numbers; else `mini_batch_aware` or `l2`, whose
    cost is that of the batch. First-order weights pay too, as there, but those of FTRL, which has an l2 of its own

    strength  leaderboards have 1e-9 to .1, most 1e-6 to 1e-4; Adam makes of it a pull of up to its rate at every step on rows
              that are seldom met. (Of DeepCTR's l2_reg, which has no half, take twice the number.) 0 switches it off
    """

    kind: ClassVar[str] = "l2_in_loss"
    strength: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class L2PerRow:
    """Every training row pays for what it reads: FFM's lambda (Juan et al., RecSys 2016, equation 3; libffm, libfm).

    The gradient of one training row's loss grows by strength * w for each value of tables that it reads, its request's and
    past's too, once for every place at which it stands. What many rows read pays most, what none reads nothing: the cost is
    that of the batch. First-order weights pay too, but those of FTRL, which has an l2 of its own

    strength  2e-5 in the paper, by Adagrad at .2
    """

    kind: ClassVar[str] = "l2_per_row"
    strength: float = 2e-5


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Weights of the tasks, by name; what is not named weighs 1.

    weights    times a task's loss; 0: the task is not trained, only scored
    positives  times the loss of a binary task's positives: as if each were there so many times. Scores are then odds of
               another world; order is what is left of them
    """

    kind: ClassVar[str] = "fixed"
    weights: Mapping[str, float] = field(default_factory=dict)
    positives: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, given, least in (("weights", self.weights, "0 or more"), ("positives", self.positives, "above 0")):
            for name, value in given.items():
                if not (0 <= value < float("inf")) or (value == 0 and what == "positives"):
                    raise UserError(f"{what}.{name} = {value}; accepted: a number, {least}")


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Every task learns how uncertain it is and weighs accordingly (Kendall et al., CVPR 2018). Its rate is that of `dense`.

    start  log variance at the start
    """

    kind: ClassVar[str] = "uncertainty"
    start: float = 0.0

    def __post_init__(self) -> None:
        if not -20 < self.start < 20:
            raise UserError(f"start = {self.start}; accepted: a log variance between -20 and 20, usually 0")


@dataclass(frozen=True, kw_only=True)
class GradNorm:
    """Weights that keep the tasks' gradients at the last shared layer balanced (Chen et al., ICML 2018).

    alpha  how strongly tasks that learn slowly are pulled along; 0: all gradients equally large; 1.5 for tasks that differ
    lr     of the weights, by Adam
    """

    kind: ClassVar[str] = "gradnorm"
    alpha: float = 1.5
    lr: float = 0.025

    def __post_init__(self) -> None:
        _positive(lr=self.lr)
        if not 0 <= self.alpha < float("inf"):
            raise UserError(f"alpha = {self.alpha}; accepted: 0 or more, .1 to 1.5 in the paper")


TaskWeighting = Fixed | Uncertainty | GradNorm
RowOptions = Adam | FTRL | Adagrad | SGD
DenseOptions = Adam | Adagrad | SGD
Regulariser = MiniBatchAware | L2 | L2InLoss | L2PerRow


@dataclass(frozen=True, kw_only=True)
class HotItems:
    """Positives of popular items are thinned out, so that the others are learnt too. Scores are recalibrated afterwards.

    A device of retrieval; in ranking it trades accuracy on what is popular for accuracy on the rest.

    feature    the candidate's item: a feature with one id
    threshold  t of word2vec's rule: of an item with a share f of all positives, min(1, (sqrt(f / t) + 1) t / f) are kept
               (Mikolov et al. 2013, in the form of their program)
    cap        instead: at most about so many positives of an item
    """

    feature: str
    threshold: float = 1e-3
    cap: int | None = None

    def __post_init__(self) -> None:
        _positive(threshold=self.threshold)
        if self.cap is not None and self.cap < 1:
            raise UserError(f"cap = {self.cap}; accepted: 1 positive of an item and up")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Training rows that are left out at random, by (seed, row); validation and test are always whole (`training.sampling`).

    negatives    the share of the task's negatives that is kept; .1 makes an epoch of a log with few positives ten times
                 shorter
    task         whose negatives and positives; left out: the first binary task
    correction   logit: the loss knows the share, so the model's scores need no correction anywhere · weights: a kept
                 negative weighs 1 / negatives, and a step's loss, which divides by the rows that are there, is the larger
                 the more are left out: mind the rate of SGD, clip and what penalties weigh beside it · none: scores are off
                 by log(negatives), the order of rows is not
    hot_items    thin out the positives of popular items
    recalibrate  fit a line through each head's logits on the validation rows when training is over, and keep it in the model
                 (always done with hot_items)
    """

    negatives: float = 1.0
    task: str | None = None
    correction: Literal["logit", "weights", "none"] = "logit"
    hot_items: HotItems | None = None
    recalibrate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.negatives <= 1:
            raise UserError(f"negatives = {self.negatives}; accepted: a share above 0, up to 1 (all)")


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """A training.

    epochs       at most; early stopping usually ends it sooner. Models with ids over-fit after one to three
    patience     epochs in a row without improvement that are borne; one more ends it. The best weights are restored
                 always
    monitor      the validation metric that decides: its mean over the trained heads of binary tasks (over all heads, where
                 none is trained: catalogue models); a model without any watches the RMSE of its heads, and the
                 odds_loss of those whose odds are learnt. Heads that know a position or a delay are judged with it,
                 as the log is
    batch        how large a step is
    plateau      what all learning rates are multiplied by after every epoch without improvement (FTRL's fall by themselves);
                 .1 with a patience of 1 is what public leaderboards train with; 1: rates stay
    seed         0 ... 2^63 - 1
    tables, first_order, dense   optimisers of the parameter groups; first_order: as tables unless given
    regularise   of embedding tables; of first-order weights by l2_in_loss and l2_per_row alone, and never of those of FTRL,
                 which has its own
    clip         greatest norm of the mean loss's gradient by all but tables and searched gates, which are left as they are;
                 None: no clipping
    tasks        how the tasks' losses are weighed (`training.balance`); None: all 1
    sampling     train on a part of the negatives, or of the positives of popular items
    warm_start   folder of an older run to begin with, from which everything of the same name is taken over
                 (`training.warm_start`): for logs that go on, with values come and gone. The optimisers begin anew
    evaluate_rows  candidates per batch in evaluation
    save_every   steps between checkpoints within an epoch; 0: at the end of each epoch only
    threads      of torch; None: as many as there are cores
    device       auto: CUDA where there is one. Small batches leave a GPU idle: give it 8,192 rows and more. A run is
                 repeated there but for rounding
    loops        auto: compiled loops for what PyTorch's operators do slowly on a CPU, where a C++ compiler is at hand
                 (environment.json says so); off: PyTorch's operators alone. Equal but for the last digits
    precision    of the great products in training: float32 · bf16: those of towers and of DIN's activation unit in bf16,
                 summed in float32; weights, optimisers, losses and all scoring stay float32. About half as long again as
                 fast on a processor with bf16 instructions (avx512_bf16, amx_bf16), refused on one without; no gain on
                 a GPU, where it is the towers alone
    keep_memory  ask the C library to keep freed memory for the next step instead of giving it back (faster on Linux)
    """

    epochs: int = 10
    patience: int = 1
    monitor: Literal["auc", "gauc", "logloss"] = "auc"
    plateau: float = 1.0
    batch: Budget = Budget()
    tables: RowOptions = Adam()
    first_order: RowOptions | None = None
    dense: DenseOptions = Adam()
    regularise: Regulariser | None = None
    clip: float | None = None
    tasks: TaskWeighting | None = None
    sampling: Sampling | None = None
    warm_start: str | None = None
    evaluate_rows: int = 8_192
    save_every: int = 0
    seed: int = 1
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    loops: Literal["auto", "off"] = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    keep_memory: bool = True

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("patience", 0), ("evaluate_rows", 1), ("save_every", 0), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{name}: got {value}; accepted: whole numbers of at least {least}")
        if not 0 < self.plateau <= 1:
            raise UserError(f"plateau: got {self.plateau}; accepted: a factor above 0, up to 1 (rates stay)")
        if self.seed >= 2**63:
            raise UserError(f"seed: got {self.seed}; accepted: 0 to 2^63 - 1")
        if isinstance(self.tables, FTRL) and isinstance(self.regularise, L2 | L2InLoss | L2PerRow):
            raise UserError(
                f"regularise = {self.regularise.kind} does not go with tables = ftrl, which computes weights anew from its "
                "state; use ftrl's own l2"
            )
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads: got {self.threads}; accepted: at least 1")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"clip: got {self.clip}; accepted: a norm above 0")
