"""Quantization methods, one per file, and their registry. A new method is one file and one line here."""

from common.errors import UserError
from common.quantizers import alignq, apot, bwn, dorefa, llsq, lsq, uniform
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
    )
}


def make_scheme(method: str = "ours", **options: object) -> Scheme:
    """The Scheme of a method by name; ``options`` are Scheme's fields.

    Raises:
        UserError: an unknown method, or a bit-width it does not define.
    """
    if method not in METHODS:
        raise UserError(f"--method {method}: expected one of {', '.join(METHODS)}")
    return Scheme(METHODS[method], **options)  # type: ignore[arg-type]


__all__ = ["METHODS", "Method", "Scheme", "make_scheme"]
