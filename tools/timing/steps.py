"""Full training steps of every kind - float, a method, DAQ with relation preservation, Brevitas - on random images."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common.adaptation.objectives import DANN
from torch import nn

from common.admm.crp import CRP
from common.engine.meters import cross_entropy
from common.errors import UserError
from common.machine.acceleration import Acceleration
from common.models import MODELS, build_model

NETWORKS = {"resnet20": "resnet20_quant", "resnet50": "resnet50_dann"}
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
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=1e-4, fused=setting.amp == "fp16" or None)
    options = Namespace(compile=compiled, channels_last=setting.channels_last, amp=setting.amp)
    faster = Acceleration(options, model, torch.device(setting.device), setting.batch)
    domains = ("source", "target") if setting.network == "resnet50" else ("source",)
    crp = None
    if kind == CRP_KIND:
        crp = CRP(model.crp_sites(), batch_size=setting.batch, domains=domains).to(setting.device)
    side = setting.img_size
    images = torch.randn(len(domains), setting.batch, 3, side, side).to(setting.device)
    labels = (torch.arange(setting.batch) % 10).to(setting.device)
    objective = DANN(model, options, crp)

    def loss() -> torch.Tensor:
        if setting.network == "resnet50":
            return objective(images[0], labels, images[1], PROGRESS)[0]["Train_loss"]
        with objective.collect("source"):
            value = cross_entropy(model(images[0]), labels)
        return value if crp is None else value + crp.penalty("source")

    def step() -> None:
        with faster.forward(setting.batch):
            value = loss()
        faster.descend(optimizer, value)
        if crp is not None:
            for domain in crp.domains:
                crp.update(domain)

    return step


def _network(kind: str, setting: Setting) -> Any:
    name = NETWORKS[setting.network]
    if kind == FLOAT:
        return build_model(name)
    if kind == BREVITAS:
        return MODELS[name].make(scheme=_BrevitasScheme(setting.bits), num_classes=MODELS[name].num_classes)
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
