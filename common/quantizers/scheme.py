"""Scheme: which modules a method puts where in a network. Models ask it three questions and know no method by name."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from common.errors import UserError
from common.flags import NoOptions
from common.quantizers.base import QuantAct, WeightQuantizer
from common.quantizers.layers import QuantConv2d
from common.quantizers.rounding import FLOAT_BITS

Placement = Literal["before_relu", "after_relu", "in_conv"]
BEFORE_RELU: Placement = "before_relu"
AFTER_RELU: Placement = "after_relu"
IN_CONV: Placement = "in_conv"
OTHER_LEVELS = "published", "symmetric"  # than the 2^k exact ones


@dataclass(frozen=True)
class Method:
    """One quantization method: what it defines and how its quantizers are made.

    Attributes:
        placement: where activations are quantized: before the ReLU, after it, or by the next convolution.
        weight_bits, act_bits: the widths it defines, 32 (float) apart.
        weight, activation: make a quantizer from (bits, scheme).
        scaled_weight: the same for weights of a layer that no BatchNorm follows, where ``weight`` leaves their scale
            to that; None: ``weight`` keeps it.
        unnormalised: makes the quantizer of activations that no BatchNorm normalises from (bits, scheme, whether none
            of them is negative), and gives None where it has no codes for them. By default ``activation`` does for
            those that are not negative.
        options: the class of its own options, a frozen dataclass whose fields are flags (common.flags); none is called
            like a field of Scheme.
        aligns: has the 32-bit form of ``--stage align``.
        reported_weight_bits: the width its weights really have, where that is not the width asked for.
    """

    name: str
    placement: Placement
    weight_bits: Collection[int]
    act_bits: Collection[int]
    weight: Callable[[int, "Scheme"], WeightQuantizer]
    activation: Callable[[int, "Scheme"], QuantAct]
    scaled_weight: Callable[[int, "Scheme"], WeightQuantizer] | None = None
    unnormalised: Callable[[int, "Scheme", bool], QuantAct | None] | None = None
    options: type = NoOptions
    aligns: bool = False
    reported_weight_bits: int | None = None


@dataclass(frozen=True)
class Scheme:
    """A method at given bit-widths, as a model sees it.

    Attributes:
        own: the method's own options, an instance of ``Method.options``; by default what that has as defaults.

    Raises:
        UserError: a bit-width or option that the method does not define.
    """

    method: Method
    bitW: int = FLOAT_BITS
    abitW: int = FLOAT_BITS
    act_range: float = 2.0
    levels: str = "exact"
    grad_approx: str = "sigmoid"
    lam: float = 1.0
    lam2: float = 4.0
    stage: str = "plain"
    own: Any = None

    def __post_init__(self) -> None:
        name = self.method.name
        if self.own is None:
            object.__setattr__(self, "own", self.method.options())
        for flag, bits, defined in (
            ("--bitW", self.bitW, self.method.weight_bits),
            ("--abitW", self.abitW, self.method.act_bits),
        ):
            if bits != FLOAT_BITS and bits not in defined:
                widths = ", ".join(map(str, sorted(defined)))
                raise UserError(f"{flag} {bits}: method {name} defines {widths} and {FLOAT_BITS} (float) here")
        if self.levels in OTHER_LEVELS and (name != "ours" or 1 in (self.bitW, self.abitW)):
            raise UserError(f"--levels {self.levels} exists for --method ours at 2 bits and more; leave --levels exact")
        for flag, value, choices in (
            ("--levels", self.levels, ("exact", *OTHER_LEVELS)),
            ("--grad_approx", self.grad_approx, ("sigmoid", "ste")),
            ("--stage", self.stage, ("plain", "align")),
        ):
            if value not in choices:
                raise UserError(f"{flag} {value}: expected {' or '.join(choices)}")
        if not self.act_range > 0:
            raise UserError(f"--act_range {self.act_range}: expected a positive number")
        if not (self.lam > 0 and self.lam2 > 0):
            raise UserError(f"--lam {self.lam} --lam2 {self.lam2}: expected positive numbers")

    def _skips(self, bits: int) -> bool:
        return bits == FLOAT_BITS and not (self.method.aligns and self.stage == "align")

    def conv(self, *args: Any, image_input: bool = False, **kwargs: Any) -> nn.Conv2d:
        """The convolution to build; arguments are nn.Conv2d's. ``image_input``: its input is the image, left float."""
        weight = self.weights()
        own_input = self.method.placement == IN_CONV and not image_input and not self._skips(self.abitW)
        act = self.method.activation(self.abitW, self) if own_input else None
        if weight is None and act is None:
            return nn.Conv2d(*args, **kwargs)
        return QuantConv2d(*args, weight_quantizer=weight, input_quantizer=act, **kwargs)

    def weights(self, scaled: bool = False) -> WeightQuantizer | None:
        """The quantizer of a layer's weights; ``scaled``: no BatchNorm follows the layer. None: they are float."""
        make = (self.method.scaled_weight if scaled else None) or self.method.weight
        return None if self._skips(self.bitW) else make(self.bitW, self)

    def unnormalised(self, positive: bool) -> QuantAct | None:
        """The quantizer of a layer's input that no BatchNorm normalises; ``positive``: none of it is negative.

        None: it is float, or the method has no codes for it.
        """
        if self._skips(self.abitW):
            return None
        if self.method.unnormalised is not None:
            return self.method.unnormalised(self.abitW, self, positive)
        return self.method.activation(self.abitW, self) if positive else None

    def before_relu(self) -> nn.Module:
        """What stands between a BatchNorm and its ReLU, or between a branch's last BatchNorm and the addition."""
        return self._activation(BEFORE_RELU)

    def after_relu(self) -> nn.Module:
        """What stands behind a ReLU."""
        return self._activation(AFTER_RELU)

    def _activation(self, placement: Placement) -> nn.Module:
        if self.method.placement != placement or self._skips(self.abitW):
            return nn.Identity()
        return self.method.activation(self.abitW, self)
