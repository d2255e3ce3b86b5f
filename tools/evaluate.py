"""The accuracy of a checkpoint, a packed file or an ONNX file on its task's test data, and whether two files agree.

python tools/evaluate.py --model resnet20.safetensors --demo
python tools/evaluate.py --model resnet20.safetensors --against job/checkpoint/model_best.pt --demo
python tools/evaluate.py --model quantized.safetensors --images photos       # class folders of your own
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

from common.deploy.description import NO_TASK
from common.deploy.files import Classifier, open_file
from common.engine.meters import Sums, precision
from common.errors import UserError
from common.runs.tool import run_tool
from tools.deployed.flags import divided, of_network_and_data
from tools.deployed.test_sets import class_folders, test_sets


def evaluate(
    *,
    model: Path,
    against: Path | None = None,
    images: Path | None = None,
    network: str | None = None,
    fast: bool = False,
    alignment: Path | None = None,
    **flags: Any,
) -> None:
    """Print top-1 and top-5 on the test set, of both domains in a cross-domain task.

    Args:
        model: the file.
        against: another of the same task; prints how many predictions and by how much logits differ.
        images: a folder of class folders to take in place of the task's test data; a network of others has no other.
        network: name of the network, for a checkpoint that does not record it.
        fast: let OpenVINO run --model on the CPU, a network as its integer graph; --against stays as it is.
        alignment: a file of tools/realign.py to apply to --model; --against stays as it is.
        flags: for the data: --demo --data_dir --tgt_data_dir --download --dataset --src_data --tgt_data
            --train_split --split_seed --allow_partial --eval_batch_size --num_workers --device --gpus. What is not
            typed is as in the file's run, --demo apart. For a checkpoint also --method --bitW --abitW --act_range
            --levels --stage --img_size --quant_shortcut --quant_linear.
    """
    typed, wanted = divided(flags)
    if images is not None and wanted:
        raise UserError(f"--{next(iter(wanted))}: has no meaning with --images")
    files = [open_file(model, fast=fast, alignment=alignment, model=network, **typed)]
    files += [open_file(against, model=network, **typed)] if against is not None else []
    first, last = files[0].description, files[-1].description
    for what in ("task", "arguments", "preprocessing", *(() if images is None else ("classes",))):
        if getattr(first, what) != getattr(last, what):
            raise UserError(
                f"{files[0].path} has {what} {getattr(first, what)}, {files[1].path} {getattr(last, what)}; "
                "expected two files of one network and task"
            )
    if images is not None:
        sets, demo = class_folders(images.absolute(), first)
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
    run_tool(evaluate, of_network_and_data)
