"""Tunes a recipe's fields with Optuna for the least time to a target accuracy, on the tuning split alone.

A study is a folder: the storage, a run for each trial, `trials.parquet`, and a page of plots. Several processes may
work on one; a trial whose process was killed is queued again, and its run resumes where its records end.
"""

import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wallclock.bench.measure.environment import package_version
from wallclock.bench.runs.training import Observer, new_run, resumed_run
from wallclock.bench.tasks.cifar.progress import SeedDiverged, SeedEvent
from wallclock.bench.tasks.cifar.requests import CifarRequest
from wallclock.bench.tasks.cifar.run import GivenUp, load_split
from wallclock.bench.tasks.cifar.task import TASK
from wallclock.bench.tasks.cifar.trainer import Evaluated, Finished, check_runnable
from wallclock.loaders.batches import DataError
from wallclock.models.recipes.recipe import Recipe
from wallclock.models.recipes.search import Dimension, changed, check, current
from wallclock.reports.store.layout import StoreError
from wallclock.reports.store.read import load

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

STORAGE, TRIALS, PAGE = "study.db", "trials.parquet", "study.html"
NAME = "wallclock"
# Assumed standard deviation of a recipe's final accuracy over seeds, and the number of results that it weighs as;
# hiverge's 2,000 runs of one recipe have 0.0013 on 10,000 images, and accuracies on half as many images vary more.
ACCURACY_SD, ACCURACY_SD_WEIGHS = 0.0015, 8
TENTHS = 10  # parts of a schedule; after each, a trial's accuracy is compared with the others'
KEPT_PERCENT, KEPT_FROM_TRIALS, KEPT_FROM_TENTHS = 75.0, 5, 2
HEARTBEAT_S = 10
PLOTS = ("optimization_history", "param_importances", "parallel_coordinate", "slice", "intermediate_values", "timeline")


@dataclass(frozen=True, kw_only=True)
class TuningRequest:
    """A request to tune a recipe: the fields to search, and the target to reach; see also `CifarRequest`.

    The first trial runs the recipe unchanged. Only the training set of the data is used.

    Attributes:
        reach: the least probability with which a single run of a trial must reach the target.
        settings: overrides of the recipe, as `--set` gave them.

    Raises:
        ValueError: if a number is out of range, or a dimension does not fit the recipe.
    """

    recipe: Recipe
    data: str
    target: float
    device: str
    dimensions: tuple[Dimension, ...]
    seeds: int = 1
    reach: float = 0.5
    settings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; expected at least 1")
        if not 0 < self.reach < 1:
            raise ValueError(f"reach is {self.reach:g}; expected a probability between 0 and 1, such as 0.5")
        check(self.recipe, self.dimensions)
        self.trial_request(self.recipe)

    def trial_request(self, recipe: Recipe) -> CifarRequest:
        """Returns a trial's request, always on the tuning split, so that no choice rests on a test image."""
        same: dict[str, Any] = {"data": self.data, "target": self.target, "seeds": self.seeds, "device": self.device}
        return CifarRequest(recipe=recipe, split="tune", phases=0, **same)

    def stored(self) -> dict[str, Any]:
        """Returns the fields that two processes must agree on to share a study."""
        same = {"target": self.target, "device": self.device, "seeds": self.seeds, "reach": self.reach}
        content_hash, dimensions = load_split(self.data, "tune").content_hash, [d.stored() for d in self.dimensions]
        return {"recipe": self.recipe.resolved(), "content_hash": content_hash, "dimensions": dimensions, **same}


def unavailable() -> str:
    """Returns the reason why nothing can be tuned here; empty if something can."""
    return "" if package_version("optuna") else "Optuna is not installed; uv sync --extra tune"


@contextmanager
def quiet() -> Iterator[None]:
    """Silences Optuna's log lines and its warnings about experimental features."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(before)


def storage_in(folder: Path) -> "BaseStorage":
    """Returns the storage of a study's folder; a trial whose process stops sending heartbeats is queued again."""
    import optuna

    return optuna.storages.RDBStorage(
        f"sqlite:///{(folder / STORAGE).resolve()}",
        engine_kwargs={"connect_args": {"timeout": 60}},
        heartbeat_interval=HEARTBEAT_S,
        grace_period=3 * HEARTBEAT_S,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3),
    )


