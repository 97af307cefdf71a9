"""The operations with their variants and the shapes that the networks of this suite give them."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from kernels.augment import Augmentation, augment, augment_fused, augment_ref, draw
from kernels.batch_norm_act import Plan, batch_norm_act, batch_norm_act_ref, plan
from kernels.residual import residual_ref
from kernels.spec import Case, Direction, Inputs, KernelSpec

SLOPE = 0.1
IMAGES = 50_000  # of CIFAR-10's training set: a batch is gathered from all of it


def compiled_variant(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Returns the function through `torch.compile`, which is set up when it is first called."""

    @functools.cache
    def compiled() -> Callable[..., torch.Tensor]:
        return torch.compile(function, dynamic=False, fullgraph=True)

    def call(**arguments: Any) -> torch.Tensor:
        return compiled()(**arguments)

    return call


def _normal(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
    random = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape, device=device, generator=random)
    return x.to(dtype, memory_format=torch.channels_last) if len(shape) == 4 else x


# batch_norm_act ------------------------------------------------------------------------------------------------------


def _norm_case(network: str, n: int, c: int, edge: int, act: str, *flags: str) -> Case:
    return Case(network=network, shape=(n, c, edge, edge), options={"act": act}, flags=frozenset(flags))


_DARKNET = [(32, 32), (64, 16), (32, 16), (128, 16), (256, 8), (128, 8), (512, 4), (256, 4), (1024, 2), (512, 2)]
_DARKNET_SUMS = [(64, 16), (128, 16), (256, 8), (512, 4), (1024, 2)]
NORM_CASES = (
    *(_norm_case("darknet", 256, c, edge, "leaky_relu") for c, edge in _DARKNET),
    *(_norm_case("darknet", 256, c, edge, "leaky_relu", "residual") for c, edge in _DARKNET_SUMS),
    *(_norm_case("sprint", 500, c, edge, "gelu") for c, edge in [(64, 15), (256, 7), (256, 3)]),
    *(_norm_case("wrn22", 512, c, edge, "relu") for c, edge in [(16, 32), (96, 32), (96, 16), (192, 16), (192, 8)]),
    _norm_case("wrn22", 512, 384, 8, "relu"),
    *(_norm_case("dcgan", 64, c, edge, "relu") for c, edge in [(512, 4), (256, 8), (128, 16), (64, 32)]),
    *(_norm_case("dcgan", 64, c, edge, "leaky_relu") for c, edge in [(128, 16), (256, 8), (512, 4)]),
)


def _norm_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    channels = (case.shape[1],)
    return {
        "x": _normal(case.shape, dtype, device, 0),
        "weight": 1 + 0.1 * _normal(channels, torch.float32, device, 1),
        "bias": 0.1 * _normal(channels, torch.float32, device, 2),
        "residual": _normal(case.shape, dtype, device, 3) if "residual" in case.flags else None,
    }


def _norm_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, *, act: Any
) -> torch.Tensor:
    return batch_norm_act_ref(
        x, weight, bias, None, None, training=True, act=act, negative_slope=SLOPE, residual=residual
    )


IN_PLACE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu_,
    "gelu": F.gelu,
    "leaky_relu": lambda z: F.leaky_relu_(z, SLOPE),
}
OUT_OF_PLACE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "leaky_relu": lambda z: F.leaky_relu(z, SLOPE),
}


def _norm_eager(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, *, act: str
) -> torch.Tensor:
    """What a user has today: norm, activation in place where PyTorch can, sum."""
    z = F.batch_norm(x, None, None, weight, bias, True)
    y = IN_PLACE[act](z)
    return y if residual is None else residual + y


def _norm_out_of_place(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, *, act: str
) -> torch.Tensor:
    """The same for the compiler, which fuses it all anyway: 6.7 ms on a CPU where the form in place takes 58."""
    z = F.batch_norm(x, None, None, weight, bias, True)
    y = OUT_OF_PLACE[act](z)
    return y if residual is None else residual + y


