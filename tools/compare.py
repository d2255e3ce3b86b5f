"""All methods at several bit-widths under identical conditions: trained, tabled, drawn.

    python tools/compare.py --task resnet20 --methods all --bits 8,4,3,2 --seeds 3 --demo

Every cell (a method, a bit-width, a seed) is a run of the task's own main.py. A finished one is not run again, and an
interrupted one resumes: the same command continues a comparison.
"""

import difflib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import fire  # noqa: E402
import result_tables  # noqa: E402
import torch  # noqa: E402
from cells import FLOAT_BITS, VARIANTS, plan, typed  # noqa: E402
from launcher import Command, Launcher, Outcome, device_environment, run_all  # noqa: E402

from common.engine.cli import INTERRUPTED, run_cleanly  # noqa: E402
from common.engine.options import FLAGS  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.quantizers import METHODS  # noqa: E402

TYPED_HERE = {  # flags of main.py that this program gives every run itself
    *("method", "bitW", "abitW", "seed", "job_dir", "source_dir", "source_file", "pretrained", "config"),
    *("resume", "reset", "test_only"),
}
WITHOUT_EFFECT = {"data_dir", "download", "device", "gpus", "num_workers", "print_freq", "save_every"}  # on a result
SUBMITIT_NAMES = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "name")


def compare(
    *words: Any,
    task: str = "resnet20",
    methods: Any = "all",
    bits: Any = "8,4,3,2",
    seeds: Any = 3,
    demo: bool = False,
    chain: bool = False,
    shift: bool = False,
    workers: int | None = None,
    launcher: str = "local",
    slurm: Any = "",
    out: str | None = None,
    num_epochs: int | None = None,
    dry_run: bool = False,
    **flags: Any,
) -> None:
    """Train the float network once per seed, then every method at every bit-width from it; write a table and a picture.

    Any other flag of the task's main.py (--lr, --data_dir, --select ...) is passed to every run.

    Args:
        task: a folder of single_domain: resnet20, resnet56, densenet40.
        methods: names with commas between; all: every registered method; ours-ste: ours with --grad_approx ste.
        bits: bit-widths of weights and activations; where a method does not define one, the table has a dash.
        seeds: how many: 3 is 0, 1 and 2. With commas, the seeds themselves.
        demo: train on the demo data.
        chain: start from the next wider width of the README's table (32, 8, 4, 3, 2) and not from float; widths on the
            way are trained even where they were not asked for.
        shift: also evaluate the best epoch's networks on corrupted test images.
        workers: runs at a time (default: 1; all with Slurm); of several CUDA devices each worker gets its own.
        launcher: local or slurm.
        slurm: for Slurm, such as "partition=gpu,timeout_min=240,gpus_per_node=1,cpus_per_task=4".
        out: folder of the results (default: results/compare/TASK, with _demo behind it for demo data).
        num_epochs: epochs of every run (default: the table's, or the demo preset's).
        dry_run: print the commands that are left to run, and run nothing.
    """
    if words:
        raise UserError(f"{words[0]}: expected flags alone, such as --task resnet20; --help lists them")
    for name, value in (("demo", demo), ("chain", chain), ("shift", shift), ("dry_run", dry_run)):
        if not isinstance(value, bool):
            raise UserError(f"--{name} {value}: expected True, False or the flag alone")
    if launcher not in ("local", "slurm"):
        raise UserError(f"--launcher {launcher}: expected local or slurm")
    program, names, widths, numbers = program_of(task), method_names(methods), bit_widths(bits), seed_list(seeds)
    if num_epochs is not None:
        flags = {"num_epochs": positive("num_epochs", num_epochs), **flags}
    passed = passed_on(flags)
    common = (["--demo"] if demo else []) + [word for pair in passed.items() for word in pair]
    cells = plan(task, names, widths, numbers, chain)
    if len(cells) == len(numbers):
        raise UserError(f"--methods {','.join(names)} --bits {','.join(map(str, widths))}: none of them is defined")
    folder = Path(str(out)) if out else Path("results", "compare", f"{task}_demo" if demo else task)
    left = {cell: [*common, *arguments] for cell in cells if (arguments := cell.arguments(folder, shift))}
    default = 1 if launcher == "local" else max(1, len(left))
    at_once = default if workers is None else positive("workers", workers)
    if dry_run:
        print("\n".join(typed(program, words) for words in left.values()) or "# every cell is finished")
        return
    jobs = Launcher(launcher, folder.resolve() / "logs" / "submitit" / str(os.getpid()), submitit_options(slurm))
    with hold(folder, {"task": task, "demo": demo, **{k: v for k, v in passed.items() if k[2:] not in WITHOUT_EFFECT}}):
        commands = [
            Command(
                name=cell.name,
                argv=[sys.executable, str(program), *words],
                log=folder.resolve() / "logs" / f"{cell.name}.log",
                folder=Path.cwd(),
                needs=cell.source,
            )
            for cell, words in left.items()
        ]
        outcomes = train(commands, jobs, at_once)
        finished = [row for cell in cells if (row := cell.row(folder)) is not None]
        if finished:
            print("\n" + result_tables.write(folder, finished, names, widths, len(numbers)))
            print(f"{folder / 'results.jsonl'}, table.md, accuracy.png")
    failed = [name for name, outcome in outcomes.items() if outcome.status and not outcome.skipped]
    if failed:
        lines = [f"failed: {name}: {outcomes[name].last_line}" for name in failed]
        skipped = sum(outcome.skipped for outcome in outcomes.values())
        rest = f", {skipped} that start from them were not run" if skipped else ""
        lines.append(f"{len(failed)} of {len(outcomes)} runs failed{rest}; the same command tries again")
        lines.append(f"their logs are in {folder / 'logs'}")
        print("\n".join(lines), file=sys.stderr)
        sys.exit(1)


