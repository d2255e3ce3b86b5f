"""--help of a tool, by fire: from its docstring and the signature of its function."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from common.flags import listed

Tool = Callable[..., object]


def show_help(tool: Any, *words: str) -> None:
    """What fire makes of signatures and docstrings."""
    try:
        import fire
    except ImportError:
        return print(inspect.getdoc(tool))
    return fire.Fire(tool, command=[*words, "--", "--help"])


def described(tool: Tool) -> Tool:
    """The tool with annotations as --help shows them."""
    hints = get_type_hints(tool)

    @functools.wraps(tool)
    def stand_in(*words: Any, **flags: Any) -> None: ...

    signature = inspect.signature(tool)
    parameters = [
        p.replace(annotation=SimpleNamespace(__qualname__=_type(hints[p.name])), default=_typed(p.default))
        for p in signature.parameters.values()
    ]
    stand_in.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return stand_in


def _typed(default: Any) -> Any:
    """A default as it would be typed."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or None
    return str(default) if isinstance(default, Path) else default


def _type(hint: Any) -> str:
    arguments = [one for one in get_args(hint) if one is not NoneType]
    if get_origin(hint) is Literal:
        return listed(arguments)
    if get_origin(hint) in (tuple, list):
        return f"{_type(arguments[0])},{_type(arguments[0])},..."
    return _type(arguments[0]) if get_origin(hint) in (Union, UnionType) else hint.__qualname__