def _norm_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    *,
    act: Any,
    save: Any = "input",
    persistent: bool | None = None,
) -> torch.Tensor:
    return batch_norm_act(
        x, weight, bias, None, None, training=True, act=act, negative_slope=SLOPE, residual=residual, save=save,
        persistent=persistent,
    )  # fmt: skip


def _norm_bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    """Passes over the map: eager writes norm, activation and sum apart, and each reads again what it needs."""
    residual = int("residual" in case.flags)
    if variant.startswith("eager"):
        forward, backward = 5 + 3 * residual, 8
    elif variant.startswith("triton") and norm_plan(case.shape).persistent:
        forward, backward = 2 + residual, 3
    else:
        forward, backward = 3 + residual, 5
    passes = {"forward": forward, "backward": backward, "both": forward + backward}[direction]
    saved = 0
    if variant == "triton_byte":  # a byte is written, and read where backward would read the input
        reads = (backward - 1) // 2
        saved = {"forward": 1, "backward": reads * (1 - element_bytes), "both": 1 + reads * (1 - element_bytes)}[
            direction
        ]
    return case.elements * (passes * element_bytes + saved)


def norm_plan(shape: tuple[int, ...]) -> Plan:
    """How the Triton kernels cut up a map on this machine's GPU, or on one of 132 multiprocessors where it has none."""
    resident = torch.cuda.get_device_properties(0).multi_processor_count if torch.cuda.is_available() else 132
    n, c, height, width = shape
    return plan(n * height * width, c, resident_programs=resident)


def _norm_operations(case: Case, direction: Direction) -> int:
    """Statistics, scale and shift, activation, sum: about 9 forward and 15 backward for each element."""
    return case.elements * {"forward": 9, "backward": 15, "both": 24}[direction]


BATCH_NORM_ACT = KernelSpec(
    name="batch_norm_act",
    reference=_norm_reference,
    variants={
        "eager_nchw": _norm_eager,
        "eager": _norm_eager,
        "compile": compiled_variant(_norm_out_of_place),
        "triton": _norm_triton,
        "triton_byte": functools.partial(_norm_triton, save="byte"),
    },
    cases=NORM_CASES,
    inputs=_norm_inputs,
    differentiated=("x", "weight", "bias", "residual"),
    loose={"triton_byte": 0.05},
    bytes_moved=_norm_bytes,
    operations=_norm_operations,
)

# residual ------------------------------------------------------------------------------------------------------------

RESIDUAL_CASES = (
    *(
        Case(network="darknet", shape=(256, c, edge, edge), options={"act": "leaky_relu", "alpha": 1.0})
        for c, edge in _DARKNET_SUMS
    ),
    *(
        Case(network="wrn22", shape=(512, c, edge, edge), options={"act": "none", "alpha": 0.2})
        for c, edge in [(96, 32), (192, 16), (384, 8)]
    ),
    Case(network="cyclegan", shape=(1, 256, 64, 64), options={"act": "none", "alpha": 1.0}),
)


def _residual_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    return {"branch": _normal(case.shape, dtype, device, 0), "x": _normal(case.shape, dtype, device, 1)}


def _residual_eager(branch: torch.Tensor, x: torch.Tensor, *, alpha: float, act: str) -> torch.Tensor:
    y = branch if act == "none" else F.leaky_relu(branch, SLOPE)
    return torch.add(x, y, alpha=alpha)


def _residual_triton(branch: torch.Tensor, x: torch.Tensor, *, alpha: float, act: Any) -> torch.Tensor:
    """Out of place, so that it can be repeated: the same kernel, on another buffer."""
    slope = {"none": 1.0, "leaky_relu": SLOPE}[act]
    return torch.ops.wallclock.residual(branch, x, alpha, slope)[0]


def _residual_bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    act = case.options["act"] != "none"
    if variant.startswith("triton"):
        forward, backward = 3 * element_bytes + act / 8, act * (2 * element_bytes + 1 / 8)
    elif variant == "compile":
        forward, backward = 3 * element_bytes, act * 3 * element_bytes
    else:
        forward, backward = (3 + 2 * act) * element_bytes, act * 3 * element_bytes
    if case.options["alpha"] != 1.0 and not act:
        backward += 2 * element_bytes
    return int(case.elements * {"forward": forward, "backward": backward, "both": forward + backward}[direction])


