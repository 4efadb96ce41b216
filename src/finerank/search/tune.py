"""Search for the settings of a recipe: Optuna asks, a training answers with its validation metric.

    study.db      every trial so far (SQLite): go on with the same folder, or look at it with Optuna's own tools
    best.toml     the recipe with the best settings, ready for `finerank train`
    tune.md       the trials as a table;  tune.json the same
    trials/0007/  recipe.toml and curve.csv of each; no checkpoints, no scores

Only the training and the validation part are read. A trial is judged after every epoch by the metric that early stopping
watches, and ends early when it is worse than half of the trials before it were by then. Settings that were trained before are
not trained again: their score stands. A trial that was killed is begun again with the same settings. What Optuna proposes is a
function of the seed and of the finished trials, so a search that was stopped and went on equals one that was not.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finerank.alone import alone
from finerank.data.dataset import Dataset
from finerank.errors import UserError
from finerank.evaluation.document import write_json, write_whole
from finerank.recipe import Recipe
from finerank.run import prepared
from finerank.search.runs import own
from finerank.search.space import Choices, Range, Space, changed, current, read_space
from finerank.training.loop import Epoch, Progress
from finerank.training.stages import after_stages
from finerank.typed import apply_overrides, plain, read_toml

if TYPE_CHECKING:
    import optuna

STARTUP = 5
"""Trials at random before anything is learnt from trials, or ended early by comparison with them."""
NAME = "finerank"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One trial. state: complete, pruned (ended early), or refused (with the reason); score: larger is better."""

    number: int
    state: str
    values: Mapping[str, Any]
    score: float = math.nan
    epochs: int = 0
    seconds: float = math.nan
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """All trials so far, the number of the best (-1: none is complete), and what was searched."""

    monitor: str
    space: Mapping[str, Any]
    trials: tuple[Trial, ...]
    best: int


def tune(
    path: Path,
    folder: Path,
    trials: int | None = None,
    minutes: float | None = None,
    *,
    space: Path | None = None,
    overrides: Iterable[str] = (),
    prune: bool = True,
    tell: Callable[[str], None] = lambda line: None,
) -> Tuned:
    """Search, or go on searching.

    trials    how many there shall be in the folder, earlier ones included; minutes: begin no trial after so many. Whichever
              comes first; neither: 20 trials. A space of which nothing is left untried ends the search too
    space     a TOML file of what to search; None: the recipe's [tune], or what is usual (`search.space.default_space`)
    Raises UserError for a space that is none (see `search.space`), for a folder of another search, and while another
    process searches there.
    """
    _optuna()
    if trials is None and minutes is None:
        trials = 20
    table = apply_overrides(read_toml(path), overrides)
    recipe = Recipe.parse(table, path.parent, str(path))
    if recipe.training.warm_start is not None:
        raise UserError(
            "training.warm_start: a search begins every trial anew; leave it out, and give it to the best recipe"
        )
    searched = read_space(table, recipe, space)
    own(folder, "tune")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        return _search(recipe, searched, folder, trials, minutes, prune, tell)


def _search(
    recipe: Recipe,
    searched: Space,
    folder: Path,
    trials: int | None,
    minutes: float | None,
    prune: bool,
    tell: Callable[[str], None],
) -> Tuned:
    optuna = _optuna()
    _same_search(folder, recipe, searched)
    data = prepared(recipe, folder / "data")
    if not len(data.requests_of("validation")):
        raise UserError("tune: no validation rows, and they alone choose; set data.split.validation above 0")
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / 'study.db').resolve()}",
        study_name=NAME,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP) if prune else optuna.pruners.NopPruner(),
    )
    _take_up(study, recipe, searched)
    started = time.monotonic()
    while (trials is None or _done(study) < trials) and (minutes is None or time.monotonic() - started <= 60 * minutes):
        if _tried(study) >= math.prod(entry.size for entry in searched.values()):
            tell("every setting of the space has been tried")
            break
        study.sampler = optuna.samplers.TPESampler(
            seed=_seed(recipe.training.seed, _done(study)),
            n_startup_trials=STARTUP,
        )
        trial = study.ask()
        _one(study, trial, recipe, searched, data, folder / "trials" / f"{trial.number:04d}", tell)
        found = _written(study, recipe, searched, folder)
        tell(line(found.trials[-1], found))
    return _written(study, recipe, searched, folder)


