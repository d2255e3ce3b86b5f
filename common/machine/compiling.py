"""torch.compile, where its compiler is missing or fails: one line instead of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import UserError


@contextmanager
def compiler_faults(remedy: str) -> Iterator[None]:
    """Within it, what torch.compile's backend cannot do becomes a UserError that ends in ``remedy``.

    On a CPU it needs a C++ compiler (g++ or clang++, or the one that CXX names) and Python's headers, on CUDA Triton.
    """
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed  # importing it takes a second, which few need

        if not isinstance(error, BackendCompilerFailed):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"torch.compile failed: {reason}; {remedy}") from error
