"""torch.export: the trained network as a program that torch alone loads, without the classes of this project."""

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from common.deploy.graph import refuse_unset, trace
from common.quantizers.layers import QuantLayer
from common.writing import write_whole


@torch.no_grad()
def exported_program(network: nn.Module, image_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """A network of any method, or a float one, from images (batch, C, H, W) to class logits, with a dynamic batch.

    Weights are quantized once, here; the logits are those of the fake-quantized network, bit for bit.

    Raises:
        UserError: learned scales were never set.
    """
    graph = trace(network)
    refuse_unset(graph.named_modules())
    for layer in graph.modules():
        if isinstance(layer, QuantLayer):
            layer.weight.copy_(layer.weight_quantizer(layer.weight))
            layer.weight_quantizer = nn.Identity()
    example = torch.zeros(2, *image_shape)
    program = torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        for record in ("stack_trace", "from_node"):  # of no use to a reader; the first names folders of this machine
            node.meta.pop(record, None)
    return program


def save_program(
    network: nn.Module, path: Path | str, image_shape: tuple[int, int, int], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``exported_program`` as a .pt2 file, whole or not at all, with ``metadata`` as its extra files.

    ``torch.export.load`` reads it, and is for files that one trusts: its format holds pickled Python objects.
    """
    file = io.BytesIO()
    torch.export.save(exported_program(network, image_shape), file, extra_files=dict(metadata or {}))
    write_whole(Path(path), file.getvalue())
