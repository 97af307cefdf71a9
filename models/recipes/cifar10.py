"""The CIFAR-10 recipes: fast.ai's two baselines, and the speedrun recipe with its variants.

Each function takes the type of the device, "cuda" or "cpu", which decides only the implementations, never the
arithmetic of the recipe.
"""

from collections.abc import Callable
from dataclasses import replace

from wallclock.models.recipes.recipe import (
    SGD,
    Implementations,
    MuonSGD,
    Pruning,
    Recipe,
    Resolution,
    TestTimeAugmentation,
)
from wallclock.models.recipes.schedules import LinearDecay

MUON_SGD = MuonSGD(
    filter_lr=0.12,
    filter_momentum=0.6,
    bias_lr=0.053,
    head_lr=0.67,
    momentum=0.85,
    weight_decay=2e-6,
    whiten_bias_schedule=LinearDecay(until=1 / 3),
)


def darknet(device_type: str) -> Recipe:
    """Returns Darknet [1, 2, 4, 6, 3] for 30 epochs of 1cycle, as fast.ai's 2018 lesson 12 trains it."""
    return Recipe(
        name="darknet",
        summary="fast.ai lesson 12: Darknet [1,2,4,6,3], 30 epochs of 1cycle",
        target=0.94,
        model="darknet",
        batch_size=256,
        epochs=30,
        optimizer=SGD(lr=1.3, weight_decay=1e-4),
        pad=4,
        flip="random",
        implementations=Implementations(compile=device_type == "cuda", keep_heap=device_type == "cpu"),
    )


def wrn22(device_type: str) -> Recipe:
    """Returns wrn_22 for 30 epochs of 1cycle, as fast.ai's DAWNBench entry trains it, on one device."""
    return replace(
        darknet(device_type),
        name="wrn22",
        summary="fast.ai's DAWNBench entry: Wide ResNet 22-6, 30 epochs of 1cycle",
        model="wrn_22",
        batch_size=512,
        optimizer=SGD(lr=1.5, weight_decay=1e-4),
    )


def sprint(device_type: str) -> Recipe:
    """Returns the speedrun recipe: the sprint network, Muon, small images first, six views of unsure test images."""
    return Recipe(
        name="sprint",
        summary="our speedrun: whitening, Muon, 24-pixel images first, per-sample test-time augmentation",
        target=0.94,
        model="sprint",
        batch_size=500,
        epochs=9,
        optimizer=MUON_SGD,
        label_smoothing=0.2,
        pad=2,
        flip="alternating",
        resolutions=(Resolution(size=24, until_epoch=4),),
        tta=TestTimeAugmentation(threshold=0.65),
        implementations=Implementations(
            compile=device_type == "cuda", keep_heap=device_type == "cpu", product_conv=device_type == "cpu"
        ),
    )


def sprint94(device_type: str) -> Recipe:
    """Returns `sprint` under a name that says its target, 94% on canonical CIFAR-10."""
    return replace(sprint(device_type), name="sprint94", summary="sprint, for 94% on canonical CIFAR-10")


def sprint95(device_type: str) -> Recipe:
    """Returns the speedrun recipe for 95% on canonical CIFAR-10: wider, and longer.

    The widths are airbench95's, https://github.com/KellerJordan/cifar10-airbench; Muon saves one of its 15 epochs.
    """
    return replace(
        sprint(device_type),
        name="sprint95",
        summary="sprint for 95%: 128, 384 and 384 channels, 14 epochs",
        target=0.95,
        model_arguments={"widths": [128, 384, 384]},
        epochs=14,
        resolutions=(Resolution(size=24, until_epoch=6),),
    )


def sprint96(device_type: str) -> Recipe:
    """Returns the speedrun recipe for 96% on canonical CIFAR-10: three convolutions a group, cutout, easy samples out.

    Network, epochs, crop and cutout are those of airbench96_faster, https://github.com/KellerJordan/cifar10-airbench,
    which leaves out half of each batch by a small network's losses; here each sample's own last loss decides.
    """
    return replace(
        sprint(device_type),
        name="sprint96",
        summary="sprint for 96%: three convolutions a group, 40 epochs, cutout, easy samples left out",
        target=0.96,
        model_arguments={"widths": [128, 384, 512], "depth": 3},
        epochs=40,
        pad=4,
        cutout=12,
        resolutions=(Resolution(size=24, until_epoch=16),),
        pruning=Pruning(),
    )


def sprint_jpeg(device_type: str) -> Recipe:
    """Returns `sprint` tuned to race airbench94 (Muon) on `cifar10-jpeg`: first groups end first; see docs/records.md.

    SiLU and a whitening bias that is trained for a fortieth of the run come from hiverge,
    https://github.com/hiverge/cifar10-speedrun
    """
    return replace(
        sprint(device_type),
        name="sprint-jpeg",
        summary="sprint for 90.7% on cifar10-jpeg: SiLU, and first groups end first",
        target=0.907,
        model_arguments={"act": "silu"},
        optimizer=replace(
            MUON_SGD,
            whiten_bias_schedule=LinearDecay(until=1 / 40),
            first_schedules=(LinearDecay(until=0.75), LinearDecay(until=0.9)),
        ),
    )


RECIPES: dict[str, Callable[[str], Recipe]] = {
    "sprint": sprint,
    "sprint-jpeg": sprint_jpeg,
    "sprint94": sprint94,
    "sprint95": sprint95,
    "sprint96": sprint96,
    "wrn22": wrn22,
    "darknet": darknet,
}
