"""Fetching the published weights: what arrives, from where, and that nothing else is ever where a program would find it."""

import ast
import errno
import hashlib
import io
import json
import random
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gdown
import pytest
import torch

from common.config.naming import find_source
from common.config.options import parse
from common.errors import UserError
from common.models import build_model
from common.runs import checkpoint
from tests.conftest import REPOSITORY
from tests.tools.entry import refused, type_in
from tests.tools.weights_server import PAGE, Site, serve
from tools import fetch_pretrained
from tools.published import ledger, sources
from tools.published.layout import TASKS, check, folder_of, place, wanted

NAME = "res20_32bit/model_best.pt"
LINK = "https://drive.google.com/drive/folders/1WwfrNrsDHZl-kKONcXHUUnw3mNpCzh6k"


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def weights() -> bytes:
    return saved({"state_dict_t": build_model("resnet20_quant").state_dict(), "epoch": 300})


@pytest.fixture
def site(weights: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(random, "uniform", lambda low, high: low)  # gdown's pause between two attempts
    with serve() as site:
        publish(site, weights)
        yield site


def publish(site: Site, content: bytes, name: str = NAME, sha256: str | None = None) -> None:
    record = {"sha256": sha256 or hashlib.sha256(content).hexdigest(), "source": "here"}
    site.files["/resnet20/fetched.lock.json"] = json.dumps({"format": 1, "files": {name: record}}).encode()
    site.files[f"/resnet20/{name}"] = content


def download(site: Site, dest: Path, **flags: Any) -> None:
    fetch_pretrained.download(task="resnet20", dest=dest, base_url=site.url, **{"retries": 1} | flags)


def looked_at(dest: Path) -> list[str]:
    """What a program could take for weights."""
    names = [path.relative_to(dest / "resnet20").as_posix() for path in dest.rglob("*") if path.is_file()]
    return sorted(name for name in names if name not in (".lock", ledger.NAME) and not name.startswith(".fetching/"))


def test_what_arrives_is_found_by_the_program_and_recorded(site: Site, weights: bytes, tmp_path: Path) -> None:
    download(site, tmp_path)
    options = parse(TASKS["resnet20"], ["--source_dir", str(tmp_path / "resnet20"), "--source_file", NAME])
    assert find_source(options, []).read_bytes() == weights
    records = ledger.read(tmp_path / "resnet20" / ledger.NAME)
    assert records[NAME]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert not (tmp_path / "resnet20" / ".fetching").exists()
    assert (tmp_path / "resnet20" / NAME).stat().st_mode == (tmp_path / "resnet20" / ledger.NAME).stat().st_mode


def test_what_is_here_is_not_fetched_again(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    download(site, tmp_path)
    site.asked.clear()
    download(site, tmp_path)
    assert f"/resnet20/{NAME}" not in [path for path, _ in site.asked]
    assert f"{NAME}  here" in capsys.readouterr().out


FOREIGN = {
    "a page": (lambda: PAGE, "web page"),
    "another network": (lambda: saved(build_model("resnet56_quant").state_dict()), "has shape"),
    "other classes": (lambda: saved(build_model("resnet20_quant", num_classes=100).state_dict()), "has shape"),
    "code": (lambda: saved({"state_dict": torch.nn.Linear(2, 2)}), "not a complete PyTorch checkpoint"),
    "nothing": (lambda: b"", "not a complete PyTorch checkpoint"),
    "noise": (lambda: bytes(range(256)) * 99, "not a complete PyTorch checkpoint"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_file_that_is_not_the_networks_is_refused(case: str, site: Site, tmp_path: Path) -> None:
    make, said = FOREIGN[case]
    publish(site, make())
    assert_refused(site, tmp_path, said)


@pytest.mark.parametrize(
    ("fault", "said"),
    [("page", "web page"), ("truncate", "incomplete"), ("loop", "redirects"), ("changed", "has sha256")],
)
def test_a_server_that_fails_is_one_line_with_the_link_and_the_place(fault, said, site: Site, tmp_path: Path) -> None:
    site.faults[f"/resnet20/{NAME}"] = fault
    assert_refused(site, tmp_path, said)


def test_a_file_that_is_listed_and_not_there_is_refused(site: Site, tmp_path: Path) -> None:
    del site.files[f"/resnet20/{NAME}"]
    assert_refused(site, tmp_path, "404")


def test_no_server_is_said_without_a_trace(site: Site, tmp_path: Path) -> None:
    site.url = "http://127.0.0.1:9"  # nothing answers there
    assert_refused(site, tmp_path, "no connection to 127.0.0.1")
    assert list(tmp_path.iterdir()) == []


def assert_refused(site: Site, dest: Path, said: str) -> None:
    with pytest.raises(UserError) as raised:
        download(site, dest)
    text = str(raised.value)
    assert "\n" not in text
    for part in (said, LINK, str(dest / "resnet20" / NAME), "install DIR_OR_ZIP --task resnet20"):
        assert part in text
    assert "FETCHING" not in text.upper()
    assert looked_at(dest) == []
    assert ledger.read(dest / "resnet20" / ledger.NAME) == {}


def test_a_dropped_connection_is_taken_up_where_it_broke(site: Site, weights: bytes, tmp_path: Path) -> None:
    site.faults[f"/resnet20/{NAME}"] = "drop"
    download(site, tmp_path)
    path, first = site.asked[-1]
    assert path == f"/resnet20/{NAME}"
    assert 0 < first <= len(weights) // 2
    assert (tmp_path / "resnet20" / NAME).read_bytes() == weights


def test_an_interrupted_download_goes_on_in_the_next_call(site: Site, weights: bytes, tmp_path: Path) -> None:
    site.faults[f"/resnet20/{NAME}"] = "drop"
    with pytest.raises(UserError, match="incomplete"):
        download(site, tmp_path, retries=0)
    assert looked_at(tmp_path) == []
    download(site, tmp_path, retries=0)
    path, first = site.asked[-1]
    assert path == f"/resnet20/{NAME}"
    assert 0 < first <= len(weights) // 2
    assert (tmp_path / "resnet20" / NAME).read_bytes() == weights


def test_a_server_that_cannot_resume_is_asked_from_the_start(site: Site, weights: bytes, tmp_path: Path) -> None:
    site.faults[f"/resnet20/{NAME}"] = "deaf once"
    download(site, tmp_path)
    assert (tmp_path / "resnet20" / NAME).read_bytes() == weights


def test_a_redirect_is_followed(site: Site, weights: bytes, tmp_path: Path) -> None:
    site.faults[f"/resnet20/{NAME}"] = "redirect"
    download(site, tmp_path)
    assert (tmp_path / "resnet20" / NAME).read_bytes() == weights


def test_a_listing_cannot_place_a_file_elsewhere(site: Site, weights: bytes, tmp_path: Path) -> None:
    publish(site, weights, name="../../res20_32bit/model_best.pt")
    with pytest.raises(UserError, match="unsafe path"):
        download(site, tmp_path / "inside")
    assert list(tmp_path.iterdir()) == []


def test_a_published_file_that_changed_is_refused_until_accepted(site: Site, tmp_path: Path) -> None:
    download(site, tmp_path)
    earlier = (tmp_path / "resnet20" / NAME).read_bytes()
    newer = saved({"state_dict": build_model("resnet20_quant").state_dict()})
    publish(site, newer)
    with pytest.raises(UserError, match="was recorded before"):
        download(site, tmp_path)
    assert (tmp_path / "resnet20" / NAME).read_bytes() == earlier
    download(site, tmp_path, replace=True)
    assert (tmp_path / "resnet20" / NAME).read_bytes() == newer
    assert ledger.state(tmp_path / "resnet20", NAME) == "recorded"


@pytest.mark.parametrize("own", [NAME, "res20_32bit/checkpoint/model_best.pt"])
def test_a_file_of_ones_own_is_left_alone(own: str, site: Site, tmp_path: Path) -> None:
    path = tmp_path / "resnet20" / own
    path.parent.mkdir(parents=True)
    path.write_bytes(b"trained for days")
    with pytest.raises(UserError, match="another file is in its place"):
        download(site, tmp_path)
    assert path.read_bytes() == b"trained for days"
    assert looked_at(tmp_path) == [own]


def test_a_drive_folder_is_placed_by_the_part_of_its_paths_that_counts(site, weights, tmp_path, monkeypatch) -> None:
    asked = []

    def drive(link: str, **settings: Any) -> list[SimpleNamespace]:
        assert settings["skip_download"]
        asked.append(link)
        listed = ["resnet-20-cifar-10/pretrained/ours/res20_32bit/model_best.pt", "resnet-20-cifar-10/log.txt"]
        return [SimpleNamespace(id=f"resnet20/{NAME}", path=path) for path in listed]

    monkeypatch.setattr(gdown, "download_folder", drive)
    monkeypatch.setattr(sources, "_DRIVE_FILE", site.url + "/{}")
    fetch_pretrained.download(task="resnet20", dest=tmp_path, retries=0)
    assert asked == [LINK]
    assert looked_at(tmp_path) == ["ours/" + NAME]


@pytest.mark.parametrize("where", ["download_folder", "download"])
def test_a_drive_over_its_quota_is_one_line(where: str, site: Site, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise gdown.exceptions.FileURLRetrievalError("Failed to retrieve file url:\n\n\tToo many users.\n\nAdvice.")

    monkeypatch.setattr(gdown, "download_folder", lambda *_, **__: [SimpleNamespace(id="1", path=NAME)])
    monkeypatch.setattr(gdown, where, refuse)
    with pytest.raises(UserError) as raised:
        fetch_pretrained.download(task="resnet20", dest=tmp_path)
    assert "Too many users" in str(raised.value)
    assert "Advice" not in str(raised.value)
    assert str(tmp_path / "resnet20" / NAME) in str(raised.value)


def test_a_full_disk_and_ctrl_c_end_cleanly(site: Site, tmp_path: Path, monkeypatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "file"))

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    words = ["download", "--task", "resnet20", "--dest", tmp_path, "--base_url", site.url]
    monkeypatch.setattr(fetch_pretrained, "transfer", full)
    assert re.search(r"could not write .*: No space left on device; make room", refused("fetch_pretrained", *words))
    monkeypatch.setattr(fetch_pretrained, "transfer", interrupted)
    status, _, errors = type_in("fetch_pretrained", *words)
    assert (status, errors) == (130, "interrupted; the same command goes on from there\n")
    assert looked_at(tmp_path) == []


def test_without_gdown_one_line_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match=r'gdown is not installed; type: python -m pip install -e "\.\[fetch\]"'):
        fetch_pretrained.download()


def test_a_dry_run_asks_nobody_and_writes_nothing(site: Site, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)
    download(site, tmp_path, dry_run=True)
    assert site.asked == []
    assert list(tmp_path.iterdir()) == []
    assert f"{NAME}  missing" in capsys.readouterr().out


def test_list_says_what_is_published_and_what_is_here(site: Site, tmp_path: Path, capsys) -> None:
    for state in ("missing", "here"):
        fetch_pretrained.list_published(task="resnet20", dest=tmp_path, base_url=site.url)
        assert f"{NAME}  {state}\n" in capsys.readouterr().out
        download(site, tmp_path)


def test_verify_notices_one_changed_byte(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    download(site, tmp_path)
    fetch_pretrained.verify(task="resnet20", dest=tmp_path)
    assert f"{NAME}  here" in capsys.readouterr().out
    path = tmp_path / "resnet20" / NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"changed since it was recorded.*download --task resnet20 --replace"):
        fetch_pretrained.verify(task="resnet20", dest=tmp_path)


def zipped(path: Path, members: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            if name == link:
                member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, content)
    return path


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_files_obtained_by_hand_are_installed(form: str, weights: bytes, tmp_path: Path) -> None:
    names = {f"pretrained/{NAME}": weights, "pretrained/readme.txt": b"notes"}
    if form == "zip":
        source = zipped(tmp_path / "pretrained-1.zip", names)
    else:
        source = tmp_path / "by hand"
        for name, content in names.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
    fetch_pretrained.install(source, dest=tmp_path / "to")  # the names say which task
    assert looked_at(tmp_path / "to") == [NAME]
    assert (tmp_path / "to" / "resnet20" / NAME).read_bytes() == weights
    assert ledger.state(tmp_path / "to" / "resnet20", NAME) == "recorded"


@pytest.mark.parametrize(
    "unsafe", ["../res20_4bit/model_best.pt", "/tmp/res20_4bit/m.pt", "C:\\res20_4bit\\m.pt", "link"]
)
def test_an_archive_with_an_unsafe_path_is_refused_whole(unsafe: str, weights: bytes, tmp_path: Path) -> None:
    members = {NAME: weights, "res20_8bit/model_best.pt" if unsafe == "link" else unsafe: b"/etc/passwd"}
    link = "res20_8bit/model_best.pt" if unsafe == "link" else ""
    archive = zipped(tmp_path / "a.zip", members, link)
    with pytest.raises(UserError, match=r"a\.zip: .*(unsafe path|is a link).*nothing of it was installed"):
        fetch_pretrained.install(archive, task="resnet20", dest=tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_damaged_archive_leaves_nothing(weights: bytes, tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {NAME: weights})
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=f"{NAME}: cannot be read"):
        fetch_pretrained.install(archive, dest=tmp_path / "to")
    archive.write_bytes(content[:1000])
    with pytest.raises(UserError, match=r"expected a folder or a \.zip"):
        fetch_pretrained.install(archive, dest=tmp_path / "to")
    assert looked_at(tmp_path / "to") == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dslr_webcam/dw_32bit/model_best.pt", "dann_office or dsan_office.*--task"),
        ("model_best.pt", "no part of this"),
    ],
)
def test_a_file_whose_path_does_not_say_enough_is_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        fetch_pretrained.install(zipped(tmp_path / "a.zip", {name: b"x"}), dest=tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(("pair", "side", "fits"), [("mnist_svhn", 32, True), ("mnist_mnistm", 32, False)])
def test_a_digits_file_must_have_its_pairs_image_size(pair: str, side: int, fits: bool, tmp_path: Path) -> None:
    file = tmp_path / "model_best.pt"
    checkpoint.save(build_model("MNISTmodel_quant", img_size=side).state_dict(), file)
    name = f"{pair}_32bit/model_best.pt"
    if fits:
        assert check(TASKS["dann_digits"], name, file).missing == ()
    else:
        with pytest.raises(UserError, match=r"classifier\.0\.weight has shape"):
            check(TASKS["dann_digits"], name, file)


def test_the_published_tasks_are_what_their_programs_say() -> None:
    for task in TASKS.values():
        programs = sorted(task.shared.rglob("main.py"))
        assert task.folder / "main.py" in programs
        for program in programs:
            tree = ast.walk(ast.parse(program.read_text()))
            (call,) = [n for n in tree if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "Task"]
            named = {
                word.arg: word.value.value
                for word in call.keywords
                if word.arg in ("model", "stem", "data", "objective")
            }
            assert call.args[0].value == task.name
            domains = {"data": task.data, "objective": task.objective} if task.cross else {"stem": task.stem}
            assert named == {"model": task.model} | domains
        assert all(place(task, f"x/pretrained/{name}") == name for name in wanted(task))
        assert folder_of(task).is_relative_to(REPOSITORY)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fetch"], "expected one of download, list, install, verify"),
        (["download", "--task", "resnet21"], "--task: expected one of resnet20"),
        (["download", "--dryrun"], "unknown flag --dryrun; did you mean --dry_run?"),
        (["download", "--retries", "-1"], "--retries: expected a whole number"),
        (["download", "--base_url", "ftp://x"], "--base_url: expected an address"),
        (["install"], "expected SOURCE"),
        (["install", "a.zip", "b.zip"], "unexpected word 'b.zip'"),
        (["install", "/nowhere"], "/nowhere: there is no such folder or .zip"),
    ],
)
def test_bad_input_is_said(words: list[str], said: str) -> None:
    assert said in refused("fetch_pretrained", *words)


def test_the_command_line_ends_in_one_line_and_status_2(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "tools/fetch_pretrained.py",
        "install",
        str(zipped(tmp_path / "a.zip", {"../x.pt": b""})),
    ]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "unsafe path" in result.stderr