def _one(
    study: optuna.Study,
    trial: optuna.Trial,
    recipe: Recipe,
    space: Space,
    data: Dataset,
    at: Path,
    tell: Callable[[str], None],
) -> None:
    """Train with the settings that the trial asks for, and tell the study what came of it."""
    optuna = _optuna()
    values = {key: _suggested(trial, key, entry) for key, entry in space.items()}
    trial.set_user_attr("values", values)
    if (before := _trained(study, values)) is not None:
        trial.set_user_attr("epochs", before.user_attrs["epochs"])
        tell(f"trial {trial.number}: the settings of trial {before.number}, so its score")
        study.tell(trial, before.value)
        return
    started = time.perf_counter()
    try:
        mine = changed(recipe, values)
        at.mkdir(parents=True, exist_ok=True)
        (at / "recipe.toml").write_text(mine.toml(), encoding="utf-8")
        judge = _Judge(trial, at / "curve.csv", tell)
        history = after_stages(mine.model, data, mine.training, progress=judge).fit()
    except optuna.TrialPruned:
        trial.set_user_attr("seconds", time.perf_counter() - started)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    except UserError as error:
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        trial.set_user_attr("seconds", time.perf_counter() - started)
        study.tell(trial, max(e.score for e in history))


class _Judge(Progress):
    """Reports every epoch to the study, which may end the trial; keeps the curve, and tells what stages note."""

    def __init__(self, trial: optuna.Trial, curve: Path, tell: Callable[[str], None]) -> None:
        self.trial, self.curve, self.tell = trial, curve, tell
        self.best, self.within = -math.inf, ""

    def stage(self, name: str) -> None:
        """See `Progress`."""
        self.within = name

    def note(self, text: str) -> None:
        """See `Progress`."""
        self.tell(f"trial {self.trial.number}: {text}")

    def validated(self, epoch: Epoch) -> None:
        """Raises TrialPruned for what is not worth going on with. Stages before the model's own training are not judged."""
        if self.within:
            return
        with self.curve.open("a" if epoch.epoch else "w", newline="", encoding="utf-8") as file:
            lines = csv.writer(file)
            if not epoch.epoch:
                lines.writerow(
                    ["epoch", "loss", "score", *(f"{h}.{m}" for h, of in epoch.validation.items() for m in of)]
                )
            measured = [x for of in epoch.validation.values() for x in of.values()]
            lines.writerow([epoch.epoch + 1, epoch.loss, epoch.score, *measured])
        self.best = max(self.best, epoch.score)  # early stopping keeps the best epoch, so that is what a trial is worth
        self.trial.report(self.best, epoch.epoch)
        self.trial.set_user_attr("epochs", epoch.epoch + 1)
        if self.trial.should_prune():
            raise _optuna().TrialPruned


def _suggested(trial: optuna.Trial, key: str, entry: Range | Choices) -> Any:
    if isinstance(entry, Choices):  # as JSON: Optuna takes no lists for choices
        return json.loads(trial.suggest_categorical(key, [json.dumps(v) for v in entry.values]))
    if entry.whole:
        step = 1 if entry.step is None else int(entry.step)
        return trial.suggest_int(key, int(entry.low), int(entry.high), step=step, log=entry.log)
    return trial.suggest_float(key, entry.low, entry.high, step=entry.step, log=entry.log)


def _take_up(study: optuna.Study, recipe: Recipe, space: Space) -> None:
    """Trials that were killed are over; their settings come next. A new study begins with the recipe as it is."""
    optuna = _optuna()
    if not study.trials:
        study.enqueue_trial(_as_it_is(recipe, space))
    for trial in study.trials:
        if trial.state == optuna.trial.TrialState.RUNNING:
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)


def _as_it_is(recipe: Recipe, space: Space) -> dict[str, Any]:
    """The recipe's own settings, as far as they lie in the space; the others are drawn."""
    out: dict[str, Any] = {}
    for key, entry in space.items():
        value = current(recipe, key)
        if isinstance(entry, Choices):
            if value in entry.values:
                out[key] = json.dumps(value)
        elif isinstance(value, int | float) and entry.low <= value <= entry.high:
            out[key] = value
    return out


def _done(study: optuna.Study) -> int:
    """Trials that count: all but those that were killed."""
    return sum(_state(t) != "" for t in study.trials)


def _trained(study: optuna.Study, values: Mapping[str, Any]) -> optuna.trial.FrozenTrial | None:
    """The first trial that was trained to its end with these settings."""
    return next((t for t in study.trials if _state(t) == "complete" and t.user_attrs["values"] == values), None)


