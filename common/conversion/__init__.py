"""Other people's networks: a float network of any shape as a quantized one."""

from common.conversion.convert import LeftFloat, left_float, quantize_model

__all__ = ["LeftFloat", "left_float", "quantize_model"]
