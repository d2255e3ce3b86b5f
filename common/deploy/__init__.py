"""Quantized networks as files to ship."""
