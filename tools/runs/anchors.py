"""Published figures to set results beside: as read at their source, none recalled, none of AlignQ's (none was found).

No published figure was found of a quantized DenseNet-40, of any network at 8 bits, and of DANN on SynDigits->MNIST.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    """One figure: top-1 (%) of a row of the tables at a bit-width (32: float), as printed there."""

    task: str
    row: str
    bits: int
    what: str
    top1: str
    source: str
    protocol: str


BEST_TEST = "best epoch by test accuracy"
FULL_TARGET = "the whole unlabelled target for training and for test, usually the best epoch"
DIGITS = "accuracy on the target's test set"
PAIRS = ("A->W", "D->W", "W->D", "A->D", "D->A", "W->A")


def _cifar(task: str, row: str, figures: dict[int, str], what: str, source: str, protocol: str) -> list[Anchor]:
    return [Anchor(task, row, bits, what, top1, source, protocol) for bits, top1 in figures.items()]


def _office(tasks: tuple[str, ...], what: str, source: str, figures: str) -> list[Anchor]:
    pairs = list(zip(PAIRS, figures.split(), strict=True))
    return [Anchor(task, row, 32, what, top1, source, FULL_TARGET) for task in tasks for row, top1 in pairs]


def _digits(row: str, what: str, top1: str, source: str) -> Anchor:
    return Anchor("dann_digits", row, 32, what, top1, source, DIGITS)


R20, R56 = ("resnet20", "ResNet-20"), ("resnet56", "ResNet-56")
DANN, DSAN = ("dann_office",), ("dsan_office",)
APOT_README, EASYZYC = "README of the APoT repository", "README of the easezyc repository on transfer learning"
AKAMASTER, HE = "README of the akamaster ResNet repository", "He et al. 2016, as the akamaster README lists it"
ANCHORS: list[Anchor] = [
    *_cifar(*R20, {32: "92.96", 4: "92.45", 3: "92.49", 2: "90.96"}, "APoT", APOT_README, BEST_TEST),
    *_cifar(*R56, {32: "94.46", 4: "93.93", 3: "93.77", 2: "93.05"}, "APoT", APOT_README, BEST_TEST),
    *_cifar(*R20, {32: "91.73"}, "float", AKAMASTER, BEST_TEST),
    *_cifar(*R56, {32: "93.39"}, "float", AKAMASTER, BEST_TEST),
    *_cifar(*R20, {32: "91.25"}, "float", HE, "test set"),
    *_cifar(*R56, {32: "93.03"}, "float", HE, "test set"),
    *_office((*DANN, *DSAN), "source only", EASYZYC, "68.4 96.7 99.3 68.9 62.5 60.7"),
    *_office(DANN, "DANN", EASYZYC, "82.0 96.9 99.1 79.7 68.2 67.4"),
    *_office(DANN, "DANN", "README of Transfer-Learning-Library", "91.4 97.9 100 83.6 73.3 70.4"),
    *_office(DANN, "DANN", "DeepDA repository", "84.65 97.86 100 82.73 67.06 71.03"),
    *_office(DSAN, "DSAN", "DSAN's paper, as the easezyc README lists it", "93.6 98.4 100 90.2 73.5 74.8"),
    *_office(DSAN, "DSAN", "DeepDA repository", "94.34 98.49 100 89.96 76.04 72.91"),
    _digits("MNIST->MNISTM", "source only", "52.25", "Ganin and Lempitsky 2015"),
    _digits("MNIST->MNISTM", "DANN", "76.66", "Ganin and Lempitsky 2015"),
    _digits("MNIST->MNISTM", "DANN", "84.0", "wogong repository, a network with BatchNorm and dropout"),
    _digits("MNIST->SVHN", "source only", "20.1", "dudevil repository's wiki, known to be unstable"),
    _digits("MNIST->SVHN", "DANN", "26.0", "dudevil repository's wiki, known to be unstable"),
    _digits("SynDigits->MNIST", "source only", "89.2", "Joovvhan repository, on Ganin's SYN numbers"),
]
