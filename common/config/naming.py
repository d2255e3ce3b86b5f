"""How the files of a run are called, and where the file that it starts from is looked for."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from common.config import recipes
from common.config.options import Options
from common.config.tasks import Task
from common.errors import UserError
from common.models.foreign import is_foreign

PREFIXES = ("", "ours", "others", "apot_lsq")  # of the published folders
PUBLISHED_NAMES = {"dense_32bit/model_best.pt": "dense_32bit/densenet_40.pt.tar"}  # the one that is called otherwise


def width_name(bitW: int, abitW: int) -> str:
    """How a run's files call its bit-widths: "8bit", or "w4a8bit" for mixed ones."""
    return f"{bitW}bit" if bitW == abitW else f"w{bitW}a{abitW}bit"


def default_job_dir(options: Options) -> Path:
    """experiment[/demo]/<method or float>/<folder of the run's own file>, e.g. experiment/ours/res20_4bit.

    An objective other than the task's own is named behind it.
    """
    widths = options.quantization.bitW, options.quantization.abitW
    method = "float" if widths == (32, 32) else options.quantization.method
    other = options.task.cross and options.objective_name != options.task.objective
    own = Path(_file_of_run(options, width_name(*widths))).parent
    return runs_root(options) / method / own.with_name(own.name + (f"_{options.objective_name}" if other else ""))


def runs_root(options: Options) -> Path:
    return Path("experiment/demo" if options.data.demo else "experiment")


def file_of(task: Task, pair: tuple[str, str] | None, bits_name: str) -> str:
    """The published name of a task's file, e.g. res20_32bit/model_best.pt or dslr_webcam/dw_32bit/model_best.pt."""
    if pair is None:
        return f"{task.stem}_{bits_name}/model_best.pt"
    source, target = pair
    if task.data == "digits":
        return f"{source}_{target}_{bits_name}/model_best.pt"
    return f"{source}_{target}/{source[0]}{target[0]}_{bits_name}/model_best.pt"


def _file_of_run(options: Options, bits_name: str) -> str:
    """``file_of``, whose folder also names a network of others and images other than the task's own."""
    words = [options.quantization.model.rsplit("/", 1)[-1]] if is_foreign(options.quantization.model) else []
    words += [Path(dataset).name] if (dataset := getattr(options.data, "dataset", "cifar10")) != "cifar10" else []
    file = Path(file_of(options.task, options.pair, bits_name))
    label = "".join("-" + re.sub(r"[^\w.]+", "-", word) for word in words)
    return str(file.parent.with_name(file.parent.name + label) / file.name)


def name_files(options: Options) -> Options:
    """With --source_file and --job_dir filled in where not given."""
    start, run = options.start, options.run
    bits = recipes.pretrained_bits(options.task.name, options.quantization.bits)
    return options.replaced(
        source_file=start.source_file or _file_of_run(options, f"{bits}bit"),
        job_dir=run.job_dir or str(default_job_dir(options)),
    )


def earlier_runs(options: Options) -> list[Path]:
    """The default job folders of earlier runs, where a source file may lie; none if --source_dir was typed."""
    root = runs_root(options)
    roots = () if "source_dir" in options.typed else (root, options.task.folder / root)
    methods = dict.fromkeys((options.quantization.method, "float", "ours"))
    return [root / method for root in roots for method in methods]


def source_candidates(options: Options, runs: Iterable[Path]) -> list[Path]:
    """Where the source file of a run (``name_files`` has named it) is looked for, in order.

    source_dir/source_file, with each published prefix between them, in the working directory, in the task's folder and
    in that which its variants share; then the default job folders of earlier ``runs``, which come first under --demo: a
    file trained on the real data is not what a demo run is meant to start from. In each place also its checkpoint/
    folder, as a job_dir has one, and the name that was published. A --source_file typed without --source_dir is a path
    before all that; where neither was typed, it is one at the end.
    """
    assert options.start.source_file is not None
    names = [Path(options.start.source_file)]
    names += [Path(PUBLISHED_NAMES[other]) for other in PUBLISHED_NAMES if names[0] == Path(other)]
    published = [root / prefix for root in source_folders(options) for prefix in PREFIXES]
    folders = [*runs, *published] if options.data.demo else [*published, *runs]
    literal = Path(f"{options.start.source_dir}{options.start.source_file}")
    paths = [
        path
        for folder in folders
        for name in names
        for path in (folder / name, (folder / name).parent / "checkpoint" / name.name)
    ]
    itself = [] if "source_dir" in options.typed else names[:1]
    ordered = [*itself, *paths] if _is_path(options) else [*paths, *itself]
    return list(dict.fromkeys([*ordered, literal]))


def _is_path(options: Options) -> bool:
    """Whether --source_file is meant as a path by itself: it was typed, and --source_dir was not."""
    return "source_file" in options.typed and "source_dir" not in options.typed


def source_folders(options: Options) -> list[Path]:
    """--source_dir in the working directory, in the task's folder and in that which the task's variants share."""
    return [folder / options.start.source_dir for folder in (Path(), options.task.folder, options.task.shared)]


def find_source(options: Options, runs: Iterable[Path]) -> Path:
    """The first of ``source_candidates`` that exists.

    Raises:
        UserError: none does; says where it looked and the two ways to get one.
    """
    runs, task, start = list(runs), options.task, options.start
    candidates = source_candidates(options, runs)
    for path in candidates:
        if os.path.isfile(path):
            return path
    places = (*source_folders(options), *runs)
    distinct: dict[Path, Path] = {}
    for place in places:
        distinct.setdefault(place.resolve(), place)
    looked = ", ".join(map(str, distinct.values()))
    itself = "for it as a path, and " if _is_path(options) else ""
    link = recipes.PRETRAINED_LINKS.get(task.name)
    bits = recipes.pretrained_bits(task.name, options.quantization.bits)
    demo = " --demo" if options.data.demo else ""
    pair = f" --src_data {options.pair[0]} --tgt_data {options.pair[1]}" if options.pair else ""
    wanted = Path("" if _is_path(options) else start.source_dir, str(start.source_file)).parent
    folder = wanted.parent if wanted.name == "checkpoint" else wanted  # of a job
    train = f"python main.py{demo}{pair} --bitW {bits} --abitW {bits} --job_dir {folder}"
    fetch = (
        f"fetch it with: python tools/fetch_pretrained.py download --task {task.name} (from {link}), or "
        if link
        else ""
    )
    raise UserError(
        f"the source file {start.source_file} was not found; looked {itself}under {looked} (in each also ours/, "
        f"others/, apot_lsq/). Either {fetch}train it: {train} "
        "(--pretrained False starts without one)"
    )
