"""The WGAN recipes: fast.ai's lesson, the paper's code, and the gradient penalty. This module imports no torch.

Each function takes a device's type, as those of `cifar10` do.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from wallclock.models.recipes.levers import Levered, plain_loop
from wallclock.models.recipes.recipe import Implementations
from wallclock.models.recipes.schedules import demand


@dataclass(frozen=True, kw_only=True)
class RMSprop:
    """PyTorch's RMSprop without momentum: the decay of the average of squares, and the number added to its root."""

    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        demand(self, "alpha", lambda v: 0 <= v < 1, "an average's weight from 0 to below 1")
        demand(self, "eps", lambda v: v >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Adam:
    """PyTorch's Adam with its two decays and the number added to the root."""

    beta1: float = 0.0
    beta2: float = 0.9
    eps: float = 1e-8

    def __post_init__(self) -> None:
        demand(self, "beta1 beta2", lambda v: 0 <= v < 1, "an average's weight from 0 to below 1")
        demand(self, "eps", lambda v: v >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A number of epochs at one learning rate, counted from generator iteration 0.

    Attributes:
        epochs: number of passes over the training set: critic steps divided by the batches in it.
        lr: learning rate of both optimisers.
        long_start: whether the critic is trained for longer in the stage's first generator iterations.
    """

    epochs: float
    lr: float
    long_start: bool = True

    def __post_init__(self) -> None:
        demand(self, "epochs", lambda v: v > 0, "a positive number of passes over the training set")
        demand(self, "lr", lambda v: v > 0, "a positive learning rate")


@dataclass(frozen=True, kw_only=True)
class CriticSteps:
    """The number of critic steps before each generator step; the end of an epoch cuts them short.

    Attributes:
        usual: critic steps before most generator iterations.
        long: critic steps in the first `long_until` generator iterations of a long-start stage, and in each whose
            number is a multiple of `long_every`, 0 among them.
        long_until: number of generator iterations in a long start; 0 for none.
        long_every: generator iterations between two long ones; 0 for never.
    """

    usual: int = 5
    long: int = 100
    long_until: int = 25
    long_every: int = 500

    def __post_init__(self) -> None:
        demand(self, "usual long", lambda v: v >= 1, "at least one step")
        demand(self, "long_until long_every", lambda v: v >= 0, "generator iterations, 0 for none")

    def before(self, generator_iteration: int, stage: Stage) -> int:
        """Returns the number of critic steps before a generator iteration of a stage."""
        start = stage.long_start and generator_iteration < self.long_until
        again = self.long_every > 0 and generator_iteration % self.long_every == 0
        return self.long if start or again else self.usual


@dataclass(frozen=True, kw_only=True)
class WganImplementations(Implementations):
    """How a WGAN's steps are carried out, besides the operations that all networks share.

    These four fields do not change the numbers that the plain loop computes, step by step.

    Attributes:
        generator_graph: build the generator's graph in critic steps, which nothing differentiates; the lesson does not.
        early_backward: run the real images' backward before the fakes are made, so that the activations are freed.
        products: compute the generator's first and the critic's last convolution as matrix products.
        resident: keep the training images in the device's memory; False copies each batch there.
    """

    NETWORK: ClassVar = "a WGAN"
    ABSENT: ClassVar = ("residual", "augment", "instance_norm_act", "product_conv")

    generator_graph: bool = False
    early_backward: bool = False
    products: bool = False
    resident: bool = True


@dataclass(frozen=True, kw_only=True)
class WganRecipe(Levered):
    """Everything that decides how one WGAN training computes.

    Attributes:
        image_size: edge of an image in pixels.
        noise_channels: number of channels of the generator's input.
        generator_channels: number of channels of the generator's map before its extra layers.
        critic_channels: number of channels of the critic's first map.
        n_extra_layers: number of extra 3x3 layers in either network.
        order: "paper" puts the norm before the activation, "lesson" after it; also decides the initialisation.
        critic_norm: norm in the critic, "batch" or "layer".
        upsampling: name in `models.upsampling.UPSAMPLINGS`; another name is another network, except that "collapsed"
            computes what "nearest" does.
        batch_size: number of real images, and of fakes, in a critic step.
        generator_batch_size: number of fakes in a generator step.
        optimizer: update rule of both networks.
        clamp: bound on the critic's parameters, clamped to [-clamp, clamp] before each critic step; 0 for no clamp.
        gradient_penalty: weight of the mean of (norm of the critic's gradient - 1)^2 at random points between real and
            fake images; 0 for none.
        critic_steps: number of critic steps before each generator step.
        stages: stages of the training, in order; their epochs are the whole budget.
        precision: "bf16" computes under autocast over float32 weights, which the clamp needs: bfloat16 numbers near
            0.01 are 6.1e-5 apart, more than the learning rate. It changes the mathematics (see `CHANGES`).
        implementations: implementation of each operation; `WganImplementations` says which of them change results.
    """

    PARTS: ClassVar = (RMSprop, Adam, Stage, CriticSteps, WganImplementations)
    LEVERS: ClassVar = plain_loop(
        **dict.fromkeys(("conv_bn_act", "batch_norm_act", "upsample_conv", "optimizer"), "eager"),
        **dict.fromkeys(("generator_graph", "early_backward", "products"), False),
        resident=True,
    )
    CHANGES: ClassVar = {
        "precision": "convolutions and products round to bfloat16; weights, norms' statistics and updates stay float32"
    }

    image_size: int = 64
    noise_channels: int = 100
    generator_channels: int = 64
    critic_channels: int = 64
    n_extra_layers: int = 0
    order: Literal["paper", "lesson"] = "paper"
    critic_norm: Literal["batch", "layer"] = "batch"
    upsampling: str = "deconv"
    batch_size: int = 64
    generator_batch_size: int = 64
    optimizer: RMSprop | Adam = field(default_factory=RMSprop)
    clamp: float = 0.01
    gradient_penalty: float = 0.0
    critic_steps: CriticSteps = field(default_factory=CriticSteps)
    stages: tuple[Stage, ...]
    precision: Literal["bf16", "fp32"] = "fp32"
    implementations: WganImplementations = field(default_factory=WganImplementations)

    @property
    def epochs(self) -> float:
        """Total number of epochs, the whole training budget."""
        return sum(stage.epochs for stage in self.stages)

    def __post_init__(self) -> None:
        demand(self, "batch_size generator_batch_size", lambda v: v >= 1, "at least one image")
        demand(self, "noise_channels generator_channels critic_channels", lambda v: v >= 1, "at least one channel")
        demand(self, "clamp gradient_penalty n_extra_layers", lambda v: v >= 0, "0 or more")
        demand(self, "stages", lambda v: len(v) > 0, "at least one stage")
        if self.gradient_penalty and self.critic_norm == "batch":
            raise ValueError(
                "a gradient penalty is about one image at a time, which batch norm is not; use --set critic_norm=layer"
            )
        if self.gradient_penalty and self.implementations.compile:
            raise ValueError(
                "torch.compile cannot differentiate the gradient penalty twice; use --set implementations.compile=false"
            )
        if self.clamp and isinstance(self.optimizer, Adam):
            raise ValueError("the clamp comes with RMSprop; use --set clamp=0 with Adam")
        if self.implementations.batch_norm_save == "output":
            raise ValueError(
                "batch_norm_save=output divides by gamma, and the clamp holds the critic's within 0.01: 18% of its "
                "gradient is rounding then; use input or byte"
            )


def _implementations(device_type: str) -> WganImplementations:
    if device_type == "cuda":
        return WganImplementations(cuda_graph=True, optimizer="triton", batch_norm_act="triton")
    return WganImplementations(keep_heap=True, early_backward=True, products=True)


def lesson(device_type: str) -> WganRecipe:
    """Returns the WGAN of fast.ai's 2018 lesson 12: an epoch at 1e-4, one at 1e-5, an extra layer, norms last."""
    return WganRecipe(
        name="lesson",
        summary="fast.ai lesson 12: norms after activations, RMSprop 1e-4 then 1e-5, batch 128",
        n_extra_layers=1,
        order="lesson",
        batch_size=128,
        stages=(Stage(epochs=1, lr=1e-4), Stage(epochs=1, lr=1e-5, long_start=False)),
        implementations=_implementations(device_type),
    )


def paper(device_type: str) -> WganRecipe:
    """Returns the WGAN of the paper's code: RMSprop 5e-5 for 25 epochs, weights within 0.01."""
    return WganRecipe(
        name="paper",
        summary="the WGAN paper's code: RMSprop 5e-5, weights clamped to 0.01, batch 64",
        stages=(Stage(epochs=25, lr=5e-5),),
        implementations=_implementations(device_type),
    )


def gp(device_type: str) -> WganRecipe:
    """Returns the WGAN with gradient penalty: lambda 10, layer norm in the critic, Adam 1e-4 (0, 0.9)."""
    base = paper(device_type)
    return replace(
        base,
        name="gp",
        summary="gradient penalty instead of the clamp: Adam 1e-4 (0, 0.9), layer norm in the critic",
        critic_norm="layer",
        optimizer=Adam(),
        clamp=0,
        gradient_penalty=10,
        critic_steps=CriticSteps(long_until=0, long_every=0),
        stages=(Stage(epochs=25, lr=1e-4),),
        implementations=replace(base.implementations, optimizer="eager"),
    )


WGAN_RECIPES: dict[str, Callable[[str], WganRecipe]] = {"lesson": lesson, "paper": paper, "gp": gp}
