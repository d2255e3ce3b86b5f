"""A trained network as a graph from images to class logits, which the exporters rewrite."""

import copy
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.adaptation.base import shows_features
from common.errors import UserError
from common.quantizers.base import Quantizer
from common.quantizers.layers import QuantLayer

CLASSIFIERS = ("classifier", "class_classifier")


class ClassLogits(nn.Module):
    """(B, C, H, W) images to (B, classes) logits: what is deployed. A domain discriminator is left behind."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        ours = shows_features(network)
        self.classifier = next((name for name in CLASSIFIERS if ours and hasattr(network, name)), None)

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.network
        if self.classifier is None:
            return network(images)
        return getattr(network, self.classifier)(network.features(images))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, QuantLayer | Quantizer) or super().is_leaf_module(module, qualified_name)


def trace(network: nn.Module) -> fx.GraphModule:
    """A copy of the network in evaluation mode as a graph whose nodes are layers; names are the network's own.

    Raises:
        UserError: torch.fx cannot trace it.
    """
    root = ClassLogits(copy.deepcopy(network).cpu().eval())
    for parameter in root.parameters():
        parameter.requires_grad_(False)
    try:
        graph = _Tracer().trace(root)
    except Exception as error:  # a user's forward run on stand-ins fails in whatever way its code says
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{type(network).__name__}: torch.fx cannot trace its forward ({reason})") from error
    prefix = "network."
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            parts[node.target.removeprefix(prefix)] = operator.attrgetter(node.target)(root)
            node.target = node.target.removeprefix(prefix)
    return fx.GraphModule(parts, graph, "Deployed").eval()


def refuse_unset(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """
    Raises:
        UserError: a quantizer whose learned scale was never set, so that the network is not determined yet.
    """
    for name, module in modules:
        if isinstance(module, Quantizer) and not module.initialised:
            raise UserError(
                f"the learned scale of {name} was never set, so the network is not determined yet; expected a "
                "checkpoint trained with this method at these bits"
            )


def batch_norm_scale_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(scale, shift), (C,) float64, with which evaluation-mode BatchNorm is x * scale + shift."""
    mean, variance = bn.running_mean, bn.running_var
    assert mean is not None
    assert variance is not None
    scale = torch.rsqrt(variance.double() + bn.eps) * (bn.weight.double() if bn.affine else 1)
    return scale, (bn.bias.double() if bn.affine else 0) - mean.double() * scale
