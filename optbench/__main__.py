"""The `optbench` command, which is also `python -m optbench`."""

import gc

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with its status."""
    # Start-up allocates many objects and frees few: looking for garbage after each 700 takes 5 % of its time.
    gc.set_threshold(50_000)
    from optbench.cli import main as run

    run()


if __name__ == "__main__":
    main()
