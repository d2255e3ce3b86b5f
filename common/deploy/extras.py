"""Packages of the deploy extra, imported where they are used."""

import importlib
from typing import Any

from common.errors import UserError


class NotInstalled(UserError):
    """A package of the deploy extra is missing."""


def need(name: str) -> Any:
    """The module ``name``.

    Raises:
        NotInstalled: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotInstalled(f'{name} is not installed; python -m pip install -e ".[deploy]" brings it') from None
