"""Full training steps of every kind - float, a method, DAQ with relation preservation, Brevitas - on random images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.adaptation.dann import DANN
from common.adaptation.source_only import SourceOnly
from common.admm.crp import CRP
from common.errors import UserError
from common.machine.acceleration import Acceleration, AccelerationOptions
from common.models import NETWORKS, build_model

MEASURED = {"resnet20": "resnet20_quant", "resnet50": "resnet50_dann"}
FLOAT, OURS, CRP_KIND, BREVITAS = "float", "ours", "ours+crp", "brevitas"
PROGRESS = 0.5  # of the training, which sets the strength of the gradient reversal


@dataclass(frozen=True)
class Setting:
    """What all kinds of step have in common. ResNet-50 is a DANN and takes ``batch`` images of each domain."""

    network: str
    bits: int
    batch: int
    img_size: int
    device: str
    channels_last: bool = False
    amp: str | None = None

    @property
    def images(self) -> int:
        """Images that one step trains on."""
        return self.batch * (2 if self.network == "resnet50" else 1)


def make_step(kind: str, setting: Setting, compiled: bool = False) -> Callable[[], None]:
    """Forward passes, loss, backward pass and SGD of one kind, with the updates of CRP where it has them."""
    torch.manual_seed(0)
    model = _network(kind, setting).to(setting.device).train()
    options = AccelerationOptions(compiled, setting.channels_last, setting.amp)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=1e-4, fused=options.fused_optimizer)
    faster = Acceleration(options, model, torch.device(setting.device), setting.batch)
    domains = ("source", "target") if setting.network == "resnet50" else ("source",)
    crp = None
    if kind == CRP_KIND:
        crp = CRP(model.crp_sites(), batch_size=setting.batch, domains=domains).to(setting.device)
    side = setting.img_size
    images = torch.randn(len(domains), setting.batch, 3, side, side).to(setting.device)
    labels = (torch.arange(setting.batch) % 10).to(setting.device)
    two = setting.network == "resnet50"
    objective = (DANN if two else SourceOnly)(model, NETWORKS[MEASURED[setting.network]].num_classes, crp=crp)

    def step() -> None:
        with faster.forward(setting.batch):
            losses, _ = objective(images[0], labels, images[1] if two else None, PROGRESS)
        faster.descend(optimizer, losses["Train_loss"])
        if crp is not None:
            for domain in crp.domains:
                crp.update(domain)

    return step


def _network(kind: str, setting: Setting) -> Any:
    name = MEASURED[setting.network]
    if kind == FLOAT:
        return build_model(name)
    if kind == BREVITAS:
        return NETWORKS[name].make(scheme=_BrevitasScheme(setting.bits), num_classes=NETWORKS[name].num_classes)
    method = OURS if kind == CRP_KIND else kind
    return build_model(name, method, bitW=setting.bits, abitW=setting.bits)


class _BrevitasScheme:
    """Answers a network's questions with Brevitas's layers, placed as the methods with a quantizer behind the ReLU."""

    def __init__(self, bits: int) -> None:
        try:
            from brevitas import nn as layers
            from brevitas.quant import Uint8ActPerTensorFloat
        except ImportError:
            raise UserError('Brevitas is not installed: python -m pip install -e ".[bench]"') from None
        self.layers, self.act_quant, self.bits = layers, Uint8ActPerTensorFloat, bits

    def conv(self, *args: Any, image_input: bool = False, **kwargs: Any) -> nn.Module:
        return self.layers.QuantConv2d(*args, weight_bit_width=self.bits, **kwargs)

    def before_relu(self) -> nn.Module:
        return nn.Identity()

    def after_relu(self) -> nn.Module:
        return self.layers.QuantIdentity(act_quant=self.act_quant, bit_width=self.bits, return_quant_tensor=False)