def joined(storage: "BaseStorage") -> "Study":
    """Returns the study in a storage, created if there is none."""
    from optuna import create_study, pruners, samplers

    sampler = samplers.TPESampler(n_startup_trials=8, multivariate=True)
    begins = {"n_startup_trials": KEPT_FROM_TRIALS, "n_warmup_steps": KEPT_FROM_TENTHS}
    pruner = pruners.PercentilePruner(KEPT_PERCENT, **begins)
    return create_study(
        storage=storage, study_name=NAME, load_if_exists=True, direction="minimize", sampler=sampler, pruner=pruner
    )


def open_study(request: TuningRequest, folder: Path) -> "Study":
    """Returns the study in a folder, created if missing; the first trial of a new study is the unchanged recipe.

    Raises:
        ValueError: if the recipe cannot run here, or the folder's study differs from the request; names the fields.
        DataError: if the data are missing or damaged.
        StoreError: if the folder cannot be written.
    """
    check_runnable(request.recipe, load_split(request.data, "tune"), torch.device(request.device))
    asked = request.stored()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        study = joined(storage_in(folder))
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror}; choose another --study") from None
    stored = study.user_attrs.get("request")
    if stored is None:
        study.set_user_attr("request", asked)
        unchanged = {each.field: current(request.recipe, each) for each in request.dimensions}
        study.enqueue_trial(unchanged, skip_if_exists=True)
    elif different := sorted(key for key in asked if stored.get(key) != asked[key]):
        raise ValueError(f"{folder} is a study with another {', '.join(different)}; choose another --study")
    return study


def best_trial(study: "Study") -> "FrozenTrial | None":
    """Returns the fastest trial that reaches the target with the probability asked for, or None."""
    try:
        return study.best_trial
    except ValueError:
        return None


def needed_accuracy(study: "Study", request: TuningRequest) -> float:
    """Returns the mean accuracy at which a single run reaches the target with the probability asked for.

    The spread over seeds is pooled from the study's trials and from `ACCURACY_SD`, as `ACCURACY_SD_WEIGHS` results.
    """
    squares, freedom = ACCURACY_SD_WEIGHS * ACCURACY_SD**2, ACCURACY_SD_WEIGHS
    for trial in study.get_trials(deepcopy=False):
        accuracies = trial.user_attrs.get("accuracies", [])
        if len(accuracies) > 1:
            squares += statistics.variance(accuracies) * (len(accuracies) - 1)
            freedom += len(accuracies) - 1
    quantile = statistics.NormalDist().inv_cdf(request.reach)
    return request.target + quantile * (squares / freedom) ** 0.5


def unseen(seen: SeedEvent | SeedDiverged) -> None:
    """Ignores an event."""


