"""Registries: the kinds of entry that a recipe selects by name, each imported when it is first selected."""

from collections.abc import Iterator, Mapping
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import PydanticKnownError, core_schema

from optbench.machine.frozen import Frozen

__all__ = ["Registry"]

Entry = TypeVar("Entry", bound=Frozen)


class Registry(Generic[Entry]):
    """A union of models of which a key's value selects one, as `step: fuse_graph` selects `FuseGraph`.

    `Annotated[BaseStep, STEPS]` validates what pydantic's union with a discriminator would, with the same errors, but loads only the
    selected class: a recipe of four steps does not pay for twelve. The location of an error does not contain the name.
    """

    def __init__(self, key: str, room: str, entries: Mapping[str, str]) -> None:
        """Register the classes of a room.

        Args:
            key: the key whose value selects the entry, such as `step`.
            room: the package that holds the entries' modules.
            entries: each entry's name, which is its module's too, and its class.
        """
        self.key, self._room, self._entries = key, room, entries

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._entries)

    def get(self, name: str) -> type[Entry]:
        """The class that a name selects; KeyError if it selects none."""
        entry: type[Entry] = getattr(import_module(f"{self._room}.{name}"), self._entries[name])
        return entry

    def selected(self, data: Any) -> type[Entry] | None:
        """The class that an entry's data selects; None if it selects none."""
        name = data.get(self.key) if isinstance(data, Mapping) else None
        return self.get(name) if isinstance(name, str) and name in self._entries else None

    def all(self) -> tuple[type[Entry], ...]:
        """Every class, in the order of the registry."""
        return tuple(self.get(name) for name in self)

    def validate(self, value: Any) -> Entry:
        """Read an entry: an object of one of the classes, or the data of one.

        Raises:
            pydantic.ValidationError: the options of the selected class are invalid.
            PydanticKnownError: the data selects no class.
        """
        if isinstance(value, Frozen) and getattr(value, self.key, None) in self._entries:
            entry: Any = value
            return entry  # type: ignore[no-any-return]
        if not isinstance(value, Mapping):
            raise PydanticKnownError("model_attributes_type")
        if self.key not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": repr(self.key)})
        selected = self.selected(value)
        if selected is None:
            found = {"tag": str(value[self.key]), "expected_tags": ", ".join(repr(name) for name in self)}
            raise PydanticKnownError("union_tag_invalid", {"discriminator": repr(self.key), **found})
        return selected.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validate with `validate`; an entry serializes as its own class does."""
        return core_schema.no_info_plain_validator_function(self.validate)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The JSON schema of the union."""
        union: Any = Annotated[reduce(or_, self.all()), Field(discriminator=self.key)]
        return handler(TypeAdapter(union).core_schema)
