"""One evaluation pass of a network during which the inputs of some of its modules are looked at."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from common.models import class_logits


@torch.no_grad()
def observe(
    model: nn.Module, modules: Mapping[str, nn.Module], look: Callable[[str, Any, Tensor], None], images: Tensor
) -> None:
    """Classify images in evaluation mode and call ``look(name, module, input)`` before each of ``modules``.

    The model is left in the mode that it was in.
    """

    def before(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        look(name, module, args[0])

    hooks = [module.register_forward_pre_hook(partial(before, name)) for name, module in modules.items()]
    training = model.training
    model.eval()
    try:
        class_logits(model, images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
