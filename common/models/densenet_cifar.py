"""DenseNet-40 for 32 x 32 images (Huang et al., CVPR 2017): growth 12, no compression, for every method and width."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.quantizers import Scheme


class PreActivationConv(nn.Module):
    """BatchNorm, ReLU and a convolution: the unit of dense layers and transitions."""

    def __init__(self, in_channels: int, channels: int, kernel: int, scheme: Scheme) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.before_relu = scheme.before_relu()
        self.after_relu = scheme.after_relu()
        self.conv1 = scheme.conv(in_channels, channels, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(self.after_relu(F.relu(self.before_relu(self.bn1(x)))))


class DenseLayer(PreActivationConv):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, super().forward(x)), 1)


class Transition(PreActivationConv):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(x), 2)


class DenseNetCifar(nn.Module):
    """Three dense blocks of (depth - 4) / 3 layers; (B, 3, 32, 32), normalised, to (B, num_classes) logits."""

    def __init__(self, depth: int, growth: int, scheme: Scheme, num_classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = scheme.conv(3, channels, 3, padding=1, bias=False, image_input=True)

        def dense_block(channels: int) -> nn.Sequential:
            return nn.Sequential(
                *(DenseLayer(channels + i * growth, growth, 3, scheme) for i in range((depth - 4) // 3))
            )

        def transition(channels: int) -> Transition:
            return Transition(channels, channels, 1, scheme)

        grown = growth * ((depth - 4) // 3)
        self.dense1 = dense_block(channels)
        self.trans1 = transition(channels + grown)
        self.dense2 = dense_block(channels + grown)
        self.trans2 = transition(channels + 2 * grown)
        self.dense3 = dense_block(channels + 2 * grown)
        self.bn = nn.BatchNorm2d(channels + 3 * grown)
        self.before_relu = scheme.before_relu()
        self.after_relu = scheme.after_relu()
        self.fc = nn.Linear(channels + 3 * grown, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (module.weight[0, 0].numel() * module.out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        out = self.trans1(self.dense1(self.conv1(x)))
        out = self.dense3(self.trans2(self.dense2(out)))
        out = self.after_relu(F.relu(self.before_relu(self.bn(out))))
        return self.fc(out.mean((2, 3)))
