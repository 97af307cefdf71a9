"""Unpaired domains: whatever lies in the folders, and the embedded pair."""

import pytest
import torch
from PIL import Image

from wallclock.loaders.batches import DataError
from wallclock.loaders.data.unpaired import load_unpaired, synthetic_domain


def test_every_kind_of_image_becomes_rgb_squares(domains):
    whole = Image.new("RGB", (20, 12), (200, 40, 40))
    for mode, suffix in (("L", "png"), ("P", "gif"), ("CMYK", "jpg"), ("RGBA", "png"), ("1", "bmp"), ("I;16", "tiff")):
        image = whole.quantize(8) if mode == "P" else whole.convert("L" if mode in ("1", "I;16") else mode)
        image.convert(mode).save(domains / "trainA" / f"{mode.replace(';', '')}.{suffix}")
    Image.new("RGB", (3, 500)).save(domains / "trainA" / "thin.png")  # smaller than the crop on one side
    data = load_unpaired(str(domains), 24, 16)
    assert data.train[0].shape == (9, 24, 24, 3) and data.train[0].dtype == torch.uint8
    assert data.test[0].shape == (2, 16, 16, 3) and data.skipped == ()
    assert data.name.startswith("unpaired:")


def test_what_is_no_image_is_named_skipped_and_counted(domains):
    (domains / "trainB" / "words.jpg").write_text("not an image")
    whole = (domains / "trainB" / "0.png").read_bytes()
    (domains / "trainB" / "cut.png").write_bytes(whole[: len(whole) // 2])
    data = load_unpaired(str(domains), 24, 16)
    assert len(data.train[1]) == 2 and len(data.skipped) == 2
    assert any("words.jpg cannot be read as an image" in line for line in data.skipped)
    assert any("cut.png" in line for line in data.skipped)


def test_an_empty_or_missing_domain_is_refused(domains, tmp_path):
    for file in (domains / "trainA").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"trainA holds 0 files and no image that can be read; put some there"):
        load_unpaired(str(domains), 24, 16)
    (domains / "trainA").rmdir()
    with pytest.raises(DataError, match="no folder trainA; expected trainA, trainB, testA and testB"):
        load_unpaired(str(domains), 24, 16)
    with pytest.raises(DataError, match="data fetch horse2zebra"):
        load_unpaired(str(tmp_path / "nowhere"), 24, 16)


def test_the_embedded_domains_differ_in_texture_and_are_the_same_everywhere():
    a, b = (synthetic_domain(domain, "test", 32) for domain in "AB")
    assert torch.equal(a, synthetic_domain("A", "test", 32)) and not torch.equal(
        a, synthetic_domain("A", "train", 32)[:50]
    )
    contrast = [(images[:, 1:, 12:20].float() - images[:, :-1, 12:20]).abs().mean() for images in (a, b)]
    assert contrast[1] > 2 * contrast[0]
