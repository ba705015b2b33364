"""A corpus larger than memory: what is held does not grow with it. bench/studies/stream_corpus.py shows a million documents."""

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from optbench.measure import accuracy
from optbench.measure.accuracy import measure_accuracy
from optbench.run.measure import TaskTexts
from optbench.tasks import RetrievalData

DOCUMENTS, DIMENSION, WINDOW = 40_000, 64, 1_000


class Corpus(Mapping[str, str]):
    """Documents that are made when they are read, as those of a file are; counts how often."""

    def __init__(self) -> None:
        self.names = [f"d{number}" for number in range(DOCUMENTS)]
        self.read = 0

    def __getitem__(self, name: str) -> str:
        self.read += 1
        return f"text of {name}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def embed(texts: Sequence[str], side: str) -> NDArray[np.float32]:
    """A vector that the text's number decides."""
    numbers = np.array([int(text.rpartition("d")[2]) for text in texts])
    vectors: NDArray[np.float32] = np.cos(numbers[:, np.newaxis] * (1 + np.arange(DIMENSION)) * 0.1).astype(np.float32)
    return vectors


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> RetrievalData:
    monkeypatch.setattr(accuracy, "WINDOW", WINDOW)
    corpus = Corpus()
    return RetrievalData("large", "en", {"q": "query d7"}, corpus, {"q": {"d7": 1}})


def test_memory_is_that_of_a_few_windows_and_not_of_the_corpus(data: RetrievalData) -> None:
    measure_accuracy(embed, data, base=embed)  # what is loaded once does not count
    tracemalloc.start()
    result = measure_accuracy(embed, data, base=embed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.mean("R@10") == 1.0
    # All vectors would be 10 MB. A window is 0.26 MB, and some copies of it and its texts are alive at once.
    assert peak < 10 * WINDOW * DIMENSION * 4


def test_sampled_texts_read_no_other_document(data: RetrievalData) -> None:
    texts = TaskTexts.sample([data], 9)
    assert texts.queries == ["query d7"]
    assert texts.documents == [f"text of d{number * DOCUMENTS // 8}" for number in range(8)]
    assert isinstance(data.documents, Corpus)
    assert data.documents.read == 8
