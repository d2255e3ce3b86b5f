"""The one exception that is meant for the user's eyes, and how its line is kept one line."""

LONGEST_WORD, LONGEST_LINE = 160, 1000  # characters


class UserError(Exception):
    """Something the user can put right: one line that says what was wrong, what was expected and what to type.

    The command lines print it on stderr and exit with status 2; a traceback is for defects only. Whatever a name or a
    file put into it, the line stays a line (``one_line``).
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """``text`` on one line, without what cannot be printed, and with an end: of long words the middle is left out.

    >>> one_line("a name\\nwith \\x1b[31mcolour")
    'a name with \\\\x1b[31mcolour'
    """
    words = [shortened(word if word.isprintable() else ascii(word)[1:-1], LONGEST_WORD) for word in text.split()]
    return shortened(" ".join(words), LONGEST_LINE)


def shortened(text: str, most: int) -> str:
    """Its beginning and its end, where it has more than ``most`` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 + 1 :]}"
