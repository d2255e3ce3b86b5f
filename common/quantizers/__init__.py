"""Quantization methods, one per file, and their registry. A new method is one file and one line here."""

from dataclasses import fields
from typing import Any

from common.errors import UserError
from common.flags import flags_of, read_options
from common.quantizers import alignq, apot, bwn, centroid, dorefa, llsq, lsq, uniform
from common.quantizers.scheme import Method, Scheme

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        alignq.METHOD,
        uniform.METHOD,
        dorefa.METHOD,
        bwn.METHOD_PER_LAYER,
        bwn.METHOD_PER_FILTER,
        lsq.METHOD,
        llsq.METHOD,
        apot.METHOD,
        centroid.METHOD,
    )
}


def make_scheme(method: str = "ours", **options: object) -> Scheme:
    """The Scheme of a method by name.

    Args:
        options: fields of Scheme, and the method's own options, which are read as if typed.
    Raises:
        UserError: an unknown method or option, a value that the option does not take, or a bit-width that the method
            does not define.
    """
    if method not in METHODS:
        raise UserError(f"--method {method}: expected one of {', '.join(METHODS)}")
    known, own = option_names(method)
    if unknown := [name for name in options if name not in known + own]:
        raise UserError(f"--method {method}: unknown option {unknown[0]}; expected some of {', '.join(known + own)}")
    shared: dict[str, Any] = {name: value for name, value in options.items() if name in known}
    others = {name: value for name, value in options.items() if name in own}
    read: Any = read_options(METHODS[method].options, others, f"--method {method}")
    return Scheme(METHODS[method], own=read, **shared)


def option_names(method: str) -> tuple[list[str], list[str]]:
    """The keywords of ``make_scheme`` for a method: those of every method, and its own."""
    common = [field.name for field in fields(Scheme) if field.name not in ("method", "own")]
    return common, list(flags_of(METHODS[method].options))


__all__ = ["METHODS", "Method", "Scheme", "make_scheme", "option_names"]
