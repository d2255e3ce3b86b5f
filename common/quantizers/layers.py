"""The modules a network is built of: a convolution that quantizes its weight and input, and the quantizers' bases."""

from typing import Any

from torch import Tensor, nn


class Quantizer(nn.Module):
    """Base of every quantizer module. Its parameters, if any, are learned scales: trained without weight decay.

    Attributes:
        bits: the width of its output. bwn's weights have 1 whatever was asked for.
        scale_lr: learning rate of its parameters relative to the network's.
    """

    scale_lr: float = 1.0

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class WeightQuantizer(Quantizer):
    """Maps a weight tensor to levels of the same shape."""

    def initialise(self, weight: Tensor) -> None:
        """Set learned scales from float weights; called once these are in place. Nothing to do without such scales."""


class QuantAct(Quantizer):
    """Maps activations to levels of the same shape."""


class QuantConv2d(nn.Conv2d):
    """Convolution of a quantized weight with an (optionally quantized) input. The bias stays float."""

    def __init__(
        self,
        *args: Any,
        weight_quantizer: WeightQuantizer | None,
        input_quantizer: QuantAct | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_quantizer = weight_quantizer or nn.Identity()
        self.input_quantizer = input_quantizer or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(self.input_quantizer(x), self.weight_quantizer(self.weight), self.bias)