RESIDUAL = KernelSpec(
    name="residual",
    reference=functools.partial(residual_ref, negative_slope=SLOPE),
    variants={
        "eager_nchw": _residual_eager,
        "eager": _residual_eager,
        "compile": compiled_variant(_residual_eager),
        "triton": _residual_triton,
    },
    cases=RESIDUAL_CASES,
    inputs=_residual_inputs,
    differentiated=("branch", "x"),
    bytes_moved=_residual_bytes,
    operations=lambda case, direction: case.elements * {"forward": 3, "backward": 2, "both": 5}[direction],
)

# augment -------------------------------------------------------------------------------------------------------------

AUGMENTATIONS = {
    "crop flip": Augmentation(pad=4, flip="alternating"),
    "crop flip cutout jitter": Augmentation(pad=4, flip="random", cutout=8, brightness=0.2, contrast=0.2),
}
AUGMENT_CASES = tuple(
    Case(network="cifar", shape=(n, 3, 32, 32), options={"augmentation": name})
    for n in (500, 5000)
    for name in AUGMENTATIONS
)


def _augment_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    random = torch.Generator(device).manual_seed(0)
    _, channels, height, width = case.shape
    shape = (IMAGES, height, width, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=random)
    indices = torch.randint(0, IMAGES, case.shape[:1], device=device, generator=random)
    return {"images": images, "indices": indices, "like": torch.empty(0, dtype=dtype, device=device)}


def _augment_reference(
    images: torch.Tensor, indices: torch.Tensor, like: torch.Tensor, *, augmentation: str
) -> torch.Tensor:
    """Image by image, by the operation's definition."""
    chosen = AUGMENTATIONS[augmentation]
    drawn = draw(chosen, 0, 0, indices.cpu(), *images.shape[1:3])
    made = []
    for place, index in enumerate(indices.tolist()):
        at = {name: values[place] for name, values in drawn.items()}
        centre = [int(v) for v in at["cutout_centres"]] if chosen.cutout else None
        row, column = (int(v) for v in at["offsets"])
        made.append(
            augment_ref(
                images[index].cpu(),
                (row, column),
                bool(at["flips"]),
                (centre[0], centre[1], chosen.cutout) if centre else None,
                float(at.get("brightness", 1.0)),
                float(at.get("contrast", 1.0)),
            )
        )
    return torch.stack(made).to(images.device)


def _augment_eager(
    images: torch.Tensor, indices: torch.Tensor, like: torch.Tensor, *, augmentation: str
) -> torch.Tensor:
    chosen = AUGMENTATIONS[augmentation]
    drawn = draw(chosen, 0, 0, indices, *images.shape[1:3])
    return augment(images, indices, **drawn, cutout=chosen.cutout, dtype=like.dtype)


def _augment_triton(
    images: torch.Tensor, indices: torch.Tensor, like: torch.Tensor, *, augmentation: str
) -> torch.Tensor:
    return augment_fused(images, indices, AUGMENTATIONS[augmentation], seed=0, epoch=0, dtype=like.dtype)


def _augment_bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    """One byte read and one element written a value; eager passes through float32 twice, and through its indices."""
    return case.elements * ((1 + element_bytes) if variant != "eager" else (1 + 1 + 1 + 4 + 8 + 4 + element_bytes))


AUGMENT = KernelSpec(
    name="augment",
    reference=_augment_reference,
    variants={"eager": _augment_eager, "compile": compiled_variant(_augment_eager), "triton": _augment_triton},
    cases=AUGMENT_CASES,
    inputs=_augment_inputs,
    differentiated=(),
    bytes_moved=_augment_bytes,
    operations=lambda case, direction: 20 * case.elements,
)

SPECS = {spec.name: spec for spec in (BATCH_NORM_ACT, RESIDUAL, AUGMENT)}
