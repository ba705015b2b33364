"""Fidelity over hostile texts: against the base and the artifact before, without the texts that the base has no vector for."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.measure.hostile import HostileFidelity
from optbench.tasks.hostile import hostile_kinds, hostile_texts

COUNT = 26
Encode = Callable[[Sequence[str], str], NDArray[np.float32]]


def encode(degrees: float, *, turned: str | None = None, none_of: str | None = None) -> Encode:
    """An encoder whose vectors are turned by `degrees`: of all texts or of one; it has no vector for `none_of`."""

    def vectors(texts: Sequence[str], role: str) -> NDArray[np.float32]:
        angles = np.radians([degrees if turned in (None, text) else 0.0 for text in texts])
        rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        rows[[text == none_of for text in texts]] = 0
        return rows

    return vectors


def test_each_artifact_is_compared_with_the_one_before_and_with_the_base() -> None:
    hostile = HostileFidelity(COUNT)
    assert hostile.compare(encode(0)) is None
    hostile.compare(encode(30))
    found = hostile.compare(encode(50))
    assert found is not None
    to_source, to_base = found
    assert to_source.minimum == pytest.approx(np.cos(np.radians(20)))
    assert to_base.minimum == pytest.approx(np.cos(np.radians(50)))
    assert to_base.n_texts == COUNT


def test_worst_text_is_described_by_its_kind_and_beginning() -> None:
    hostile, texts = HostileFidelity(COUNT), hostile_texts(COUNT, "test")
    hostile.compare(encode(0, none_of=texts[0]))
    found = hostile.compare(encode(60, turned=texts[12]))
    assert found is not None
    fidelity = found[0]
    assert fidelity.n_texts == COUNT - 1  # the base has no vector for the first
    assert fidelity.minimum == pytest.approx(0.5)
    assert fidelity.mean == pytest.approx((COUNT - 2 + 0.5) / (COUNT - 1))
    assert hostile.describe(fidelity.worst).startswith(f"{list(hostile_kinds('test'))[12]}, {texts[12][:10]!r}"[:-1])


def test_every_second_text_is_a_query() -> None:
    roles: dict[str, str] = {}

    def note(texts: Sequence[str], role: str) -> NDArray[np.float32]:
        roles.update(dict.fromkeys(texts, role))
        return np.ones((len(texts), 2), dtype=np.float32)

    hostile = HostileFidelity(COUNT)
    hostile.compare(note)
    assert [roles[text] for text in hostile.texts[:4]] == ["query", "document"] * 2


def test_without_texts_nothing_is_encoded() -> None:
    hostile = HostileFidelity(0)
    for _ in range(2):
        assert hostile.compare(lambda texts, role: pytest.fail("encoded")) is None
