"""torchvision's classifiers, quantized: ``torchvision:resnet18`` as a name of a network."""

import warnings

from torch import nn

from common.conversion.convert import convert
from common.errors import UserError
from common.quantizers import Scheme

PREFIX = "torchvision:"
# as torchvision builds them around its own weights: without the heads that training alone has
WITH_WEIGHTS = {name: {"aux_logits": False, "transform_input": True} for name in ("googlenet", "inception_v3")}


def from_torchvision(name: str, scheme: Scheme, num_classes: int = 1000) -> nn.Module:
    """A classifier by torchvision's name, randomly initialised and converted; names in its state are torchvision's.

    Raises:
        UserError: torchvision has no such classifier, or nothing in it can be quantized.
    """
    from common.vision import models  # here, since the import alone takes seconds

    names = models.list_models(module=models)
    name = name.removeprefix(PREFIX)
    if name not in names:
        raise UserError(f"model {PREFIX}{name}: expected one of {', '.join(names)} behind the colon")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet's, about its initialisation
        model = models.get_model(name, weights=None, num_classes=num_classes, **WITH_WEIGHTS.get(name, {}))
    return convert(model, scheme, inplace=True)
