import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from optbench.errors import MeasureError
from optbench.measure.fidelity import cosines, measure_fidelity


def test_equal_vectors_have_cosine_one_at_any_length() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 16))
    fidelity = measure_fidelity(vectors, 7 * vectors)
    # 16 products and sums in float64.
    assert fidelity.minimum == pytest.approx(1, abs=1e-14)
    assert (fidelity.n_texts, fidelity.n_broken) == (50, 0)


def test_worst_text_is_named_and_counts_in_the_first_percentile() -> None:
    reference = np.tile([1.0, 0.0], (101, 1))
    candidate = reference.copy()
    candidate[37] = [0.6, 0.8]
    fidelity = measure_fidelity(reference, candidate)
    assert fidelity.worst == 37
    assert fidelity.minimum == pytest.approx(0.6)
    assert fidelity.mean == pytest.approx((100 + 0.6) / 101)
    assert fidelity.p01 == pytest.approx(1)  # of 101 values the second smallest


@pytest.mark.parametrize(("bad", "cosine"), [(np.nan, -1.0), (np.inf, -1.0), (0.0, 0.0)])
def test_broken_row_counts_as_the_worst_it_could_be(bad: float, cosine: float) -> None:
    reference = np.eye(3)
    candidate = reference.copy()
    candidate[1] = bad
    fidelity = measure_fidelity(reference, candidate)
    assert (fidelity.minimum, fidelity.worst, fidelity.n_broken) == (cosine, 1, 1)


def test_broken_reference_is_an_error() -> None:
    with pytest.raises(MeasureError, match="the reference is NaN, infinite or zero for 1 of 2 texts, first text 1"):
        measure_fidelity([[1.0, 0.0], [np.nan, 0.0]], [[1.0, 0.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("reference", "candidate"), [(np.ones((2, 3)), np.ones((2, 4))), (np.ones((0, 3)), np.ones((0, 3))), ([1.0], [1.0])]
)
def test_vectors_of_other_texts_are_refused(reference: object, candidate: object) -> None:
    with pytest.raises(MeasureError, match="fidelity: reference has shape"):
        measure_fidelity(reference, candidate)  # type: ignore[arg-type]  # nested lists are array-like


def test_four_nines_stay_apart_from_one_in_float32_vectors() -> None:
    candidate = np.array([[0.99999, (1 - 0.99999**2) ** 0.5]], dtype=np.float32)
    # float32 holds 0.99999 to 3e-8.
    assert measure_fidelity(np.array([[1, 0]], dtype=np.float32), candidate).mean == pytest.approx(0.99999, abs=1e-7)


@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
def test_any_candidate_gives_cosines_within_range(candidate: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    values = cosines(np.eye(3, 4) + 0.1, candidate)
    assert np.isfinite(values).all()
    assert (np.abs(values) <= 1).all()
