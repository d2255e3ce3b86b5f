"""The shared core of every task: quantizers, relation preservation, adaptation, models, data, engine."""

import sys

from common.vision_operators import Declared

if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, Declared())
