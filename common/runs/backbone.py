"""ImageNet weights for the ResNet-50 backbone, asked for only when nothing else provides the weights."""

from pathlib import Path
from urllib.error import URLError

from torch import nn

from common.errors import UserError
from common.runs import checkpoint

NONE, IMAGENET = "none", "imagenet"


def load_backbone(backbone: nn.Module, wanted: str) -> list[str]:
    """Fill a ResNet50 from ``wanted``: a FILE with torchvision's names, "imagenet" (torchvision's V1 file) or "none".

    Returns:
        Lines for the log.
    Raises:
        UserError: the download failed, or the file does not fit.
    """
    if wanted == NONE:
        return ["--backbone_weights none: the backbone is trained from scratch"]
    if wanted != IMAGENET:
        report, _ = checkpoint.load_weights(backbone, Path(wanted))
        return report.lines(Path(wanted))
    from common.vision import models  # here, since the import alone takes seconds

    weights = models.ResNet50_Weights.IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the ImageNet weights could not be fetched ({error}); fetch {weights.url} on another machine and give it "
            "as --backbone_weights FILE, or train from scratch with --backbone_weights none"
        ) from None
    own = backbone.state_dict()
    backbone.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)
    return [f"backbone: torchvision's {weights}"]
