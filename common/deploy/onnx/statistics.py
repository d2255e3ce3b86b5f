"""Other statistics for the BatchNorms of a written ONNX model."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.deploy.extras import need
from common.flags import shown

# of its nodes' outputs behind a layer's name: where the module goes on from its BatchNorm, and for further uses
LATER = r"(\.batch_norm)?(\.\d+)?"


def set_statistics(model: Any, statistics: Mapping[str, Tensor]) -> None:
    """Give the BatchNorms of a ModelProto that ``onnx_model`` made the statistics of their layers, in place.

    Args:
        statistics: (2, C) float32, mean and variance, by the layer's name, from which that of its nodes' outputs
            follows: a network may use a layer more than once.
    Raises:
        ValueError: a layer that is no BatchNorm of the model, or of other channels.
    """
    numpy_helper = need("onnx").numpy_helper
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    sizes = {constant.name: list(constant.dims) for constant in model.graph.initializer}
    for name, values in statistics.items():
        uses = [node for node in nodes if re.fullmatch(re.escape(name) + LATER, node.output[0])]
        if not uses:
            raise ValueError(f"{shown(name)} is no BatchNorm of it")
        if any(sizes.get(node.input[3]) != [values.shape[1]] for node in uses):
            raise ValueError(f"{shown(name)} has other channels in it")
        for place, key, row in ((3, "mean", values[0]), (4, "var", values[1])):
            own = f"{name}:aligned_{key}"  # equal constants of layers are stored once
            model.graph.initializer.append(numpy_helper.from_array(row.numpy(), own))
            for node in uses:
                node.input[place] = own
    used = {name for node in model.graph.node for name in node.input}
    for constant in [one for one in model.graph.initializer if one.name not in used]:
        model.graph.initializer.remove(constant)
