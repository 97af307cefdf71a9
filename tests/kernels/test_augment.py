"""The batched augmentation equals its reference image by image; the reference equals a plain loop."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wallclock.kernels.augment import GREY, MEAN, STD, Augmentation, augment, augment_fused, augment_ref, draw
from wallclock.kernels.cases.augment import augment_masks

TOLERANCE = {"rtol": 0.0, "atol": 2e-6}  # float32 rounding of values up to 2.2


def images_of(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=random)


def looped(image: torch.Tensor, offset: tuple[int, int], flip: bool, cutout: tuple[int, int, int] | None) -> list:
    """The augmentation in plain Python, pixel by pixel: what the words in `augment_ref` say."""
    height, width, _ = image.shape

    def mirror(position: int, size: int) -> int:
        position = abs(position)
        return 2 * (size - 1) - position if position >= size else position

    def pixel(channel: int, row: int, column: int) -> float:
        if cutout is not None:
            top, left = cutout[0] - cutout[2] // 2, cutout[1] - cutout[2] // 2
            if top <= row < top + cutout[2] and left <= column < left + cutout[2]:
                return 0.0
        from_column = width - 1 - column if flip else column
        value = image[mirror(row + offset[0], height), mirror(from_column + offset[1], width), channel].item()
        return (value / 255 - MEAN[channel]) / STD[channel]

    return [[[pixel(c, row, column) for column in range(width)] for row in range(height)] for c in range(3)]


@st.composite
def augmented(draw: st.DrawFn) -> tuple[torch.Tensor, list[tuple[tuple[int, int], bool, tuple[int, int, int] | None]]]:
    height, width, count = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 4))
    images = images_of(count, height, width, draw(st.integers(0, 99)))
    edge = draw(st.sampled_from((0, 1, 2, 3, 8, 20)))
    choices = []
    for _ in range(count):
        offset = draw(st.integers(1 - height, height - 1)), draw(st.integers(1 - width, width - 1))
        reach = min(height, width) - 1  # the reference pads all sides alike
        offset = tuple(max(-reach, min(reach, value)) for value in offset)
        centre = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        choices.append((offset, draw(st.booleans()), (*centre, edge) if edge else None))
    return images, choices


@settings(max_examples=150, deadline=None)
@given(augmented())
def test_a_batch_equals_the_reference_image_by_image(case: tuple) -> None:
    images, choices = case
    indices = torch.arange(len(images)).flip(0)
    offsets = torch.tensor([offset for offset, _, _ in choices]).flip(0)
    flips = torch.tensor([flip for _, flip, _ in choices]).flip(0)
    edge = choices[0][2][2] if choices[0][2] else 0
    centres = torch.tensor([cut[:2] if cut else (0, 0) for _, _, cut in choices]).flip(0)
    found = augment(
        images, indices, offsets=offsets, flips=flips, cutout_centres=centres if edge else None, cutout=edge
    )
    for image, (offset, flip, cutout), got in zip(images, choices, found.flip(0), strict=True):
        expected = augment_ref(image, offset, flip, cutout)
        torch.testing.assert_close(got, expected, **TOLERANCE)
        torch.testing.assert_close(expected, torch.tensor(looped(image, offset, flip, cutout)), **TOLERANCE)


def test_zero_padding_is_black_outside_the_image_and_nothing_else() -> None:
    images = images_of(1, 5, 7)
    black = [-mean / std for mean, std in zip(MEAN, STD, strict=True)]
    corners = [(row, column) for row in range(-4, 5) for column in range(-4, 5)]
    for flip in (False, True):
        offsets, flips = torch.tensor(corners), torch.full((len(corners),), flip)
        every = torch.zeros(len(corners), dtype=torch.int64)
        found = augment(images, every, offsets=offsets, flips=flips, padding="zero")
        reflected = augment(images, every, offsets=offsets, flips=flips)
        for got, mirrored, (row, column) in zip(found, reflected, corners, strict=True):
            torch.testing.assert_close(got, augment_ref(images[0], (row, column), flip, padding="zero"), **TOLERANCE)
            from_column = torch.arange(7).flip(0) if flip else torch.arange(7)
            rows, columns = torch.arange(5) + row, from_column + column
            outside = ((rows < 0) | (rows >= 5))[:, None] | ((columns < 0) | (columns >= 7))[None, :]
            assert torch.equal(got[:, ~outside], mirrored[:, ~outside])
            assert int(outside.sum()) == 35 - (5 - abs(row)) * (7 - abs(column))
            for channel in range(3):
                assert (got[channel, outside] - black[channel]).abs().max() < 2e-6 if outside.any() else True


@pytest.mark.parametrize(("height", "width"), [(5, 7), (7, 5), (32, 32), (33, 9)])
def test_every_corner_of_the_crop(height: int, width: int) -> None:
    images, reach = images_of(1, height, width), min(height, width) - 1
    corners = [(a, b) for a in (-reach, -2, 0, 2, reach) for b in (-reach, -2, 0, 2, reach)]
    for flip in (False, True):
        found = augment(
            images,
            torch.zeros(len(corners), dtype=torch.int64),
            offsets=torch.tensor(corners),
            flips=torch.full((len(corners),), flip),
        )
        for got, corner in zip(found, corners, strict=True):
            torch.testing.assert_close(got, augment_ref(images[0], corner, flip), **TOLERANCE)


def test_each_part_alone_and_none() -> None:
    images, indices = images_of(3, 5, 7), torch.tensor([2, 0, 2, 1])
    offsets, flips = torch.tensor([[1, -2], [0, 4], [-4, 0], [2, 2]]), torch.tensor([True, False, False, True])
    plain = augment(images, indices)
    cropped = augment(images, indices, offsets=offsets)
    flipped = augment(images, indices, flips=flips)
    for row, index in enumerate(indices):
        torch.testing.assert_close(plain[row], augment_ref(images[index]), **TOLERANCE)
        corner = (int(offsets[row, 0]), int(offsets[row, 1]))
        torch.testing.assert_close(cropped[row], augment_ref(images[index], corner), **TOLERANCE)
        torch.testing.assert_close(flipped[row], augment_ref(images[index], flip=bool(flips[row])), **TOLERANCE)


@pytest.mark.parametrize(("height", "width", "pad"), [(5, 7, 4), (32, 32, 2), (6, 6, 0)])
def test_the_loader_with_masks_makes_the_references_pixels(height: int, width: int, pad: int) -> None:
    images = images_of(40, height, width)
    random = torch.Generator().manual_seed(1)
    offsets = torch.randint(-pad, pad + 1, (40, 2), generator=random)
    flips = torch.rand(40, generator=random) < 0.5
    padded = torch.nn.functional.pad(augment(images, torch.arange(40)), (pad,) * 4, mode="reflect")
    found = augment_masks(padded, offsets, flips, height, width)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for image, offset, flip, got in zip(images, offsets.tolist(), flips.tolist(), found, strict=True):
        torch.testing.assert_close(got, augment_ref(image, tuple(offset), flip), **TOLERANCE)


def test_a_flip_mirrors_the_crop_not_the_image() -> None:
    images = images_of(1, 5, 7)
    offsets, flips = torch.tensor([[0, 2]]), torch.tensor([True])
    both = augment(images, torch.zeros(1, dtype=torch.int64), offsets=offsets, flips=flips)
    cropped = augment(images, torch.zeros(1, dtype=torch.int64), offsets=offsets)
    assert torch.equal(both, cropped.flip(3)) and not torch.equal(both, cropped)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    """Every pixel value of every channel is the nearest of its type to the exact value."""
    values = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(1, 16, 16, 3).contiguous()
    found = augment(values, torch.tensor([0]), dtype=dtype)[0].permute(1, 2, 0).reshape(256, 3)
    mean, std = (torch.tensor(constants, dtype=torch.float64) for constants in (MEAN, STD))
    exact = (torch.arange(256, dtype=torch.float64)[:, None] / 255 - mean) / std
    assert found.dtype == dtype and torch.equal(found, exact.to(dtype))


def test_memory_is_channels_last_and_the_input_is_untouched() -> None:
    images = images_of(4, 32, 32)
    before = images.clone()
    indices = torch.tensor([3, 1])
    for flips in (None, torch.tensor([True, False])):
        centres = torch.tensor([[0, 0], [31, 31]])
        found = augment(images, indices, flips=flips, cutout_centres=centres, cutout=8)
        assert found.shape == (2, 3, 32, 32) and found.is_contiguous(memory_format=torch.channels_last)
        assert not found.is_contiguous()
    assert torch.equal(images, before)


def test_images_of_any_layout_in_memory_are_read() -> None:
    images = images_of(3, 6, 6)
    strided = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    indices, flips = torch.tensor([2, 0, 1]), torch.tensor([True, False, True])
    assert not strided.is_contiguous()
    assert torch.equal(augment(strided, indices, flips=flips), augment(images, indices, flips=flips))


def test_extreme_pixels_and_an_empty_batch() -> None:
    black, white = torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    found = augment(torch.cat([black, white]), torch.tensor([0, 1]), flips=torch.tensor([True, True]))
    for channel in range(3):
        assert found[0, channel, 0, 0].item() == pytest.approx(-MEAN[channel] / STD[channel], abs=1e-6)
        assert found[1, channel, 1, 1].item() == pytest.approx((1 - MEAN[channel]) / STD[channel], abs=1e-6)
    empty = torch.zeros(0, dtype=torch.int64)
    assert augment(black, empty, offsets=torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 3, 2, 2)


def test_brightness_then_contrast_clip_to_the_range_of_pixels() -> None:
    images = images_of(3, 4, 5)
    brightness, contrast = torch.tensor([0.5, 1.0, 1.9]), torch.tensor([1.0, 0.0, 1.8])
    found = augment(images, torch.arange(3), brightness=brightness, contrast=contrast)
    for image, got, bright, strong in zip(images, found, brightness.tolist(), contrast.tolist(), strict=True):
        torch.testing.assert_close(got, augment_ref(image, brightness=bright, contrast=strong), rtol=0, atol=1e-5)
    grey = sum(w * (found[1, c, 0, 0] * STD[c] + MEAN[c]) for c, w in enumerate(GREY))
    expected = (images[1].float() / 255 * torch.tensor(GREY)).sum(2).mean()
    assert grey == pytest.approx(expected.item(), abs=1e-5), "no contrast leaves the mean grey"
    assert found[2].amax() <= max((1 - MEAN[c]) / STD[c] for c in range(3)) + 1e-5


EVERYTHING = Augmentation(pad=2, flip="random", cutout=3, brightness=0.2, contrast=0.3)


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(pad=0, flip="none"),
        Augmentation(),
        Augmentation(pad=3, flip="random"),
        Augmentation(pad=0, flip="none", cutout=4),
        Augmentation(pad=0, flip="none", brightness=1.0),
        Augmentation(pad=1, flip="none", contrast=1.0),
        EVERYTHING,
        Augmentation(pad=3, flip="random", padding="zero"),
        replace(EVERYTHING, padding="zero"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("height", "width"),
    [(5, 7), pytest.param(32, 32, marks=pytest.mark.slow), pytest.param(41, 40, marks=pytest.mark.slow)],
)
def test_one_kernel_equals_drawing_and_augmenting(
    augmentation: Augmentation, height: int, width: int, device: torch.device
) -> None:
    images, indices = images_of(30, height, width).to(device), torch.tensor([7, 29, 7], device=device)
    for seed, epoch in ((0, 0), (2**40 + 3, 1), (2**63 - 1, 17)):
        drawn = draw(augmentation, seed, epoch, indices, height, width)
        expected = augment(images, indices, **drawn, cutout=augmentation.cutout, padding=augmentation.padding)
        found = augment_fused(images, indices, augmentation, seed=seed, epoch=epoch)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert not len(augment_fused(images, indices[:0], augmentation, seed=0, epoch=0))


@st.composite
def fused(draw: st.DrawFn) -> tuple[int, int, int, Augmentation]:
    height, width, count = draw(st.integers(1, 40)), draw(st.integers(1, 90)), draw(st.integers(0, 4))
    return (
        count,
        height,
        width,
        Augmentation(
            pad=draw(st.integers(0, min(height, width, 9) - 1)),
            flip=draw(st.sampled_from(("alternating", "random", "none"))),
            cutout=draw(st.sampled_from((0, 1, 4, 50))),
            brightness=draw(st.sampled_from((0.0, 0.5))),
            contrast=draw(st.sampled_from((0.0, 0.5))),
        ),
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=fused(), epoch=st.integers(0, 50))
def test_one_kernel_equals_drawing_and_augmenting_at_any_shape(case: tuple, epoch: int, device: torch.device) -> None:
    count, height, width, augmentation = case
    images, indices = images_of(3, height, width).to(device), torch.arange(count, device=device) % 3
    drawn = draw(augmentation, 5, epoch, indices, height, width)
    expected = augment(images, indices, **drawn, cutout=augmentation.cutout)
    found = augment_fused(images, indices, augmentation, seed=5, epoch=epoch)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("images", "indices", "message"),
    [
        (images_of(2, 3, 5).float(), torch.tensor([0]), r"images are float32 \[2, 3, 5, 3\]; expected uint8"),
        (images_of(2, 3, 5)[..., :1], torch.tensor([0]), "expected uint8"),
        (images_of(0, 3, 5), torch.tensor([0]), "at least one"),
        (images_of(2, 3, 5), torch.tensor([0], dtype=torch.int32), r"indices are int32 \[1\] on cpu; expected int64"),
        (images_of(2, 3, 5), torch.tensor([[0]]), "expected int64"),
        (images_of(2, 2, 5), torch.tensor([0]), "pad is 2; .* too few pixels"),
    ],
)
def test_what_the_kernel_cannot_take_is_refused(images: torch.Tensor, indices: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment_fused(images, indices, Augmentation(pad=2), seed=0, epoch=0)


def test_an_index_outside_of_the_set_is_no_image_and_reads_nothing(device: torch.device) -> None:
    images, indices = images_of(4, 6, 5).to(device), torch.tensor([-1, 3, 4, 2**40], device=device)
    found = augment_fused(images, indices, Augmentation(), seed=0, epoch=0)
    assert found.isnan().flatten(1).all(1).tolist() == [True, False, True, True]
    assert not found[1].isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_kernel_in_low_precision_is_within_a_unit(dtype: torch.dtype, device: torch.device) -> None:
    images, indices = images_of(4, 32, 32).to(device), torch.arange(4, device=device)
    exact = augment_fused(images, indices, Augmentation(), seed=1, epoch=1)
    found = augment_fused(images, indices, Augmentation(), seed=1, epoch=1, dtype=dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_draws_depend_on_seed_epoch_and_sample_alone() -> None:
    samples = torch.arange(1000)
    first = draw(EVERYTHING, 5, 2, samples, 9, 13)
    again = draw(EVERYTHING, 5, 2, samples.flip(0)[:400], 9, 13)
    assert set(first) == {"offsets", "flips", "cutout_centres", "brightness", "contrast"}
    for name, values in first.items():
        assert torch.equal(values.flip(0)[:400], again[name])
        for seed, epoch in ((6, 2), (5, 3)):
            assert not torch.equal(draw(EVERYTHING, seed, epoch, samples, 9, 13)[name], values)
    assert set(first["offsets"].flatten().tolist()) == {-2, -1, 0, 1, 2}
    assert set(first["cutout_centres"][:, 0].tolist()) == set(range(9))
    assert set(first["cutout_centres"][:, 1].tolist()) == set(range(13))
    assert 0.8 <= first["brightness"].min() < 0.81 and 1.19 < first["brightness"].max() < 1.2
    assert 0.7 <= first["contrast"].min() < 0.71 and 1.29 < first["contrast"].max() < 1.3


def test_opcheck_finds_nothing(device: torch.device) -> None:
    images, indices = images_of(4, 6, 5).to(device), torch.tensor([3, 1], device=device)
    arguments = (images, indices, 2, "alternating", 2, 0.1, 0.1, "reflect", 3, 1, torch.float32)
    torch.library.opcheck(torch.ops.wallclock.augment, arguments)


def test_it_compiles_without_a_graph_break(device: torch.device) -> None:
    images, indices = images_of(4, 6, 5).to(device), torch.tensor([3, 1, 3], device=device)

    def batch(epoch: int) -> torch.Tensor:
        return 2 * augment_fused(images, indices, EVERYTHING, seed=3, epoch=epoch)

    compiled = torch.compile(batch, fullgraph=True, backend="aot_eager")
    for epoch in (0, 1, 2):
        assert torch.equal(compiled(epoch), batch(epoch))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pad": -1}, "pad is -1"),
        ({"brightness": 1.5}, "expected 0 to 1"),
        ({"flip": "both"}, "flip is 'both'"),
        ({"padding": "edge"}, "padding is 'edge'; expected one of reflect, zero"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)
