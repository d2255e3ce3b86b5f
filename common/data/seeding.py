"""Random draws that depend on nothing but a key: the same in every process, on every machine and after a restart."""

import hashlib

import torch


def digest(*key: object) -> bytes:
    """The SHA-256 digest of the key's parts, each as text."""
    return hashlib.sha256("/".join(map(str, key)).encode(errors="surrogateescape")).digest()


def generator(*key: object) -> torch.Generator:
    """A CPU generator of its own for ``key``; the global one is neither read nor advanced."""
    return torch.Generator().manual_seed(int.from_bytes(digest(*key)[:8], "big") >> 1)
