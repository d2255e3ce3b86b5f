"""Where relations are preserved (CRP) in a converted network."""

import copy

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from common.conversion.nodes import SUMS, module_of
from common.quantizers.alignq import AlignAct
from common.quantizers.learned_scale import scales_from_first_batch


def crp_sites(network: fx.GraphModule, image_shape: tuple[int, int, int, int]) -> dict[str, nn.Module]:
    """The alignment quantizers that end a residual branch, by name; without any, the last one of each resolution.

    Args:
        image_shape: (B, C, H, W) of images that the network takes, for the dry run that finds the resolutions.
    """
    nodes = [node for node in network.graph.nodes if isinstance(module_of(node), AlignAct)]
    found = [node for node in nodes if _is_added(node)]
    if not found:
        found = list(_last_at_each_resolution(network, nodes, image_shape).values())
    return {str(node.target): network.get_submodule(str(node.target)) for node in found}


def _is_added(node: fx.Node) -> bool:
    """Whether a sum is what reads it, itself or behind what keeps or drops whole values."""
    return any(user.target in SUMS or (_passes(user) and _is_added(user)) for user in node.users)


def _passes(node: fx.Node) -> bool:
    return isinstance(module_of(node), nn.Identity | nn.Dropout | nn.Dropout2d)


def _last_at_each_resolution(
    network: fx.GraphModule, nodes: list[fx.Node], image_shape: tuple[int, int, int, int]
) -> dict[tuple[int, ...], fx.Node]:
    copied = copy.deepcopy(network).eval()
    device = next(iter(network.parameters()), torch.empty(0)).device
    with torch.no_grad(), scales_from_first_batch(copied):
        ShapeProp(copied).propagate(torch.zeros(image_shape, device=device))
    names = {node.name for node in nodes}
    shapes = {node.name: node.meta["tensor_meta"].shape[2:] for node in copied.graph.nodes if node.name in names}
    return {tuple(shapes[node.name]): node for node in nodes}
