"""Start-up: how long `optbench check` of a recipe takes, against importing the libraries that it cannot do without.

    python bench/startup.py

Prints the median of interleaved runs and the ratios. `model` also defines one pydantic model, as any recipe must: `import pydantic`
alone has loaded none of the code behind it. Bytecode is compiled before the first timed run.
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 10
ROOT = Path(__file__).parent.parent
IMPORTS = "import pydantic, ruamel.yaml, typer, rich"
COMMANDS = {
    "imports": [sys.executable, "-c", IMPORTS],
    "model": [sys.executable, "-c", f"{IMPORTS}\nclass Model(pydantic.BaseModel): pass"],
    "check": [sys.executable, "-m", "optbench", "check", "recipes/arctic-l.yaml"],
}


def run(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a command."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    for command in COMMANDS.values():
        run(command)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, command in COMMANDS.items():
            samples[name].append(run(command))
    for column, label in enumerate(("wall", "CPU")):
        imports, model, check = (statistics.median(sample[column] for sample in samples[name]) * 1000 for name in COMMANDS)
        print(f"{label}: imports {imports:.0f} ms, model {model:.0f} ms, check {check:.0f} ms", end=": ")
        print(f"check is {check / imports:.2f} x imports, {check / model:.2f} x model")


if __name__ == "__main__":
    main()