def _tried(study: optuna.Study) -> int:
    """How many different settings were tried."""
    return len({json.dumps(t.user_attrs["values"], sort_keys=True) for t in study.trials if _state(t)})


def _state(trial: optuna.trial.FrozenTrial) -> str:
    states = _optuna().trial.TrialState
    if trial.state == states.FAIL:
        return "refused" if "reason" in trial.user_attrs else ""
    return {states.COMPLETE: "complete", states.PRUNED: "pruned"}.get(trial.state, "")


def _seed(seed: int, done: int) -> int:
    return int.from_bytes(blake2b(f"{seed} {done}".encode(), digest_size=4).digest(), "big")


def _same_search(folder: Path, recipe: Recipe, space: Space) -> None:
    """Raises UserError if the folder holds another search; more trials of the same one are welcome."""
    text = json.dumps({"recipe": recipe.resolved(), "space": _space(space)}, indent=1, sort_keys=True)
    stamp = folder / "search.json"
    if not stamp.exists():
        write_whole(stamp, text)  # half of it would be another search
    elif stamp.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{folder}: holds a search of another recipe or another space; name another folder, or remove it"
        )


def _space(space: Space) -> dict[str, Any]:
    return {key: {"choices": list(e.values)} if isinstance(e, Choices) else plain(e) for key, e in space.items()}


# ------------------------------------------------------------------------------------------------ what is written


def _written(study: optuna.Study, recipe: Recipe, space: Space, folder: Path) -> Tuned:
    made = [
        Trial(
            number=t.number,
            state=_state(t),
            values=t.user_attrs.get("values", {}),
            score=_score(t),
            epochs=t.user_attrs.get("epochs", 0),
            seconds=t.user_attrs.get("seconds", math.nan),
            reason=t.user_attrs.get("reason", ""),
        )
        for t in study.trials
        if _state(t)
    ]
    complete = [t for t in made if t.state == "complete"]
    best = max(complete, key=lambda t: t.score) if complete else None
    found = Tuned(
        monitor=recipe.training.monitor,
        space=_space(space),
        trials=tuple(made),
        best=-1 if best is None else best.number,
    )
    write_json(found, folder / "tune.json")
    write_whole(folder / "tune.md", markdown(found))
    if best is not None:
        write_whole(folder / "best.toml", changed(recipe, best.values).toml())
    return found


def _score(trial: optuna.trial.FrozenTrial) -> float:
    if trial.value is not None and math.isfinite(trial.value):
        return float(trial.value)
    return max(trial.intermediate_values.values(), default=math.nan)


def line(trial: Trial, found: Tuned) -> str:
    """One trial in one line."""
    mark = "  *" if trial.number == found.best else ""
    values = "  ".join(
        f"{key.removeprefix('training.').removeprefix('model.')} {_shown(v)}" for key, v in trial.values.items()
    )
    told = trial.reason if trial.state == "refused" else f"{_shown(trial.score)} after {trial.epochs} epochs"
    return f"trial {trial.number} {trial.state}: {told}  {values}{mark}"


def judged_by(found: Tuned) -> str:
    """The metric whose greatest value is best."""
    return found.monitor + (" (negated)" if found.monitor == "logloss" else "")


def markdown(found: Tuned) -> str:
    """The trials as a table, the best first."""
    keys = list(found.space)
    ordered = sorted(found.trials, key=lambda t: (t.state != "complete", -t.score if t.score == t.score else math.inf))
    lines = [
        f"# Search over {len(keys)} settings",
        "",
        f"Validation {judged_by(found)}, of the best epoch; the test part was not read.",
        "",
        "| trial | state | score | epochs | seconds | " + " | ".join(keys) + " |",
        "|" + "---|" * (5 + len(keys)),
    ]
    for t in ordered:
        shown = [str(t.number), t.state, _shown(t.score), str(t.epochs), _shown(t.seconds)]
        lines.append("| " + " | ".join([*shown, *(_shown(t.values.get(k, "")) for k in keys)]) + " |")
    reasons = [f"- {t.number}: {t.reason}" for t in ordered if t.reason]
    return "\n".join([*lines, *(["", "Refused:", "", *reasons] if reasons else [])]) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}" if abs(value) < 0.01 else f"{value:.4f}"
    return json.dumps(value) if isinstance(value, list) else str(value)


def _optuna() -> Any:
    """The library, imported where it is used."""
    try:
        import optuna
    except ImportError as error:
        raise UserError("finerank tune needs Optuna, which is not installed; pip install 'finerank[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