@dataclass
class Watch:
    """An observer of a trial's events, which gives up the trial when it can no longer win; accuracies are fractions.

    Attributes:
        trial: the Optuna trial; it is told the error rate at each tenth of its first seed's schedule.
        needed: mean accuracy that the trial must reach.
        best_s: seconds of the fastest trial so far that reaches it; inf if none.
        finished: accuracies of the seeds that the records of a resumed trial already hold.
        then: called with every event, before the decision.
        looks: epoch, as a share of all, and accuracy of each look at the first seed that was seen, by seed.
    """

    trial: "Trial"
    seeds: int
    epochs: float
    needed: float
    best_s: float
    finished: list[float] = field(default_factory=list)
    then: Observer = unseen
    accuracy: float = 0.0
    looks: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def __call__(self, seen: SeedEvent | SeedDiverged) -> None:
        """Notes an event, and decides whether the trial goes on.

        Raises:
            GivenUp: if the trial can no longer win; gives the reason.
        """
        self.then(seen)
        if isinstance(seen, SeedDiverged):
            self.accuracy = 0.0
            raise GivenUp("pruned: it diverged")
        event = seen.event
        if isinstance(event, Evaluated):
            self.accuracy = event.accuracy
            if event.elapsed_train_eval_s > self.best_s:
                raise GivenUp(f"pruned: slower than {self.best_s:.4g} s, which reached the target")
            if seen.seed == min([seen.seed, *self.looks]):
                self._report(seen.seed, event)
        elif isinstance(event, Finished):
            self.accuracy = event.accuracy
            self.finished.append(event.accuracy)
            left = self.seeds - len(self.finished)
            mean = statistics.fmean(self.finished)
            rest = (self.seeds * self.needed - sum(self.finished)) / max(left, 1)
            if left and rest > mean + 3 * ACCURACY_SD:
                raise GivenUp(f"pruned: {100 * mean:.2f}% so far, and {100 * rest:.2f}% is needed of each seed left")

    def _report(self, seed: int, event: Evaluated) -> None:
        looks = self.looks.setdefault(seed, [(0.0, 0.0)])
        (before, accuracy_before), now = looks[-1], min(1.0, event.epoch / self.epochs)
        looks.append((now, event.accuracy))
        for tenth in range(1, TENTHS):
            if before < tenth / TENTHS <= now:
                share = (tenth / TENTHS - before) / (now - before)
                accuracy = accuracy_before + share * (event.accuracy - accuracy_before)
                self.trial.report(1 - accuracy, tenth)
                if self.trial.should_prune():
                    raise GivenUp(f"pruned: {100 - KEPT_PERCENT:g}% of trials are as inaccurate after {tenth}0%")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The function that Optuna minimises: seconds to the target, constrained to reach it.

    The runs of the trials lie in `folder`; `then` returns the observer of a trial's events from the trial's number;
    `worker` is a mark of the process, stored with the trial.
    """

    request: TuningRequest
    folder: Path
    command: str
    then: Callable[[int], Observer] = lambda number: unseen
    worker: str = ""

    def __call__(self, trial: "Trial") -> float:
        """Runs one trial; returns the mean seconds of its seeds, by the `train_eval` clock.

        Raises:
            optuna.TrialPruned: if the trial was given up or cannot run; the trial's attribute `why` gives the reason.
        """
        import optuna

        request = self.request
        trial.set_user_attr("worker", self.worker)
        values = {each.field: _suggested(trial, each, request.recipe) for each in request.dimensions}
        best, needed = best_trial(trial.study), needed_accuracy(trial.study, request)
        best_s = float("inf") if best is None or best.value is None else best.value
        why, accuracy = "", 0.0
        try:
            recipe = changed(request.recipe, values)
            then, run = self.then(trial.number), self._run(trial, recipe)
            finished = _result(run.writer.path)[1] if run.done else []
            watch = Watch(
                trial, request.seeds, recipe.epochs, needed=needed, best_s=best_s, finished=finished, then=then
            )
            status = run.execute(watch)
            accuracy = watch.accuracy
            if status != "done":
                why = run.stopped or status
        except (StoreError, DataError):
            raise
        except (ValueError, RuntimeError, MemoryError) as error:  # a value that the recipe or the memory cannot take
            why = f"cannot run: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        if why:
            trial.set_user_attr("why", why)
            trial.set_constraint("accuracy", needed - accuracy)
            raise optuna.TrialPruned(why)
        seconds, accuracies = _result(run.writer.path)
        trial.set_user_attr("accuracies", accuracies)
        trial.set_constraint("accuracy", needed - statistics.fmean(accuracies))
        return statistics.fmean(seconds)

    def _run(self, trial: "Trial", recipe: Recipe) -> Any:
        """Returns the trial's run: the one that its process left unfinished, or a new one."""
        if left := trial.user_attrs.get("run"):
            try:
                return resumed_run(TASK, CifarRequest, self.folder / left)
            except StoreError:  # it is gone, or of another machine or version
                pass
        run = new_run(TASK, self.request.trial_request(recipe), self.folder, self.command)
        trial.set_user_attr("run", run.writer.path.name)
        return run


