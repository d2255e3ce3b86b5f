"""Other statistics for the BatchNorms of a written ONNX model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.deploy.extras import need
from common.flags import shown


def set_statistics(model: Any, statistics: Mapping[str, Tensor]) -> None:
    """Give the BatchNorms of a ModelProto that ``onnx_model`` made the statistics of their layers, in place.

    Args:
        statistics: (2, C) float32, mean and variance, by the layer's name, which is that of its node's output.
    Raises:
        ValueError: a layer that is no BatchNorm of the model, or of other channels.
    """
    numpy_helper = need("onnx").numpy_helper
    nodes = {node.output[0]: node for node in model.graph.node if node.op_type == "BatchNormalization"}
    sizes = {constant.name: list(constant.dims) for constant in model.graph.initializer}
    for name, values in statistics.items():
        if name not in nodes:
            raise ValueError(f"{shown(name)} is no BatchNorm of it")
        node = nodes[name]
        if sizes.get(node.input[3]) != [values.shape[1]]:
            raise ValueError(f"{shown(name)} has other channels in it")
        for place, key, row in ((3, "mean", values[0]), (4, "var", values[1])):
            node.input[place] = f"{name}:aligned_{key}"  # of its own: equal constants of layers are stored once
            model.graph.initializer.append(numpy_helper.from_array(row.numpy(), node.input[place]))
    used = {name for node in model.graph.node for name in node.input}
    for constant in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(constant)
