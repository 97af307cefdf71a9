"""The lesson's Darknet recipe."""

from wallclock.models.recipes.recipe import SGD, Implementations, Recipe


def darknet(device_type: str) -> Recipe:
    """Returns Darknet [1, 2, 4, 6, 3] for 30 epochs of 1cycle, as fast.ai's 2018 lesson 12 trains it.

    Args:
        device_type: "cuda" or "cpu"; decides only the implementations, never the arithmetic of the recipe.
    """
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
