"""Compress the embedding tables of an OpenVINO graph to int8 or float16: for memory, not for speed.

OpenVINO copies a float32 table to memory when it compiles a graph, and maps a float16 or int8 one from the file, so that only the
rows in use are in memory. A table of 250,002 x 1024, 32 lookups (OpenVINO 2026.4):

    form    file       memory once compiled    lookup
    fp32    1,024 MB   1,006 MB                33 us
    fp16      512 MB      29 MB                36 us
    int8      257 MB      30 MB                33 us
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from optbench.artifact.folder import Artifact, copy_companions
from optbench.artifact.manifest import Kind
from optbench.errors import StepError
from optbench.machine.disk import free_disk
from optbench.steps.base import BaseStep, Refusal, StepContext, StepReport
from optbench.steps.patterns import match_names

if TYPE_CHECKING:
    from optbench.steps.openvino.tables import EmbeddingTable

__all__ = ["CompressTables"]


class CompressTables(BaseStep):
    """Store the embedding tables of an OpenVINO graph as int8, each row with its own scale, or as float16."""

    takes: ClassVar[frozenset[Kind]] = frozenset({Kind.OPENVINO})
    gives: ClassVar[Kind] = Kind.OPENVINO
    version: ClassVar[int] = 1
    libraries: ClassVar[tuple[str, ...]] = ("openvino", "numpy")

    step: Literal["compress_tables"] = "compress_tables"
    tables: Literal["int8_asym", "int8_sym", "fp16"] = Field(
        default="int8_asym", description="How tables are stored; int8_asym has a zero point per row."
    )
    min_bytes: int = Field(default=1_000_000, ge=0, description="Leave smaller tables (token types, short position tables) unchanged.")
    exclude: tuple[str, ...] = Field(default=(), description="Patterns (*, ?) on table names to leave alone: `*position_embeddings*`.")
    expect: int = Field(default=1, ge=1, description="Least number of compressed tables.")

    def run(self, source: Artifact, out: Path, context: StepContext) -> StepReport:
        """Compress `source` to `out/openvino/openvino_model.xml` and `.bin`."""
        from optbench.steps.openvino.graph import read_graph, save_graph
        from optbench.steps.openvino.tables import find_tables, replace_table

        free_disk(out, source.size_bytes, "the model with compressed tables")
        context.progress("reading the graph", None)
        model = read_graph(source)
        tables, refused = find_tables(model)
        hits = match_names([(table.name,) for table in tables], self.exclude, "compress_tables exclude")
        chosen: list[EmbeddingTable] = []
        for table, hit in zip(tables, hits, strict=True):
            reason = self._reason_to_leave(table, excluded=hit)
            if reason is None:
                chosen.append(table)
            else:
                refused.append(Refusal(rule="embedding_table", node=table.name, reason=reason))
        if len(chosen) < self.expect:
            reasons = "; ".join(f"{refusal.node}: {refusal.reason}" for refusal in refused) or "the graph has no lookup in a constant"
            raise StepError(
                f"{source.main_file}: compress_tables finds {len(chosen)} tables to compress, {self.expect} are expected. "
                f"Left alone: {reasons}. Lower min_bytes, or remove the step"
            )
        before = after = 0
        for number, table in enumerate(chosen):
            context.progress(f"compressing {table.name}", number / len(chosen))
            before += table.size_bytes
            after += replace_table(table, self.tables)
        context.progress("writing the graph", None)
        save_graph(model, out)
        copy_companions(source.path, out)
        return StepReport(
            matched={self.tables: len(chosen)}, refused=tuple(refused), facts={"table_bytes": after, "source_table_bytes": before}
        )

    def _reason_to_leave(self, table: EmbeddingTable, *, excluded: bool) -> str | None:
        if excluded:
            return "exclude names it"
        if table.size_bytes < self.min_bytes:
            return f"it has {table.size_bytes} bytes, less than min_bytes"
        if self.tables == "fp16" and table.constant.get_element_type().get_type_name() == "f16":
            return "it is f16 already"
        return None
