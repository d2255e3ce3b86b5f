"""The accuracy of a checkpoint, a packed file or an ONNX file on its task's test data, and whether two files agree.

python tools/evaluate.py --model resnet20.safetensors --demo
python tools/evaluate.py --model resnet20.safetensors --against job/checkpoint/model_best.pt --demo
python tools/evaluate.py --model quantized.safetensors --images photos       # class folders of your own
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from common.data.cross_domain import load_digits, load_office  # noqa: E402
from common.data.single_domain import load_data  # noqa: E402
from export import refuse_unknown  # noqa: E402
from predict import BATCH, prepare  # noqa: E402
from torch import Tensor, tensor  # noqa: E402

from common.config.options import parse  # noqa: E402
from common.config.tasks import Task  # noqa: E402
from common.data.folders import ImageList, read_domain, some_of  # noqa: E402
from common.deploy.description import NO_TASK, Description  # noqa: E402
from common.deploy.files import Classifier, open_file  # noqa: E402
from common.deploy.restore import NETWORK_FLAGS  # noqa: E402
from common.engine.meters import Sums, precision  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.machine.device import choose_device  # noqa: E402
from common.runs.cli import run_tool  # noqa: E402

DATA_FLAGS = (
    *("demo", "data_dir", "tgt_data_dir", "download", "src_data", "tgt_data", "train_split", "seed", "allow_partial"),
    *("eval_batch_size", "num_workers", "device", "gpus"),
)


def evaluate(
    *words: Any,
    model: str | None = None,
    against: str | None = None,
    images: str | None = None,
    network: str | None = None,
    fast: bool = False,
    **flags: Any,
) -> None:
    """Print top-1 and top-5 on the test set, of both domains in a cross-domain task.

    Args:
        model: the file. against: another of the same task; prints how many predictions and by how much logits differ.
        images: a folder of class folders to take in place of the task's test data; a torchvision network has no other.
        network: name of the network, for a checkpoint that does not record it.
        fast: compile --model to int8 layers for this CPU (networks of ours); --against stays as it is.
        flags: for the data: --demo --data_dir --tgt_data_dir --download --src_data --tgt_data --train_split --seed
            --allow_partial --eval_batch_size --num_workers --device --gpus. What is not typed is as in the file's run,
            --demo apart. For a checkpoint also --method --bitW --abitW --act_range --levels --stage --img_size
            --quant_shortcut.
    """
    refuse_unknown(words, {name: value for name, value in flags.items() if name not in NETWORK_FLAGS + DATA_FLAGS})
    if model is None:
        raise UserError("expected --model FILE")
    typed = {"model": network, **{name: value for name, value in flags.items() if name in NETWORK_FLAGS}}
    wanted = {name: value for name, value in flags.items() if name in DATA_FLAGS}
    files = [open_file(Path(str(model)), fast=fast, **typed)]
    files += [open_file(Path(str(against)), **typed)] if against is not None else []
    first, last = files[0].description, files[-1].description
    for what in ("task", "arguments", "preprocessing", *(() if images is None else ("classes",))):
        if getattr(first, what) != getattr(last, what):
            raise UserError(
                f"{files[0].path} has {what} {getattr(first, what)}, {files[1].path} {getattr(last, what)}; "
                "expected two files of one network and task"
            )
    if images is not None:
        sets, demo = class_folders(Path(str(images)).absolute(), first, wanted)
    elif first.task == NO_TASK:
        raise UserError(
            f"{files[0].path} belongs to no task with test data; type --images and a folder of class folders"
        )
    else:
        sets, demo = test_sets(files[0], wanted)
    for file in files:
        print("\n".join([file.line(), *file.notes]))
    for name, batches in sets.items():
        print("\n".join(compare(files, batches, f"{demo}{name}")))


def class_folders(folder: Path, description: Description, typed: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """As ``test_sets``, of a folder of class folders whose names are classes of the network."""
    if typed:
        raise UserError(f"--{next(iter(typed))}: has no meaning with --images")
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


def test_sets(file: Classifier, typed: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The batches of each test set by name, and "demo " where the images are the demo's."""
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
        both = load_digits(options, device) if description.kind == "digits" else load_office(options, device, None)
        sets = {f"{domain} test ({options.pair[n]})": both.test[domain] for n, domain in ((1, "target"), (0, "source"))}
        classes = both.classes
    if len(classes) != description.arguments["num_classes"]:
        raise UserError(
            f"{file.path} tells {description.arguments['num_classes']} classes apart, the data have {len(classes)}; "
            "expected the data of its task"
        )
    return sets, "demo " if options.demo else ""


def compare(files: list[Classifier], batches: Iterable[tuple[Tensor, Tensor]], name: str) -> list[str]:
    """A line for each file on a test set; the second file's says where the two disagree."""
    sums, images_seen, differ, distance = [Sums() for _ in files], 0, 0, 0.0
    for images, labels in batches:
        logits = [file.logits(images) for file in files]
        images_seen += len(labels)
        for own, values in zip(sums, logits, strict=True):
            own.add(len(labels), **precision(values, labels.cpu()))
        differ += int((logits[0].argmax(1) != logits[-1].argmax(1)).sum())
        distance = max(distance, float((logits[0] - logits[-1]).abs().max()))
    lines = []
    for file, own in zip(files, sums, strict=True):
        mean = own.mean()
        form = f" [{file.form}]" if len(files) > 1 else ""
        lines.append(f"{name} top-1: {mean['prec1']:.3f} top-5: {mean['prec5']:.3f} ({images_seen} images){form}")
    if len(files) > 1:
        lines.append(f"{name}: {differ} of {images_seen} predictions differ, largest logit difference {distance:.3g}")
    return lines


if __name__ == "__main__":
    run_tool(evaluate)
