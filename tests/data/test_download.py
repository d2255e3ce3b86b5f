import errno
import hashlib
import os
import socket
import tarfile
import urllib.request
from pathlib import Path

import pytest

from common.data.download import fetch, md5_of, unpack
from common.errors import UserError

CONTENT = b"published bytes" * 100_000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def published(tmp_path: Path) -> str:
    path = tmp_path / "server" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path.as_uri()


def test_a_download_arrives_whole_in_a_new_folder(published, tmp_path):
    destination = tmp_path / "new" / "folder" / "file.bin"
    assert fetch(published, destination, MD5) == destination
    assert destination.read_bytes() == CONTENT
    assert {path.name for path in destination.parent.iterdir()} <= {"file.bin", ".lock"}


def test_a_file_that_is_there_already_is_not_fetched_again(published, tmp_path):
    destination = fetch(published, tmp_path / "file.bin", MD5)
    assert fetch("http://nowhere.invalid/file.bin", destination, MD5) == destination


def test_a_wrong_checksum_is_refused_and_leaves_the_old_file(published, tmp_path):
    destination = tmp_path / "to" / "file.bin"
    destination.parent.mkdir()
    destination.write_bytes(b"old")
    with pytest.raises(UserError, match=f"md5 {MD5}, expected {'0' * 32}.*put it at {destination}"):
        fetch(published, destination, "0" * 32)
    assert destination.read_bytes() == b"old"
    assert {path.name for path in destination.parent.iterdir()} <= {"file.bin", ".lock"}


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>quota exceeded</html>", b"\n <html><head>"])
def test_a_web_page_in_place_of_the_file_is_refused(page, tmp_path):
    (tmp_path / "page").write_bytes(page)
    with pytest.raises(UserError, match="web page"):
        fetch((tmp_path / "page").as_uri(), tmp_path / "file.bin", hashlib.md5(page).hexdigest())
    assert not (tmp_path / "file.bin").exists()


@pytest.mark.parametrize(
    "fault",
    [
        urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution")),
        urllib.error.HTTPError("http://x", 404, "Not Found", None, None),
        TimeoutError("timed out"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ],
    ids=["no network", "not found", "timeout", "reset"],
)
def test_a_network_fault_is_one_line_that_says_what_to_do(fault, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise fault

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    destination = tmp_path / "file.bin"
    with pytest.raises(UserError) as caught:
        fetch("http://published.invalid/file.bin", destination, MD5, hint="or add --demo")
    message = str(caught.value)
    assert "\n" not in message
    assert "http://published.invalid/file.bin" in message
    assert f"put it at {destination}, or add --demo" in message
    assert not destination.exists()


def test_a_full_disk_is_said_and_leaves_nothing(published, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; make room"):
        fetch(published, tmp_path / "to" / "file.bin", MD5)
    assert {path.name for path in (tmp_path / "to").iterdir()} == {".lock"}


def test_a_damaged_archive_is_refused_and_leaves_no_folder(tmp_path):
    inside = tmp_path / "made" / "folder"
    inside.mkdir(parents=True)
    (inside / "file.bin").write_bytes(os.urandom(100_000))
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(inside, "folder")
    assert md5_of(unpack(archive, tmp_path / "folder") / "file.bin") == md5_of(inside / "file.bin")
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(UserError, match=f"could not unpack {archive}"):
        unpack(archive, tmp_path / "again" / "folder")
    assert {path.name for path in (tmp_path / "again").iterdir()} == {".lock"}
