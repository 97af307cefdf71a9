"""The request of `wallclock run loaders`: which pipelines over which forms of a data set, in which regimes."""

import itertools
from collections.abc import Collection
from dataclasses import dataclass

from wallclock.bench.cases.loaders.trial import Regime
from wallclock.bench.runs.cases import CaseRequest
from wallclock.bench.runs.select import is_chosen
from wallclock.loaders.pipelines.choose import PIPELINES

# The metric that every pipeline leaves in a round of each regime: by it a resumed run knows what is done.
REGIMES: dict[Regime, str] = {"one image": "image_time", "alone": "images_per_s", "training": "step_time"}
# The pipelines that read each form. `device` decodes once, when the set is loaded: its form is pixels.
FORMS = {
    "pixels": ("device", "dataloader", "dali"),
    "parquet": ("dataloader", "dali"),
    "folders": ("dataloader", "dali"),
    "shards": ("webdataset", "dataloader", "dali"),
}


@dataclass(frozen=True, kw_only=True)
class LoadersRequest(CaseRequest):
    """What one run is asked to measure; `only` takes words of form, batch size, pipeline and regime.

    Attributes:
        data: path of the data set, or "synthetic" for the embedded one.
        batch_sizes: images in a batch.
        images: how many images of the training set are used, from the first on.
        rounds: how often all pipelines take their turns.
        steps: steps of training in each round.
        recipe: name of the recipe whose network trains.

    Raises:
        ValueError: if a number is out of range.
    """

    benchmark = "loaders"
    data: str
    batch_sizes: tuple[int, ...] = (128, 500)
    images: int = 10_000
    rounds: int = 5
    steps: int = 3
    recipe: str = "sprint"

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1 or min(self.images, self.rounds, self.steps) < 1:
            raise ValueError(
                f"batch sizes are {self.batch_sizes}, images {self.images}, rounds {self.rounds}, steps {self.steps}; "
                "expected numbers above 0"
            )
        if self.images < 2 * max(self.batch_sizes):
            raise ValueError(
                f"{self.images} images are less than two batches of {max(self.batch_sizes)}; ask for more images"
            )

    def wanted(self, form: str, batch_size: int, regime: Regime, skipped: Collection[str]) -> list[str]:
        """Returns the pipelines to measure over a form; the latency of a first batch comes with the regime "alone"."""
        regimes = ("alone", "first batch") if regime == "alone" else (regime,)
        named = [f"{form} {batch_size} {each}".split() for each in regimes]
        return [
            pipeline
            for pipeline in FORMS[form]
            if pipeline not in skipped and any(is_chosen((*words, pipeline), self.only) for words in named)
        ]

    def units(self, forms: Collection[str], skipped: Collection[str]) -> dict[tuple[str, int, Regime], list[str]]:
        """Returns the pipelines to measure, in order, for each form, batch size and regime.

        Args:
            forms: the forms that the data have.
            skipped: pipelines that this machine lacks.

        Raises:
            ValueError: if nothing is left to measure.
        """
        found = {}
        for form, batch_size, regime in itertools.product(forms, self.batch_sizes, REGIMES):
            # One image at a time has no batch size: it is measured beside the first.
            once = regime != "one image" or batch_size == self.batch_sizes[0]
            if once and (pipelines := self.wanted(form, batch_size, regime, skipped)):
                found[form, batch_size, regime] = pipelines
        if not found:
            why = "; ".join(skipped)
            raise ValueError(
                f"nothing matches '{' | '.join(self.only)}'; forms: {', '.join(forms)}; pipelines: "
                f"{', '.join(PIPELINES)}; regimes: {', '.join(REGIMES)}, first batch"
                + (f"; not here: {why}" if why else "")
            )
        return found
