"""Full training steps of every kind - float, a method, DAQ with relation preservation, Brevitas - on random images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.adaptation import OBJECTIVES
from common.admm.crp import CRP
from common.conversion.sites import crp_sites
from common.errors import UserError
from common.machine.acceleration import Acceleration, AccelerationOptions
from common.models import build_model, known_network

CLASSES = 10  # of a network of others
FLOAT, OURS, CRP_KIND, BREVITAS = "float", "ours", "ours+crp", "brevitas"
PROGRESS = 0.5  # of the training, which sets the strength of the gradient reversal


@dataclass(frozen=True)
class Setting:
    """What all kinds of step have in common.

    Attributes:
        model: a name in the table of networks, or one of others, which is measured as a classifier.
        batch: images of each domain. quant_linear: as the flag of main.py.
    """

    model: str
    bits: int
    batch: int
    img_size: int
    device: str
    channels_last: bool = False
    amp: str | None = None
    quant_linear: bool = False

    @property
    def objective(self) -> str:
        """DANN or DSAN for the networks of these tasks, with a batch of each domain."""
        entry = known_network(self.model)
        wanted = entry.task.split("_")[0] if entry is not None else ""
        return wanted if wanted in OBJECTIVES else "source_only"

    @property
    def classes(self) -> int:
        entry = known_network(self.model)
        return CLASSES if entry is None else entry.num_classes

    @property
    def domains(self) -> tuple[str, ...]:
        return ("source", "target") if OBJECTIVES[self.objective].adapts else ("source",)

    @property
    def images(self) -> int:
        """Images that one step trains on."""
        return self.batch * len(self.domains)


def make_step(kind: str, setting: Setting, compiled: bool = False) -> Callable[[], None]:
    """Forward passes, loss, backward pass and SGD of one kind, with the updates of CRP where it has them.

    Raises:
        UserError: the network cannot be made, has nothing to quantize, or, with CRP, nothing that is aligned.
    """
    torch.manual_seed(0)
    model = _network(kind, setting).to(setting.device).train()
    options = AccelerationOptions(compiled, setting.channels_last, setting.amp)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=1e-4, fused=options.fused_optimizer)
    faster = Acceleration(options, model, torch.device(setting.device), setting.batch)
    domains, side = setting.domains, setting.img_size
    crp = None
    if kind == CRP_KIND:
        known = known_network(setting.model) is not None
        sites = model.crp_sites() if known else crp_sites(model, (2, 3, side, side))
        if not sites:
            raise UserError(f"--kinds {CRP_KIND}: no activation of {setting.model} is aligned")
        crp = CRP(sites, batch_size=setting.batch, domains=domains).to(setting.device)
    images = torch.randn(len(domains), setting.batch, 3, side, side).to(setting.device)
    labels = (torch.arange(setting.batch) % setting.classes).to(setting.device)
    objective = OBJECTIVES[setting.objective](model, setting.classes, crp=crp)

    def step() -> None:
        with faster.forward(setting.batch):
            losses, _ = objective(images[0], labels, images[1] if len(domains) == 2 else None, PROGRESS)
        faster.descend(optimizer, losses["Train_loss"])
        if crp is not None:
            for domain in crp.domains:
                crp.update(domain)

    return step


def _network(kind: str, setting: Setting) -> Any:
    entry = known_network(setting.model)
    own: dict[str, Any] = (
        {} if entry is None else {name: setting.img_size for name in entry.arguments if name == "img_size"}
    )
    if kind == BREVITAS:
        if entry is None:
            raise UserError(f"--kinds {BREVITAS}: its layers can be put into the networks of the paper only")
        return entry.make(scheme=_BrevitasScheme(setting.bits), num_classes=setting.classes, **own)
    if entry is None:
        own |= {"quant_linear": setting.quant_linear}
    bits = 32 if kind == FLOAT else setting.bits
    method = OURS if kind in (FLOAT, CRP_KIND) else kind
    return build_model(setting.model, method, bitW=bits, abitW=bits, num_classes=setting.classes, **own)


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
