"""Packed files: a network as codes of k bits in a .safetensors file."""

from common.deploy.packed.file import load, load_into, save, save_state

__all__ = ["load", "load_into", "save", "save_state"]
