"""Figures that compare generated images with real ones, and the problems that the figures show.

Shape legend: N images, H, W height and width, D features.
"""

import torch

from wallclock.bench.quality.features import Features, extract, fidelity

NEIGHBOURS = 5  # k of density and coverage, as their authors advise; precision and recall use 3, as their authors do
KID_SUBSETS, KID_SUBSET_SIZE = 20, 1000
ROWS = 2000  # rows of a distance matrix computed at a time; 2,000 x 50,000 in float32 take 400 MB
Figures = dict[str, float]

# For each figure: the value below which it shows a problem, the factor for printing it, and the message. No figure here
# depends on the scale of the features: held-out real images have 1, or 0.95 for coverage.
PROBLEMS = {
    "memorisation_ratio": (0.5, 1, "memorised: samples lie {:.2g} times as far from training images as unseen ones do"),
    "nearest_sample_ratio": (0.5, 1, "collapsed: samples lie {:.2g} times as far from each other as real images do"),
    "coverage": (0.2, 100, "narrow: samples come near {:.2g}% of real images"),
    "precision": (0.2, 100, "unlike real images: {:.2g}% of the samples lie among them"),
}


class Judge:
    """A comparison of generated images with real ones, whose features are computed once.

    Args:
        train_NHWC: the images that the generator is trained on, uint8 [N', H, W, 3]; at least 10.
        held_out_NHWC: images of the same kind that the generator never sees, uint8 [N'', H, W, 3]; at least 10.
        features: function from `bench.quality.features.feature_extractor` that computes the features of images.
        device: the device that computes the features; the CPU by default.

    Raises:
        ValueError: if a set has another type or shape or fewer than 10 images, or torch-fidelity is missing.
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
        """Returns the figures of generated images, uint8 [N, H, W, 3], at least 10.

        Returns:
            `fid`, `kid` and its `kid_std` over subsets, `precision` and `recall` (k = 3), `density` and `coverage`
            (k = 5), all against the held-out images, so that copying the training set does not improve them.
            `memorisation_ratio`: median distance to the nearest training image, over that of the held-out images; about
            1 is healthy, 0 a copy. `nearest_sample_ratio`: median distance to the nearest other sample, over that among
            equally many held-out images; `pairwise_ratio`: mean distance over all pairs, over that among these held-out
            images. About 1 is healthy, 0 a collapse.

        Raises:
            ValueError: if the images have another type or shape, or are fewer than 10.

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
    """Returns a message for each problem that a `Judge`'s figures show; none for figures near those of real images."""
    return [
        text.format(factor * figures[name]) for name, (below, factor, text) in PROBLEMS.items() if figures[name] < below
    ]


def _by_fidelity(samples: torch.Tensor, real: torch.Tensor) -> Figures:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    statistics = [fid_features_to_statistics(x.double()) for x in (samples, real)]
    subset = min(KID_SUBSET_SIZE, len(samples) // 2, len(real) // 2)  # subsets of all would be equal
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
    """Returns the distance of each row of x to its k-th nearest row of `others`, [N]."""
    return torch.cat([_distances(rows, others).kthvalue(k, dim=1).values for rows in x.split(ROWS)])


def _distances(x: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    # By subtraction: a matrix product puts equal rows about 1e-3 apart, so that a copy would not have distance 0.
    return torch.cdist(x, others, compute_mode="donot_use_mm_for_euclid_dist")


def _ratio(of: torch.Tensor, over: torch.Tensor) -> float:
    below = over.median().item()
    return of.median().item() / below if below > 0 else float("nan")


def _density_and_coverage(samples: torch.Tensor, real: torch.Tensor) -> Figures:
    """Counts samples in the ball about each real image that reaches to its k-th nearest real neighbour."""
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
