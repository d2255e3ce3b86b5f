"""A plugin that tox finds here: the environments of tox.ini share one folder, in which torch is installed once.

tox keeps two things in an environment's folder (.tox-info.json): the environment's name and what was installed for it.
Another environment that is given the same folder by env_dir alone finds another name there, and a list of requirements
that is not its own, and makes the folder anew. Here the folder's name stands for the environment's, and what was
installed is kept by the extras that were asked for, which only ever add to the folder.
"""

from contextlib import AbstractContextManager
from typing import Any

from tox.plugin import impl
from tox.tox_env.api import ToxEnv
from tox.tox_env.info import Info
from tox.tox_env.python.runner import PythonRun
from tox.tox_env.python.virtual_env.runner import VirtualEnvRunner
from tox.tox_env.register import ToxEnvRegister


class SharedInfo(Info):
    """What is recorded in a folder for all environments that share it."""

    def __init__(self, path: Any, extras: set[str]) -> None:
        super().__init__(path)
        self._extras = "+".join(sorted(extras))

    def compare(self, value: Any, section: str, sub_section: str | None = None) -> AbstractContextManager[Any]:
        if section == ToxEnv.__name__:
            value = {**value, "name": self._path.parent.name}
        if section == PythonRun.__name__ and self._extras:
            sub_section = f"{sub_section} {self._extras}"
        return super().compare(value, section, sub_section)


class Shared(VirtualEnvRunner):
    """An environment with ``runner = shared``."""

    @staticmethod
    def id() -> str:
        return "shared"

    @property
    def cache(self) -> Info:
        return SharedInfo(self.env_dir, self.conf["extras"])


@impl
def tox_register_tox_env(register: ToxEnvRegister) -> None:
    register.add_run_env(Shared)
