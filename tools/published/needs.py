"""What a task needs besides packages: its data and the weights that its rows start from; what is here, and where."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.config import recipes
from common.config.naming import PUBLISHED_NAMES, earlier_runs, name_files, source_candidates
from common.config.options import parse
from common.config.tasks import Task
from common.data import cifar10, digits, office31
from common.data.locate import REPOSITORY, data_folder

FIRST_RUN = "the first run downloads it, or now"
BY_HAND = "by hand"


@dataclass(frozen=True)
class Need:
    """One thing that a task needs: what, whether and where it is here or was looked for, and how to get it."""

    what: str
    here: bool
    where: str
    command: str


def needs_of(task: Task, data_dir: str | None) -> list[Need]:
    """The data of a task and the files that its table's rows start from, as its programs look for them."""
    if task.data == "cifar10":
        return [_cifar10(data_dir), _weights(task)]
    if task.data == "digits":
        pairs = list(dict.fromkeys(row.pair for row in recipes.TABLES[task.name] if row.pair))
        needs = [_digits(name, pair[0], data_dir) for pair in pairs for name in pair]
        needs.sort(key=lambda need: not need.here)  # of a set that two pairs use, the place that misses it stays
        return [*{need.what: need for need in needs}.values(), _weights(task)]
    return [_office31(data_dir), _backbone(), _weights(task)]


def _cifar10(data_dir: str | None) -> Need:
    folder = data_folder(data_dir, "cifar10")
    root = folder / "cifar10" if data_dir is None or (folder / "cifar10").exists() else folder
    return _need("CIFAR-10", cifar10.find(root), root, FIRST_RUN, _load("cifar10", root))


def _digits(name: str, source: str, data_dir: str | None) -> Need:
    folder = data_folder(data_dir, source)
    found = digits.find(name, folder)
    if name == "syndigit":
        command = f"unpack Kaggle's prasunroy/synthetic-digits as {short(folder / name)}/imgs_train and imgs_valid"
        return _need(digits.TITLES[name], found, folder / name, BY_HAND, command)
    return _need(digits.TITLES[name], found, folder / name, FIRST_RUN, _load("digits", folder, name, 28))


def _office31(data_dir: str | None) -> Need:
    folder = data_folder(data_dir, office31.FOLDER)
    found = [office31.find(folder, domain) for domain in office31.IMAGE_COUNTS]
    whole = found[0].parent if found[0] and all(found) else None
    domains = f"{short(folder / office31.FOLDER)}/{{{','.join(office31.IMAGE_COUNTS)}}}/images exist"
    command = f"unpack {office31.ARCHIVE_URL} so that {domains}"
    return _need("Office-31", whole, folder / office31.FOLDER, BY_HAND, command)


def _backbone() -> Need:
    from common.vision import models  # here, since the import alone takes seconds

    weights = models.ResNet50_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir(), "checkpoints", weights.url.rsplit("/", 1)[1])
    command = 'python -c "from common.vision import models; models.ResNet50_Weights.IMAGENET1K_V1.get_state_dict()"'
    found = path if path.is_file() else None
    return _need("ImageNet weights of ResNet-50", found, path, "the first run at 32 bits downloads them", command)


def _need(what: str, found: Path | None, looked: Path, how: str, command: str) -> Need:
    where = short(found) if found else f"missing, looked for in {short(looked)}; {how}"
    return Need(what, found is not None, where, command)


def _load(module: str, root: Path, *words: str | int) -> str:
    """The command that downloads a set as its reader does. digits take the set's name before the folder."""
    arguments = ", ".join(map(repr, [*words[:1], short(root), *words[1:]]))
    return f'python -c "from common.data import {module}; {module}.load({arguments})"'


def short(path: Path) -> str:
    """A path as it is typed in the repository."""
    path = path.absolute()
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


def _weights(task: Task) -> Need:
    """The files that the rows start from; one counts as here when all programs of the task find it."""
    programs = [replace(task, folder=path.parent) for path in sorted(task.shared.rglob("main.py"))]
    found: dict[str, bool] = {}
    for row in recipes.TABLES[task.name]:
        pair = ["--src_data", row.pair[0], "--tgt_data", row.pair[1]] if row.pair else []
        for program in programs:
            options = name_files(parse(program, ["--bitW", str(row.bits), *pair]))
            paths = source_candidates(options, earlier_runs(options))
            name = str(options.start.source_file)
            name = PUBLISHED_NAMES.get(name, name)
            found[name] = found.get(name, True) and any(path.is_file() for path in paths)
    missing = [name for name, here in found.items() if not here]
    where = f"{len(found) - len(missing)} of {len(found)} here"
    if missing:
        where += f", missing: {', '.join(missing)}"
    return Need(
        "weights to start from", not missing, where, f"python tools/fetch_pretrained.py download --task {task.name}"
    )
