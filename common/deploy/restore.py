"""The evaluation network of a training checkpoint."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from common.config.options import FLAGS
from common.deploy.description import NO_TASK, Description, describe, use_of
from common.errors import UserError
from common.runs import checkpoint

NETWORK_FLAGS = ("method", "bitW", "abitW", "act_range", "levels", "stage", "img_size", "quant_shortcut")


def restore(path: Path, **typed: Any) -> tuple[nn.Module, Description, list[str]]:
    """The fake-quantized network of a checkpoint, as evaluation in its run computes it.

    Args:
        typed: ``model`` and ``NETWORK_FLAGS``, which win over the run's configuration in the checkpoint. A published
            file has none and needs ``model`` and the bits.
    Returns:
        The network in evaluation mode, its description, and lines to tell the user.
    Raises:
        UserError: not a checkpoint, of another network, without the configuration or a part of the weights.
    """
    content = checkpoint.read(path)
    recorded = content.get("config")
    recorded = dict(recorded) if isinstance(recorded, Mapping) else {}
    config = recorded | {name: _value(name, value) for name, value in typed.items() if value is not None}
    for one, other in (("bitW", "abitW"), ("abitW", "bitW")):
        if one not in config and other in config:
            config[one] = config[other]
    if absent := [name for name in ("model", "bitW") if name not in config]:
        raise UserError(f"{path} does not say how it was trained; type {' and '.join(f'--{name}' for name in absent)}")
    try:
        if use_of(config["model"]).task == NO_TASK:
            description = _of_no_task(config, path)
        else:
            weights = checkpoint.weights_of(content, path)
            bias = use_of(config["model"]).class_bias
            if bias not in weights:
                raise UserError(f"{path}: no {bias} in it; expected a file of {config['model']}")
            description = describe(config, len(weights[bias]), _classes(path))
        network = description.build()
    except (AttributeError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no network has the configuration in it ({error}); type what it should be") from None
    report, _ = checkpoint.load_weights(network, path, description.scheme["method"])
    if missing := [name for name in report.missing if not name.endswith("num_batches_tracked")]:
        raise UserError(f"{path}: {len(missing)} tensors of {config['model']} such as {missing[0]} are not in it")
    notes = [
        f"note: trained with --{name} {recorded[name]}, taken with --{name} {description.scheme[name]}"
        for name in ("method", "bitW", "abitW")
        if name in recorded and recorded[name] != description.scheme[name]
    ]
    return network.eval(), description, notes


def _value(name: str, typed: Any) -> Any:
    """What a typed flag says, read as the programs read it."""
    read = next(flag.read for flag in FLAGS if f"--{name}" in flag.names.split())
    try:
        return read(str(typed))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UserError(f"--{name}: {error}") from None


def _of_no_task(config: Mapping[str, Any], path: Path) -> Description:
    """The description of a torchvision network, whose file says itself what its classes are."""
    try:
        return describe(config, int(config["num_classes"]), tuple(map(str, config.get("classes", ()))))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} does not say the classes and the image size of its network; expected one of tools/quantize.py"
        ) from None


def _classes(path: Path) -> tuple[str, ...]:
    """The class names that the run of a checkpoint in its job's folder recorded."""
    try:
        return tuple(map(str, json.loads((path.parent.parent / "summary.json").read_text())["classes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
