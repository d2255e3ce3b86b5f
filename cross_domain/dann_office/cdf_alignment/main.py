"""DANN (ResNet-50) on Office-31, in float or quantized by any method; `python main.py --help` lists the flags."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[2]))

from common.config.tasks import Task  # noqa: E402
from common.engine.program import main  # noqa: E402

DEFAULTS = {"src_data": "dslr", "tgt_data": "webcam", "bitW": 5, "train_batch_size": 28, "eval_batch_size": 28}
TASK = Task("dann_office", FOLDER, model="resnet50_dann", data="office", objective="dann", defaults=DEFAULTS)

if __name__ == "__main__":
    main(TASK)
