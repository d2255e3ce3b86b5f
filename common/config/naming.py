"""How the files of a run are called, and where the file that it starts from is looked for."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from common.config import recipes
from common.config.tasks import Task
from common.errors import UserError

PREFIXES = ("", "ours", "others", "apot_lsq")  # of the published folders
PUBLISHED_NAMES = {"dense_32bit/model_best.pt": "dense_32bit/densenet_40.pt.tar"}  # the one that is called otherwise


def width_name(options: argparse.Namespace) -> str:
    """How a run's files call its bit-widths: "8bit", or "w4a8bit" for mixed ones."""
    if options.bitW == options.abitW:
        return f"{options.bitW}bit"
    return f"w{options.bitW}a{options.abitW}bit"


def default_job_dir(options: argparse.Namespace, source_file: str) -> Path:
    """experiment[/demo]/<method or float>/<folder of the run's own file>, e.g. experiment/ours/res20_4bit."""
    method = "float" if options.bitW == options.abitW == 32 else options.method
    suffix = "_source_only" if getattr(options, "src_only_flag", False) else ""
    own = Path(source_file).parent
    return runs_root(options) / method / own.with_name(own.name + suffix)


def runs_root(options: argparse.Namespace) -> Path:
    return Path("experiment/demo" if options.demo else "experiment")


def file_of(task: Task, options: argparse.Namespace, bits_name: str) -> str:
    """The published name of a task's file, e.g. res20_32bit/model_best.pt or dslr_webcam/dw_32bit/model_best.pt."""
    if options.pair is None:
        return f"{task.stem}_{bits_name}/model_best.pt"
    source, target = options.pair
    if task.kind == "digits":
        return f"{source}_{target}_{bits_name}/model_best.pt"
    return f"{source}_{target}/{source[0]}{target[0]}_{bits_name}/model_best.pt"


def name_files(options: argparse.Namespace, task: Task) -> list[Path]:
    """Fill in --source_file and --job_dir where not given.

    Returns:
        The default job folders of earlier runs, where a source file may lie; none if --source_dir was typed.
    """
    if options.source_file is None:
        options.source_file = file_of(task, options, f"{recipes.pretrained_bits(task.name, options.bits)}bit")
    if options.job_dir is None:
        options.job_dir = str(default_job_dir(options, file_of(task, options, width_name(options))))
    roots = () if "source_dir" in options.typed else (runs_root(options), task.folder / runs_root(options))
    return [root / method for root in roots for method in dict.fromkeys((options.method, "float", "ours"))]


def source_candidates(options: argparse.Namespace, task: Task, runs: Iterable[Path]) -> list[Path]:
    """Where the source file of a run is looked for, in order.

    source_dir/source_file, with each published prefix between them, in the working directory, in the task's folder and
    in that which its variants share; then the default job folders of earlier ``runs``, which come first under --demo: a
    file trained on the real data is not what a demo run is meant to start from. In each place also its checkpoint/
    folder, as a job_dir has one, and the name that was published.
    """
    names = [Path(options.source_file)]
    names += [Path(PUBLISHED_NAMES[other]) for other in PUBLISHED_NAMES if names[0] == Path(other)]
    published = [root / prefix for root in source_folders(options, task) for prefix in PREFIXES]
    folders = [*runs, *published] if options.demo else [*published, *runs]
    literal = Path(f"{options.source_dir}{options.source_file}")
    paths = [
        path
        for folder in folders
        for name in names
        for path in (folder / name, (folder / name).parent / "checkpoint" / name.name)
    ]
    return list(dict.fromkeys([*paths, literal]))


def source_folders(options: argparse.Namespace, task: Task) -> list[Path]:
    """--source_dir in the working directory, in the task's folder and in that which the task's variants share."""
    return [folder / options.source_dir for folder in (Path(), task.folder, task.shared)]


def find_source(options: argparse.Namespace, task: Task, runs: Iterable[Path]) -> Path:
    """The first of ``source_candidates`` that exists.

    Raises:
        UserError: none does; says where it looked and the two ways to get one.
    """
    runs = list(runs)
    candidates = source_candidates(options, task, runs)
    for path in candidates:
        if path.is_file():
            return path
    places = (*source_folders(options, task), *runs)
    distinct: dict[Path, Path] = {}
    for place in places:
        distinct.setdefault(place.resolve(), place)
    looked = ", ".join(map(str, distinct.values()))
    link = recipes.PRETRAINED_LINKS.get(task.name)
    bits = recipes.pretrained_bits(task.name, options.bits)
    demo = " --demo" if options.demo else ""
    pair = f" --src_data {options.pair[0]} --tgt_data {options.pair[1]}" if options.pair else ""
    folder = Path(options.source_dir) / Path(options.source_file).parent
    train = f"python main.py{demo}{pair} --bitW {bits} --abitW {bits} --job_dir {folder}"
    fetch = (
        f"fetch it with: python tools/fetch_pretrained.py download --task {task.name} (from {link}), or "
        if link
        else ""
    )
    raise UserError(
        f"the source file {options.source_file} was not found; looked under {looked} (in each also ours/, others/, "
        f"apot_lsq/). Either {fetch}train it: {train} "
        "(--pretrained False starts without one)"
    )
