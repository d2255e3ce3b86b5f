"""DANN (VGG-2) on digits, in float or quantized by any method; `python main.py --help` lists the flags."""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[2]))

from common.config.tasks import Task  # noqa: E402
from common.engine.program import main  # noqa: E402

DEFAULTS = {"src_data": "mnist", "tgt_data": "mnistm", "bitW": 1}
TASK = Task("dann_digits", FOLDER, model="MNISTmodel_quant", data="digits", objective="dann", defaults=DEFAULTS)

if __name__ == "__main__":
    main(TASK)
