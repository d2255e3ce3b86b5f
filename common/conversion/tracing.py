"""A network's forward as a torch.fx graph whose dropout and stochastic depth still follow the mode."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx, nn

from common.conversion.modes import Differs, follow_mode
from common.errors import UserError
from common.measure.statistics import modes_kept


class _Tracer(fx.Tracer):
    """Enters everything but torch's own layers, classes derived from Conv2d and BatchNorm2d, and the given leaves."""

    def __init__(self, leaves: Sequence[type[nn.Module]]) -> None:
        super().__init__()
        self.given = tuple(leaves)
        self.leaves = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, *leaves)

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, self.leaves) or super().is_leaf_module(module, qualified_name)

    def call_module(self, m: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        return m.act(m.drop(out)) if _acts_too(m) and not isinstance(m, self.given) else out


def trace(model: nn.Module, leaves: Sequence[type[nn.Module]] = ()) -> fx.GraphModule:
    """The same function as a GraphModule that shares the model's modules; names in its state stay, unused parts go.

    Args:
        leaves: module classes whose forward is called as it is and not looked into.
    Raises:
        UserError: the forward cannot be traced, or takes another path in training than in evaluation.
    """
    try:
        with modes_kept(model):
            train, evaluation = (_Tracer(leaves).trace(model.train(training)) for training in (True, False))
    except Exception as error:  # a user's forward run on stand-ins fails in whatever way its code says
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{type(model).__name__}: torch.fx cannot trace its forward ({type(error).__name__}: {reason}); move "
            "control flow that depends on values or shapes into a module of its own and name its class in leaves=(...)"
        ) from error
    name = type(model).__name__
    network = fx.GraphModule(model, train, name)
    try:
        follow_mode(network, model, evaluation)
    except Differs:
        raise UserError(
            f"{name}: its forward takes another path in training than in evaluation, and not by dropout or stochastic "
            "depth alone; take that path out first (torchvision's googlenet and inception_v3: aux_logits=False), or "
            "move it into a module of its own and name its class in leaves=(...)"
        ) from None
    for name, module in list(network.named_modules()):
        if _acts_too(module):
            network.set_submodule(name, _norm_alone(module))
    return network


def _acts_too(module: nn.Module) -> bool:
    """Whether a BatchNorm drops and acts, as timm's do."""
    parts = (getattr(module, "drop", None), getattr(module, "act", None))
    return isinstance(module, nn.BatchNorm2d) and all(isinstance(part, nn.Module) for part in parts)


def _norm_alone(module: nn.Module) -> nn.BatchNorm2d:
    """The BatchNorm of one that acts too, with its parameters and its parts, which are called behind it."""
    norm = nn.BatchNorm2d(0)
    norm.__dict__.update(module.__dict__)
    return norm
