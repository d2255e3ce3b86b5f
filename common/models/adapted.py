"""Any float classifier as a network for domain adaptation: its classifier cut off, a head in its place."""

from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, fx, nn

from common.conversion.convert import convert
from common.conversion.sites import crp_sites
from common.conversion.tracing import trace
from common.errors import UserError
from common.models.resnet50 import BOTTLENECK
from common.quantizers import Scheme


class AdaptedNetwork(nn.Module):
    """``feature``, a converted backbone, with a linear classifier, behind a bottleneck for objectives that want one.

    Takes (B, 3, H, W), or one channel repeated to three; returns class logits (B, num_classes). A discriminator is the
    objective's own.

    Args:
        backbone: a float classifier. img_size: the side of its images, for the dry run that finds its features' width.
        bottleneck: DSAN's: 256 features, of which it compares the domains.
        quant_linear: quantize the backbone's Linear layers and convolutions without BatchNorm too; not the head.
    Raises:
        UserError: its logits do not come from a linear layer, or its forward cannot be traced.
    """

    def __init__(
        self,
        backbone: nn.Module,
        scheme: Scheme,
        num_classes: int,
        img_size: int,
        bottleneck: bool = False,
        quant_linear: bool = False,
    ) -> None:
        super().__init__()
        features = without_classifier(backbone)
        width = _width(features, img_size)
        self.feature: Any = convert(features, scheme, linear=quant_linear, all_convs=quant_linear, inplace=True)
        self.bottle = nn.Linear(width, BOTTLENECK) if bottleneck else nn.Identity()
        self.feature_width = BOTTLENECK if bottleneck else width
        self.classifier = nn.Linear(self.feature_width, num_classes)
        self._img_size = img_size

    def backbone(self) -> nn.Module:
        return self.feature

    def crp_sites(self) -> dict[str, nn.Module]:
        """Quantizers that end a residual branch; without any, the last ones before each change of resolution."""
        found = crp_sites(self.feature, (2, 3, self._img_size, self._img_size))
        return {f"feature.{name}": site for name, site in found.items()}

    def features(self, x: Tensor) -> Tensor:
        return self.bottle(self.feature(x.expand(-1, 3, -1, -1)))

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


def without_classifier(network: nn.Module) -> nn.Module:
    """The network with the linear layer that its logits come from replaced by the identity.

    Raises:
        UserError: they come from no linear layer, or from one that is used elsewhere too.
    """
    graph = trace(network)
    (end,) = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes[:1] or (None,)
    layer = graph.get_submodule(str(end.target)) if end is not None and end.op == "call_module" else None
    if not isinstance(layer, nn.Linear) or end is None:
        raise UserError(
            f"{type(network).__name__}: its logits do not come from a Linear layer, so there is no classifier to take "
            "off; expected a classifier that ends in one"
        )
    uses = [node for node in graph.graph.nodes if _uses(node, graph, layer)]
    if uses != [end]:
        raise UserError(
            f"{type(network).__name__}: its classifier {end.target} is used {len(uses)} times, so it cannot be taken "
            "off; expected a Linear layer that the logits alone come from"
        )
    network.set_submodule(str(end.target), nn.Identity())
    return network


def _uses(node: fx.Node, graph: fx.GraphModule, layer: nn.Module) -> bool:
    """Whether a node calls the layer, under any of its names, or reads one of its tensors."""
    if node.op == "call_module":
        return graph.get_submodule(str(node.target)) is layer
    owner = str(node.target).rpartition(".")[0]
    return node.op == "get_attr" and bool(owner) and graph.get_submodule(owner) is layer


@torch.no_grad()
def _width(features: nn.Module, img_size: int) -> int:
    """Of the float features of one image, by a dry run."""
    training = features.training
    parameter = next(iter(features.parameters()))
    try:
        with redirect_stderr(StringIO()):  # to which a traced module's fault is printed at length
            out = features.eval()(torch.zeros(1, 3, img_size, img_size, device=parameter.device))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the network cannot take images of {img_size} x {img_size} ({str(error)[:160]})") from None
    finally:
        features.train(training)
    if out.ndim != 2:
        raise UserError(f"the network's features have shape {tuple(out.shape)}; expected (B, F) before its classifier")
    return out.shape[1]
