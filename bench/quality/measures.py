"""Figures of generated images against real ones, and the problems that they show.

Shape legend: N images, H, W height and width, D features.
"""

import torch

from wallclock.bench.quality.features import Features, extract, fidelity

NEIGHBOURS = 5  # k of density and coverage, as their authors advise; precision and recall have 3, as theirs do
KID_SUBSETS, KID_SUBSET_SIZE = 20, 1000
ROWS = 2000  # rows of a distance matrix at a time: 2,000 x 50,000 float32 are 400 MB
Figures = dict[str, float]

# Figure: the value below which it shows a problem, a factor, and the problem. None depends on the features' scale:
# held-out real images come to 1, or to 0.95 of coverage.
PROBLEMS = {
    "memorisation_ratio": (0.5, 1, "memorised: samples lie {:.2g} times as far from training images as unseen ones do"),
    "nearest_sample_ratio": (0.5, 1, "collapsed: samples lie {:.2g} times as far from each other as real images do"),
    "coverage": (0.2, 100, "narrow: samples come near {:.2g}% of real images"),
    "precision": (0.2, 100, "unlike real images: {:.2g}% of the samples lie among them"),
}


class Judge:
    """Compares generated images with real ones, whose features it computes once.

    Args:
        train_NHWC: the images that the generator is trained on, uint8 [N', H, W, 3]; at least 10.
        held_out_NHWC: images of the same kind that it never sees, uint8 [N'', H, W, 3]; at least 10.
        features: from `bench.quality.features.feature_extractor`.
        device: where the features are computed; the CPU by default.

    Raises:
        ValueError: if a set is no such tensor or too small, or torch-fidelity is missing.
    """

    def __init__(
        self,
        train_NHWC: torch.Tensor,
        held_out_NHWC: torch.Tensor,
        *,
        features: Features,
        device: torch.device = torch.device("cpu"),  # noqa: B008 - a constant
    ) -> None:
        fidelity()
        self._features, self._device = features, device
        self._train, self._held_out = self._extract("train", train_NHWC), self._extract("held_out", held_out_NHWC)
        self._held_out_to_train = _nearest(self._held_out, self._train)

    def _extract(self, name: str, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) < 10:
            raise ValueError(
                f"{name} are {images.dtype} {list(images.shape)}; expected uint8 [N, H, W, 3] with 10 images or more"
            )
        return extract(self._features, images, self._device)

    def figures(self, samples_NHWC: torch.Tensor) -> Figures:
        """Returns the named figures of generated images, uint8 [N, H, W, 3], at least 10.

        Returns:
            `fid`, `kid` and its `kid_std` over subsets, `precision` and `recall` (k = 3), `density` and `coverage`
            (k = 5), all against the held-out images: a copy of the training set gains nothing by them.
            `memorisation_ratio`: median distance to the nearest training image, over that of the held-out images; about
            1 is healthy, 0 a copy. `nearest_sample_ratio`: median distance to the nearest other sample, over that among
            as many held-out images; `pairwise_ratio`: the mean over all pairs, likewise. About 1 is healthy, 0 a
            collapse.

        Raises:
            ValueError: if the images are no such tensor.

        Source: torch-fidelity for the first five; Naeem et al., https://arxiv.org/abs/2002.09797 for density and
            coverage; Meehan et al., https://arxiv.org/abs/2004.05675 for the comparison of nearest neighbours.
        """
        samples = self._extract("samples", samples_NHWC)
        return {
            **_by_fidelity(samples, self._held_out),
            **_density_and_coverage(samples, self._held_out),
            "memorisation_ratio": _ratio(_nearest(samples, self._train), self._held_out_to_train),
            **_variety(samples, self._held_out),
        }


def problems(figures: Figures) -> list[str]:
    """Returns the problems that a `Judge`'s figures show, in words; none if they are near held-out images'."""
    return [
        text.format(factor * figures[name]) for name, (below, factor, text) in PROBLEMS.items() if figures[name] < below
    ]


def _by_fidelity(samples: torch.Tensor, real: torch.Tensor) -> Figures:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    statistics = [fid_features_to_statistics(x.double()) for x in (samples, real)]
    subset = min(KID_SUBSET_SIZE, len(samples) // 2, len(real) // 2)  # of all of them, subsets would not differ
    kid = kid_features_to_metric(samples, real, kid_subsets=KID_SUBSETS, kid_subset_size=subset, verbose=False)
    ranges = prc_features_to_metric(samples, real, prc_batch_size=ROWS, save_cpu_ram=True, verbose=False)
    return {
        "fid": fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
        "kid": kid["kernel_inception_distance_mean"],
        "kid_std": kid["kernel_inception_distance_std"],
        "precision": ranges["precision"],
        "recall": ranges["recall"],
    }


def _nearest(x: torch.Tensor, others: torch.Tensor, k: int = 1) -> torch.Tensor:
    """Returns the distance of each row of x to its k-th nearest of the others, [N]."""
    return torch.cat([_distances(rows, others).kthvalue(k, dim=1).values for rows in x.split(ROWS)])


def _distances(x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    # By subtraction: through a matrix product equal rows come out some 1e-3 apart, and a copy would not be at 0.
    return torch.cdist(x, others, compute_mode="donot_use_mm_for_euclid_dist")


def _ratio(of: torch.Tensor, over: torch.Tensor) -> float:
    below = over.median().item()
    return of.median().item() / below if below > 0 else float("nan")


def _density_and_coverage(samples: torch.Tensor, real: torch.Tensor) -> Figures:
    """Counts samples within the ball about each real image that its k-th nearest real neighbour spans."""
    k = NEIGHBOURS
    radii = _nearest(real, real, k + 1)  # the nearest is the image itself
    within = torch.zeros(len(real))
    for rows in samples.split(ROWS):
        within += (_distances(rows, real) < radii).sum(0)
    return {"density": within.sum().item() / (k * len(samples)), "coverage": (within > 0).float().mean().item()}


def _variety(samples: torch.Tensor, real: torch.Tensor) -> Figures:
    count = min(len(samples), len(real))
    random = torch.Generator().manual_seed(0)
    some = [x[torch.randperm(len(x), generator=random)[:count]] for x in (samples, real)]
    pairs = [torch.stack([_distances(rows, x).sum() for rows in x.split(ROWS)]).sum() for x in some]
    return {
        "nearest_sample_ratio": _ratio(*(_nearest(x, x, 2) for x in some)),
        "pairwise_ratio": (pairs[0] / pairs[1]).item() if pairs[1] > 0 else float("nan"),
    }
