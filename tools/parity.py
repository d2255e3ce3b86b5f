"""Do the deployed forms of a network compute what was trained? Layer by layer on identical codes, and on test images.

    python tools/parity.py --checkpoint job/checkpoint/model_best.pt

Of every form it says how many activation codes differ from the fake-quantized network's and from float64's, and how
many of those float32 rounding does not explain (common/measure/rounding_error.py derives the bound): expect 0.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from common.deploy import packed
from common.deploy.description import Description
from common.deploy.files import Classifier, fast_logits
from common.deploy.formats.packed import PACKED
from common.deploy.graph import ClassLogits
from common.deploy.integer.network import integer_network
from common.deploy.onnx.export import onnx_model, open_session
from common.deploy.onnx.integer import IntegerWriter
from common.deploy.onnx.writer import NetworkWriter
from common.deploy.program import exported_program
from common.deploy.restore import restore
from common.errors import UserError
from common.measure.parity import (
    LayerParity,
    compare,
    compare_integer,
    compare_onnx,
    compare_unfed,
    openvino_run,
    references,
    total,
)
from common.reading import read_objects
from common.runs.annotations import Natural, NewFile
from common.runs.tool import run_tool
from common.writing import write_whole
from tools.deployed.flags import divided, of_network_and_data
from tools.deployed.test_sets import test_sets

FIRST = "fake-quantized"  # the form that the others are compared with
COUNTED = ("codes", "different", "from_float64", "unexplained")
LARGE = 64  # side of an image from which on fewer are compared layer by layer


@dataclass(frozen=True)
class Form:
    """A form of the network: images to logits, and its codes compared layer by layer, if it shows them."""

    logits: Callable[[Tensor], Tensor]
    layers: list[LayerParity]


@torch.no_grad()
def parity(
    *,
    checkpoint: Path,
    model: str | None = None,
    images: Natural = 0,
    layer_images: Natural = 0,
    layers: bool = False,
    fast: bool = False,
    lines: NewFile | None = None,
    **flags: Any,
) -> None:
    """Compare on the test set of the checkpoint's run, in a cross-domain task the target's.

    Args:
        checkpoint: a model_best.pt or last.pt, or a published file.
        model: the network, for a checkpoint that does not record it.
        images: how many test images; 0: all.
        layer_images: how many of them layer by layer; 0: 8 of up to 64 x 64 pixels, 2 of larger ones.
        layers: also print every layer.
        fast: also the integer graph as OpenVINO runs it.
        lines: also write the figures into this file, a line of JSON for each network, method and bits.
        flags: --demo --data_dir ... as tools/evaluate.py has them, --method --bitW ... as tools/export.py. What is not
            typed is as in the checkpoint's run.
    """
    typed, wanted = divided(flags)
    network, description, notes = restore(checkpoint, model=model, **typed)
    plain = Classifier(checkpoint, "checkpoint", ClassLogits(network).eval(), description, notes)
    sets, demo = test_sets(plain, {"demo": description.demo, **wanted})
    name, batches = next(iter(sets.items()))
    print("\n".join([f"{checkpoint}: {description.line()}", *notes]))

    count = layer_images or (8 if description.image_shape[1] <= LARGE else 2)
    sample = next(iter(batches))[0][:count].cpu()
    forms, absent = forms_of(network, description, sample, fast)
    truth, logits = run_all(forms, batches, images)
    found = {form: figures(its.layers, truth, logits[form], logits[FIRST]) for form, its in forms.items()}
    print(f"{len(truth)} {demo}images of {name}; codes layer by layer on {len(sample)} of them\n")
    print("\n".join(table(found, absent)))
    for form, its in forms.items() if layers else ():
        for row in its.layers:
            print(f"  {form}, {row.layer}: {row.different} of {row.codes} differ, {row.from_float64} from float64")
    if lines:
        scheme = description.scheme
        key = {"network": description.model, "method": scheme["method"], "bits": [scheme["bitW"], scheme["abitW"]]}
        add(lines, key | {"demo": description.demo, "images": len(truth), "forms": found, "absent": absent})


def forms_of(
    network: nn.Module, description: Description, sample: Tensor, with_fast: bool
) -> tuple[dict[str, Form], dict[str, str]]:
    """Every form by name, and of those that this network does not have the reason."""
    expected = references(network, sample)

    def fake_quantized() -> Form:
        return Form(ClassLogits(network).eval(), [compare(name, own.codes, own) for name, own in expected.items()])

    def from_packed() -> Form:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"network{PACKED.suffix}"
            packed.save(network, description, path)
            loaded, _ = packed.load(path)
        return Form(ClassLogits(loaded).eval(), compare_unfed(loaded, sample, expected))

    def integer() -> Form:
        return Form(integer_network(network), compare_integer(network, sample, expected))

    def fast() -> Form:
        proto = onnx_model(network, description.image_shape, {}, IntegerWriter)
        rows = compare_onnx(network, proto, sample, expected, integers=True, run=openvino_run)
        return Form(fast_logits(network, description), rows)

    def onnx(form: type[NetworkWriter] = NetworkWriter) -> Form:
        proto = onnx_model(network, description.image_shape, {}, form)
        session = open_session(proto.SerializeToString(), torch.get_num_threads())
        rows = compare_onnx(network, proto, sample, expected, integers=form is IntegerWriter)
        return Form(lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), rows)

    def program() -> Form:
        return Form(exported_program(network, description.image_shape).module(), [])

    makers = {
        FIRST: fake_quantized,
        "packed": from_packed,
        "integer": integer,
        **({"fast (OpenVINO)": fast} if with_fast else {}),
        "ONNX": onnx,
        "ONNX int8": lambda: onnx(IntegerWriter),
        "torch.export": program,
    }
    forms, absent = {}, {}
    for name, make in makers.items():
        try:
            forms[name] = make()
        except UserError as error:
            absent[name] = str(error)
    return forms, absent


def run_all(forms: dict[str, Form], batches: Any, images: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels, and logits by form, of the first ``images`` images (0: all)."""
    logits: dict[str, list[Tensor]] = {name: [] for name in forms}
    labels: list[Tensor] = []
    for x, y in batches:
        if images and sum(map(len, labels)) >= images:
            break
        labels.append(y.cpu())
        for name, form in forms.items():
            logits[name].append(form.logits(x.cpu()))
    return torch.cat(labels), {name: torch.cat(parts) for name, parts in logits.items()}


