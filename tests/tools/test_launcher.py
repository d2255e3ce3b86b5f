"""Commands run several at a time, each after what it needs, here and through Slurm; failures and Ctrl-C stay contained."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import UserError
from tests.conftest import REPOSITORY
from tools.runs.launcher import Command, Launcher, Outcome, device_environment, run_all


def command(folder: Path, name: str, code: str, needs: str | None = None) -> Command:
    return Command(name, [sys.executable, "-c", code], folder / f"{name}.log", folder, needs)


def write(name: str) -> str:
    return f"open({name!r}, 'w').write('done')"


def test_order_failures_slots_and_last_lines(tmp_path: Path) -> None:
    late = "import os, pathlib; assert pathlib.Path('first').exists(); " + write("second")
    commands = [
        command(tmp_path, "second", late, needs="first"),
        command(tmp_path, "first", write("first")),
        command(tmp_path, "broken", "import sys; print('one', file=sys.stderr); sys.exit('the reason')"),
        command(tmp_path, "after_broken", write("never"), needs="broken"),
        command(tmp_path, "after_that", write("never"), needs="after_broken"),
        command(tmp_path, "slot", "import os, sys; sys.exit(os.environ['SLOT'] + str('GONE' in os.environ))"),
    ]
    reported: list[tuple[str, Outcome | None]] = []
    outcomes = run_all(
        commands,
        Launcher("local", tmp_path / "jobs"),
        workers=2,
        environment=lambda slot: {"SLOT": f"slot {slot} ", "GONE": None},
        report=lambda command, outcome: reported.append((command.name, outcome)),
    )
    succeeded = {name for name, outcome in outcomes.items() if outcome.status == 0}
    assert succeeded == {"first", "second"}
    assert outcomes.keys() == {c.name for c in commands}
    assert outcomes["broken"].last_line == "the reason"
    assert outcomes["after_broken"].last_line == "not run, because broken failed"
    assert outcomes["slot"].last_line in ("slot 0 False", "slot 1 False")
    assert not (tmp_path / "never").exists()
    order = [name for name, outcome in reported if outcome is None]
    assert order.index("first") < order.index("second")
    assert "after_broken" not in order
    running = most = 0
    for name, outcome in reported:
        if not name.startswith("after_"):
            running += 1 if outcome is None else -1
            most = max(most, running)
    assert most == 2, "as many at a time as there are workers"


def test_a_killed_job_is_a_failure_that_says_so(tmp_path: Path) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    outcomes = run_all([command(tmp_path, "killed", code)], Launcher("local", tmp_path / "jobs"), workers=1)
    assert outcomes["killed"].status == -signal.SIGKILL


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_children_and_waits_for_them(asked: signal.Signals, tmp_path: Path) -> None:
    child = """
import signal, time
def end(*_):
    time.sleep(0.3)
    open("ended", "w").write("cleanly")
    raise SystemExit(130)
signal.signal(signal.SIGTERM, end)
open("started", "w").close()
time.sleep(60)
"""
    program = f"""
import signal, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from tools.runs.launcher import Command, Launcher, run_all
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.default_int_handler)
folder = Path({str(tmp_path)!r})
command = Command("slow", [sys.executable, "-c", {child!r}], folder / "log", folder)
try:
    run_all([command], Launcher("local", folder / "jobs"), 1)
except KeyboardInterrupt:
    print((folder / "ended").read_text())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if asked == signal.SIGINT:
        os.killpg(process.pid, asked)  # a terminal sends Ctrl-C to the whole group
    else:
        process.send_signal(asked)
    out, err = process.communicate(timeout=60)
    assert out.strip() == "cleanly", err
    assert "Traceback" not in err


def test_every_worker_gets_its_own_of_several_devices() -> None:
    of_four = [device_environment(slot, ["0", "1", "5", "7"], None)["CUDA_VISIBLE_DEVICES"] for slot in range(5)]
    assert of_four == ["0", "1", "5", "7", "0"]
    assert device_environment(3, ["2"], "2") == {"CUDA_VISIBLE_DEVICES": "2"}, "a single one is shared"
    assert device_environment(0, [], None) == {"CUDA_VISIBLE_DEVICES": None}


def test_without_slurm_the_launcher_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"--launcher slurm: .*; --launcher local runs"):
        Launcher("slurm", tmp_path / "jobs")


def test_unknown_slurm_parameters_are_refused(slurm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="slurm_partitoin"):
        Launcher("slurm", tmp_path / "jobs", {"slurm_partitoin": "gpu"})


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of one node: sbatch starts the script at once, srun runs the program behind its own options."""
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "sbatch": """
count=$(ls "$CLUSTER" | grep -c '^job_'); job=$((count + 1)); cp "$1" "$CLUSTER/job_$job"
SLURM_JOB_ID=$job SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_JOB_NUM_NODES=1 \\
    SLURM_JOB_NODELIST=node1 bash "$1" > /dev/null 2>&1 &
echo "Submitted batch job $job"
""",
        "srun": """
while [ "${1#-}" != "$1" ]; do case "$1" in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
""",
        "sacct": "echo 'JobID|State|NodeList|'",
    }
    for name, text in scripts.items():
        (programs / name).write_text("#!/usr/bin/env bash\n" + text)
        (programs / name).chmod(0o755)
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    monkeypatch.setenv("CLUSTER", str(cluster))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return cluster


def test_the_same_commands_run_through_slurm(slurm: Path, tmp_path: Path) -> None:
    second = "import json, os; json.dump([open('first').read(), os.environ['SLURM_JOB_ID']], open('second', 'w'))"
    commands = [command(tmp_path, "first", write("first")), command(tmp_path, "second", second, needs="first")]
    commands.append(command(tmp_path, "broken", "import sys; sys.exit('the reason')"))
    launcher = Launcher("slurm", tmp_path / "jobs", {"slurm_partition": "gpu", "timeout_min": 30})
    outcomes = run_all(commands, launcher, workers=3)
    assert [outcomes[name].status for name in ("first", "second", "broken")] == [0, 0, 1]
    assert outcomes["broken"].last_line == "the reason"
    assert json.loads((tmp_path / "second").read_text()) == ["done", "3"], "submitted when the first was done"
    assert "#SBATCH --partition=gpu" in (slurm / "job_1").read_text()
