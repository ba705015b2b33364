"""Run in a loader's own interpreter: execute the code of its model card and embed texts.

    python check.py REQUEST.json ANSWER.npz

It imports the standard library and numpy only: most of these interpreters do not have optbench. Texts go one at a time, because
dynamic int8 graphs give other vectors in other batches. The answer holds `plain` and `prompted`, each (texts, dimension) float32, and
`facts`, JSON: the library's version, nanoseconds to load and of each text.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def main() -> None:
    """Load, embed each text without and with the prompt, write the answer."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    start = time.perf_counter_ns()
    exec(request["load"], names)  # noqa: S102  # optbench's own code
    load_ns = time.perf_counter_ns() - start
    rows: dict[str, NDArray[np.float32]] = {}
    embed_ns = []
    for which in ("plain", "prompted"):
        code = compile(request[which], which, "exec")
        vectors = []
        for text in request["texts"]:
            names["text"] = text
            start = time.perf_counter_ns()
            exec(code, names)  # noqa: S102
            embed_ns.append(time.perf_counter_ns() - start)
            vectors.append(np.array(names["vectors"][0], dtype=np.float32))
        rows[which] = np.stack(vectors)
    facts = {"version": version(request["distribution"]), "load_ns": load_ns, "embed_ns": embed_ns}
    np.savez(sys.argv[2], facts=np.array(json.dumps(facts)), plain=rows["plain"], prompted=rows["prompted"])


if __name__ == "__main__":
    main()
