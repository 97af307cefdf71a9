"""The CycleGAN recipes: fast.ai's lesson and the paper's code. This module imports no torch.

Each function takes a device's type, as those of `cifar10` do.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from wallclock.models.recipes.levers import Levered, plain_loop
from wallclock.models.recipes.recipe import Implementations
from wallclock.models.recipes.schedules import demand
from wallclock.models.recipes.wgan import Adam


@dataclass(frozen=True, kw_only=True)
class CycleGanImplementations(Implementations):
    """How a CycleGAN's steps are carried out, besides the operations that all networks share.

    Every choice here gives the plain loop's numbers, step by step.

    Attributes:
        concatenated: pass real and pooled images through a discriminator together, and a generator's two inputs of the
            identity loss: instance norm never mixes images.
        fused_adam: take Adam's step in one pass over all parameters.
        resident: keep the decoded images in the device's memory; False copies each batch there.
    """

    NETWORK: ClassVar = "a CycleGAN"
    ABSENT: ClassVar = (
        *("conv_bn_act", "batch_norm_act", "residual", "augment"),
        *("upsample_conv", "optimizer", "product_conv"),
    )

    concatenated: bool = False
    fused_adam: bool = False
    resident: bool = True


@dataclass(frozen=True, kw_only=True)
class CycleGanRecipe(Levered):
    """Everything that decides how one CycleGAN training computes.

    Attributes:
        load_size: edge in pixels to which images are scaled before they are cropped.
        image_size: edge of a crop in pixels; a multiple of 4.
        batch_size: number of images of each domain in an iteration.
        blocks: number of residual blocks in each generator.
        channels: number of channels of each network's first map.
        lr: learning rate of both optimisers for `epochs_constant`; then it falls linearly to zero over `epochs_decay`.
        adam: other settings of both optimisers.
        cycle_weight: weight of the cycle losses, which are mean absolute differences.
        identity_weight: weight of the identity losses, as a share of the cycle losses' weight; 0 leaves them out.
        pool_size: number of earlier fakes that a discriminator may be shown again; 0 for none.
        epochs_constant: number of passes over the longer domain at a constant learning rate.
        epochs_decay: number of passes over the longer domain with a falling learning rate.
        precision: "bf16" computes under autocast over float32 weights.
    """

    PARTS: ClassVar = (Adam, CycleGanImplementations)
    LEVERS: ClassVar = plain_loop(instance_norm_act="eager", concatenated=False, fused_adam=False, resident=True)
    CHANGES: ClassVar = {
        "precision": "convolutions round to bfloat16; weights, norms' statistics and updates stay float32"
    }

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
        """Total number of epochs, the whole training budget."""
        return self.epochs_constant + self.epochs_decay

    def lr_factor(self, epoch: int) -> float:
        """Returns the factor on the learning rate in an epoch, counted from 0: the published code's `linear` policy."""
        return 1.0 - max(0, epoch + 1 - self.epochs_constant) / (self.epochs_decay + 1)


def paper(device_type: str) -> CycleGanRecipe:
    """Returns the training of the paper's published code: identity loss 0.5, 200 epochs of batches of one."""
    cuda = device_type == "cuda"
    return CycleGanRecipe(
        name="paper",
        summary="the CycleGAN paper's code: least squares, cycle and identity losses, Adam 2e-4, pool of 50",
        implementations=CycleGanImplementations(
            cuda_graph=cuda,
            keep_heap=not cuda,
            instance_norm_act="triton" if cuda else "eager",
            concatenated=True,
            fused_adam=True,
        ),
    )


def lesson(device_type: str) -> CycleGanRecipe:
    """Returns the training of fast.ai's 2018 lesson 12: the paper's without an identity loss."""
    return replace(
        paper(device_type),
        name="lesson",
        summary="fast.ai lesson 12, horse to zebra: the paper's without an identity loss",
        identity_weight=0.0,
    )


CYCLEGAN_RECIPES: dict[str, Callable[[str], CycleGanRecipe]] = {"lesson": lesson, "paper": paper}
