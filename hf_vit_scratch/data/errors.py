"""The error of data that cannot be used: one line that says what was expected, what came, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from datasets.exceptions import DatasetGenerationError


class DataError(ValueError):
    """The data cannot be used as it is. The message is one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


@contextmanager
def one_line(subject: str) -> Iterator[None]:
    """Turn whatever a library raises inside the block into a DataError that begins with `subject`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        if isinstance(cause, DataError):
            raise cause from None
        raise DataError(f"{subject}: {type(cause).__name__}: {cause}") from error