def figures(layers: list[LayerParity], truth: Tensor, own: Tensor, reference: Tensor) -> dict[str, Any]:
    """Of a form: "top1" and "same" class as the reference, per cent, the largest "difference" of logits, and of "codes"
    how many are "different", different "from_float64", and "unexplained"."""
    found, whole = own.argmax(1), total("all", layers)
    top1, same = (100 * float((found == other).double().mean()) for other in (truth, reference.argmax(1)))
    return {
        "top1": top1,
        "same": same,
        "difference": float((own - reference).abs().max()),
        **{name: getattr(whole, name) for name in COUNTED if layers},
    }


def table(found: dict[str, dict[str, Any]], absent: dict[str, str]) -> list[str]:
    """A row for each form, in Markdown; then why the other forms are not there."""
    head = ["form", "top-1 (%)", "same class (%)", "largest logit difference"]
    head += ["codes that differ", "from float64", "not explained by float32"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, own in found.items():
        cells = [name, f"{own['top1']:.2f}", f"{own['same']:.2f}", f"{own['difference']:.2g}"]
        if "codes" in own:
            counts = (own["different"], own["from_float64"])
            cells += [f"{count} ({100 * count / own['codes']:.4f} %)" for count in counts]
            cells += [f"{own['unexplained']} of {own['codes']}"]
        else:
            cells += [""] * 3
        lines.append("| " + " | ".join(cells) + " |")
    return lines + [f"no {name} form: {why}" for name, why in absent.items()]


def add(path: Path, row: dict[str, Any]) -> None:
    """Put a line into a file of lines, in the place of the same network's by the same method and bits."""

    def key(one: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(one.get(name)) for name in ("network", "method", "bits", "demo"))

    known = {key(one): one for one in read_objects(path, "figures of tools/parity.py")}
    write_whole(path, "".join(json.dumps(one) + "\n" for one in (known | {key(row): row}).values()))


if __name__ == "__main__":
    run_tool(parity, of_network_and_data)
