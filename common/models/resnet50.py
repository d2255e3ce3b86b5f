"""ResNet-50 v1.5 (He et al., CVPR 2016; stride on the 3x3 convolution) for domain adaptation, for every method.

DANN (Ganin et al., JMLR 2016) puts a classifier and a discriminator on its 2048 features; DSAN (Zhu et al., TNNLS 2020)
a 256-dimensional bottleneck and a classifier.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from common.adaptation.gradient_reversal import reverse_gradient
from common.quantizers import Scheme

FEATURES = 2048
BOTTLENECK = 256


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the output has four times ``channels``."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, scheme: Scheme, project: bool, quant_shortcut: bool
    ) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.conv1 = scheme.conv(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = scheme.conv(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = scheme.conv(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.before_relu1, self.after_relu1 = scheme.before_relu(), scheme.after_relu()
        self.before_relu2, self.after_relu2 = scheme.before_relu(), scheme.after_relu()
        self.before_relu3, self.after_relu3 = scheme.before_relu(), scheme.after_relu()
        self.downsample: nn.Module = nn.Identity()
        if project:
            self.downsample = nn.Sequential(
                scheme.conv(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
                scheme.before_relu() if quant_shortcut else nn.Identity(),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.after_relu1(F.relu(self.before_relu1(self.bn1(self.conv1(x)))))
        out = self.after_relu2(F.relu(self.before_relu2(self.bn2(self.conv2(out)))))
        out = self.before_relu3(self.bn3(self.conv3(out)))
        return self.after_relu3(F.relu(out + self.downsample(x)))


class ResNet50(nn.Module):
    """The backbone: (B, 3, H, W), normalised as for ImageNet, to (B, 2048) pooled features; H and W at least 32."""

    def __init__(self, scheme: Scheme, quant_shortcut: bool = False) -> None:
        super().__init__()
        self.conv1 = scheme.conv(3, 64, 7, 2, 3, bias=False, image_input=True)
        self.bn1 = nn.BatchNorm2d(64)
        self.before_relu, self.after_relu = scheme.before_relu(), scheme.after_relu()

        def stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
            first = Bottleneck(in_channels, channels, stride, scheme, True, quant_shortcut)
            rest = (Bottleneck(4 * channels, channels, 1, scheme, False, quant_shortcut) for _ in range(blocks - 1))
            return nn.Sequential(first, *rest)

        self.layer1 = stage(64, 64, 3, 1)
        self.layer2 = stage(256, 128, 4, 2)
        self.layer3 = stage(512, 256, 6, 2)
        self.layer4 = stage(1024, 512, 3, 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Bottleneck):  # a block starts as its shortcut, for training from scratch
                nn.init.zeros_(module.bn3.weight)

    def crp_sites(self) -> dict[str, nn.Module]:
        """The last activation quantizer of each of the 16 bottlenecks, by name."""
        return {name: module for name, module in self.named_modules() if name.endswith("before_relu3")}

    def forward(self, x: Tensor) -> Tensor:
        out = self.after_relu(F.relu(self.before_relu(self.bn1(self.conv1(x)))))
        out = F.max_pool2d(out, 3, 2, 1)
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return out.mean((2, 3))


class ResNet50DANN(nn.Module):
    """Takes (B, 3, H, W) and the reversal strength alpha; returns class (B, num_classes), domain (B, 2) logits."""

    feature_width = FEATURES

    def __init__(self, scheme: Scheme, num_classes: int = 31, quant_shortcut: bool = False) -> None:
        super().__init__()
        self.feature = ResNet50(scheme, quant_shortcut)
        self.class_classifier = nn.Sequential()
        self.class_classifier.add_module("c_fc3", nn.Linear(FEATURES, num_classes))
        self.domain_classifier = nn.Sequential()
        self.domain_classifier.add_module("d_fc2", nn.Linear(FEATURES, 2))

    def backbone(self) -> nn.Module:
        return self.feature

    def crp_sites(self) -> dict[str, nn.Module]:
        return {f"feature.{name}": module for name, module in self.feature.crp_sites().items()}

    def features(self, x: Tensor) -> Tensor:
        """(B, 2048) features that classifier and discriminator share."""
        return self.feature(x)

    def classify(self, features: Tensor) -> Tensor:
        return self.class_classifier(features)

    def discriminate(self, features: Tensor) -> Tensor:
        return self.domain_classifier(features)

    def forward(self, x: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.classify(features), self.discriminate(reverse_gradient(features, alpha))


class ResNet50DSAN(nn.Module):
    """Takes (B, 3, H, W); returns class logits (B, num_classes). ``features`` gives the bottleneck for LMMD."""

    feature_width = BOTTLENECK

    def __init__(self, scheme: Scheme, num_classes: int = 31, quant_shortcut: bool = False) -> None:
        super().__init__()
        self.feature_layers = ResNet50(scheme, quant_shortcut)
        self.bottle = nn.Linear(FEATURES, BOTTLENECK)
        self.cls_fc = nn.Linear(BOTTLENECK, num_classes)

    def backbone(self) -> nn.Module:
        return self.feature_layers

    def crp_sites(self) -> dict[str, nn.Module]:
        return {f"feature_layers.{name}": module for name, module in self.feature_layers.crp_sites().items()}

    def features(self, x: Tensor) -> Tensor:
        """(B, 256) bottleneck features, without a nonlinearity."""
        return self.bottle(self.feature_layers(x))

    def classify(self, features: Tensor) -> Tensor:
        return self.cls_fc(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))
