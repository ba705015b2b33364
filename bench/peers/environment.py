"""The environments that peers run in, pinned to the last dependency in requirements/, and kept in optbench's cache.

    python bench/peers/environment.py

Creates the missing ones and prints the path of each interpreter.
"""

from pathlib import Path

from bench.artifacts import user_cache
from optbench.loaders.environments import PinnedEnvironment, make_environment
from optbench.run.cache import Cache

__all__ = ["ENVIRONMENTS", "interpreter"]

REASONS = {
    "peers": "optimum-intel requires huggingface-hub before 1.22, which pip would then also give optbench",
    "sentence-transformers-onnx": "optimum-onnx, the ONNX backend of sentence-transformers, requires transformers before 4.58",
}


def _pins(name: str) -> tuple[str, ...]:
    lines = (Path(__file__).parent / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


ENVIRONMENTS = {name: PinnedEnvironment(name, _pins(name), reason) for name, reason in REASONS.items()}


def interpreter(name: str, cache: Cache) -> Path:
    """The Python of an environment, which is created if it does not exist.

    Raises:
        MachineError: pip cannot install it.
    """
    return make_environment(ENVIRONMENTS[name], cache.root / "environments")


def main() -> None:
    """Create all environments."""
    for name in ENVIRONMENTS:
        print(f"{name}: {interpreter(name, user_cache())}")


if __name__ == "__main__":
    main()
