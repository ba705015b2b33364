"""Shared by the benchmarks: the machine's peaks, measured once per session. A plain `pytest bench/` skips the peers."""

from pathlib import Path

import pytest

from optbench.machine.floor import ProbeResult, probe

PEERS = Path(__file__).parent / "peers"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect the peers only if named: they need their own environments and half an hour."""
    named = any(Path(argument.partition("::")[0]).absolute().is_relative_to(PEERS) for argument in config.args)
    return True if collection_path == PEERS and not named else None


@pytest.fixture(scope="session")
def probed() -> ProbeResult:
    """The result of `optbench probe`, which takes about ten seconds."""
    return probe()