def _suggested(trial: "Trial", dimension: Dimension, recipe: Recipe) -> Any:
    if dimension.values:
        return trial.suggest_categorical(dimension.field, dimension.values)
    assert dimension.low is not None and dimension.high is not None, "a range has ends"
    if dimension.whole(recipe):
        return trial.suggest_int(dimension.field, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(dimension.field, dimension.low, dimension.high, log=dimension.log)


def _result(path: Path) -> tuple[list[float], list[float]]:
    """Returns seconds and accuracy of each seed of a finished run."""
    frame = load(path).sort_values("seed")
    seconds, accuracies = (frame.loc[frame["metric"] == m, "value"] for m in ("train_eval_s", "final_accuracy"))
    return seconds.tolist(), accuracies.tolist()


def ended(study: "Study") -> "list[FrozenTrial]":
    """Returns the trials that were finished or pruned, which count towards the number asked for."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def work(study: "Study", objective: Objective, trials: int, observe: Callable[["FrozenTrial"], None]) -> None:
    """Runs trials until `trials` have ended, here or in other processes; `observe` gets every trial that ends here."""
    while len(ended(study)) < trials:
        study.optimize(objective, n_trials=1, callbacks=[lambda study, trial: observe(trial)])


def trial_rows(study: "Study") -> list[dict[str, Any]]:
    """Returns the trials that ended, the best first: by time if they reach the target, then by accuracy."""
    rows = []
    for trial in ended(study):
        accuracies = trial.user_attrs.get("accuracies")
        short = max(trial.constraints.values(), default=0.0)
        rows.append(
            {
                "trial": trial.number,
                "seconds": trial.value if accuracies else None,
                "accuracy": statistics.fmean(accuracies) if accuracies else None,
                "seeds": len(accuracies or ()),
                "reaches": bool(accuracies) and short <= 0,
                "short_by": short,
                "why": trial.user_attrs.get("why", ""),
                "run": trial.user_attrs.get("run", ""),
                "values": trial.params,
            }
        )
    return sorted(rows, key=lambda row: (not row["reaches"], row["seconds"] if row["reaches"] else row["short_by"]))


def write_results(study: "Study", folder: Path) -> None:
    """Writes the trials as Parquet and the plots as one page beside the storage.

    Raises:
        StoreError: if they cannot be written.
    """
    import pandas as pd
    from optuna import importance, visualization

    rows = ((row, row.pop("values")) for row in trial_rows(study))
    frame = pd.DataFrame([row | values for row, values in rows])
    makers: Any = {name: getattr(visualization, f"plot_{name}") for name in PLOTS}
    evaluator = importance.PedAnovaImportanceEvaluator()  # the only one that needs no further library
    makers["param_importances"] = partial(visualization.plot_param_importances, evaluator=evaluator)
    parts: list[str] = []
    for make in makers.values():
        try:
            figure = make(study)
        except (ValueError, RuntimeError):  # too few trials for this one
            continue
        parts.append(figure.to_html(full_html=False, include_plotlyjs=not parts))
    title = f"Tuning of {study.user_attrs['request']['recipe']['name']}"
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><h1>{title}</h1>{''.join(parts)}"
    try:
        frame.to_parquet(folder / TRIALS)
        (folder / PAGE).write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write to {folder}: {error.strerror}; the trials are in {STORAGE} there") from None


def advice(study: "Study", request: TuningRequest) -> list[str]:
    """Returns commands that check the best trial against the recipe; empty if no trial reaches the target."""
    best = best_trial(study)
    if best is None:
        return []
    settings = [*request.settings, *(f"{name}={value}" for name, value in best.params.items())]
    name, data = request.recipe.name, request.data
    sides = (" ".join([name, *request.settings]), " ".join([name, *settings]))
    raced = " ".join(f'"python -m wallclock.bench.compare.race {side} --data {data}"' for side in sides)
    chosen = " ".join(f"--set {setting}" for setting in settings)
    return [
        f"wallclock compare {raced} --rounds 6 --no-warm-up --timeout 7200",
        f"wallclock run cifar --recipe {name} {chosen} --data {data} --seeds 5",
    ]
