"""What can be wrong with a file, whatever it is of: in place of its bytes, or of the file itself."""

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

DEEP = 50_000
LIMITLESS = 2**40  # bytes; the file has holes instead


def flipped(content: bytes) -> bytes:
    """One bit, of a file that says its checksums: in the largest part of it, its numbers."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def torn(content: bytes) -> bytes:
    """The beginning, by which every form says what it is."""
    return bytes(255 - byte for byte in content[:24]) + content[24:]


CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "torn": torn,
    "foreign": lambda content: b"%PDF-1.7 a letter, with colour \x1b[31m and a line\nmore \xff\xfe",
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "a script": lambda content: b"#!/bin/sh\ntouch executed\n",
    "code": lambda content: pickle.dumps(_Code()),
}


def limitless(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(LIMITLESS)


def unreadable(path: Path) -> None:
    path.chmod(0)


PLACES: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path)),
    "limitless": limitless,
    **({"unreadable": unreadable} if os.geteuid() else {}),  # nothing is unreadable for root
}


class _Code:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def nested_pickle() -> bytes:
    return pickle.PROTO + b"\x02" + DEEP * pickle.EMPTY_LIST + (DEEP - 1) * pickle.APPEND + pickle.STOP


def huge_pickle() -> bytes:
    """A text that it says has petabytes."""
    return pickle.PROTO + b"\x04" + pickle.BINBYTES8 + struct.pack("<Q", 2**50) + b"x" + pickle.STOP


def archive(content: bytes) -> bytes:
    """A file of torch.save with another pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, part in {"data.pkl": content, "version": b"3\n", "byteorder": b"little"}.items():
            target.writestr(f"archive/{name}", part)
    return buffer.getvalue()


def bomb() -> bytes:
    """An archive that is small until it is unpacked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", bytes(2**28))
    return buffer.getvalue()


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """One that announces a size and has no pixels of it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def idx(*shape: int) -> bytes:
    return bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + b"some"


TORCH = {
    "recursive": lambda: archive(nested_pickle()),
    "oversized": lambda: archive(huge_pickle()),
    "a bomb": bomb,
    "a number": lambda: saved(3),
    "nothing": lambda: saved({}),
    "a list": lambda: saved([torch.zeros(3)]),
    "numbers as names": lambda: saved({"state_dict_t": {3: torch.zeros(3)}}),
    "weights that repeat": lambda: saved({"state_dict_t": {"conv0.weight": torch.zeros(1).expand(10**12)}}),
    "sparse": lambda: saved({"state_dict_t": {"conv0.weight": torch.eye(3).to_sparse()}}),
    "meta": lambda: saved({"state_dict_t": {"conv0.weight": torch.zeros(3, device="meta")}}),
    "a circle": lambda: saved(_circle()),
    "code in it": lambda: archive(pickle.dumps(_Code(), protocol=2)),
}


def _circle() -> dict[str, object]:
    content: dict[str, object] = {}
    content["state_dict_t"] = content
    return content


OF_KIND: dict[str, dict[str, Callable[[], bytes]]] = {
    ".pt": TORCH,
    ".pth": TORCH,
    ".json": {
        "recursive": lambda: DEEP * b'{"options":' + b"1" + DEEP * b"}",
        "oversized": lambda: b'{"program": "alignq", "options": {"bitW": ' + 5000 * b"9" + b"}}",
        "a list": lambda: b"[1, 2]",
        "a null": lambda: b"null",
        "twice": lambda: b'{"program": "alignq", "program": "alignq"}',
    },
    ".jsonl": {
        "recursive": lambda: DEEP * b"[" + b"\n{}\n",
        "a list": lambda: b"[1, 2]\n[1, 2]\n",
        "other things": lambda: b'{"epoch": 0, "test": 3}\n{"epoch": 1}\n',
    },
    ".safetensors": {
        "oversized": lambda: struct.pack("<Q", 2**60) + b"{}",
        "recursive": lambda: struct.pack("<Q", 6 * DEEP) + DEEP * b'{"a": ',
    },
    ".png": {
        "oversized": lambda: png(60_000, 60_000),
        "wide": lambda: png(2**31 - 1, 1),
        "without pixels": lambda: png(0, 0),
        "other pixels": lambda: png(640, 480),
    },
    "ubyte": {"oversized": lambda: idx(2**32 - 1, 2**32 - 1, 2**32 - 1), "a number": lambda: idx(3)},
    "batch": {
        "recursive": nested_pickle,
        "oversized": huge_pickle,
        "a list": lambda: pickle.dumps([1], protocol=2),
        "other things": lambda: pickle.dumps({"data": 3, "labels": "x", "label_names": 5}, protocol=2),
    },
}
