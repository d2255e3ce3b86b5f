"""The sets of a single-domain run, as batches: CIFAR-10, or its demo."""

import argparse

import torch

from common.config.tasks import REPOSITORY
from common.data import cifar10
from common.data.demo import cifar10 as demo_cifar10
from common.data.locate import data_folder
from common.data.sharding import Share
from common.data.tensors import ImageSet, TensorBatches
from common.machine import distributed


def load_data(options: argparse.Namespace, device: torch.device) -> dict[str, TensorBatches]:
    """The batches of "train", "test" and, for --select val, "val", which is then held out of the training set."""
    folder = data_folder(options.data_dir, REPOSITORY, "demo" if options.demo else "cifar10")
    if options.demo:
        root = demo_cifar10.write(folder / "demo" / "cifar10")
    else:
        root = folder / "cifar10" if (folder / "cifar10").exists() or options.data_dir is None else folder
    train_set, test_set = cifar10.load(root, download=options.download)
    sets = {"train": train_set, "test": test_set}
    if options.select == "val":
        sets["train"], sets["val"] = train_set.split(options.val_fraction, options.seed)
    return {split: make_batches(images, split, options, device) for split, images in sets.items()}


def make_batches(images: ImageSet, split: str, options: argparse.Namespace, device: torch.device) -> TensorBatches:
    train = split == "train"
    return TensorBatches(
        image_set=images,
        batch_size=options.train_batch_size if train else options.eval_batch_size,
        mean=cifar10.MEAN,
        std=cifar10.STD,
        seed=options.seed,
        shuffle=train,
        augment="crop_flip" if train else None,
        device=device,
        share=distributed.share() if train else Share(),
    )
