"""`augment` at the batches of CIFAR-10."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wallclock.kernels.augment import Augmentation, augment, augment_fused, augment_ref, draw
from wallclock.kernels.cases.inputs import compiled_variant
from wallclock.kernels.spec import Case, Direction, Inputs, KernelSpec

IMAGES = 50_000  # CIFAR-10's training set, from which a batch is gathered

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
    """Makes the inputs of all variants, and the tensors that the loader of `augment_masks` makes beforehand."""
    random = torch.Generator(device).manual_seed(0)
    count, channels, height, width = case.shape
    shape = (IMAGES, height, width, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=random)
    indices = torch.randint(0, IMAGES, (count,), device=device, generator=random)
    chosen = AUGMENTATIONS[case.options["augmentation"]]
    drawn = draw(chosen, 0, 0, indices, height, width)
    padded = F.pad(augment(images, indices), (chosen.pad,) * 4, mode="reflect").to(dtype)
    return {
        "images": images,
        "indices": indices,
        "like": torch.empty(0, dtype=dtype, device=device),
        "padded": padded.contiguous(memory_format=torch.channels_last),
        "offsets": drawn["offsets"],
        "flips": drawn["flips"],
    }


def augment_masks(padded: Tensor, offsets: Tensor, flips: Tensor, height: int, width: int) -> Tensor:
    """Crops and flips like the public airbench loader: with a boolean mask for each shift, and `where` for the flip.

    The host waits for each mask's size, so that no CUDA graph can capture this.

    The images `padded`, floating [N, 3, H + 2*pad, W + 2*pad], are normalised and reflect-padded, which the loader does
    once; offsets, in [-pad, pad], and flips are those of `augment`, and height and width are H and W in pixels.

    Returns:
        Images [N, 3, H, W] of the dtype and the memory order of `padded`.

    Source: the algorithm, not the code, of https://github.com/KellerJordan/cifar10-airbench; for pads above 2, as here,
    rows are cropped first, then columns.
    """
    pad = (padded.shape[2] - height) // 2
    memory_format = torch.channels_last
    of_rows = torch.empty_like(padded[:, :, :height], memory_format=memory_format)
    cropped = torch.empty_like(padded[:, :, :height, :width], memory_format=memory_format)
    for shift in range(2 * pad + 1):
        mask = offsets[:, 0] == shift - pad
        of_rows[mask] = padded[mask, :, shift : shift + height]
    for shift in range(2 * pad + 1):
        mask = offsets[:, 1] == shift - pad
        cropped[mask] = of_rows[mask, :, :, shift : shift + width]
    return torch.where(flips.view(-1, 1, 1, 1), cropped.flip(3), cropped)


def _augment_reference(images: Tensor, indices: Tensor, like: Tensor, *, augmentation: str, **_: Tensor) -> Tensor:
    """Augments image by image, with the reference of the operation."""
    chosen = AUGMENTATIONS[augmentation]
    drawn = draw(chosen, 0, 0, indices.cpu(), *images.shape[1:3])
    made = []
    for place, index in enumerate(indices.tolist()):
        at: dict[str, Any] = {name: values[place].tolist() for name, values in drawn.items()}
        cutout = (*at["cutout_centres"], chosen.cutout) if chosen.cutout else None
        jitter = at.get("brightness", 1.0), at.get("contrast", 1.0)
        made.append(augment_ref(images[index].cpu(), tuple(at["offsets"]), at["flips"], cutout, *jitter))
    return torch.stack(made).to(images.device)


def _augment_eager(images: Tensor, indices: Tensor, like: Tensor, *, augmentation: str, **_: Tensor) -> Tensor:
    chosen = AUGMENTATIONS[augmentation]
    drawn = draw(chosen, 0, 0, indices, *images.shape[1:3])
    return augment(images, indices, **drawn, cutout=chosen.cutout, padding=chosen.padding, dtype=like.dtype)


def _augment_triton(images: Tensor, indices: Tensor, like: Tensor, *, augmentation: str, **_: Tensor) -> Tensor:
    return augment_fused(images, indices, AUGMENTATIONS[augmentation], seed=0, epoch=0, dtype=like.dtype)


def _augment_masks(images: Tensor, padded: Tensor, offsets: Tensor, flips: Tensor, **_: object) -> Tensor:
    """Runs the loader's work of an epoch without its gather: padded images and random numbers are given."""
    return augment_masks(padded, offsets, flips, *images.shape[1:3])


def _augment_bytes(case: Case, variant: str, direction: Direction, element_bytes: int) -> int:
    """Counts a byte read and an element written for each value; eager also reads and writes float32 and indices.

    With masks each crop reads and writes the selected pixels twice; flip and `where` are 5 passes.
    """
    if variant == "masks":
        columns = 1 + 2 * AUGMENTATIONS[case.options["augmentation"]].pad / case.shape[3]
        return round(case.elements * element_bytes * (4 * columns + 4 + 5))
    return case.elements * ((1 + element_bytes) if variant != "eager" else (1 + 1 + 1 + 4 + 8 + 4 + element_bytes))


AUGMENT = KernelSpec(
    name="augment",
    reference=_augment_reference,
    variants={
        "masks": _augment_masks,
        "eager": _augment_eager,
        "compile": compiled_variant(_augment_eager),
        "triton": _augment_triton,
    },
    only_at={"masks": lambda case: case.options["augmentation"] == "crop flip"},  # the masks can do only these two
    cases=AUGMENT_CASES,
    main_cases=AUGMENT_CASES[:2],
    inputs=_augment_inputs,
    differentiated=(),
    bytes_moved=_augment_bytes,
    operations=lambda case, direction: 20 * case.elements,
)
