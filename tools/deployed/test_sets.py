"""The images that a file is evaluated on: its task's test sets, or class folders of the user's own."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, tensor

from common.config.groups import Training
from common.data.folders import ImageList, read_domain, some_of
from common.data.kinds import DATA, DOMAINS, Batching
from common.deploy.description import Description
from common.deploy.files import Classifier
from common.errors import UserError
from common.flags import flags_of
from common.machine.device import DeviceOptions, choose_device
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
    kind = DATA[description.data_kind]
    known, device_flags = flags_of(kind.Options), flags_of(DeviceOptions)
    if strange := [name for name in typed if name not in {*known, *device_flags, "eval_batch_size"}]:
        raise UserError(f"unknown flag --{strange[0]}: the data of {description.task} have none of that name")
    recorded = {name: value for name, value in description.data.items() if name in known and name != "demo"}
    given = {**recorded, **{name: value for name, value in typed.items() if name in known}}
    if kind.domains and not {"src_data", "tgt_data"} <= given.keys():
        raise UserError(f"{file.path} does not say its domains; type --src_data and --tgt_data")
    if "img_size" in known:
        given["img_size"] = description.preprocessing["crop"]
    devices: dict[str, Any] = {name: value for name, value in typed.items() if name in device_flags}
    device, _ = choose_device(DeviceOptions(**devices))
    batch = int(str(typed.get("eval_batch_size", flags_of(Training)["eval_batch_size"].default)))
    options = kind.Options(**given)
    data = kind.load(options, Batching(train=1, test=batch, seed=0, device=device))
    sets: dict[str, Any] = dict(data.test)
    if kind.domains:
        pair = dict(zip(DOMAINS, options.pair, strict=True))
        sets = {f"{domain} test ({pair[domain]})": batches for domain, batches in data.test.items()}
    if len(data.classes) != description.arguments["num_classes"]:
        raise UserError(
            f"{file.path} tells {description.arguments['num_classes']} classes apart, the data have "
            f"{len(data.classes)}; expected the data of its task"
        )
    return sets, "demo " if options.demo else ""
