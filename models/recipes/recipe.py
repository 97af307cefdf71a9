"""The CIFAR-10 recipe: everything that decides how a run computes, as one frozen record. It imports no torch."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from wallclock.models.recipes.levers import Levered, plain_loop
from wallclock.models.recipes.schedules import LinearDecay, OneCycle, Schedule, demand

Precision = Literal["bf16", "fp16", "fp32"]
Implementation = Literal["eager", "triton"]
Choice = Literal["eager", "triton", "auto"]
Save = Literal["input", "output", "byte"]
Padding = Literal["reflect", "zero", "none"]
Pipeline = Literal["device", "dataloader", "dali", "webdataset"]
# Operations that Triton kernels can carry out.
TRITON_OPERATIONS = (
    "conv_bn_act", "batch_norm_act", "residual", "augment", "instance_norm_act", "upsample_conv", "optimizer"
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with Nesterov momentum on every parameter; the loss is the batch mean."""

    lr: float
    weight_decay: float
    momentum: float = 0.9
    schedule: Schedule = field(default_factory=OneCycle)

    def __post_init__(self) -> None:
        _demand_rates(self, "lr", "momentum")


@dataclass(frozen=True, kw_only=True)
class MuonSGD:
    """Muon on the convolution filters, SGD on biases and head; rates are for the summed loss of a batch.

    Attributes:
        filter_lr: Muon's learning rate, relative to filter banks of norm sqrt(O).
        filter_momentum: Muon's momentum.
        bias_lr: learning rate of the norms' biases and of the whitening bias.
        head_lr: learning rate of the classifier.
        momentum: SGD's momentum, of Nesterov's kind.
        weight_decay: weight decay per image; in one step SGD takes this times the batch size off a weight.
        schedule: schedule of all learning rates but the whitening bias's.
        whiten_bias_schedule: schedule of the whitening bias; where it is zero the bias is frozen, which saves the first
            convolution's input gradient.
        first_schedules: schedules of the network's first groups, in order, instead of `schedule`; where one is zero its
            group is frozen, which saves its backward once all groups before it are frozen too.
            Source: FreezeOut, https://arxiv.org/abs/1706.04983
    """

    filter_lr: float
    filter_momentum: float
    bias_lr: float
    head_lr: float
    momentum: float
    weight_decay: float
    schedule: Schedule = field(default_factory=LinearDecay)
    whiten_bias_schedule: LinearDecay = field(default_factory=LinearDecay)
    first_schedules: tuple[LinearDecay, ...] = ()

    def __post_init__(self) -> None:
        _demand_rates(self, "filter_lr bias_lr head_lr", "filter_momentum momentum")


