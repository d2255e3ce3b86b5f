"""The images that a file is evaluated on: its task's test sets, or class folders of the user's own."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, tensor

from common.config.options import parse
from common.config.tasks import REPOSITORY, Task
from common.data.cross_domain import CrossData, load_digits, load_office
from common.data.folders import ImageList, read_domain, some_of
from common.data.single_domain import load_data
from common.deploy.description import Description
from common.deploy.files import Classifier
from common.errors import UserError
from common.machine.device import choose_device
from tools.deployed.images import BATCH, prepare


def class_folders(folder: Path, description: Description) -> tuple[dict[str, Any], str]:
    """As ``test_sets``, of a folder of class folders whose names are classes of the network."""
    found = read_domain(folder.parent, folder.name)
    if unknown := [name for name in found.classes if name not in description.classes]:
        raise UserError(
            f"--images {folder}: {some_of(unknown)} is no class of this network; expected folders among "
            f"{some_of(description.classes) or 'its classes, which the file does not name'}"
        )
    return {found.domain: _batches(found, description)}, "demo " if found.demo else ""


def _batches(images: ImageList, description: Description) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as the network wants them, and labels in the order of its classes."""
    labels = [description.classes.index(images.classes[label]) for label in images.labels]
    for start in range(0, len(images), BATCH):
        part = slice(start, start + BATCH)
        paths = [images.root / path for path in images.paths[part]]
        yield prepare(paths, description.preprocessing), tensor(labels[part])


def test_sets(file: Classifier, typed: Mapping[str, object]) -> tuple[dict[str, Any], str]:
    """The batches of each test set by name, and "demo " where the images are the demo's.

    Args:
        typed: flags of the data; the others are as in the file's run.
    Raises:
        UserError: the file does not say enough, or the data are of other classes.
    """
    description = file.description
    values = {"model": description.model, "train_batch_size": 1, "seed": description.data.get("seed", 0)}
    if description.kind != "single":
        names = ("src_data", "tgt_data", *(("train_split",) if description.kind != "digits" else ()))
        values |= {name: description.data[name] for name in names if name in description.data}
        values["img_size"] = description.preprocessing["crop"]
    values |= typed
    if description.kind != "single" and not {"src_data", "tgt_data"} <= values.keys():
        raise UserError(f"{file.path} does not say its domains; type --src_data and --tgt_data")
    task = Task(description.task, description.kind, REPOSITORY, description.model)
    options = parse(task, [word for name, value in values.items() for word in (f"--{name}", str(value))])
    device, _ = choose_device(options)
    if description.kind == "single":
        data: dict[str, Any] = load_data(options, device)
        sets, classes = {"test": data["test"]}, data["test"].image_set.classes
    else:
        both = load_digits(options, device) if description.kind == "digits" else _office(options, device)
        sets = {f"{domain} test ({options.pair[n]})": both.test[domain] for n, domain in ((1, "target"), (0, "source"))}
        classes = both.classes
    if len(classes) != description.arguments["num_classes"]:
        raise UserError(
            f"{file.path} tells {description.arguments['num_classes']} classes apart, the data have {len(classes)}; "
            "expected the data of its task"
        )
    return sets, "demo " if options.demo else ""


def _office(options: Any, device: torch.device) -> CrossData:
    """Without a list of the split, which belongs into a run's folder."""
    return load_office(options, device, split_dir=None)  # type: ignore[arg-type]
