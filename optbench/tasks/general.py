"""General-domain texts to calibrate on beside a task's own: 2,000 glosses, examples and questions from WordNet 3.0.

`bench/make_general_texts.py` writes `data/general.txt`; `data/general.LICENSE` is WordNet's license.
"""

from importlib import resources

from optbench.tasks.base import draw

__all__ = ["general_texts"]


def general_texts(n: int, seed: int = 0) -> tuple[str, ...]:
    """Draw at most `n` of the texts; the same seed draws the same texts on any machine."""
    content = resources.files("optbench.tasks").joinpath("data/general.txt").read_text(encoding="utf-8")
    return draw(content.splitlines(), n, seed)