def _demand_rates(rule: SGD | MuonSGD, rates: str, momenta: str) -> None:
    demand(rule, rates, lambda v: v > 0, "a positive learning rate")
    demand(rule, momenta, lambda v: 0 <= v < 1, "a momentum from 0 to below 1")
    demand(rule, "weight_decay", lambda v: v >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class TestTimeAugmentation:
    """Averages the logits of an image, its mirror image and its two diagonal shifts by one pixel (six views).

    Attributes:
        threshold: probability from which an image keeps the class of its plain view. Each image is decided alone: no
            prediction depends on another test image; 1.0 gives every image all six views.
    """

    __test__ = False  # not a pytest class

    threshold: float = 1.0

    def __post_init__(self) -> None:
        demand(self, "threshold", lambda v: 0 <= v <= 1, "a probability from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """A stage of training on images scaled to `size` pixels, until `until_epoch` epochs are done."""

    size: int
    until_epoch: float

    def __post_init__(self) -> None:
        demand(self, "size", lambda v: v >= 1, "at least one pixel")
        demand(self, "until_epoch", lambda v: v > 0, "a positive number of passes over the training set")


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Leaves some easy samples out of an epoch, and gives the easy ones that stay more weight to make up for them.

    `loaders.pipelines.pruned` carries it out.

    Attributes:
        easy: share of the samples that counts as easy, those with the smallest losses when last seen.
        rate: share of the easy samples that an epoch leaves out; with 1 none is left to make up for the others.
        from_epoch: first epoch, from 0, that leaves samples out; every sample has been seen by then.
        whole_epochs: number of last epochs that leave nothing out.
    """

    easy: float = 0.5
    rate: float = 0.5
    from_epoch: int = 1
    whole_epochs: int = 1

    def __post_init__(self) -> None:
        demand(self, "easy", lambda v: 0 < v < 1, "a share between 0 and 1")
        demand(self, "rate", lambda v: 0 < v <= 1, "a share above 0, at most 1")
        demand(self, "from_epoch", lambda v: v >= 1, "at least 1: losses are not known before")
        demand(self, "whole_epochs", lambda v: v >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class Implementations:
    """How the recipe's operations are carried out; every switch is independent, so that each can be ablated.

    Attributes:
        channels_last: keep activations and filters in NHWC memory.
        compile: pass the network through `torch.compile`.
        cuda_graph: replay whole steps, optimisers included, as CUDA graphs (GPU only).
        keep_heap: keep freed memory in the process (CPU only): by default each big activation goes back to the kernel,
            which clears its pages in every step (183,000 page faults a step; 13% of the time).
        product_conv: take the filters' gradients of small maps as one matrix product each; faster on CPUs, whose
            convolutions are slow at those: see `kernels.product_conv`.
        conv_bn_act: "triton" takes a convolution and the norm after it in our kernels: the norm's statistics come from
            the convolution, and the next convolution applies the norm where nothing else reads it. "auto" measures
            both before the first seed, layer by layer, and takes the faster of those that are right.
        batch_norm_act: "triton" computes norm and activation (and a residual after them) in one kernel.
        batch_norm_save: tensors that this kernel keeps for backward; see `kernels.batch_norm_act`.
        residual: "triton" writes a residual sum into its branch's memory.
        augment: "triton" makes a training batch in one kernel.
        instance_norm_act: "triton" computes instance norm, activation, sum and reflection padding in one operation.
        upsample_conv: "triton" computes nearest x2 and a convolution as one product for each phase of the output.
        optimizer: "triton" computes Muon's momentum, norms and update in three kernels; SGD is PyTorch's either way.
        NETWORK: what has these implementations, such as "a WGAN", for the message about an absent operation.
        ABSENT: fields for operations that its networks and pipeline do not have; they must keep their defaults.

    Raises:
        ValueError: if such a field does not have its default; names it.
    """

    NETWORK: ClassVar[str] = ""
    ABSENT: ClassVar[tuple[str, ...]] = ()

    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    keep_heap: bool = False
    product_conv: bool = False
    conv_bn_act: Choice = "eager"
    batch_norm_act: Implementation = "eager"
    batch_norm_save: Save = "input"
    residual: Implementation = "eager"
    augment: Implementation = "eager"
    instance_norm_act: Implementation = "eager"
    upsample_conv: Implementation = "eager"
    optimizer: Implementation = "eager"

    def __post_init__(self) -> None:
        why = f"what it is by default: {self.NETWORK} has no such operation"
        demand(self, " ".join(self.ABSENT), lambda v: v in ("eager", False), why)

    @property
    def triton(self) -> tuple[str, ...]:
        """Names of the operations that Triton kernels carry out."""
        return tuple(name for name in TRITON_OPERATIONS if getattr(self, name) == "triton")

    @property
    def variant(self) -> str:
        """The name of this choice in the records: `eager`, or what is switched on, such as `compile+cuda_graph`."""
        kernels = ("triton",) if self.triton == TRITON_OPERATIONS else tuple(f"triton {name}" for name in self.triton)
        kernels += ("auto conv_bn_act",) if self.conv_bn_act == "auto" else ()
        flags = (name for name in ("compile", "cuda_graph", "product_conv") if getattr(self, name))
        return "+".join([*flags, *kernels]) or "eager"


@dataclass(frozen=True, kw_only=True)
class Recipe(Levered):
    """Everything that decides how one training run computes.

    Attributes:
        target: accuracy to reach, as a fraction, unless the caller names another.
        model: name of the network in `models.build.MODELS`.
        model_arguments: keyword arguments of that network.
        batch_size: number of images in a step.
        epochs: number of passes over the training set: the whole budget, fixed beforehand.
        optimizer: update rule with its rates and schedule.
        label_smoothing: share of the label's weight that the cross entropy spreads over all classes.
        precision: `bf16` and `fp16` run under autocast over float32 weights.
        pad: padding on each side before the random crop, in pixels.
        padding: `reflect` mirrors the image, `zero` is black, `none` leaves padding and crop out.
        flip: `alternating` shows every image in both orientations within two epochs; `random`; `none`.
        cutout: edge in pixels of a square of each training image that is set to the mean colour; 0 for none.
        resolutions: smaller images for early epochs, in order; full size after the last.
        pruning: rule by which epochs leave samples out, or None.
        tta: test-time augmentation of the final evaluation, or None.
        pipeline: name of the pipeline that makes the training batches; see `loaders.pipelines.choose`.
    """

    PARTS: ClassVar = (SGD, MuonSGD, OneCycle, LinearDecay, TestTimeAugmentation, Resolution, Pruning, Implementations)
    LEVERS: ClassVar = plain_loop(
        product_conv=False,
        **dict.fromkeys(("conv_bn_act", "batch_norm_act", "residual", "augment", "optimizer"), "eager"),
    )
    CHANGES: ClassVar = {
        "precision": "convolutions round to 16 bits; weights, norms' statistics and updates stay float32"
    }

    target: float
    model: str
    model_arguments: dict[str, Any] = field(default_factory=dict)
    batch_size: int
    epochs: float
    optimizer: SGD | MuonSGD
    label_smoothing: float = 0.0
    precision: Precision = "bf16"
    pad: int
    flip: Literal["alternating", "random", "none"]
    cutout: int = 0
    resolutions: tuple[Resolution, ...] = ()
    pruning: Pruning | None = None
    tta: TestTimeAugmentation | None = None
    padding: Padding = "reflect"
    pipeline: Pipeline = "device"
    implementations: Implementations = field(default_factory=Implementations)

    def __post_init__(self) -> None:
        demand(self, "target", lambda v: 0 < v < 1, "an accuracy between 0 and 1, such as 0.94")
        demand(self, "batch_size", lambda v: v >= 1, "at least one image a step")
        demand(self, "epochs", lambda v: v > 0, "a positive number of passes over the training set")
        demand(self, "label_smoothing", lambda v: 0 <= v < 1, "a share from 0 to below 1")
        demand(self, "pad cutout", lambda v: v >= 0, "pixels, 0 for none")
        demand(self, "padding", lambda v: v in get_args(Padding), f"one of {', '.join(get_args(Padding))}")
        demand(self, "pipeline", lambda v: v in get_args(Pipeline), f"one of {', '.join(get_args(Pipeline))}")
