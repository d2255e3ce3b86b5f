"""Whether a float network is a reference for the quantized ones that started from it."""

from collections.abc import Mapping

MARGIN = 1.0  # points; behind a float network at the end of its schedule the best of ten was 0.5 ahead (README, demo)


def trained_too_little(float_top1: float, quantized: Mapping[str, float]) -> str:
    """A sentence, or "": a quantized network that started from the float one is ahead of it by more than ``MARGIN``.

    Quantizing takes away. What such a network gains it has from training on, which the float network was not given.

    Args:
        float_top1: per cent, mean over the seeds, best epoch. quantized: the same by name of the method and bits.
    """
    ahead = max(quantized, key=lambda name: quantized[name], default=None)
    if ahead is None or not quantized[ahead] > float_top1 + MARGIN:
        return ""
    return (
        f"The float network was trained too little to be a reference: {ahead} is {quantized[ahead] - float_top1:.2f} "
        "points ahead of it, by training on. Train it longer (--num_epochs) before comparing with it."
    )
