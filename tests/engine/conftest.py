"""Shared by the runs: the demo data of CIFAR-10, cut."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data, cut to 256 training and 100 test images so that an epoch takes a second."""
    from common.data import cifar10
    from common.data.demo import cifar10 as demo
    from common.data.demo.cifar10 import python2_pickle

    root = tmp_path_factory.mktemp("data")
    folder = demo.write(root / "demo" / "cifar10")
    train, test = cifar10.load(folder)
    for name, images, part in [
        *((f"data_batch_{i + 1}", train, slice(i * 52, (i + 1) * 52)) for i in range(5)),
        ("test_batch", test, slice(0, 100)),
    ]:
        path = next(folder.rglob(name))
        batch = {
            "batch_label": name,
            "labels": images.labels[part].tolist(),
            "data": images.images[part].flatten(1).numpy(),
            "filenames": [f"{i}.png" for i in range(len(images.labels[part]))],
        }
        path.write_bytes(python2_pickle(batch))
    return root
