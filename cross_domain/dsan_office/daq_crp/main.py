"""DSAN (ResNet-50) on Office-31, DAQ with relation preservation (CRP); `python main.py --help` lists the flags."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[2]))

from common.config.tasks import Task  # noqa: E402
from common.engine.program import main  # noqa: E402

DEFAULTS = {"src_data": "amazon", "tgt_data": "webcam", "bitW": 4, "train_batch_size": 32, "eval_batch_size": 32}
TASK = Task("dsan_office", FOLDER, model="resnet50_dsan", data="office", objective="dsan", crp=True, defaults=DEFAULTS)

if __name__ == "__main__":
    main(TASK)
