"""Run the same checkpoint through every peer and compare accuracy and latency.

    pytest bench/peers                                                 # builds what is missing, then measures both models
    pytest bench/peers -k "minilm and latency" --log-cli-level=INFO    # a part of it, with progress
    python bench/peers/docs_tables.py                                  # writes docs/peers.md from the results

Each peer runs in a process of its own environment, with the same threads, on the same token ids or the same texts. The parent process
blocks, and the peers are timed in alternation. A peer that cannot run gets a row with the reason. Results go to bench/peers/results.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.artifacts import ROOT, make_artifacts, user_cache
from bench.peers.base import Interface, Peer
from bench.peers.catalog import OURS, PEERS, REFERENCE, peers_of
from bench.peers.runs import AccuracyRow, AccuracyRun, LatencyRow, LatencyRun, about, round_medians, stamp, write_run
from bench.peers.workbench import LENGTHS, Bench
from optbench.errors import OptbenchError
from optbench.measure.accuracy import AccuracyResult, accuracy_change, measure_accuracy
from optbench.measure.fidelity import measure_fidelity
from optbench.measure.machine_state import check_machine_state
from optbench.tasks import RetrievalData
from optbench.tasks.beir import Beir
from optbench.tasks.retail import Retail

MODELS = ("minilm-l6", "gte-large")
# (rounds, processes per peer). Inductor takes half a minute to open a large model even from its cache, and a round takes seconds: so
# each peer of it has a single process, and the intervals do not include differences between processes.
PLAN = {"minilm-l6": (9, 3), "gte-large": (6, 1)}
RANDOM_QUERIES = 32
# A first run also installs the environments and quantizes a large model with every peer.
TIMEOUT_SECONDS = 3 * 3600

pytestmark = [
    pytest.mark.timeout(TIMEOUT_SECONDS),
    # Warnings of a peer's library are raised in its own process and are not errors here.
    pytest.mark.filterwarnings("default"),
]


@functools.cache
def bench(model: str) -> Bench:
    """One per session: a failed build is not tried twice."""
    cache = user_cache()
    return Bench(make_artifacts(model, cache), cache)


def tasks(model: str) -> list[RetrievalData]:
    """The retail task, and Chorus if the test data is there."""
    data = [Retail().load()]
    home = Path(os.environ.get("OPTBENCH_TEST_DATA", ROOT.parent / "shared" / "data")) / "chorus"
    if home.is_dir() and bench(model).made.weights == "real":
        data.append(Beir(path=home, text="title", ranking="judged", gain="exponential").load())
    return data


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: f"{peer.name}-{peer.interface}")
@pytest.mark.parametrize("model", MODELS)
def test_build(model: str, peer: Peer) -> None:
    """Export, quantize and run once. A failure is reported here and also becomes a row of the results."""
    reason = bench(model).build(peer).reason
    if reason is not None:
        pytest.xfail(reason)


@pytest.mark.parametrize("model", MODELS)
def test_accuracy(model: str) -> None:
    made = bench(model).made
    data = tasks(model)
    queries = [query for task in data for query in task.queries.values()]
    documents = [task.documents[name] for task in data for name in task.candidates]
    if made.weights == "random":
        queries, documents, data = queries[:RANDOM_QUERIES], [], []
    reference: NDArray[np.float32] | None = None
    base: list[AccuracyResult] = []
    rows = []
    for peer in PEERS:
        built = bench(model).build(peer)
        if built.reason is not None:
            rows.append(AccuracyRow.model_validate(about(peer, built)))
            continue
        try:
            vectors, index = bench(model).embed(peer, queries, documents)
        except (OptbenchError, RuntimeError) as error:
            rows.append(AccuracyRow.model_validate(about(peer, built) | {"reason": str(error).splitlines()[-1]}))
            continue
        reference = vectors if reference is None else reference
        results = judge(data, vectors, index)
        base = base or results
        rows.append(
            AccuracyRow.model_validate(
                about(peer, built)
                | {
                    "fidelity": measure_fidelity(reference, vectors),
                    "accuracy": results,
                    "change": {after.task: accuracy_change(before, after) for before, after in zip(base, results, strict=True)},
                }
            )
        )
    run = AccuracyRun.model_validate(
        {**stamp(), "model": model, "weights": made.weights, "threads": bench(model).threads, "warnings": (), "rows": rows}
    )
    write_run(run)
    assert [row.name for row in rows] == [peer.name for peer in PEERS]
    assert {row.name for row in rows if row.reason is None} >= {REFERENCE, OURS}


def judge(data: Sequence[RetrievalData], queries: NDArray[np.float32], documents: NDArray[np.float32]) -> list[AccuracyResult]:
    """The tasks' metrics from existing vectors."""
    found = []
    for task in data:
        n_queries, n_documents = len(task.queries), len(task.candidates)
        units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries[:n_queries], documents[:n_documents])]
        queries, documents = queries[n_queries:], documents[n_documents:]

        def refuse(texts: Sequence[str], side: str) -> NDArray[np.float32]:
            raise AssertionError(f"{len(texts)} texts to embed as {side}: all were embedded before")

        found.append(measure_accuracy(refuse, task, query_embeddings=units[0], document_embeddings=units[1]))
    return found


@pytest.mark.parametrize("interface", ["ids", "text"])
@pytest.mark.parametrize("model", MODELS)
def test_latency(model: str, interface: Interface) -> None:
    peers = peers_of(interface)
    rounds, processes = PLAN[model]
    for peer in peers:
        bench(model).build(peer)
    warnings = check_machine_state()
    times = bench(model).time(peers, rounds, processes)
    first = next(iter(times.values()))
    rows = []
    for peer in peers:
        row = about(peer, bench(model).build(peer))
        if peer.name in times:
            taken = times[peer.name]
            row |= {
                "round_medians_ns": round_medians(taken),
                "ms": {length: taken.typical_ms(length) for length in LENGTHS},
                "speedup": {length: taken.times_as_fast_as(first, length) for length in LENGTHS},
                "load_ms": taken.load_ms,
                "peak_rss_bytes": taken.memory.peak_rss_bytes,
                "unstable": taken.unstable,
            }
        rows.append(LatencyRow.model_validate(row))
    run = LatencyRun.model_validate(
        {
            **stamp(),
            "model": model,
            "weights": bench(model).made.weights,
            "threads": bench(model).threads,
            "warnings": warnings,
            "interface": interface,
            "rounds": rounds,
            "processes": processes,
            "rows": rows,
        }
    )
    write_run(run)
    assert [row.name for row in rows] == [peer.name for peer in peers]
    assert OURS in times
