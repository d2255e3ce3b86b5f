"""Float networks of others by name: ``torchvision:NAME``, ``timm:NAME``, and ``FILE.py:FUNCTION`` of the user's own."""

import hashlib
import importlib.machinery
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from common.errors import UserError
from common.flags import shown
from common.reading import ordinary, reason

TORCHVISION, TIMM, FILE = "torchvision:", "timm:", ".py:"
# as torchvision builds them around its own weights: without the heads that training alone has
WITH_WEIGHTS = {name: {"aux_logits": False, "transform_input": True} for name in ("googlenet", "inception_v3")}


def is_foreign(name: str) -> bool:
    return name.startswith((TORCHVISION, TIMM)) or is_of_file(name)


def is_of_file(name: str) -> bool:
    """Whether a name runs the code of a file: a name of the user's, never taken from a file that somebody wrote."""
    return FILE in name and not name.startswith((TORCHVISION, TIMM))


def float_network(name: str, num_classes: int = 1000) -> nn.Module:
    """A float classifier: randomly initialised, or with the weights that the user's FUNCTION gives it.

    FUNCTION is called with ``num_classes`` if it takes that.

    Raises:
        UserError: there is no such network, what makes it is not installed, or FUNCTION fails or returns no module.
    """
    if name.startswith(TORCHVISION):
        return _of_torchvision(name.removeprefix(TORCHVISION), num_classes)
    if name.startswith(TIMM):
        return _of_timm(name.removeprefix(TIMM), num_classes)
    return _of_file(name, num_classes)


def imagenet_weights(name: str) -> dict[str, Tensor] | None:
    """The state that a network's source has been trained to on ImageNet; None: FUNCTION's network brings its own.

    Raises:
        UserError: it cannot be fetched.
    """
    if is_of_file(name):
        return None
    try:
        if name.startswith(TIMM):
            return _timm().create_model(name.removeprefix(TIMM), pretrained=True).state_dict()
        from common.vision import models

        weights = models.get_model_weights(name.removeprefix(TORCHVISION)).DEFAULT
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except UserError:
        raise
    except Exception as error:  # of a download, in whatever way the source fails
        raise UserError(
            f"the ImageNet weights of {name} could not be fetched ({reason(error)}); give a file of them as "
            "--backbone_weights FILE, or train from scratch with --backbone_weights none"
        ) from None


def digest_of(name: str) -> str:
    """SHA-256 of the user's file, by which a later rebuilding notices that it changed; "" for other networks."""
    return hashlib.sha256(_file_of(name).read_bytes()).hexdigest() if is_of_file(name) else ""


def changed_since(name: str, digest: str) -> str:
    """A line where the user's file is not the one that a network was trained with, or ""."""
    if not digest or not is_of_file(name) or digest_of(name) == digest:
        return ""
    return f"{_file_of(name)} has changed since the network was trained"


def _of_torchvision(name: str, num_classes: int) -> nn.Module:
    from common.vision import models  # here, since the import alone takes seconds

    names = models.list_models(module=models)
    if name not in names:
        raise UserError(f"model {TORCHVISION}{name}: expected one of {', '.join(names)} behind the colon")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet's, about its initialisation
        return models.get_model(name, weights=None, num_classes=num_classes, **WITH_WEIGHTS.get(name, {}))


def _timm() -> Any:
    from common import vision  # noqa: F401 -- timm imports torchvision, which that makes importable

    try:
        return importlib.import_module("timm")
    except ImportError:
        raise UserError('timm is not installed; python -m pip install -e ".[zoo]" brings it') from None


def _of_timm(name: str, num_classes: int) -> nn.Module:
    try:
        return _timm().create_model(name, pretrained=False, num_classes=num_classes)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"model {TIMM}{name}: timm does not make it ({reason(error)})") from None


def _file_of(name: str) -> Path:
    return Path(name.rsplit(":", 1)[0])


def _of_file(name: str, num_classes: int) -> nn.Module:
    path, function = ordinary(_file_of(name), "a Python file with your network"), name.rsplit(":", 1)[1]
    make = _function(path, function)
    takes = "num_classes" in inspect.signature(make).parameters
    try:
        with warnings.catch_warnings():
            # where shapes alone are wanted, the network is built without memory and its own weights go nowhere
            warnings.filterwarnings("ignore", ".*which is a no-op", UserWarning)
            network = make(num_classes=num_classes) if takes else make()
    except (Exception, SystemExit) as error:  # the user's code fails in whatever way it says
        raise UserError(f"--model {name}: {function} failed ({type(error).__name__}: {reason(error)})") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"--model {name}: {function} returned a {type(network).__name__}; expected a torch module")
    return network


class _NoCache(importlib.machinery.SourceFileLoader):
    """Leaves no ``__pycache__`` beside the user's file."""

    def set_data(self, path: str, data: object, *, _mode: int = 0) -> None:
        pass


def _function(path: Path, function: str) -> Callable[..., Any]:
    name = f"network_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_NoCache(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that its classes can be pickled and its dataclasses work
    sys.path.insert(0, str(path.parent.absolute()))  # so that it can import what lies beside it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # as above
        raise UserError(f"--model {path}: cannot be imported ({type(error).__name__}: {reason(error)})") from error
    finally:
        sys.path.pop(0)
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"--model {path}:{shown(function)[1:-1]}: the file has no such function")
    return found
