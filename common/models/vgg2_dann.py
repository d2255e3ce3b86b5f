"""VGG-2 with a domain discriminator for digits (DANN: Ganin et al., JMLR 2016), for every method and bit-width."""

from torch import Tensor, nn

from common.adaptation.gradient_reversal import reverse_gradient
from common.errors import UserError
from common.quantizers import Scheme


def _feature_size(img_size: int) -> int:
    """Side of the last feature map: two 5x5 convolutions without padding, each followed by a 2x2 pooling."""
    return ((img_size - 4) // 2 - 4) // 2


class VGG2DANN(nn.Module):
    """Two convolutions, a classifier and a discriminator behind the gradient reversal.

    Takes (B, 3, img_size, img_size), or one channel repeated to three, and the reversal strength alpha; returns class
    logits (B, num_classes) and domain logits (B, 2). Files trained at one img_size do not fit another.

    Raises:
        UserError: img_size below 16, which leaves no feature map.
    """

    def __init__(self, scheme: Scheme, num_classes: int = 10, img_size: int = 28) -> None:
        super().__init__()
        if _feature_size(img_size) < 1:
            raise UserError(f"--img_size {img_size}: this network needs at least 16; the tables use 28 and 32")
        self.feature_width = width = 48 * _feature_size(img_size) ** 2
        self.feature = nn.Sequential(
            scheme.conv(3, 32, 5, image_input=True),
            nn.BatchNorm2d(32),
            scheme.before_relu(),
            nn.Sequential(nn.ReLU(), scheme.after_relu()),
            nn.MaxPool2d(2),
            scheme.conv(32, 48, 5),
            nn.BatchNorm2d(48),
            scheme.before_relu(),
            nn.Dropout2d(),
            nn.Sequential(nn.ReLU(), scheme.after_relu()),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            *(nn.Linear(width, 100), nn.BatchNorm1d(100), nn.ReLU()),
            *(nn.Linear(100, 100), nn.BatchNorm1d(100), nn.ReLU()),
            nn.Linear(100, num_classes),
        )
        self.discriminator = nn.Sequential(
            *(nn.Linear(width, 100), nn.BatchNorm1d(100), nn.ReLU()),
            nn.Linear(100, 2),
        )

    def crp_sites(self) -> dict[str, nn.Module]:
        """Its two activation quantizers, by name."""
        return {f"feature.{index}": self.feature[index] for index in (2, 7)}

    def features(self, x: Tensor) -> Tensor:
        """(B, 48 s s) features that classifier and discriminator share."""
        return self.feature(x.expand(-1, 3, -1, -1)).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.classifier(features)

    def discriminate(self, features: Tensor) -> Tensor:
        return self.discriminator(features)

    def forward(self, x: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.classify(features), self.discriminate(reverse_gradient(features, alpha))
