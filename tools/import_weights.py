"""A float CIFAR ResNet of another collection as a file that the programs start from, with the same function.

    python tools/import_weights.py resnet20-12fca82f.th --normalization imagenet

Files of akamaster/pytorch_resnet_cifar10 (shortcuts of option A, normalised as ImageNet) and files with the names of
torchvision's ResNets (`downsample`), of depth 20 or 56.
"""

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config.naming import file_of
from common.data import cifar10
from common.data.folder_batches import IMAGENET_MEAN, IMAGENET_STD
from common.errors import UserError
from common.models import build_model
from common.models.imported import cifar_resnet, fold_normalization
from common.runs import checkpoint
from common.runs.annotations import NewFile
from common.runs.tool import run_tool
from tools.runs.programs import programs

OURS = (cifar10.MEAN, cifar10.STD)


def import_weights(
    file: Path, *, normalization: Literal["cifar10", "imagenet"] = "cifar10", out: NewFile | None = None
) -> None:
    """Write the network's weights in our names; what cannot be carried over is refused.

    Args:
        file: of the float network.
        normalization: mean and std that it was trained with. For CIFAR-10 in its published form imagenet is folded into
            the first layer, which is exact but for the outermost row of pixels; a folder of images (--dataset DIR) is
            normalised as ImageNet anyway, so that such a network is imported without it.
        out: file to write (default: where the task of its depth looks for its 32-bit file).
    """
    try:
        task_name, state = cifar_resnet(checkpoint.weights_of(checkpoint.read(file), file))
    except UserError as error:
        raise UserError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from None
    task = programs()[task_name][0]
    network = build_model(task.model)
    if normalization == "imagenet":
        state = fold_normalization(state, (IMAGENET_MEAN, IMAGENET_STD), OURS)
    own = network.state_dict()
    for key, value in state.items():
        if key not in own or value.shape != own[key].shape:
            expected = tuple(own[key].shape) if key in own else "none of it"
            raise UserError(f"{file}: its {key} is {tuple(value.shape)}; {task.model} has {expected}")
    if absent := [key for key in own if key not in state and not key.endswith("num_batches_tracked")]:
        raise UserError(f"{file}: {absent[0]} of {task.model} is not in it; expected a whole network")
    network.load_state_dict(state, strict=False)
    place = out or task.shared / "pretrained" / file_of(task, None, "32bit")
    place.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save({"state_dict_t": network.state_dict()}, place)
    start = f"--source_dir {place.parent} --source_file {place.name}" if out else "found by default"
    print(f"{place}: {task.model} with the weights of {file}; for main.py of {task.name}: {start}")


if __name__ == "__main__":
    run_tool(import_weights)
