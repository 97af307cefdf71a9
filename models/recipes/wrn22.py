"""The recipe of fast.ai's DAWNBench entry."""

from wallclock.models.recipes.recipe import SGD, Implementations, Recipe


def wrn22(device_type: str) -> Recipe:
    """Returns wrn_22 for 30 epochs of 1cycle, as fast.ai's DAWNBench entry trains it, on one device.

    Args:
        device_type: "cuda" or "cpu"; decides only the implementations, never the arithmetic of the recipe.
    """
    return Recipe(
        name="wrn22",
        summary="fast.ai's DAWNBench entry: Wide ResNet 22-6, 30 epochs of 1cycle",
        target=0.94,
        model="wrn_22",
        batch_size=512,
        epochs=30,
        optimizer=SGD(lr=1.5, weight_decay=1e-4),
        pad=4,
        flip="random",
        implementations=Implementations(compile=device_type == "cuda", keep_heap=device_type == "cpu"),
    )
