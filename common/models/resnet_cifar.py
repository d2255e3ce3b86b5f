"""ResNet-20 and ResNet-56 for 32 x 32 images (He et al., CVPR 2016), one class for every method and bit-width."""

import torch.nn.functional as F
from torch import Tensor, nn

from common.quantizers import Scheme


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 projection where the stride is not 1."""

    def __init__(self, in_channels: int, channels: int, stride: int, scheme: Scheme) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(channels)
        self.conv0 = scheme.conv(in_channels, channels, 3, stride, 1, bias=False)
        self.before_relu0 = scheme.before_relu()
        self.after_relu0 = scheme.after_relu()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = scheme.conv(channels, channels, 3, 1, 1, bias=False)
        self.before_relu1 = scheme.before_relu()
        self.after_relu1 = scheme.after_relu()
        self.projects = stride != 1
        if self.projects:
            self.skip_conv = scheme.conv(in_channels, channels, 1, stride, bias=False)
            self.skip_bn = nn.BatchNorm2d(channels)
            self.before_relu_skip = scheme.before_relu()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.before_relu_skip(self.skip_bn(self.skip_conv(x))) if self.projects else x
        out = self.after_relu0(F.relu(self.before_relu0(self.bn0(self.conv0(x)))))
        out = self.before_relu1(self.bn1(self.conv1(out)))
        return self.after_relu1(F.relu(out + shortcut))


class ResNetCifar(nn.Module):
    """A stem, three stages of ``blocks`` blocks at 16, 32 and 64 channels, average pooling and a float classifier.

    Takes (B, 3, 32, 32), normalised; returns (B, num_classes) logits. Depth is 6 blocks + 2.
    """

    def __init__(self, blocks: int, scheme: Scheme, num_classes: int = 10) -> None:
        super().__init__()
        self.conv0 = scheme.conv(3, 16, 3, 1, 1, bias=False, image_input=True)
        self.layers = nn.ModuleList()
        in_channels = 16
        for channels in (16, 32, 64):
            for index in range(blocks):
                stride = 2 if index == 0 and channels > 16 else 1
                self.layers.append(Block(in_channels, channels, stride, scheme))
                in_channels = channels
        self.bn = nn.BatchNorm2d(16)
        self.before_relu = scheme.before_relu()
        self.after_relu = scheme.after_relu()
        self.logit = nn.Linear(64, num_classes)

    def crp_sites(self) -> dict[str, nn.Module]:
        """The last activation quantizer of each block, by name."""
        return {name: module for name, module in self.named_modules() if name.endswith("before_relu1")}

    def forward(self, x: Tensor) -> Tensor:
        out = self.after_relu(F.relu(self.before_relu(self.bn(self.conv0(x)))))
        for block in self.layers:
            out = block(out)
        return self.logit(out.mean((2, 3)))
