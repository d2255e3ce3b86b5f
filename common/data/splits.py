"""What a run trains on and what it is tested on: splits of a domain, kept as text."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from common.data.folders import ImageList, some_of
from common.data.seeding import digest
from common.errors import UserError

WHOLE_DOMAIN = "whole domain for training and test"


@dataclass(frozen=True, eq=False)
class Partition:
    """What a run trains on and what it is tested on.

    Args:
        train, test: disjoint under the split; one and the same list under the whole-domain protocol.
        protocol: what a result says about it, "80/20 split per class, seed 1" or `WHOLE_DOMAIN`.
        list_file: where the split is written down, if it is.
    """

    train: ImageList
    test: ImageList
    protocol: str
    list_file: Path | None = None


def partition(
    images: ImageList,
    *,
    train_split: bool = True,
    folder: Path | str | None = None,
    fraction: float = 0.8,
    seed: int = 1,
) -> Partition:
    """Divide a domain into training and test images, or use all of it as both.

    Of a class with n images int(fraction n) are for training, at least one and, where n >= 2, at most n - 1. Which ones
    follows from the file names and the seed alone: the order of the digests of "seed/class/name". So every
    run, method and file system has the same split. With `folder` (a run's job_dir) it is written down there as
    `split_<domain>.tsv`, one line per image, "train|test <tab> label <tab> path", and read from there afterwards; such
    a file written by hand is used as it is.

    Args:
        train_split: False gives the whole domain for training and for test, as the adaptation literature does.
    Raises:
        UserError: the list file does not fit the images in the folder or was made with another fraction or seed.
        ValueError: `fraction` is not strictly between 0 and 1.
    """
    if not train_split:
        return Partition(images, images, WHOLE_DOMAIN)
    if not 0 < fraction < 1:
        raise ValueError(f"the training fraction must lie between 0 and 1, not {fraction}")
    protocol = f"{100 * fraction:g}/{100 - 100 * fraction:g} split per class, seed {seed}"
    if folder is None:
        return _parts(images, _draw(images, fraction, seed), protocol, None)
    file = Path(folder) / f"split_{images.domain.replace('/', '_').replace(os.sep, '_')}.tsv"
    if not file.exists():
        training = _draw(images, fraction, seed)
        _write_split(file, images, training, protocol)
    else:
        training, protocol = _read_split(file, images, protocol)
    return _parts(images, training, protocol, file)


def _draw(images: ImageList, fraction: float, seed: int) -> set[str]:
    """The training paths."""
    members: dict[int, list[str]] = {}
    for path, label in zip(images.paths, images.labels, strict=True):
        members.setdefault(label, []).append(path)
    training: set[str] = set()
    for paths in members.values():
        count = max(1, min(int(fraction * len(paths)), len(paths) - 1))
        training.update(sorted(paths, key=lambda path: (digest("split", seed, path), path))[:count])
    return training


def _parts(images: ImageList, training: set[str], protocol: str, file: Path | None) -> Partition:
    inside = [path in training for path in images.paths]
    return Partition(
        train=images.subset([i for i, chosen in enumerate(inside) if chosen]),
        test=images.subset([i for i, chosen in enumerate(inside) if not chosen]),
        protocol=protocol,
        list_file=file,
    )


def _write_split(file: Path, images: ImageList, training: set[str], protocol: str) -> None:
    lines = [f"# {protocol}"]
    for path, label in zip(images.paths, images.labels, strict=True):
        lines.append(f"{'train' if path in training else 'test'}\t{label}\t{path}")
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
            stream.write("\n".join(lines) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror}); make room or give another --job_dir") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _read_split(file: Path, images: ImageList, protocol: str) -> tuple[set[str], str]:
    """The training paths and the protocol that a list file states."""
    redo = f"restore the images, or remove {file} for a new split"
    try:
        lines = file.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror}): {redo}") from None
    stated = lines[0][1:].strip() if lines[0].startswith("#") else f"split of {file.name}"
    if lines[0].startswith("#") and stated != protocol:
        raise UserError(f"{file} holds the {stated}; expected the {protocol}: ask for the former, or remove the file")
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    wrong = [row for row in rows if len(row) != 3 or row[0] not in ("train", "test")]
    if wrong:
        raise UserError(f"{file} has the line {wrong[0]}; expected train or test, a label and a path: {redo}")
    expected = dict(zip(images.paths, map(str, images.labels), strict=True))
    found = {path: label for _, label, path in rows}
    unlisted = sorted(path for path, _ in expected.items() - found.items())
    absent = sorted(path for path, _ in found.items() - expected.items())
    if unlisted or absent or len(rows) != len(expected):
        raise UserError(
            f"{file} lists {len(rows)} images where {images.root} holds {len(expected)} (only in the folder: "
            f"{some_of(unlisted) or 'none'}; only in the list: {some_of(absent) or 'none'}): {redo}"
        )
    return {path for part, _, path in rows if part == "train"}, stated
