"""torch's multi-head attention with its projections as Linear layers, so that they can be quantized."""

import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

PRODUCTS = "its products of queries, keys and values"


class SelfAttention(nn.Module):
    """What an ``nn.MultiheadAttention`` computes of one tensor as query, key and value, without masks, bit for bit.

    Its projections are the Linear layers ``in_proj``, of queries, keys and values together, and ``out_proj``. A state
    with the names of ``nn.MultiheadAttention`` (in_proj_weight, in_proj_bias) is read too.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.dropout, self.batch_first = attention.num_heads, attention.dropout, attention.batch_first
        out = attention.out_proj
        self.in_proj = _linear(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = _linear(out.weight, out.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """(B, N, E), or (N, B, E) unless ``batch_first``, to the same, and None in the place of attention weights."""
        x = x.transpose(0, 1) if self.batch_first else x
        length, batch, width = x.shape
        parts = self.in_proj(x).unflatten(-1, (3, width)).permute(2, 1, 0, 3)
        q, k, v = parts.unflatten(-1, (self.heads, -1)).transpose(2, 3)
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        out = self.out_proj(out.permute(2, 0, 1, 3).reshape(length, batch, width))
        return (out.transpose(0, 1) if self.batch_first else out), None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("weight", "bias"):
            if f"{prefix}in_proj_{name}" in state_dict:
                state_dict[f"{prefix}in_proj.{name}"] = state_dict.pop(f"{prefix}in_proj_{name}")
        super()._load_from_state_dict(state_dict, prefix, *args)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight, linear.bias = weight, bias
    return linear


def open_attention(network: fx.GraphModule) -> None:
    """Replace every self-attention of torch whose weights (not the projections' but the products') no one reads."""
    for node in list(network.graph.nodes):
        if node.op == "call_module":
            attention = network.get_submodule(node.target)
            if isinstance(attention, nn.MultiheadAttention) and _is_plain(node, attention):
                network.set_submodule(node.target, SelfAttention(attention).train(attention.training))
                node.args, node.kwargs = node.args[:1], {}


def _is_plain(node: fx.Node, attention: nn.MultiheadAttention) -> bool:
    calls = [other for other in node.graph.nodes if other.op == "call_module" and other.target == node.target]
    return (
        len(calls) == 1
        and len(node.args) == 3
        and len(set(node.args)) == 1
        and node.kwargs.keys() <= {"need_weights", "average_attn_weights"}
        and all(user.target is operator.getitem and (user.args[1] == 0 or not user.users) for user in node.users)
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )
