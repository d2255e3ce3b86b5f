"""CIFAR-100 in its published form, the folder `cifar-100-python`: its fine classes, by the reader of CIFAR-10."""

from pathlib import Path

from common.data import cifar10
from common.data.images import ImageSet

MEAN = (0.5071, 0.4865, 0.4409)
STD = (0.2673, 0.2564, 0.2762)
SIDE = cifar10.SIDE

# Checksums and address as published.
PUBLISHED = cifar10.Published(
    name="CIFAR-100",
    folder="cifar-100-python",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
    train=("train",),
    test="test",
    meta="meta",
    images=50_000,
    test_images=10_000,
    class_key="fine_label_names",
    label_key="fine_labels",
)


def load(data_dir: Path | str, download: bool = True) -> tuple[ImageSet, ImageSet]:
    """(train, test), as ``cifar10.load``."""
    return cifar10.load(data_dir, download, PUBLISHED)
