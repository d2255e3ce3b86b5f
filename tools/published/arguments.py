"""What the command line refuses before anything is done."""

import difflib
from collections.abc import Callable
from typing import Any

from common.errors import UserError


def refuse(words: tuple[Any, ...], unknown: dict[str, Any], command: Callable[..., None]) -> None:
    """Refuse stray words, and flags that ``command`` does not have."""
    names = [name for name in command.__annotations__ if name not in ("words", "unknown", "return", "source")]
    if words:
        raise UserError(f"{words[0]}: expected flags alone, such as --task resnet20")
    for name in unknown:
        near = difflib.get_close_matches(name, names, 1, 0.5)
        raise UserError(f"unknown flag --{name}" + (f"; did you mean --{near[0]}?" if near else "; see --help"))


def need_booleans(**flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise UserError(f"--{name} {value}: expected True, False or the flag alone")


def need_address(base_url: Any) -> None:
    if base_url is not None and not str(base_url).startswith(("http://", "https://")):
        raise UserError(f"--base_url {base_url}: expected an address such as http://host:8000")
