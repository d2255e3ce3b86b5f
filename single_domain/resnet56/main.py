"""ResNet-56 on CIFAR-10, in float or quantized by any method; `python main.py --help` lists the flags."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

from common.config.tasks import Task  # noqa: E402
from common.engine.program import main  # noqa: E402

DEFAULTS = {"bitW": 4, "lr_decay_steps": [80, 120]}
TASK = Task("resnet56", FOLDER, model="resnet56_quant", stem="res56", defaults=DEFAULTS)

if __name__ == "__main__":
    main(TASK)