def train(commands: Sequence[Command], launcher: Launcher, workers: int) -> dict[str, Outcome]:
    """Run the commands and say what starts and ends. Ctrl-C ends them, and the process, with how to continue."""
    ended = 0

    def report(command: Command, outcome: Outcome | None) -> None:
        nonlocal ended
        ended += outcome is not None
        if outcome is None:
            text = "started"
        else:
            text = f"failed: {outcome.last_line}" if outcome.status else f"done in {outcome.seconds / 60:.1f} min"
        print(f"[{ended}/{len(commands)}] {command.name}: {text}", file=sys.stderr, flush=True)

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    devices = [name.strip() for name in visible.split(",")] if visible else [str(index) for index in range(count)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // workers))

    def environment(slot: int) -> dict[str, str | None]:
        return {**device_environment(slot, devices[:count], visible), "OMP_NUM_THREADS": threads}

    try:
        if launcher.cluster == "local":
            return run_all(commands, launcher, workers, environment, report)
        return run_all(commands, launcher, workers, report=report)
    except KeyboardInterrupt:
        line = "interrupted; the same command continues: finished runs are kept, interrupted ones resume"
        print(f"{sys.argv[0]}: {line}", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextmanager
def hold(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Hold a folder of results for this process.

    Raises:
        UserError: another comparison is running there, or its runs were made with other settings and do not compare.
    """
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another comparison is running there; wait, or choose another --out") from None
        path = folder / "settings.json"
        earlier = json.loads(path.read_text()) if path.exists() else settings
        if earlier != settings:
            text = " and ".join(" ".join(f"{k} {v}" for k, v in s.items()) for s in (earlier, settings))
            raise UserError(f"{folder} holds runs with other settings ({text}); choose another --out")
        path.write_text(json.dumps(settings, indent=1) + "\n")
        yield


def words_of(value: Any) -> list[str]:
    """What fire made of a,b,c: a tuple, a list, a number or a string."""
    values = value if isinstance(value, (tuple, list)) else str(value).split(",")
    return [word for word in (str(value).strip() for value in values) if word]


def positive(flag: str, value: Any) -> int:
    if not (str(value).isdecimal() and int(value) > 0):
        raise UserError(f"--{flag} {value}: expected a whole number, 1 or more")
    return int(value)


def program_of(task: str) -> Path:
    programs = {path.parent.name: path for path in sorted((REPOSITORY / "single_domain").glob("*/main.py"))}
    if task not in programs:
        raise UserError(f"--task {task}: expected one of {', '.join(programs)}")
    return programs[task]


def method_names(methods: Any) -> list[str]:
    """The methods and variants asked for, each once, in the order of the registry and of the command."""
    known = [*METHODS, *VARIANTS]
    names = [name for word in words_of(methods) for name in (METHODS if word == "all" else [word])]
    for name in names:
        if name not in known:
            raise UserError(f"--methods {name}: expected all, or some of {', '.join(known)}")
    if not names:
        raise UserError(f"--methods: expected all, or some of {', '.join(known)}")
    return list(dict.fromkeys(names))


def bit_widths(bits: Any) -> list[int]:
    widths = [positive("bits", word) for word in words_of(bits)]
    if not widths or FLOAT_BITS in widths:
        raise UserError(f"--bits {bits}: expected widths below 32 such as 8,4; the float network is always trained")
    return list(dict.fromkeys(widths))


def seed_list(seeds: Any) -> list[int]:
    words = words_of(seeds)
    if not words or not all(word.isdecimal() for word in words):
        raise UserError(f"--seeds {seeds}: expected how many, such as 3, or the seeds themselves, such as 0,1,2")
    listed = isinstance(seeds, (tuple, list)) or "," in str(seeds)
    numbers = list(dict.fromkeys(map(int, words))) if listed else list(range(int(words[0])))
    if not numbers:
        raise UserError("--seeds 0: expected 1 or more")
    return numbers


def passed_on(flags: dict[str, Any]) -> dict[str, str]:
    """Further flags as main.py reads them, by name.

    Raises:
        UserError: neither this program nor main.py has such a flag, or this program sets it itself.
    """
    known = {name[2:] for flag in FLAGS if "single" in flag.kinds and not flag.unused for name in flag.names.split()}
    for name in flags:
        if name in TYPED_HERE:
            raise UserError(f"--{name}: this program sets it for every run")
        if name not in known:
            own = [key for key in compare.__annotations__ if key not in ("words", "flags", "return")]
            near = difflib.get_close_matches(name, [*own, *sorted(known - TYPED_HERE)], 1, 0.5)
            raise UserError(f"unknown flag --{name}" + (f"; did you mean --{near[0]}?" if near else "; see --help"))
    return {f"--{name}": str(flags[name]) for name in sorted(flags)}


def submitit_options(slurm: Any) -> dict[str, Any]:
    """partition=gpu,timeout_min=240 as parameters of submitit's executor."""
    parameters: dict[str, Any] = {}
    for word in words_of(slurm):
        name, sign, value = word.partition("=")
        if not sign:
            raise UserError(f"--slurm {word}: expected name=value, such as partition=gpu,timeout_min=240")
        prefix = "" if name in SUBMITIT_NAMES or name.startswith("slurm_") else "slurm_"
        parameters[prefix + name] = int(value) if value.isdecimal() else value
    return parameters


if __name__ == "__main__":
    arguments = ["--", "--help"] if {"-h", "--help"} & set(sys.argv[1:]) else sys.argv[1:]
    run_cleanly(lambda: fire.Fire(compare, command=arguments))
