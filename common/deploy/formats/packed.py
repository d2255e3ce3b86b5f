"""Packed files: k-bit codes in safetensors, read by this project (common.deploy.packed)."""

from common.deploy import packed
from common.deploy.formats.base import Format

PACKED = Format("packed", ".safetensors", "k-bit codes, for this project's tools", packed.save, packed.load)
