"""The built-in retail task: small, synthetic, available without a download.

`bench/make_retail_task.py` generates products, queries and grades from a hand-written catalog; it rebuilds `data/retail.json` byte for
byte. The task distinguishes a working model from one that a step has damaged, with enough queries to judge a loss of 1 %. To know
how well a model serves a real shop, use that shop's own judgments (`task: beir`).
"""

import json
from importlib import resources
from typing import Any, Literal

from pydantic import Field

from optbench.tasks.base import BaseTask, CalibrationTexts, Ranking, RetrievalData, draw

__all__ = ["Retail"]


class Retail(BaseTask):
    """The built-in synthetic retail task."""

    task: Literal["retail"] = "retail"
    ranking: Ranking = Field(default="judged", description="Rank each query's judged products, the full catalog, or both.")

    @property
    def name(self) -> str:
        """`retail`."""
        return "retail"

    def load(self) -> RetrievalData:
        """Read English queries and product titles with grades 0 to 3.

        3: meets the query. 2: the right kind of product, meets one of two constraints. 1: meets neither, or is a substitute. 0: another
        kind of product, often from the same aisle or with words of the query in its title.
        """
        content = _read_data()
        queries = {f"q{number}": entry["text"] for number, entry in enumerate(content["queries"])}
        relevance = {
            f"q{number}": {f"p{product}": grade for grade, products in enumerate(entry["judged"]) for product in products}
            for number, entry in enumerate(content["queries"])
        }
        return RetrievalData(
            name=self.name,
            language="en",
            synthetic=True,
            queries=queries,
            documents={f"p{number}": title for number, title in enumerate(content["products"])},
            relevance=relevance,
            gain="exponential",
            ranking=self.ranking,
            relevant_from=2,
            attribution="synthetic, part of optbench, Apache-2.0",
        )

    def calibration_texts(self, n: int, seed: int = 0) -> CalibrationTexts:
        """Draw queries and titles of product types that are not in the test."""
        split = _read_data()["calibration"]
        queries, documents = draw(split["queries"], n, seed), draw(split["products"], n, seed)
        note = f"{len(queries)} queries and {len(documents)} titles of the retail task's calibration split (synthetic, other product types)"
        return CalibrationTexts(queries, documents, note)


def _read_data() -> Any:
    return json.loads(resources.files("optbench.tasks").joinpath("data/retail.json").read_text(encoding="utf-8"))
