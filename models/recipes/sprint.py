"""The record recipe: the sprint network, Muon, small images first, test-time augmentation where it can matter."""

from models.recipes.recipe import Implementations, MuonSGD, Recipe, Resolution, TestTimeAugmentation
from models.schedules import LinearDecay


def sprint(device_type: str) -> Recipe:
    """Returns the speedrun recipe.

    Args:
        device_type: "cuda" or "cpu"; decides only the implementations, never the arithmetic of the recipe.
    """
    return Recipe(
        name="sprint",
        summary="our speedrun: whitening, Muon, 24-pixel images first, per-sample test-time augmentation",
        target=0.94,
        model="sprint",
        batch_size=500,
        epochs=9,
        optimizer=MuonSGD(
            filter_lr=0.12,
            filter_momentum=0.6,
            bias_lr=0.053,
            head_lr=0.67,
            momentum=0.85,
            weight_decay=2e-6,
            whiten_bias_schedule=LinearDecay(until=1 / 3),
        ),
        label_smoothing=0.2,
        pad=2,
        flip="alternating",
        resolutions=(Resolution(size=24, until_epoch=4),),
        tta=TestTimeAugmentation(threshold=0.65),
        implementations=Implementations(
            compile=device_type == "cuda", keep_heap=device_type == "cpu", product_conv=device_type == "cpu"
        ),
    )
