"""What torch computes for a batch of images, as a list of its operators' calls, each under the name of its layer.

Everything that is not computed from the images or from quantized weights is a constant. What a call is given is kept as
it was, so that two recordings, of batches of different sizes, tell which numbers follow the batch.
"""

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import UserError
from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.layers import QuantLayer
from common.reading import reason

PREFIX = "network."  # of ``ClassLogits``
OF_SHAPES = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}  # the values are not read


@dataclass(eq=False)
class Call:
    """
    Attributes:
        operator: its name without overload and trailing underscore, such as "relu"; "quantizer" of activations.
        called: the operator that the network calls, of which this one may be a part.
        layer: the name of the innermost module that makes it. module: the activation quantizer.
        given: its arguments by name, defaults too. results: the tensors it gave. shapes: theirs, when they were new.
        is_result: whether it gave what the module returns.
    """

    operator: str
    called: str
    layer: str
    given: dict[str, Any]
    results: list[Tensor]
    module: Any = None
    is_result: bool = False

    def __post_init__(self) -> None:
        self.shapes = [tuple(result.shape) for result in self.results]


class Recorder(TorchDispatchMode):
    """Records a network, which it prepares for that: give it a copy.

    Attributes:
        known: the operators to record; others are taken apart by torch's own rules where it has some.
        weights: by identity of a quantized weight, its layer and that one's name.
        names: by identity of a parameter or buffer, its name.
    """

    def __init__(self, network: nn.Module, known: Container[str]) -> None:
        super().__init__()
        self.network, self.known = network, known
        self.calls: list[Call] = []
        self.live: dict[int, Tensor] = {}  # computed from the images or quantized weights
        self.valid: dict[int, set[int]] = {}  # by memory that was written to: the tensors that show what it holds
        self.quiet = False
        self.apart: list[str] = []  # the operators that are being taken apart
        self.layers = [""]
        self.weights: dict[int, tuple[QuantLayer, str]] = {}
        self.names = {
            id(tensor): name.removeprefix(PREFIX)
            for named in (network.named_parameters(), network.named_buffers())
            for name, tensor in named
        }
        with torch.inference_mode():
            for name, module in network.named_modules():
                self._prepare(name.removeprefix(PREFIX), module)

    def _prepare(self, name: str, module: Any) -> None:
        if isinstance(module, QuantAct):
            module.forward = self._leaf(module, name, module.forward)
        elif isinstance(module, QuantLayer) and isinstance(module.weight_quantizer, WeightQuantizer):
            module.shared = module.weight_quantizer(module.weight).detach()
            self.weights[id(module.shared)] = module, name
        module.register_forward_pre_hook(lambda *_: self.layers.append(name))
        module.register_forward_hook(self._leave, always_call=True)

    def _leaf(self, act: QuantAct, name: str, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def recorded(x: Tensor) -> Tensor:
            self.quiet = True
            try:
                result = forward(x)
            finally:
                self.quiet = False
            self._keep(Call("quantizer", "quantizer", name, {"self": x}, [result], act))
            return result

        return recorded

    def _leave(self, module: nn.Module, args: Any, result: Any) -> None:
        layer = self.layers.pop()
        if self.calls and self.calls[-1].layer == layer and any(one is result for one in self.calls[-1].results):
            self.calls[-1].is_result = True

    def record(self, images: Tensor) -> tuple[list[Call], Tensor]:
        """The calls, and the logits. The images may be overwritten.

        Raises:
            UserError: the forward fails, reads what was overwritten, or does not return one tensor.
        """
        self.calls, self.valid, self.layers = [], {}, [""]
        self.live = {id(images): images}
        self.live |= {id(layer.shared): layer.shared for layer, _ in self.weights.values() if layer.shared is not None}
        fast_attention = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), self:
                logits = self.network(images)
        except UserError:
            raise
        except Exception as error:  # a user's forward fails in whatever way its code says
            sides = tuple(images.shape[1:])
            raise UserError(f"the network fails on images of shape {sides} ({reason(error)})") from error
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)
        if not isinstance(logits, Tensor):
            raise UserError("the network returns more than one tensor; a network to deploy returns its logits")
        return self.calls, logits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.quiet:
            return func(*args, **kwargs)
        given = _by_name(func, args, kwargs)
        for tensor in tensors_in(given):
            self._refuse_overwritten(tensor)
        operator = func._schema.name.removeprefix("aten::").rstrip("_")
        if operator in OF_SHAPES or not any(id(tensor) in self.live for tensor in tensors_in(given)):
            return func(*args, **kwargs)
        if operator not in self.known:
            for takes_apart in (func.decompose, decomposition_table.get(func)):
                if takes_apart is not None:
                    result = self._take_apart(takes_apart, operator, args, kwargs)
                    if result is not NotImplemented:
                        return result
        given = {key: self._as_it_is(value) for key, value in given.items()}
        result = func(*args, **kwargs)
        call = Call(operator, [*self.apart, operator][0], self.layers[-1], given, list(tensors_in(result)))
        if func._schema.is_mutable:
            for written in call.results:
                self.valid[_memory(written)] = set()
        self._keep(call)
        return result

    def _take_apart(self, function: Callable[..., Any], operator: str, args: Any, kwargs: Any) -> Any:
        self.apart.append(operator)
        try:
            with self:
                return function(*args, **kwargs)
        finally:
            self.apart.pop()

    def _as_it_is(self, value: Any) -> Any:
        """A constant that is no parameter or buffer may be worked on in place, so that a copy is kept."""
        if isinstance(value, tuple | list):
            return [self._as_it_is(one) for one in value]
        if not isinstance(value, Tensor) or id(value) in self.live or id(value) in self.names:
            return value
        return value.clone()

    def _keep(self, call: Call) -> None:
        self.calls.append(call)
        for result in call.results:
            self.live[id(result)] = result
            if _memory(result) in self.valid:
                self.valid[_memory(result)].add(id(result))

    def _refuse_overwritten(self, tensor: Tensor) -> None:
        valid = self.valid.get(_memory(tensor))
        if valid is not None and id(tensor) not in valid:
            raise UserError(
                f"{self.layers[-1] or 'the network'}: reads a tensor that was worked on in place under another name; "
                "a copy would do"
            )


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors_in(one)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def _by_name(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    arguments = func._schema.arguments
    defaults = {one.name: one.default_value for one in arguments if one.has_default_value()}
    return {**defaults, **dict(zip((one.name for one in arguments), args, strict=False)), **kwargs}


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
