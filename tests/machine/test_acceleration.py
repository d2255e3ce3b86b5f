"""--compile, --channels_last and --amp: the same step, run otherwise."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from common.adaptation.dann import DANN
from common.admm.crp import CRP
from common.errors import UserError
from common.machine.acceleration import Acceleration, AccelerationOptions
from common.models import build_model
from common.quantizers import METHODS, make_scheme
from common.quantizers.layers import weights_quantized_once
from common.quantizers.learned_scale import LearnedScale
from tests.conftest import refusal, run, same_weights

RESNET20 = "single_domain/resnet20"
CPU = torch.device("cpu")


flags = AccelerationOptions


def dann_step(method: str, with_crp: bool, options: AccelerationOptions, steps: int) -> tuple[dict, dict]:
    """Weights and ADMM state after ``steps`` steps of the digits' network."""
    torch.manual_seed(0)
    model = build_model("MNISTmodel_quant", method, bitW=4, abitW=4, img_size=16).train()
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    crp = CRP(model.crp_sites(), batch_size=4, domains=("source", "target")) if with_crp else None
    objective = DANN(model, 10, crp=crp)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    faster = Acceleration(options, model, CPU, batch_size=4, backend="aot_eager")
    for _ in range(steps):
        with faster.forward(4):
            losses, _ = objective(images, labels, images + 1, progress=0.5)
        faster.descend(optimizer, losses["Train_loss"])
        for domain in crp.domains if crp is not None else ():
            crp.update(domain)
    return model.state_dict(), crp.state_dict() if crp is not None else {}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("method", "with_crp"), [("ours", True), ("lsq", False), ("uniform", False), ("centroid", False)]
)
def test_a_compiled_step_is_the_eager_step_and_its_graph_is_whole(
    method: str, with_crp: bool, channels_last: bool
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager = dann_step(method, with_crp, flags(), steps=2)  # learned scales: the first step is eager
    compiled = dann_step(method, with_crp, flags(compile=True, channels_last=channels_last), steps=2)
    for one, other in zip(eager, compiled, strict=True):
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-5, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "weights, and one network for both domains"
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize("method", METHODS)
def test_every_gradient_is_the_same_compiled(method: str) -> None:
    """torch 2.11 gave rounded values the gradient of the rounding, 0, where a rule's forward pass ended in place."""
    for bits in {min(METHODS[method].weight_bits), 4} & set(METHODS[method].weight_bits):
        scheme = make_scheme(method, bitW=bits, abitW=bits if bits in METHODS[method].act_bits else 32)
        made = {"weights": scheme.weights(), "scaled weights": scheme.weights(scaled=True)}
        made |= {"after": scheme.after_relu(), "before": scheme.before_relu(), "signed": scheme.unnormalised(False)}
        for name, quantizer in made.items():
            if quantizer is None or isinstance(quantizer, nn.Identity):
                continue
            x = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
            quantizer(x)  # initialises learned scales
            torch._dynamo.reset()
            leaves = [x, *quantizer.parameters()]
            found = []
            for run_it in (quantizer, torch.compile(quantizer, backend="aot_eager", fullgraph=True)):
                gradients = torch.autograd.grad((run_it(x) * x.detach()).sum(), leaves)
                assert gradients[0].abs().sum() > 0
                found.append(gradients)
            where = f"{name}, {bits} bits"
            torch.testing.assert_close(found[1], found[0], msg=lambda text, where=where: f"{where}: {text}")


def test_a_scale_that_runs_away_recovers_in_compiled_steps() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build_model("MNISTmodel_quant", "lsq", bitW=4, abitW=4, img_size=16).train()
    images = torch.randn(4, 3, 16, 16)
    model.feature(images)
    learned = [module for module in model.modules() if isinstance(module, LearnedScale) and module.initialised]
    references = [module.reference.clone() for module in learned]
    faster = Acceleration(flags(compile=True), model, CPU, batch_size=4, backend="aot_eager")
    for module, bad in zip(learned, (math.nan, -1.0, 1e9), strict=True):
        module.scale.data.fill_(bad)
    with faster.forward(4):
        model.feature(images)
    assert [module.scale.item() for module in learned] == [reference.item() for reference in references]


@pytest.mark.parametrize("method", METHODS)
def test_weights_quantized_once_have_the_gradient_of_both_passes(method: str) -> None:
    torch.manual_seed(0)
    conv = make_scheme(method, bitW=4).conv(2, 3, 3, image_input=True).double()
    x, y = torch.randn(2, 1, 2, 6, 6, dtype=torch.float64)
    conv(x)  # initialises learned scales
    (conv(x).square().sum() + conv(y).square().sum()).backward()
    apart = [parameter.grad.clone() for parameter in conv.parameters()]
    conv.zero_grad()
    calls = []
    conv.weight_quantizer.register_forward_hook(lambda *_: calls.append(1))
    with weights_quantized_once([conv]):
        total = conv(x).square().sum() + conv(y).square().sum()
    total.backward()
    assert len(calls) == 1
    for (name, parameter), gradient in zip(conv.named_parameters(), apart, strict=True):
        # of llsq's own scale gradient, which does not follow the loss, each pass would add another one
        passes = 2 if method == "llsq" and name == "weight_quantizer.scale" else 1
        torch.testing.assert_close(parameter.grad * passes, gradient)
    conv(x)
    assert len(calls) == 2, "outside, it quantizes anew"


@pytest.mark.parametrize("bits", [2, 4])
def test_bfloat16_activations_are_aligned_in_float32(bits: int) -> None:
    quantizer = make_scheme("ours", abitW=bits).before_relu()
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(quantizer(x), quantizer(x.float()).bfloat16())


def test_a_run_with_the_flags_trains_and_resumes_to_the_same_bits(tmp_path: Path, small_data: Path) -> None:
    common = ["--demo", "--data_dir", small_data, "--bitW", 4, "--pretrained", "no", "--amp", "bf16", "--channels_last"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(RESNET20, *common, "--num_epochs", 2, "--job_dir", whole).returncode == 0
    assert run(RESNET20, *common, "--num_epochs", 1, "--job_dir", parts).returncode == 0
    result = run(RESNET20, *common, "--num_epochs", 2, "--job_dir", parts, "--resume")
    assert result.returncode == 0, result.stderr
    last = "checkpoint/last.pt"
    assert same_weights(whole / last, parts / last)
    state = torch.load(parts / last, weights_only=True)["state_dict_t"]
    assert state["layers.0.conv0.weight"].dtype == torch.float32
    assert state["layers.0.conv0.weight"].is_contiguous(memory_format=torch.channels_last)


def test_a_missing_compiler_is_one_line(tmp_path: Path) -> None:
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, str(tmp_path / "none")), "force_disable_caches": True}):
        faster = Acceleration(flags(compile=True), model := nn.Sequential(nn.Linear(2, 2), nn.ReLU()), CPU, 4)
        message = r"torch.compile failed: .*compiler.*; .* leave --compile out"
        with pytest.raises(UserError, match=message), faster.forward(4):
            model(torch.randn(4, 2))


def test_float16_on_a_cpu_is_refused(tmp_path: Path) -> None:
    line = refusal(RESNET20, "--device", "cpu", "--amp", "fp16", "--job_dir", tmp_path / "job")
    assert "--amp fp16 needs a CUDA device" in line
    assert not (tmp_path / "job").exists()
