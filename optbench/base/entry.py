"""The recipe's `base:` entry."""

from pydantic import Field, field_validator, model_validator

from optbench.base.license import SPDX
from optbench.base.source import HubSource, check_revision, parse_source
from optbench.machine.frozen import Frozen
from optbench.model.body import Body
from optbench.model.checkpoint import Description, Pooling, Prompts
from optbench.model.settings import Similarity

__all__ = ["Base"]


class Base(Frozen):
    """The recipe's `base:` entry: where the model is, and what it must be."""

    source: str = Field(description="hub:ORG/NAME, path:DIR, package:DISTRIBUTION, package:DISTRIBUTION/SUBDIR, or random.")
    revision: str | None = Field(default=None, description="hub only: a commit (40 digits); a branch, tag or short hash is put on record.")
    license: str = Field(pattern=SPDX, description="SPDX identifier or expression.")
    body: Body = Field(description="The transformer's shape, as its config.json has it.")
    pooling: Pooling = Field(description="How token vectors become one: their mean, or the first token's.")
    normalize: bool = Field(description="Whether embeddings are scaled to length 1.")
    prompts: Prompts = Field(default=Prompts(), description="Text put before a query and before a document.")
    max_tokens: int = Field(ge=1, description="The longest input in tokens, special tokens included.")
    dimension: int | None = Field(
        default=None,
        ge=1,
        exclude_if=lambda value: value is None,
        description="Leading components that are kept, after normalization; for models trained for it (sentence-transformers' "
        "truncate_dim). Default: all.",
    )
    similarity: Similarity = Field(
        default="cosine",
        exclude_if=lambda value: value == "cosine",
        description="How two embeddings are compared: what the model was trained for. Accuracy is measured with it.",
    )
    default_prompt: str | None = Field(
        default=None,
        exclude_if=lambda value: value is None,
        description="The name of the prompt that is prepended where a caller names none: query, document, or a name of the model's own.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Of random weights.")

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: str) -> str:
        parse_source(source)
        return source

    @field_validator("revision")
    @classmethod
    def _check_revision(cls, revision: str | None) -> str | None:
        return revision if revision is None else check_revision(revision)

    @model_validator(mode="after")
    def _check_whole(self) -> "Base":
        source = parse_source(self.source)
        if self.revision is not None:
            if not isinstance(source, HubSource):
                raise ValueError(f"revision: {self.source} has none; leave it out")
            if source.revision not in (None, self.revision):
                raise ValueError(f"revision: {self.revision!r}, but the source says {source.revision!r}; write it once")
        body = self.body
        if self.dimension is not None and self.dimension >= body.hidden:
            raise ValueError(
                f"dimension: {self.dimension}, but the body's embeddings have {body.hidden} components; leave it out to keep all"
            )
        if body.hidden % body.heads:
            raise ValueError(f"body: hidden {body.hidden} is not a multiple of heads {body.heads}; take both from the model's config.json")
        if body.pad_id >= body.vocabulary:
            raise ValueError(
                f"body: pad_id {body.pad_id} is not below vocabulary {body.vocabulary}; take both from the model's config.json"
            )
        if self.max_tokens > (limit := body.position_limit):
            raise ValueError(f"max_tokens: {self.max_tokens}, but the body's position table has room for {limit}; write at most {limit}")
        return self

    @property
    def description(self) -> Description:
        """What the checkpoint must say of itself."""
        return Description.model_validate({name: getattr(self, name) for name in Description.model_fields})
