"""What a loader is: the code that loads an exported folder in one library, or the rules of a server that loads it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from optbench.artifact.manifest import Kind
from optbench.loaders.environments import PinnedEnvironment

__all__ = ["ExportedModel", "Loader", "PythonLoader", "Query", "RulesLoader", "load_tokenizer", "tokenize"]


@dataclass(frozen=True)
class ExportedModel:
    """What the code of a loader depends on.

    Attributes:
        kind: the format of the graph to load.
        prompt: the text before a query; empty for none.
        pooling: `mean` or `cls`.
        truncate_dim: leading components that are kept after normalization; None for all.
        default_prompt: whether the model has a prompt that sentence-transformers prepends where none is named.
        precision: the precision that it was measured in, as OpenVINO names it; None for OpenVINO's default.
    """

    name: str
    folder: str
    kind: Kind
    prompt: str
    pooling: str
    normalize: bool
    dimension: int
    max_tokens: int
    precision: str | None
    truncate_dim: int | None = None
    default_prompt: bool = False

    @property
    def truncation(self) -> str:
        """What follows an array of whole vectors in Python to truncate it; empty for nothing."""
        return f"[:, :{self.truncate_dim}]" if self.truncate_dim else ""

    @property
    def openvino_options(self) -> dict[str, str]:
        """What an IR cannot say itself: OpenVINO's default precision is bf16 where the CPU has it."""
        return {"INFERENCE_PRECISION_HINT": self.precision} if self.precision else {}


@dataclass(frozen=True)
class Query:
    """One query as Python expressions: the text alone, and after the model's query prompt, for libraries without prompts."""

    text: str
    prompted: str
    has_prompt: bool


@dataclass(frozen=True)
class PythonLoader:
    """A Python library. The model card shows its code, and `conformance` runs the same code.

    Attributes:
        distribution: the package whose version is reported.
        packages: what the code imports, as pip takes it.
        reads: formats that it loads, the preferred one first.
        on_card: kinds of artifacts whose card shows it.
        runtime: the engine of optbench that its vectors are compared with.
        embed: lines that set `vectors`, (1, dimension), to the embedding of one query.
        environment: where it runs; None for this Python.
        extra: optbench's extra that installs it, where it runs in this Python and optbench itself does not require it.
        files: files that it reads and that an artifact may lack.
    """

    name: str
    title: str
    distribution: str
    packages: tuple[str, ...]
    reads: tuple[Kind, ...]
    on_card: tuple[Kind, ...]
    runtime: Literal["onnxruntime", "openvino"]
    load: Callable[[ExportedModel], list[str]]
    embed: Callable[[ExportedModel, Query], list[str]]
    environment: PinnedEnvironment | None = None
    extra: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class RulesLoader:
    """A server that is not run here: `problems` gives one sentence for each of its rules that a folder breaks."""

    name: str
    reads: tuple[Kind, ...]
    problems: Callable[[Path], list[str]]


Loader: TypeAlias = PythonLoader | RulesLoader


def load_tokenizer(model: ExportedModel) -> list[str]:
    """Lines that load the tokenizer, for runtimes that have none."""
    return [
        f"tokenizer = Tokenizer.from_file({model.folder + '/tokenizer.json'!r})",
        f"tokenizer.enable_truncation({model.max_tokens})",
        "tokenizer.no_padding()",
    ]


def tokenize(query: Query) -> list[str]:
    """Lines that set `inputs` to the token ids and mask of one query."""
    return [
        f"encoded = tokenizer.encode({query.prompted})",
        'inputs = {"input_ids": np.array([encoded.ids]), "attention_mask": np.array([encoded.attention_mask])}',
    ]
