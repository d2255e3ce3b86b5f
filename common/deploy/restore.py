"""The evaluation network of a training checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from common.adaptation import offsets
from common.config.groups import Adaptation, Backbone, Quantization
from common.deploy.description import Description, data_flags, describe
from common.errors import UserError
from common.flags import Flag, flags_of
from common.models import known_network
from common.models.foreign import changed_since
from common.quantizers import METHODS
from common.reading import read_json
from common.runs import checkpoint

NETWORK_FLAGS = (
    "method",
    "bitW",
    "abitW",
    "act_range",
    "levels",
    "stage",
    "img_size",
    "quant_shortcut",
    "quant_linear",
)


def restore(path: Path | str, **typed: Any) -> tuple[nn.Module, Description, list[str]]:
    """The fake-quantized network of a checkpoint, as evaluation in its run computes it.

    Args:
        typed: ``model`` and ``NETWORK_FLAGS``, which win over the run's configuration in the checkpoint. A published
            file has none and needs ``model`` and the bits.
    Returns:
        The network in evaluation mode, its description, and lines to tell the user.
    Raises:
        UserError: not a checkpoint, of another network, without the configuration or a part of the weights.
    """
    path = Path(path)
    content = checkpoint.read(path)
    recorded = content.get("config")
    recorded = _read(recorded, str(path)) if isinstance(recorded, Mapping) else {}
    given = {name: value for name, value in typed.items() if value is not None}
    config = recorded | {name: _flags()[name].value(value, f"--{name}") for name, value in given.items()}
    for one, other in (("bitW", "abitW"), ("abitW", "bitW")):
        if one not in config and other in config:
            config[one] = config[other]
    if absent := [name for name in ("model", "bitW") if name not in config]:
        raise UserError(f"{path} does not say how it was trained; type {' and '.join(f'--{name}' for name in absent)}")
    try:
        entry = known_network(config["model"])
        if entry is None:
            description = _of_others(config, path).named(given.get("model"), path)
        else:
            weights = checkpoint.weights_of(content, path)
            bias = f"{entry.class_layer}.bias"
            if bias not in weights:
                raise UserError(f"{path}: no {bias} in it; expected a file of {config['model']}")
            description = describe(config, len(weights[bias]), _classes(recorded, path))
        description = Description.from_json(description.to_json())  # what a file of it could say, or refused
        network = description.build()
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except (AttributeError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no network has the configuration in it ({error}); type what it should be") from None
    report, _ = checkpoint.load_weights(network, path, description.scheme["method"])
    offsets.attach_from(content, network, path)
    if missing := [name for name in report.missing if not name.endswith("num_batches_tracked")]:
        raise UserError(f"{path}: {len(missing)} tensors of {config['model']} such as {missing[0]} are not in it")
    notes = [
        f"note: trained with --{name} {recorded[name]}, taken with --{name} {description.scheme[name]}"
        for name in ("method", "bitW", "abitW")
        if name in recorded and recorded[name] != description.scheme[name]
    ]
    if changed := changed_since(description.model, str(recorded.get("file_digest", ""))):
        notes.append(f"note: {changed}")
    return network.eval(), description, notes


def _flags() -> dict[str, Flag]:
    """What a recorded configuration says of network and data, by name."""
    own = [method.options for method in METHODS.values()]
    found = {
        name: flag for options in (Quantization, Backbone, Adaptation, *own) for name, flag in flags_of(options).items()
    }
    return data_flags() | found


def _read(recorded: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The part of a run's configuration that is about network and data, each value read as if it had been typed.

    What a network without a task records of itself, its classes, is read where it is used.
    """
    known = _flags()
    found = {name: known[name].value(value, where) for name, value in recorded.items() if name in known}
    return found | {
        name: recorded[name] for name in ("task", "num_classes", "classes", "file_digest") if name in recorded
    }


def _of_others(config: Mapping[str, Any], path: Path) -> Description:
    """The description of a network of others, whose file says itself what its classes are."""
    try:
        return describe(config, int(config["num_classes"]), tuple(map(str, config.get("classes", ()))))
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} does not say the classes of its network; expected one of a program or of tools/quantize.py"
        ) from None


def _classes(recorded: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The class names that the checkpoint records, or the run in whose folder it lies."""
    if isinstance(recorded.get("classes"), list | tuple):
        return tuple(map(str, recorded["classes"]))
    try:
        return tuple(map(str, read_json(path.parent.parent / "summary.json", "a summary")["classes"]))
    except (UserError, KeyError, TypeError):
        return ()
