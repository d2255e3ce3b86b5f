"""Flags of main.py that the tools for shipped files take: of the network, and of the data it is tested on."""

from typing import Any

from common.config.groups import Backbone, Quantization, Training
from common.data.kinds import DATA
from common.deploy.description import choosing_flags
from common.deploy.restore import NETWORK_FLAGS
from common.flags import Flag, flags_of
from common.machine.device import DeviceOptions
from tools.runs.main_flags import read_as_there

DATA_FLAGS = (  # beside those that say which images
    *("data_dir", "tgt_data_dir", "download", "allow_partial"),
    *("eval_batch_size", "num_workers", "device", "gpus"),
)


def of_network() -> dict[str, Flag]:
    return read_as_there(_named(NETWORK_FLAGS))


def of_network_and_data() -> dict[str, Flag]:
    return read_as_there({**choosing_flags(), **_named((*NETWORK_FLAGS, *DATA_FLAGS))})


def _named(names: tuple[str, ...]) -> dict[str, Flag]:
    classes = [Quantization, Backbone, Training, DeviceOptions, *(kind.Options for kind in DATA.values())]
    known = {name: flag for options in classes for name, flag in flags_of(options).items()}
    return {name: known[name] for name in names}


def divided(flags: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The flags of the network, and those of the data."""
    network = {name: value for name, value in flags.items() if name in NETWORK_FLAGS}
    return network, {name: value for name, value in flags.items() if name not in network}
