"""The README's tables as data: one row each, read by the programs' defaults and by the tools."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        task: the task's name, which is its folder under single_domain/ or cross_domain/.
        bits, pretrained_bits: the row's width and that of the file it starts from.
        pair: (source, target) domain of a cross-domain row.
        flags: its hyperparameters, by flag name without the dashes.
        crp: whether it has relation preservation; such rows run in the daq_crp folder.
    """

    task: str
    bits: int
    pretrained_bits: int
    flags: dict[str, Any]
    pair: tuple[str, str] | None = None
    crp: bool = False


_SGD = {"momentum": 0.9, "weight_decay": 1e-4, "lr_gamma": 0.1, "lam": 1.0, "lam2": 4.0, "act_range": 2.0}
_CIFAR = {
    **_SGD,
    "num_epochs": 300,
    "train_batch_size": 128,
    "eval_batch_size": 100,
    "lr_decay_steps": [80, 120],
    "grad_approx": "sigmoid",
    "print_freq": 200,
}
_DIGITS = {"eval_batch_size": 100, "lr_decay_steps": [80], "lr_gamma": 0.1, "alpha": 10.0, "grad_approx": "ste"}
_OFFICE = {
    **_SGD,
    "weight_decay": 5e-4,
    "num_epochs": 100,
    "lr": 0.001,
    "lr_decay_steps": [30, 60, 80],
    "alpha": 0.0,
    "grad_approx": "sigmoid",
    "print_freq": 10,
}


def _cifar(task: str, lr_8bit: float, gamma: float) -> list[Row]:
    first = Row(task, 8, 32, {**_CIFAR, "lr": lr_8bit, "lr_gamma": gamma})
    return [first] + [Row(task, b, p, {**first.flags, "lr": 0.04}) for b, p in ((4, 8), (3, 4), (2, 3))]


def _digits(pair: tuple[str, str], **flags: Any) -> list[Row]:
    return [Row("dann_digits", bits, 32, {**_DIGITS, **flags}, pair) for bits in (4, 3, 2, 1)]


def _office(task: str, **extra: Any) -> list[Row]:
    pairs = {
        ("amazon", "webcam"): (32, 28),
        ("dslr", "webcam"): (28, 28),
        ("webcam", "dslr"): (32, 32),
        ("amazon", "dslr"): (32, 32),
        ("dslr", "amazon"): (32, 32),
        ("webcam", "amazon"): (32, 32),
    }
    return [
        Row(task, bits, 32, {**_OFFICE, "train_batch_size": train, "eval_batch_size": test, **extra}, pair, crp=True)
        for pair, (train, test) in pairs.items()
        for bits in (8, 5, 4)
    ]


TABLES: dict[str, list[Row]] = {
    "resnet20": _cifar("resnet20", lr_8bit=0.1, gamma=0.1),
    "resnet56": _cifar("resnet56", lr_8bit=0.04, gamma=0.1),
    "densenet40": _cifar("densenet40", lr_8bit=0.1, gamma=0.05),
    "dann_digits": [
        *_digits(
            ("mnist", "mnistm"),
            img_size=28,
            num_epochs=100,
            train_batch_size=64,
            lr=2e-4,
            momentum=0.0,
            weight_decay=0.0,
            print_freq=600,
        ),
        *_digits(
            ("mnist", "svhn"),
            img_size=32,
            num_epochs=100,
            train_batch_size=100,
            lr=0.01,
            momentum=0.9,
            weight_decay=1e-4,
            print_freq=500,
        ),
        *_digits(
            ("syndigit", "mnist"),
            img_size=28,
            num_epochs=128,
            train_batch_size=100,
            lr=0.04,
            momentum=0.9,
            weight_decay=1e-6,
            print_freq=50,
        ),
    ],
    "dann_office": _office("dann_office"),
    "dsan_office": _office("dsan_office", param=0.3),
}

# Under --demo: what learns in minutes on two cores. Milestones and learning rates are for these few steps.
DEMO: dict[str, dict[str, Any]] = {
    "resnet20": {"num_epochs": 15, "lr": 0.1, "lr_decay_steps": [10, 13], "shift_images": 500},
    "resnet56": {"num_epochs": 12, "lr": 0.1, "lr_decay_steps": [8, 10], "shift_images": 500},
    "densenet40": {"num_epochs": 8, "lr": 0.1, "lr_decay_steps": [5, 7], "shift_images": 500},
    "dann_digits": {
        "num_epochs": 120,
        "lr": 0.03,
        "lr_decay_steps": [100],
        "train_batch_size": 64,
        "momentum": 0.9,
        "weight_decay": 0.0,
    },
}
DEMO |= {  # no ImageNet weights come with the demo: the backbone starts from scratch, and learns before it adapts
    task: {
        "num_epochs": 40,
        "warmup_epochs": 28,
        "lr": 0.03,
        "lr_decay_steps": [28],
        "img_size": 32,
        "backbone_weights": "none",
        "num_workers": 0,
    }
    for task in ("dann_office", "dsan_office")
}
DEMO_QUANTIZED: dict[str, dict[str, Any]] = {
    "resnet20": {"num_epochs": 4, "lr": 0.04, "lr_decay_steps": [2, 3], "shift_images": 500},
    "resnet56": {"num_epochs": 4, "lr": 0.04, "lr_decay_steps": [2, 3], "shift_images": 500},
    "densenet40": {"num_epochs": 3, "lr": 0.04, "lr_decay_steps": [1, 2], "shift_images": 500},
    "dann_digits": {**DEMO["dann_digits"], "num_epochs": 60, "lr": 0.01, "lr_decay_steps": [50]},
    "dann_office": {**DEMO["dann_office"], "num_epochs": 12, "warmup_epochs": 0, "lr": 0.01, "lr_decay_steps": [9]},
    "dsan_office": {**DEMO["dsan_office"], "num_epochs": 12, "warmup_epochs": 0, "lr": 0.01, "lr_decay_steps": [9]},
}

PRETRAINED_LINKS = {
    "resnet20": "https://drive.google.com/drive/folders/1WwfrNrsDHZl-kKONcXHUUnw3mNpCzh6k",
    "resnet56": "https://drive.google.com/drive/folders/1OS5gVNOq0ZGdOr17Q2thM7oCpdrK0-Hy",
    "densenet40": "https://drive.google.com/drive/folders/1PPaUzZZyEa4mvV_4k-eHqo87ZBYb28TO",
    "dann_digits": "https://drive.google.com/drive/folders/1g_XwptZf5_-En0aR9NJTrYfJ_lRbLFB2",
    "dann_office": "https://drive.google.com/drive/folders/1IFqIp_Kg-RpXsN8B2oUYH-QO-9jqczI3",
    "dsan_office": "https://drive.google.com/drive/folders/1bWQr0LZJVJmfvdLIjD1yU16yBhL-nZ_f",
}


def find_row(task: str, bits: int, pair: tuple[str, str] | None = None) -> Row | None:
    """The row of a task's table; a 32-bit run takes the hyperparameters of the widest row. None where there is none."""
    rows = [row for row in TABLES.get(task, []) if row.pair == pair]
    if bits == 32:
        return max(rows, key=lambda row: row.bits, default=None)
    return next((row for row in rows if row.bits == bits), None)


def pretrained_bits(task: str, bits: int) -> int:
    """The width of the file that a run at ``bits`` starts from: the table's, and by its pattern where it has no row."""
    if task not in ("resnet20", "resnet56", "densenet40"):
        return 32
    return {4: 8, 3: 4, 2: 3, 1: 2}.get(bits, 8 if bits < 8 else 32)
