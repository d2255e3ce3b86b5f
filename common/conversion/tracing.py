"""A network's forward as a torch.fx graph whose dropout still follows training and evaluation mode."""

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from common.errors import UserError


class _Tracer(fx.Tracer):
    """Enters everything but torch's own layers, classes derived from Conv2d and BatchNorm2d, and the given leaves."""

    def __init__(self, leaves: Sequence[type[nn.Module]]) -> None:
        super().__init__()
        self.leaves = (nn.Conv2d, nn.BatchNorm2d, *leaves)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, self.leaves) or super().is_leaf_module(module, qualified_name)


def trace(model: nn.Module, leaves: Sequence[type[nn.Module]] = ()) -> fx.GraphModule:
    """The same function as a GraphModule that shares the model's modules; names in its state stay, unused parts go.

    Args:
        leaves: module classes whose forward is called as it is and not looked into.
    Raises:
        UserError: the forward cannot be traced, or takes another path in training than in evaluation.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        train, evaluation = (_Tracer(leaves).trace(model.train(training)) for training in (True, False))
    except Exception as error:  # a user's forward run on stand-ins fails in whatever way its code says
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{type(model).__name__}: torch.fx cannot trace its forward ({type(error).__name__}: {reason}); move "
            "control flow that depends on values or shapes into a module of its own and name its class in leaves=(...)"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    name = type(model).__name__
    return fx.GraphModule(model, _follow_mode(train, evaluation, name), name)


def _follow_mode(train: fx.Graph, evaluation: fx.Graph, name: str) -> fx.Graph:
    """``train`` with the constants that were ``self.training`` read from the network when it runs."""
    mode: list[fx.Node] = []

    def merge(one: Any, other: Any) -> Any:
        if one is True and other is False:
            if not mode:
                with train.inserting_before(next(iter(train.nodes))):
                    mode.append(train.create_node("get_attr", "training"))
            return mode[0]
        if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)) and len(one) == len(other):
            return type(one)(merge(a, b) for a, b in zip(one, other, strict=True))
        if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            return {key: merge(one[key], other[key]) for key in one}
        if str(one) != str(other):  # a node's text is its name
            raise refusal
        return one

    refusal = UserError(
        f"{name}: its forward takes another path in training than in evaluation; take that path out first "
        "(torchvision's googlenet and inception_v3: aux_logits=False)"
    )
    nodes, others = list(train.nodes), list(evaluation.nodes)
    if [(node.op, str(node.target)) for node in nodes] != [(node.op, str(node.target)) for node in others]:
        raise refusal
    for node, other in zip(nodes, others, strict=True):
        node.args, node.kwargs = merge(node.args, other.args), merge(node.kwargs, other.kwargs)
    return train
