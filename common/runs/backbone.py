"""ImageNet weights for the ResNet-50 backbone, asked for only when nothing else provides the weights."""

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

from torch import Tensor, nn

from common.errors import UserError
from common.models.foreign import imagenet_weights, is_foreign
from common.runs import checkpoint

NONE, IMAGENET = "none", "imagenet"


def load_backbone(backbone: nn.Module, wanted: str, model: str) -> list[str]:
    """Fill a backbone from ``wanted``: a FILE with its names, "imagenet" or "none".

    Args:
        model: the network's name. ImageNet weights are torchvision's V1 file for ResNet-50, those of their source for
            networks of others, and for FILE.py:FUNCTION what FUNCTION has given its network.
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
    if is_foreign(model):
        state = imagenet_weights(model)
        if state is None:
            return [f"backbone: the weights that {model} gives it"]
        return _fill(backbone, state, f"ImageNet weights of {model}")
    from common.vision import models  # here, since the import alone takes seconds

    weights = models.ResNet50_Weights.IMAGENET1K_V1
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"the ImageNet weights could not be fetched ({error}); fetch {weights.url} on another machine and give it "
            "as --backbone_weights FILE, or train from scratch with --backbone_weights none"
        ) from None
    return _fill(backbone, state, f"torchvision's {weights}")


def _fill(backbone: nn.Module, state: Mapping[str, Tensor], what: str) -> list[str]:
    own = backbone.state_dict()
    known = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    backbone.load_state_dict(known, strict=False)
    return [f"backbone: {what}, {len(known)} tensors"]
