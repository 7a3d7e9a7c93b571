"""The exception for unusable data, and notices. Each is one line: what was expected, what was found, what to do."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from datasets.exceptions import DatasetGenerationError


class DataError(ValueError):
    """The data cannot be used. The message is one line, in which a word of over 500 characters is cut."""

    def __init__(self, message: str):
        # A DataLoader makes the error of a worker anew, with all its traceback, which ends with the message.
        text = " ".join(message.rpartition("DataError: ")[2].split())
        super().__init__(re.sub(r"\S{500,}", lambda word: f"{word[0][:100]}...", text))


@contextmanager
def one_line(subject: str) -> Iterator[None]:
    """Convert any exception of the block into a DataError whose message begins with `subject`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        if isinstance(cause, DataError):
            raise cause from None
        raise DataError(f"{subject}: {type(cause).__name__}: {cause}") from error


def notice(message: str) -> None:
    """Print one line on stderr about data that are used, but not in all as they could be meant.

    Of several processes of one launch, the first prints it.
    """
    if os.environ.get("RANK", "0") == "0":
        print(" ".join(message.split()), file=sys.stderr)
