"""The CycleGAN recipes: fast.ai's lesson, and the paper's code. No torch here."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from wallclock.models.recipes.levers import Levered, plain_loop
from wallclock.models.recipes.recipe import Implementations
from wallclock.models.recipes.schedules import demand
from wallclock.models.recipes.wgan import Adam

# What an operation of `Implementations` would carry out in a network or pipeline that a CycleGAN has not.
ABSENT = ("conv_bn_act", "batch_norm_act", "residual", "augment", "upsample_conv", "optimizer", "product_conv")


@dataclass(frozen=True, kw_only=True)
class CycleGanImplementations(Implementations):
    """How a CycleGAN's steps are carried out, besides the operations that all networks share.

    These compute the same as the plain loop, step by step.

    Attributes:
        concatenated: pass real and pooled images through a discriminator together, and a generator's two inputs of the
            identity loss: instance norm never looks at another image.
        fused_adam: take Adam's step in one pass over all parameters.
        resident: keep the decoded images in the device's memory; else each batch is copied there.
    """

    concatenated: bool = False
    fused_adam: bool = False
    resident: bool = True

    def __post_init__(self) -> None:
        self.demand_absent("a CycleGAN", *ABSENT)


# What a field is in the plain loop, which is the published code's.
PLAIN = plain_loop(instance_norm_act="eager", concatenated=False, fused_adam=False, resident=True)
# Levers whose losses are not the plain loop's within the rounding of float32, and what they change.
INEXACT = {"precision": "convolutions round to bfloat16; weights, norms' statistics and updates stay float32"}


@dataclass(frozen=True, kw_only=True)
class CycleGanRecipe(Levered):
    """Everything that decides how one CycleGAN training computes.

    Attributes:
        name: of the recipe, in records and on the command line.
        summary: one line for `wallclock list`.
        load_size: images are scaled to this edge, pixels, then cropped.
        image_size: edge of a crop, pixels; a multiple of 4.
        batch_size: images of each domain in an iteration.
        blocks: of each generator.
        channels: of each network's first map.
        lr: of both optimisers, for `epochs_constant`; then it falls linearly to zero over `epochs_decay`.
        adam: of both optimisers.
        cycle_weight: of the cycle losses, mean absolute differences.
        identity_weight: of the identity losses, as a share of the cycle's; 0 for none.
        pool_size: fakes that a discriminator may be shown again; 0 for none.
        epochs_constant: passes over the longer domain.
        epochs_decay: the same.
        precision: "bf16" computes under autocast over float32 weights.
        implementations: how the operations are carried out.
    """

    PARTS: ClassVar = (Adam, CycleGanImplementations)
    LEVERS: ClassVar = PLAIN
    CHANGES: ClassVar = INEXACT

    name: str
    summary: str
    load_size: int = 286
    image_size: int = 256
    batch_size: int = 1
    blocks: int = 9
    channels: int = 64
    lr: float = 2e-4
    adam: Adam = field(default_factory=lambda: Adam(beta1=0.5, beta2=0.999))
    cycle_weight: float = 10.0
    identity_weight: float = 0.5
    pool_size: int = 50
    epochs_constant: int = 100
    epochs_decay: int = 100
    precision: Literal["bf16", "fp32"] = "fp32"
    implementations: CycleGanImplementations = field(default_factory=CycleGanImplementations)

    def __post_init__(self) -> None:
        demand(self, "batch_size blocks channels", lambda v: v >= 1, "at least 1")
        demand(self, "image_size", lambda v: v >= 24 and v % 4 == 0, "a multiple of 4 from 24 up, pixels")
        demand(self, "lr", lambda v: v > 0, "a positive learning rate")
        demand(self, "cycle_weight identity_weight pool_size epochs_decay", lambda v: v >= 0, "0 or more")
        demand(self, "epochs_constant", lambda v: v >= 1, "at least one pass over the images")
        if self.load_size < self.image_size:
            raise ValueError(
                f"load_size is {self.load_size} and image_size {self.image_size}; images cannot be cropped to more "
                f"than they are, use --set load_size={self.image_size} or more"
            )

    @property
    def epochs(self) -> int:
        """The whole budget."""
        return self.epochs_constant + self.epochs_decay

    def lr_factor(self, epoch: int) -> float:
        """Returns what the learning rate is multiplied by in an epoch, from 0; as the published code's `linear`."""
        return 1.0 - max(0, epoch + 1 - self.epochs_constant) / (self.epochs_decay + 1)


def _implementations(device_type: str) -> CycleGanImplementations:
    if device_type == "cuda":
        return CycleGanImplementations(cuda_graph=True, instance_norm_act="triton", concatenated=True, fused_adam=True)
    return CycleGanImplementations(keep_heap=True, concatenated=True, fused_adam=True)


def paper(device_type: str) -> CycleGanRecipe:
    """Returns the paper's training, as its published code has it: identity loss 0.5, 200 epochs of batches of one.

    Args:
        device_type: "cuda" or "cpu"; decides only the implementations, never the arithmetic of the recipe.
    """
    return CycleGanRecipe(
        name="paper",
        summary="the CycleGAN paper's code: least squares, cycle and identity losses, Adam 2e-4, pool of 50",
        implementations=_implementations(device_type),
    )


def lesson(device_type: str) -> CycleGanRecipe:
    """Returns fast.ai's 2018 lesson 12: the paper's without an identity loss.

    Args:
        device_type: as `paper`.
    """
    return dataclasses.replace(
        paper(device_type),
        name="lesson",
        summary="fast.ai lesson 12, horse to zebra: the paper's without an identity loss",
        identity_weight=0.0,
    )


CYCLEGAN_RECIPES: dict[str, Callable[[str], CycleGanRecipe]] = {"lesson": lesson, "paper": paper}
