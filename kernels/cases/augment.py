"""`augment` at the batches of CIFAR-10."""

import torch

from kernels.augment import Augmentation, augment, augment_fused, augment_ref, draw
from kernels.cases.inputs import compiled_variant
from kernels.spec import Case, Direction, Inputs, KernelSpec

IMAGES = 50_000  # of CIFAR-10's training set: a batch is gathered from all of it

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
    return augment(images, indices, **drawn, cutout=chosen.cutout, padding=chosen.padding, dtype=like.dtype)


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
