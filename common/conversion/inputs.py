"""What becomes of the input of each layer that is quantized: levels already, a quantizer of its own, or float."""

from collections.abc import Sequence

from torch import fx

from common.conversion.nodes import carries, is_activation, is_image, is_positive, keeps_levels, sources
from common.conversion.patterns import Patterns
from common.quantizers import Scheme
from common.quantizers.base import QuantAct
from common.quantizers.rounding import FLOAT_BITS
from common.quantizers.scheme import BEFORE_RELU, IN_CONV


def input_of(
    name: str, patterns: Patterns, scheme: Scheme, places: Sequence[fx.Node], all_convs: bool
) -> tuple[QuantAct | None, str | None]:
    """A layer's own quantizer of its input, or why that stays float. Neither: it is levels, or the image.

    Args:
        places: the nodes behind which the method quantizes.
        all_convs: a normalised convolution quantizes its input where the method has no place for it, as other layers
            do. Its input counts as quantized if it is a sum or an average of levels, theirs does not.
    """
    calls, method = patterns.layers[name], scheme.method
    normalised, in_layer = name in patterns.normalised, method.placement == IN_CONV
    through = carries if normalised else keeps_levels

    def passes(node: fx.Node) -> bool:
        activation = method.placement == BEFORE_RELU and is_activation(node)
        return node not in places and (through(node) or activation)

    origins = list(dict.fromkeys(source for call in calls for source in sources(call, passes)))
    by_itself = all_convs or not normalised
    if calls and (all(one.op == "placeholder" for one in origins) or (by_itself and all(map(is_image, calls)))):
        return None, None
    strange = [origin for origin in origins if origin not in places]
    if calls and not in_layer and not strange:
        return None, None
    positive = bool(calls) and all(map(is_positive, calls))
    if by_itself or (in_layer and positive):
        quantizer = scheme.unnormalised(positive)
        if quantizer is not None:
            return quantizer, None
    if scheme.abitW == FLOAT_BITS:
        return None, None
    if by_itself or in_layer:
        return None, f"its input: can be negative, {method.name} has no codes for that"
    return None, f"its input: {method.name} places no quantizer behind {strange[0].name}"
