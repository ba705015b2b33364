"""Loaders for people: the code on the model card, and the table of their checks."""

from collections.abc import Sequence
from dataclasses import dataclass

from optbench.artifact.manifest import Kind
from optbench.loaders import LOADERS
from optbench.loaders.base import ExportedModel, PythonLoader, Query
from optbench.loaders.conformance import COSINE_MIN, LoaderRow
from optbench.record.record import Record
from optbench.report.table import Table

__all__ = ["Snippet", "loader_table", "snippets_of"]

TEXT = "running shoes"


@dataclass(frozen=True)
class Snippet:
    """How one library loads a folder: what pip installs, and code that sets `vectors`, (1, dimension), to the embedding of one query."""

    name: str
    install: str
    code: str


def snippets_of(record: Record, folder: str) -> list[Snippet]:
    """The code that loads a record's final artifact from `folder`, for optbench and for each library that can."""
    base, kind = record.recipe.base, record.final.kind
    precision = record.final.engine.get("inference_precision") if kind is Kind.OPENVINO else "f32"
    model = ExportedModel(
        name=record.recipe.name,
        folder=folder,
        kind=kind,
        prompt=base.prompts.query,
        pooling=base.pooling,
        normalize=base.normalize,
        dimension=base.body.hidden,
        max_tokens=base.max_tokens,
        precision=str(precision) if precision else None,
        truncate_dim=base.dimension,
        default_prompt=base.default_prompt is not None,
    )
    query = Query(f'"{TEXT}"', repr(model.prompt + TEXT), has_prompt=bool(model.prompt))
    own = f'import optbench\n\nencoder = optbench.load({folder!r})\nvectors = encoder.encode(["{TEXT}"], prompt="query")'
    return [
        Snippet("optbench", "optbench", own),
        *(
            Snippet(loader.title, " ".join(loader.packages), "\n".join([*loader.load(model), *loader.embed(model, query)]))
            for loader in LOADERS
            if isinstance(loader, PythonLoader) and kind in loader.on_card
        ),
    ]


def loader_table(rows: Sequence[LoaderRow]) -> Table | None:
    """One row per loader; None if there are no rows."""
    if not rows:
        return None
    cells = [
        [
            row.loader,
            row.version or "",
            str(row.status),
            "" if row.cosine is None else f"{row.cosine:.6f}",
            "" if row.prompted is None else f"{row.prompted:.6f}",
            "" if row.load_ms is None else f"{row.load_ms:.0f}",
            "" if row.embed_ms is None else f"{row.embed_ms:.1f}",
            row.note,
        ]
        for row in rows
    ]
    note = (
        f"cosine: to the artifact's vectors (each text alone), the worst; then with the query prompt; at least {COSINE_MIN} expected. "
        "The times are rough: use optbench measure for exact ones."
    )
    return Table("Loaders", ["loader", "version", "status", "cosine", "prompted", "load ms", "text ms", "note"], cells, note)
