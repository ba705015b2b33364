"""The callback through which long work reports progress, the same in every room."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "bar", "silent"]

Progress = Callable[[str, float | None], None]
"""Called with a phrase and the share done, 0 to 1; None where the share is unknown."""


def silent(message: str, share: float | None) -> None:
    """Report nothing."""


@contextmanager
def bar(message: str, total: int) -> Iterator[Progress]:
    """Show a progress bar on stderr, or in a notebook, that counts to `total`."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=message) as shown:

        def report(_: str, share: float | None) -> None:
            shown.update(round((share or 0.0) * total) - shown.n)

        yield report
