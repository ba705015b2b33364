"""optbench: the CPU latency-optimization and quantization workbench for text-embedding encoders.

    import optbench

    encoder = optbench.load("exported/minilm-l6")
    vectors = encoder.encode(["running shoes", "usb-c cable"], prompt="query")  # (2, dimension) float32

`load`, `Encoder` and `AsyncEncoder` are what a service imports: numpy, tokenizers and the engine, no torch. `apply` runs a recipe as
`optbench apply` does; `Recipe` is what `load_recipe` reads.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optbench.encoder import AsyncEncoder, Encoder, load
    from optbench.recipe.load import load_recipe
    from optbench.recipe.schema import Recipe
    from optbench.run.apply import Applied
    from optbench.run.listener import Listener
    from optbench.run.plan import Options

# `import openvino` and nncf send usage events over the network through this module, and do without where it is missing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = "0.1.0"
__all__ = ["AsyncEncoder", "Encoder", "Options", "Recipe", "apply", "load", "load_recipe"]

_HOMES = {
    "AsyncEncoder": "encoder",
    "Encoder": "encoder",
    "load": "encoder",
    "Recipe": "recipe.schema",
    "load_recipe": "recipe.load",
    "Options": "run.plan",
}


def apply(recipe: "Recipe", options: "Options", listener: "Listener | None" = None) -> "Applied":
    """Run a recipe as `optbench apply` does: steps, measurements, record, verdict, exported folder. The listener is told of every stage.

    Raises:
        OptbenchError: names the step that failed; the next run finds in the cache what had finished.
    """
    from optbench.report.card import render_card
    from optbench.run.apply import apply as run_recipe

    return run_recipe(recipe, options, render_card, listener)


def __getattr__(name: str) -> Any:
    """Import each public name when it is first asked for: a service that loads an encoder pays for no recipe."""
    if name not in _HOMES:
        raise AttributeError(f"module 'optbench' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"optbench.{_HOMES[name]}"), name)
