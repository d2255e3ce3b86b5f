"""ResNet-20 on CIFAR-10, in float or quantized by any method; `python main.py --help` lists the flags."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from common.config.tasks import Task  # noqa: E402
from common.engine.program import main  # noqa: E402

DEFAULTS = {"bitW": 2, "lr_decay_steps": [80, 150]}
TASK = Task("resnet20", FOLDER, model="resnet20_quant", stem="res20", defaults=DEFAULTS)

if __name__ == "__main__":
    main(TASK)
