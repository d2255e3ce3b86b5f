"""Networks of other collections: a second implementation with their names and option A, and ours, on the same images."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.models import build_model
from common.models.imported import cifar_resnet, fold_normalization
from common.runs import checkpoint
from tests.tools.entry import refused, type_in


class TheirBlock(nn.Module):
    """A basic block of akamaster's, or with torchvision's names."""

    def __init__(self, into: int, out: int, shortcut: str) -> None:
        super().__init__()
        self.stride, self.grown, self.kind = out // into, out - into, shortcut
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, self.stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        if self.grown and shortcut != "A":
            projection = nn.Sequential(nn.Conv2d(into, out, 1, self.stride, bias=False), nn.BatchNorm2d(out))
            self.add_module(shortcut, projection)

    def forward(self, x: Tensor) -> Tensor:
        skip = x
        if self.grown and self.kind == "A":
            skip = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grown // 2, self.grown // 2))
        elif self.grown:
            skip = self.get_submodule(self.kind)(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + skip)


class TheirResNet(nn.Module):
    def __init__(self, blocks: int, shortcut: str, classifier: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for stage, (into, out) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
            made = [TheirBlock(into if index == 0 else out, out, shortcut) for index in range(blocks)]
            self.add_module(f"layer{stage}", nn.Sequential(*made))
        self.classifier = classifier
        self.add_module(classifier, nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.get_submodule(self.classifier)(x.mean((2, 3)))


def theirs(blocks: int, shortcut: str, classifier: str) -> TheirResNet:
    """At evaluation, with statistics and scales such as training leaves."""
    torch.manual_seed(0)
    network = TheirResNet(blocks, shortcut, classifier).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.3, 0.3)):
                nn.init.uniform_(values, low, high)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network


@pytest.mark.parametrize(("blocks", "name"), [(3, "resnet20"), (9, "resnet56")])
@pytest.mark.parametrize(
    ("shortcut", "classifier"), [("A", "linear"), ("shortcut", "linear"), ("downsample", "fc"), ("A", "fc")]
)
@torch.no_grad()
def test_the_imported_network_computes_what_theirs_does(blocks: int, name: str, shortcut: str, classifier: str) -> None:
    network, images = theirs(blocks, shortcut, classifier), torch.randn(4, 3, 32, 32)
    task, state = cifar_resnet(network.state_dict())
    assert task == name
    ours = build_model(f"{name}_quant").eval()
    ours.load_state_dict(state)
    expected = network(images)
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_new_channels_of_option_a_carry_no_image_when_the_network_is_trained() -> None:
    ours = build_model("resnet20_quant")
    ours.load_state_dict(cifar_resnet(theirs(3, "A", "linear").state_dict())[1])
    block = ours.get_submodule("layers.3")
    for _ in range(2):
        ours(torch.randn(8, 3, 32, 32)).sum().backward()
        torch.optim.SGD(ours.parameters(), 0.1).step()
    shortcut = block.skip_bn(block.skip_conv(torch.randn(4, 16, 8, 8)))
    varies = shortcut.std((0, 2, 3)) > 1e-6
    assert varies.tolist() == [False] * 8 + [True] * 16 + [False] * 8


@torch.no_grad()
def test_another_normalisation_is_folded_exactly_but_for_the_border() -> None:
    network, pixels = theirs(3, "A", "linear"), torch.rand(2, 3, 32, 32)
    their, own = ((0.48, 0.45, 0.40), (0.23, 0.22, 0.21)), ((0.49, 0.48, 0.44), (0.20, 0.19, 0.21))

    def seen(pair: tuple[tuple[float, ...], ...]) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in pair)
        return (pixels - mean) / std

    ours = build_model("resnet20_quant").eval()
    ours.load_state_dict(fold_normalization(cifar_resnet(network.state_dict())[1], their, own))
    expected, found = network.bn1(network.conv1(seen(their))), ours.bn(ours.conv0(seen(own)))
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, expected, rtol=1e-3)


def test_a_file_of_akamaster_becomes_the_tasks_float_file(tmp_path: Path) -> None:
    network, out = theirs(3, "A", "linear"), tmp_path / "new" / "model_best.pt"
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, tmp_path / "resnet20.th")
    status, said, _ = type_in("import_weights", tmp_path / "resnet20.th", "--out", out)
    assert status == 0
    assert "resnet20_quant with the weights of" in said
    quantized = build_model("resnet20_quant", bitW=4, abitW=4)
    report, _ = checkpoint.load_weights(quantized, out)
    assert report.missing == ()
    assert torch.equal(quantized.get_submodule("conv0").weight, network.conv1.weight)


def test_what_cannot_be_carried_over_is_one_line(tmp_path: Path) -> None:
    whole = theirs(3, "A", "linear").state_dict()

    def line(state: dict[str, Tensor]) -> str:
        torch.save(state, tmp_path / "x.th")
        said = refused("import_weights", tmp_path / "x.th", "--out", tmp_path / "out.pt")
        assert str(tmp_path / "x.th") in said
        assert not (tmp_path / "out.pt").exists()
        return said

    assert "a ResNet-32; expected a depth of 20 or 56" in line(theirs(5, "A", "linear").state_dict())
    assert "'layer1.0.conv3.weight' has no place" in line({**whole, "layer1.0.conv3.weight": torch.zeros(1)})
    assert "no CIFAR ResNet of another collection" in line(build_model("resnet20_quant").state_dict())
    wide = {**whole, "linear.weight": torch.zeros(100, 64), "linear.bias": torch.zeros(100)}
    assert "its logit.weight is (100, 64); resnet20_quant has (10, 64)" in line(wide)
    less = {key: value for key, value in whole.items() if key != "layer2.1.bn2.running_var"}
    assert "layers.4.bn1.running_var of resnet20_quant is not in it" in line(less)
