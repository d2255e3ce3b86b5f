"""Processes share the batches that one process would draw."""

import pytest
import torch
from PIL import Image

from common.data.folder_batches import FolderBatches
from common.data.folders import ImageList
from common.data.images import ImageSet
from common.data.sharding import Share
from common.data.tensors import TensorBatches


def _tensor_batches(share: Share, drop_last: bool) -> TensorBatches:
    images = torch.randint(256, (22, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image_set = ImageSet(images, torch.arange(22), tuple(map(str, range(22))), "numbers")
    settings = {"batch_size": 6, "mean": 0.5, "std": 0.5, "shuffle": True, "augment": "crop_flip", "seed": 3}
    return TensorBatches(image_set=image_set, share=share, drop_last=drop_last, **settings)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageList:
    root = tmp_path_factory.mktemp("pictures")
    for number in range(22):
        Image.new("RGB", (10, 10), (10 * number, 0, 255 - 10 * number)).save(root / f"{number:02}.png")
    paths = tuple(f"{number:02}.png" for number in range(22))
    return ImageList(root, paths, tuple(range(22)), tuple(map(str, range(22))), "pictures")


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("kind", ["tensors", "folder"])
@pytest.mark.parametrize("size", [2, 3])
def test_the_parts_of_all_processes_are_the_batches_of_one(
    kind: str, drop_last: bool, size: int, pictures: ImageList
) -> None:
    def make(share: Share) -> TensorBatches | FolderBatches:
        if kind == "tensors":
            return _tensor_batches(share, drop_last)
        return FolderBatches(
            image_list=pictures, batch_size=6, img_size=8, train=True, seed=3, drop_last=drop_last, share=share
        )

    alone, parts = make(Share()), [make(Share(rank, size)) for rank in range(size)]
    for epoch in (0, 1):
        for batches in (alone, *parts):
            batches.set_epoch(epoch)
        drawn = [list(part) for part in parts]
        assert {len(batches) for batches in drawn} == {len(part) for part in parts} == {3 if drop_last else 4}
        for step, (images, labels) in enumerate(alone):
            shared = torch.cat([batches[step][0] for batches in drawn])
            assert {len(batches[step][1]) for batches in drawn} == {len(labels) // size}
            torch.testing.assert_close(shared, images[: len(shared)], rtol=0, atol=0)
            assert torch.cat([batches[step][1] for batches in drawn]).tolist() == labels[: len(shared)].tolist()
        whole = parts[1].whole()
        whole.set_epoch(epoch)
        pairs = zip(whole, alone, strict=True)
        assert all(torch.equal(one, other) for pair in pairs for one, other in zip(*pair, strict=True))
        assert [len(labels) for _, labels in parts[1]] == [len(labels) for _, labels in drawn[1]], (
            "it stays what it was"
        )


def test_a_last_batch_smaller_than_the_number_of_processes_is_left_out() -> None:
    lengths = {size: len(list(_tensor_batches(Share(0, size), False))) for size in (1, 3, 6)}
    assert lengths == {1: 4, 3: 4, 6: 3}, "4 samples remain after three batches of 6"
