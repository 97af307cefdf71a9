"""What is asked of `wallclock run loaders`: which pipelines over which forms of a data set, in which regimes."""

import itertools
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from wallclock.bench.cases.loaders.trial import Regime
from wallclock.bench.runs.select import is_chosen
from wallclock.loaders.pipelines.choose import PIPELINES

# What a round of each regime leaves behind for every pipeline: by it a resumed run tells what is done.
REGIMES: dict[Regime, str] = {"one image": "image_time", "alone": "images_per_s", "training": "step_time"}
# Which pipelines read which form. `device` decodes once, when the set is loaded: its form is pixels.
FORMS = {
    "pixels": ("device", "dataloader", "dali"),
    "parquet": ("dataloader", "dali"),
    "folders": ("dataloader", "dali"),
    "shards": ("webdataset", "dataloader", "dali"),
}


@dataclass(frozen=True, kw_only=True)
class LoadersRequest:
    """What is asked of one run.

    Attributes:
        data: a path, or "synthetic" for the embedded set.
        device: "cpu" or "cuda".
        only: see `bench.runs.select`; words are form, batch size, pipeline and regime.
        batch_sizes: images in a batch.
        images: of the training set, the first so many.
        rounds: of all pipelines in turn.
        steps: of training in each round.
        recipe: of the network that trains.

    Raises:
        ValueError: if a number is out of range.
    """

    data: str
    device: str
    only: tuple[str, ...] = ()
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

    def stored(self) -> dict[str, Any]:
        """Returns what a record keeps of the request, so that the run can be resumed."""
        return {"benchmark": "loaders", **asdict(self)}

    def wanted(self, form: str, batch_size: int, regime: Regime, skipped: Collection[str] = ()) -> list[str]:
        """Returns the pipelines to measure in a regime at a case.

        Args:
            form: of the data.
            batch_size: images in a batch.
            regime: the latency of a first batch comes with a pipeline alone.
            skipped: pipelines that are not there.
        """
        regimes = ("alone", "first batch") if regime == "alone" else (regime,)
        named = [f"{form} {batch_size} {each}".split() for each in regimes]
        return [
            pipeline
            for pipeline in FORMS[form]
            if pipeline not in skipped and any(is_chosen((*words, pipeline), self.only) for words in named)
        ]

    def units(self, forms: Collection[str], skipped: Collection[str]) -> dict[tuple[str, int, Regime], list[str]]:
        """Returns what is to be measured: for each form, batch size and regime the pipelines, in order.

        Args:
            forms: that the data have.
            skipped: pipelines that are not there.

        Raises:
            ValueError: if that is nothing.
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
