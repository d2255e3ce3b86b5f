"""--compile, --channels_last and --amp: how a training step is run. Without them it is the plain step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn

from common.adaptation.base import shows_features
from common.errors import UserError
from common.flags import flag, switch
from common.machine.compiling import compiler_faults
from common.quantizers.base import Quantizer
from common.quantizers.layers import QuantLayer, quantized_weights, weights_quantized_once
from common.quantizers.learned_scale import LearnedScale, keep_scales

AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
WITHOUT = "get it a C++ compiler (g++ or clang++), or leave --compile out"
INDUCTOR = {"fallback_random": True}  # dropout draws the same masks as without --compile
# What torch keeps by default in place of computing it again: a quantizer's chain of elementwise operations, whose
# results are as large as its input, and slower to store and load than to repeat.
RECOMPUTED = ("ban_recompute_long_fusible_chains", "ban_recompute_used_far_apart")


@dataclass(frozen=True)
class AccelerationOptions:
    compile: bool = switch(
        False,
        "compile the training step: up to minutes at first (ResNet-50 on a CPU); later runs find it in the cache",
    )
    channels_last: bool = switch(False, "lay images and weights out with the channels last")
    amp: str | None = flag(None, help="half precision where it is safe; fp16 needs CUDA", choices=("bf16", "fp16"))

    @property
    def fused_optimizer(self) -> bool | None:
        """SGD's ``fused``: under fp16, where it reads the loss scaler's verdict on the device."""
        return True if self.amp == "fp16" else None


class Acceleration:
    """The training step of one network as the flags want it. Evaluation stays in float32 and is never compiled.

    Under ``--amp`` parameters and optimizer stay in float32; quantizers compute their statistics and Phi in float32.

    Args:
        model: on ``device`` already; ``--channels_last`` changes the layout of its weights in place.
        batch_size: of a full batch. A smaller one, the last of an epoch, is not compiled: it would cost minutes.
        backend: of torch.compile.
    Raises:
        UserError: ``--amp fp16`` on a CPU.
    """

    def __init__(
        self,
        options: AccelerationOptions,
        model: nn.Module,
        device: torch.device,
        batch_size: int,
        backend: str = "inductor",
    ) -> None:
        check(options, device)
        self.device, self.dtype, self.batch_size = device, AMP.get(options.amp or ""), batch_size
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
        if options.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = convolutions(model)
        self._quantized = [module for module in model.modules() if isinstance(module, QuantLayer)]
        quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
        self._uninitialised = [module for module in quantizers if not module.initialised]
        self._learned = [module for module in quantizers if isinstance(module, LearnedScale)]
        self._made_up = [p for module in quantizers if not module.follows_loss for p in module.parameters()]
        settings: dict[str, Any] = {"options": INDUCTOR} if backend == "inductor" else {}
        self._compiled: Any = None
        if options.compile:
            for name in RECOMPUTED:  # of this process: only training steps are compiled
                setattr(functorch_config, name, False)
            self._compiled = torch.compile(self._network.forward, backend=backend, dynamic=False, **settings)
            self._compiled_weights: Any = quantized_weights
            if self._quantized:  # without any, dynamo would give the function up, for every other network too
                self._compiled_weights = torch.compile(quantized_weights, backend=backend, dynamic=False, **settings)

    @contextmanager
    def forward(self, batch_size: int) -> Iterator[None]:
        """Within it, the network runs in the step's precision, and compiled where the batch is a full one.

        The passes of one step share their quantized weights.
        """
        self._uninitialised = [m for m in self._uninitialised if not m.initialised]  # learned scales wait for a batch
        quantize: Any = quantized_weights
        if self._compiled is not None and batch_size == self.batch_size and not self._uninitialised:
            self._network.forward, quantize = self._compiled, self._compiled_weights
            keep_scales(self._learned)
        half = torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)
        try:
            with compiler_faults(WITHOUT), weights_quantized_once(self._quantized, quantize), half:
                yield
        finally:
            vars(self._network).pop("forward", None)

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Backward pass and optimizer step; under fp16 with the loss scaled, and skipped where a gradient overflows."""
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        for parameter in self._made_up if self.scaler.is_enabled() else ():
            if parameter.grad is not None:  # unscaling, which the step begins with, takes this back
                parameter.grad = self.scaler.scale(parameter.grad)
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The loss scale of fp16; empty otherwise."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``; an empty one, of a run without fp16, leaves the initial scale."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)


def check(options: AccelerationOptions, device: torch.device) -> None:
    """Raises UserError where the device cannot do what the flags want; called before data are read."""
    if options.amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 needs a CUDA device: its loss scaling is made for one; a CPU does --amp bf16")


def convolutions(model: Any) -> nn.Module:
    """The part worth compiling: a network for domain adaptation without its heads, which change with the progress."""
    if not shows_features(model):
        return model
    return model.backbone() if hasattr(model, "backbone") else model.feature
