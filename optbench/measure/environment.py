"""Environment."""


def check_environment() -> tuple[str, ...]:
    """Warnings."""
    return ()
