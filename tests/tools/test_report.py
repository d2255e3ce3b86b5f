"""The report: one page that stands alone, tells demo from real, and survives folders that are broken."""

import base64
import binascii
import html
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config.tasks import Task
from common.data.demo import cifar10, digits
from common.engine import program
from tests.tools.entry import refused
from tools import report
from tools.page import entries, plots
from tools.page.jobs import read

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
DIGITS = {"src_data": "mnist", "tgt_data": "mnistm"}
TINY = ["--demo", "--num_epochs", "1", "--num_workers", "0"]
PROGRAMS = (
    (Task("resnet20", Path("."), "resnet20_quant", stem="res20"), "resnet_4bit"),
    (
        Task("dann_digits", Path("."), "MNISTmodel_quant", "digits", "dann", crp=True, defaults=DIGITS),
        "digits <b>$crp$",
    ),
)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 and digits with CRP at 4 bits; one job unfinished and several broken ones."""
    root = tmp_path_factory.mktemp("report")
    words = [*TINY, "--data_dir", root / "data", "--bitW", 4, "--pretrained", "no"]
    folder = root / "jobs"
    with pytest.MonkeyPatch.context() as patch:
        for maker, train, test in ((cifar10, 100, 50), (digits, 128, 100)):
            patch.setattr(maker, "TRAIN_IMAGES", train)
            patch.setattr(maker, "TEST_IMAGES", test)
        for task, name in PROGRAMS:  # in this process: a second import of torch costs more than the training
            program.run(task, [str(word) for word in (*words, "--job_dir", folder / name)])
    for name in ("unfinished", "cut summary", "no accuracy", "cut checkpoint"):
        shutil.copytree(folder / "resnet_4bit", folder / name)
    (folder / "unfinished" / "summary.json").unlink()
    summary = folder / "cut summary" / "summary.json"
    summary.write_text(summary.read_text()[:100])
    content = json.loads((folder / "no accuracy" / "summary.json").read_text())
    del content["best"]["test_prec1"]
    (folder / "no accuracy" / "summary.json").write_text(json.dumps(content))
    weights = folder / "cut checkpoint" / "checkpoint" / "model_best.pt"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


@pytest.fixture(scope="module")
def page(jobs: Path) -> str:
    path = jobs.parent / "page" / "report.html"
    report.report(str(jobs), out=path)
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Attributes that load or link something, ids, and whether every element is closed in order."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.feed(text)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self._attributes(attrs)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._attributes(attrs)
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def _attributes(self, attrs: list) -> None:
        self.addresses += [value for key, value in attrs if key in ("href", "src", "xlink:href", "srcset", "data")]
        self.ids += [value for key, value in attrs if key == "id"]


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    outline = Outline(page)
    assert outline.open == [], "every element is closed"
    assert outline.scripts == 0
    assert {address[:5] for address in outline.addresses if not address.startswith("#")} == {"data:"}
    assert all(link[1:] in outline.ids for link in outline.addresses if link.startswith("#"))
    assert len(set(outline.ids)) == len(outline.ids), "pictures do not share ids"
    assert re.findall(r"url\((?!#)|@import|https?://", page) == []


def test_every_picture_decodes(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) > 22
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert float(root.attrib["viewBox"].split()[2]) > 50
        assert next(root.iter("path"), None) is not None
    images = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert images, "confusion matrices hold one each"
    for text in images:
        try:
            Image.open(io.BytesIO(base64.b64decode(re.sub(r"\s", "", text)))).load()
        except binascii.Error:
            pytest.fail("an embedded picture is not base64")


def test_accuracies_are_those_of_the_summaries_and_say_demo(jobs: Path, page: str) -> None:
    summary = json.loads((jobs / "resnet_4bit" / "summary.json").read_text())
    section = page[page.index("<b>resnet_4bit</b>") :]
    section = section[: section.index("</summary>")]
    assert f"demo top-1 {summary['best']['test_prec1']:.2f} (best, epoch 1)" in " ".join(section.split())
    assert page.count("top-1") > 5
    assert re.findall(r"(?<!demo )(?<!target )top-1|(?<!demo )target top-1", page) == []


def test_a_name_is_text_and_never_markup(page: str) -> None:
    assert "<b>$crp$" not in page
    assert "digits &lt;b&gt;$crp$" in page


def test_runs_without_a_result_are_listed_with_the_reason(page: str) -> None:
    listed = page[page.index('id="problems"') :]
    rows = dict(re.findall(r'<th scope="row">(.*?)</th><td class="text">(.*?)</td>', listed))
    assert rows == {
        "unfinished": "unfinished: 1 of 1 epochs; --resume continues it",
        "cut summary": "broken: summary.json is not a complete JSON file",
        "no accuracy": "broken: an entry &#39;test_prec1&#39; is missing",
    }


def test_a_run_whose_weights_are_cut_keeps_its_accuracy_and_says_what_is_missing(page: str) -> None:
    section = page[page.index("<b>cut checkpoint</b>") :]
    section = section[: section.index("<b>", 5)]
    assert "demo top-1" in section
    assert "no layers: " in section
    assert "not a complete PyTorch checkpoint" in section


def test_the_digits_run_shows_features_relations_and_classes(jobs: Path) -> None:
    found = read(jobs / "digits <b>$crp$", "digits")
    assert found.problem == ""
    assert found.method == "ours (ste) + CRP"
    error = found.summary["relation_error"]
    trained = {key.split()[1] for key in found.summary["relation_shift"]["layers"]}
    assert {row["layer"] for row in error["layers"]} == trained, "the sites of CRP are the quantizers of this network"
    assert all(0 < row["aligned"] < 1 and 0 < row["quantized"] < 1 for row in error["layers"])
    assert found.confusion["best"].sum() == 100
    hits = np.trace(found.confusion["last"]) / found.confusion["last"].sum() * 100
    assert hits == pytest.approx(found.accuracy("last"), abs=1e-3)


def test_a_single_domain_run_records_its_classes(jobs: Path) -> None:
    found = read(jobs / "resnet_4bit", "resnet")
    for when in ("best", "last"):
        hits = np.trace(found.confusion[when]) / found.confusion[when].sum() * 100
        assert hits == pytest.approx(found.accuracy(when), abs=1e-3)


def test_runs_that_differ_in_a_flag_are_not_averaged(jobs: Path) -> None:
    one, other = (read(jobs / "resnet_4bit", name) for name in ("a", "b"))
    other.config["options"]["seed"] = 7
    (entry,) = entries.entries_of([one, other])
    assert (entry.label, len(entry.runs)) == ("ours", 2)
    other.config["options"]["lr"] = 0.5
    labels = [entry.label for entry in entries.entries_of([one, other])]
    assert labels == [f"ours (lr {one.config['options']['lr']})", "ours (lr 0.5)"]


def test_the_page_says_when_the_float_network_is_no_reference(tmp_path: Path, jobs: Path) -> None:
    for name, bits, top1 in (("float", 32, 50.0), ("quantized", 4, 60.0)):
        folder = tmp_path / name
        folder.mkdir()
        config = json.loads((jobs / "resnet_4bit" / "config.json").read_text())
        config["options"] |= {"bitW": bits, "abitW": bits}
        summary = json.loads((jobs / "resnet_4bit" / "summary.json").read_text()) | {"bitW": bits, "abitW": bits}
        summary["best"]["test_prec1"] = top1
        shutil.copy(jobs / "resnet_4bit" / "metrics.jsonl", folder)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "summary.json").write_text(json.dumps(summary))
    report.report(str(tmp_path), out=tmp_path / "page.html")
    assert "ours, 4 bits is 10.00 points ahead of it" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_level_shares_count_the_weights_of_each_level() -> None:
    levels, share = plots.level_shares(np.array([1, -1, 1, 1 / 3, 1], np.float32))
    np.testing.assert_allclose(levels, [-1, 1 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(share, [20, 20, 60])


@pytest.mark.parametrize(
    ("words", "line"),
    [([], "expected job folders"), (["nowhere"], "there is no such folder"), (["."], "no job in it")],
)
def test_a_wrong_call_ends_in_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in refused("report", *words)
    assert not (tmp_path / "results").exists()


MEASURE = """<script>
const faults = [];
addEventListener("error", event => faults.push(String(event.message || event.target.tagName)), true);
addEventListener("load", () => {
  const closed = document.documentElement.scrollWidth;
  document.querySelectorAll("details").forEach(part => part.open = true);
  const pictures = [...document.querySelectorAll("svg")];
  const images = [...document.querySelectorAll("image")].map(image => {
    const copy = new Image(); copy.src = image.href.baseVal; return copy.decode().then(() => copy.naturalWidth); });
  Promise.all(images).catch(error => { faults.push(String(error)); return []; }).then(widths => parent.postMessage({
    width: innerWidth, closed, open: document.documentElement.scrollWidth, pictures: pictures.length, faults, widths,
    empty: pictures.filter(p => p.getBBox().width < 10 || p.clientWidth < 100 || p.clientHeight < 50).length,
  }, "*"));
});
</script>"""


def test_a_browser_draws_every_picture_without_errors_or_overflow(page: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        # no Python package that the tests install brings one; what needs none is in the tests above
        pytest.skip(f"only a browser knows how wide the page is drawn, and none of {', '.join(BROWSERS)} is here")
    measured = html.escape(page.replace("<head>", "<head>" + MEASURE, 1))
    frames = "".join(f'<iframe width="{w}" height="800" srcdoc="{measured}"></iframe>' for w in (390, 1280))
    note = 'onmessage = event => { const p = document.createElement("pre"); p.textContent = JSON.stringify(event.data); document.body.append(p); }'
    (tmp_path / "frames.html").write_text(f"<body><script>{note}</script>{frames}", encoding="utf-8")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", str(tmp_path / "frames.html")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = [json.loads(html.unescape(text)) for text in re.findall(r"<pre>(.*?)</pre>", result.stdout)]
    assert sorted(entry["width"] for entry in found) == [390, 1280], result.stderr[-500:]
    for entry in found:
        assert entry["closed"] <= entry["width"], "the page is wider than the screen"
        assert entry["open"] <= entry["width"], "an opened run is wider than the screen"
        assert entry["pictures"] > 22
        assert entry["empty"] == 0
        assert entry["widths"]
        assert min(entry["widths"]) > 0
        assert entry["faults"] == []
    assert "CONSOLE" not in result.stderr
