"""Corruptions: each formula against a closed form, the same pixels every time, and stronger at every level."""

import math

import pytest
import torch

from common.data.corruptions import STRENGTHS, blur, brightness, contrast, corrupt, noise
from common.data.images import ImageSet


@pytest.fixture(scope="module")
def photographs() -> ImageSet:
    """Smooth images with some texture, pixels from 30 to 220."""
    generator = torch.Generator().manual_seed(5)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    phases = 6.28 * torch.rand(20, 3, 1, 1, generator=generator)
    waves = torch.sin(rows / 3 + phases) * torch.cos(columns / 4 - phases)
    images = 125 + 80 * waves + 5 * torch.randn(20, 3, 32, 32, generator=generator)
    return ImageSet(images.clamp(30, 220).to(torch.uint8), torch.arange(20) % 10, tuple("0123456789"), "photographs")


def test_noise_has_the_stated_deviation_and_stays_in_range() -> None:
    grey = torch.full((8, 3, 64, 64), 0.5, dtype=torch.float64)
    noisy = noise(grey, 0.1, torch.Generator().manual_seed(1))
    assert (noisy - grey).std().item() == pytest.approx(0.1, rel=0.01)
    assert (noisy - grey).mean().item() == pytest.approx(0, abs=2e-3)
    white = noise(torch.ones(1, 3, 32, 32), 0.5, torch.Generator().manual_seed(1))
    assert white.max() == 1
    assert white.min() >= 0


@pytest.mark.parametrize("std", [0.7, 1.1, 1.5])
def test_blur_of_a_point_is_the_gaussian(std: float) -> None:
    point = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    point[0, 0, 10, 10] = 1
    radius = math.ceil(3 * std)
    norm = sum(math.exp(-(i**2) / (2 * std**2)) for i in range(-radius, radius + 1)) ** 2
    spread = blur(point, std)
    for down, across in ((0, 0), (0, 1), (2, 1), (radius, -radius), (radius + 1, 0)):
        expected = math.exp(-(down**2 + across**2) / (2 * std**2)) / norm if down <= radius else 0
        assert spread[0, 0, 10 + down, 10 + across].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_blur_keeps_flat_images_and_channels_apart() -> None:
    flat = torch.rand(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, 16, 16).contiguous()
    torch.testing.assert_close(blur(flat, 1.5), flat)
    with pytest.raises(ValueError, match="larger images"):
        blur(torch.zeros(1, 1, 5, 5), 1.5)


def test_contrast_shrinks_every_distance_from_the_images_own_mean() -> None:
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    lower = contrast(images, 0.3)
    torch.testing.assert_close(lower.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(lower.std((1, 2, 3)), 0.3 * images.std((1, 2, 3)))
    torch.testing.assert_close(contrast(images, 1.0), images)


def test_brightness_adds_and_clips() -> None:
    pixels = torch.tensor([0.0, 0.5, 0.9]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(brightness(pixels, 0.3).flatten(), torch.tensor([0.3, 0.8, 1.0]))


@pytest.mark.parametrize("kind", STRENGTHS)
def test_same_arguments_same_pixels_whatever_was_drawn_before(kind: str, photographs: ImageSet) -> None:
    before = photographs.images.clone()
    state = torch.get_rng_state()
    once = corrupt(photographs, kind, 2)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    torch.rand(7)
    again = corrupt(photographs, kind, 2)
    assert torch.equal(once.images, again.images)
    assert torch.equal(photographs.images, before), "the set itself was changed"
    assert torch.equal(once.labels, photographs.labels)
    assert once.images.dtype == torch.uint8
    assert kind in once.name


def test_another_seed_is_another_noise(photographs: ImageSet) -> None:
    assert not torch.equal(corrupt(photographs, "noise", 1).images, corrupt(photographs, "noise", 1, seed=1).images)


@pytest.mark.parametrize("kind", STRENGTHS)
def test_every_level_is_further_from_the_clean_images(kind: str, photographs: ImageSet) -> None:
    clean = photographs.images.float()
    distances = [(corrupt(photographs, kind, n).images.float() - clean).square().mean() for n in (1, 2, 3)]
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize(("kind", "level"), [("fog", 1), ("noise", 0), ("noise", 4)])
def test_unknown_corruptions_are_refused(kind: str, level: int, photographs: ImageSet) -> None:
    with pytest.raises(ValueError, match="expected one of noise, blur"):
        corrupt(photographs, kind, level)
