"""What the benches share: the machine, measured once a session, and the peers left out of a plain `pytest bench/`."""

from pathlib import Path

import pytest

from optbench.machine.floor import ProbeResult, probe

PEERS = Path(__file__).parent / "peers"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The peers take their own environments and half an hour: they run when they are named."""
    named = any(Path(argument.partition("::")[0]).absolute().is_relative_to(PEERS) for argument in config.args)
    return True if collection_path == PEERS and not named else None


@pytest.fixture(scope="session")
def probed() -> ProbeResult:
    """What `optbench probe` finds out of this machine: some ten seconds."""
    return probe()
