import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from common.data.images import ImageSet, resize, to_three_channels
from common.data.tensors import TensorBatches
from common.errors import UserError
from common.vision import transforms

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def numbered(count: int, size: int = 2, classes: int = 10) -> ImageSet:
    """Images that carry their own number in their first two pixels."""
    images = torch.zeros(count, 3, size, size, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count) % 256
    images[:, 0, 0, 1] = torch.arange(count) // 256
    return ImageSet(images, torch.arange(count) % classes, tuple(map(str, range(classes))), "numbered")


def batches(image_set: ImageSet, batch_size: int = 8, mean=0.0, std=1 / 255, **arguments) -> TensorBatches:
    return TensorBatches(image_set=image_set, batch_size=batch_size, mean=mean, std=std, **arguments)


def order(loader: TensorBatches) -> list[int]:
    pixels = torch.cat([images for images, _ in loader]).round().long()
    return (pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1]).tolist()


def test_pixels_are_normalised_to_the_bit_as_torchvision_normalises_them():
    pixels = torch.randint(256, (5, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image_set = ImageSet(pixels, torch.zeros(5, dtype=torch.int64), ("a",), "random")
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([theirs(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in pixels])
    (images, labels), *rest = batches(image_set, 5, MEAN, STD)
    assert not rest
    assert torch.equal(images, expected)
    assert labels.tolist() == [0] * 5


def test_crop_flip_draws_each_of_torchvisions_outcomes_equally_often():
    # every outcome of RandomCrop(6, padding=4) and RandomHorizontalFlip for one image: 9 x 9 places, mirrored or not
    image = torch.arange(1, 109, dtype=torch.uint8).reshape(3, 6, 6)
    padded = transforms.functional.pad(image, [4])
    crops = [transforms.functional.crop(padded, top, left, 6, 6) for top in range(9) for left in range(9)]
    outcomes = crops + [transforms.functional.hflip(crop) for crop in crops]
    assert len({outcome.numpy().tobytes() for outcome in outcomes}) == 162
    count = 162 * 30
    image_set = ImageSet(image.repeat(count, 1, 1, 1), torch.zeros(count, dtype=torch.int64), ("a",), "one image")
    drawn = dict.fromkeys((outcome.numpy().tobytes() for outcome in outcomes), 0)
    for images, _ in batches(image_set, 1000, augment="crop_flip", shuffle=True):
        for outcome in images.round().byte().numpy():
            drawn[outcome.tobytes()] += 1  # any other image is a KeyError
    chi_square = sum((seen - 30) ** 2 / 30 for seen in drawn.values())
    assert chi_square < 230  # 161 degrees of freedom: exceeded by chance in 3 of 10,000 seeds


def test_the_crops_of_one_batch_differ_between_images_but_not_between_channels():
    image_set = ImageSet(torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(64, 3, 4, 4), *_one_class(64))
    ((images, _),) = batches(image_set, 64, augment="crop_flip")
    assert torch.equal(images[:, 0], images[:, 1])
    assert len({image.numpy().tobytes() for image in images}) > 20


def test_padding_is_black_before_normalisation():
    image_set = ImageSet(torch.full((64, 3, 4, 4), 255, dtype=torch.uint8), *_one_class(64))
    ((images, _),) = batches(image_set, 64, MEAN, STD, augment="crop_flip")
    for channel in range(3):
        black, white = -MEAN[channel] / STD[channel], (1 - MEAN[channel]) / STD[channel]
        seen = images[:, channel].unique()
        assert torch.allclose(seen, torch.tensor([black, white]))


def _one_class(count: int) -> tuple[torch.Tensor, tuple[str], str]:
    return torch.zeros(count, dtype=torch.int64), ("a",), "one class"


@pytest.mark.parametrize("augment", [None, "crop_flip"])
def test_an_epoch_is_a_function_of_seed_epoch_and_domain_alone(augment):
    def epoch(seed: int, epoch: int, domain: str, global_seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        loader = batches(numbered(300, 4), 32, seed=seed, domain=domain, shuffle=True, augment=augment)
        loader.set_epoch(epoch)
        return torch.cat([images for images, _ in loader])

    first = epoch(0, 3, "source", 1)
    assert torch.equal(first, epoch(0, 3, "source", 2))
    for other in ((1, 3, "source"), (0, 4, "source"), (0, 3, "target")):
        assert not torch.equal(first, epoch(*other, 1))


def test_iterating_leaves_the_global_random_states_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(batches(numbered(50, 4), shuffle=True, augment="crop_flip"))
    numbered(50).split(0.2, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_a_new_pass_over_the_same_epoch_repeats_it():
    loader = batches(numbered(50), shuffle=True)
    assert order(loader) == order(loader)


def test_the_order_is_the_same_in_every_process_and_version():
    loader = batches(numbered(1000), seed=5, domain="target", shuffle=True)
    loader.set_epoch(7)
    assert order(loader)[:6] == [258, 151, 605, 977, 425, 27]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 400), batch_size=st.integers(1, 64), shuffle=st.booleans())
def test_an_epoch_shows_every_image_once(count, batch_size, shuffle):
    loader = batches(numbered(count), batch_size, shuffle=shuffle)
    seen = order(loader)
    assert sorted(seen) == list(range(count))
    assert shuffle or seen == list(range(count))
    assert len(list(loader)) == len(loader)


def test_labels_stay_with_their_images():
    loader = batches(numbered(200), shuffle=True)
    labels = torch.cat([labels for _, labels in loader]).tolist()
    assert labels == [number % 10 for number in order(loader)]


def test_drop_last_leaves_out_the_partial_batch():
    loader = batches(numbered(20), 8, drop_last=True)
    assert [len(images) for images, _ in loader] == [8, 8]
    assert len(loader) == 2


def test_no_batch_at_all_is_refused():
    with pytest.raises(UserError, match=r"batch of 32 is larger than the 20 images of numbered.*--train_batch_size 20"):
        batches(numbered(20), 32, drop_last=True)
    with pytest.raises(UserError, match="numbered holds no images"):
        batches(numbered(20).subset([]))


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=6), fraction=st.floats(0.05, 0.95), seed=st.integers(0, 9)
)
def test_a_split_is_stratified_disjoint_complete_and_repeatable(sizes, fraction, seed):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    images = numbered(len(labels)).images
    whole = ImageSet(images, labels, tuple(map(str, range(len(sizes)))), "whole")
    rest, held_out = whole.split(fraction, seed)
    numbers = [order(batches(part)) for part in (rest, held_out)]
    assert sorted(numbers[0] + numbers[1]) == list(range(len(whole)))
    assert numbers[0] == sorted(numbers[0])
    for size, count in zip(sizes, held_out.labels.bincount(minlength=len(sizes)).tolist(), strict=True):
        assert 1 <= count <= size - 1
        assert abs(count - fraction * size) <= 1
    again = whole.split(fraction, seed)
    assert torch.equal(again[1].images, held_out.images)


def test_another_seed_holds_out_other_images():
    whole = numbered(200)
    assert not torch.equal(whole.split(0.2, 0)[1].images, whole.split(0.2, 1)[1].images)


@pytest.mark.parametrize("size", [28, 16, 48])
def test_resize_agrees_with_pil_within_one_level(size):
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image_set = ImageSet(pixels, torch.arange(4), tuple("abcd"), "random")
    resized = resize(image_set, size).images
    for image, original in zip(resized, pixels, strict=True):
        picture = Image.fromarray(original.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(picture)).max() <= 1


def test_grey_becomes_three_equal_channels_and_colour_stays():
    grey = ImageSet(torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8), torch.arange(4), tuple("abcd"), "grey")
    colour = to_three_channels(grey)
    assert colour.images.shape == (4, 3, 8, 8)
    assert all(torch.equal(colour.images[:, channel], grey.images[:, 0]) for channel in range(3))
    assert to_three_channels(colour) is colour
    ((images, _),) = batches(colour, augment="crop_flip")
    assert images.shape == (4, 3, 8, 8)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 2])),
    ],
    ids=["float images", "no channels", "too many labels", "label outside the classes"],
)
def test_an_image_set_refuses_what_it_cannot_hold(images, labels):
    with pytest.raises(ValueError, match="two classes"):
        ImageSet(images, labels, ("a", "b"), "two classes")
