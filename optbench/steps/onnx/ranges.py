"""The values of an ONNX graph's activations on calibration texts, and the 8-bit ranges that follow from them."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from optbench.artifact.folder import Artifact
from optbench.errors import StepError
from optbench.steps.calibration.samples import CalibrationInput

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

__all__ = ["ActivationScale", "ChannelExtremes", "Clipping", "activation_scale", "clipped_ranges", "observe_extremes", "open_observer"]

# ONNX Runtime's defaults are 2048 bins for percentiles and 128 for entropy; entropy gains from 2048 too.
HISTOGRAM_BINS = 2048
QUANTIZED_BINS = 128

Tick = Callable[[int], None]


@dataclass(frozen=True)
class ChannelExtremes:
    """The smallest and the largest value seen in each channel of an activation, both (channels,)."""

    lowest: NDArray[np.float32]
    highest: NDArray[np.float32]

    @property
    def magnitudes(self) -> NDArray[np.float32]:
        """The largest magnitude of each channel."""
        return np.maximum(self.highest, -self.lowest)


def open_observer(source: Artifact, model: "ir.Model", activations: Sequence["ir.Value"], threads: int) -> "onnxruntime.InferenceSession":
    """Open the float graph with inner activations as its outputs; external weights stay in the artifact's file."""
    import onnx_ir as ir
    import onnxruntime

    outputs = list(model.graph.outputs)
    try:
        model.graph.outputs[:] = activations
        content = ir.to_proto(model).SerializeToString()
    finally:
        model.graph.outputs[:] = outputs
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors are raised; the warnings are about the outputs added here
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(source.main_file.parent))
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has an exception class for each status code
        raise StepError(f"{source.main_file}: ONNX Runtime cannot open it: {error}; make the artifact again") from error


def _runs(session: "onnxruntime.InferenceSession", inputs: Sequence[CalibrationInput], tick: Tick) -> Iterator[list[NDArray[np.float32]]]:
    names = {entry.name for entry in session.get_inputs()}
    for done, entry in enumerate(inputs):
        yield session.run(None, {name: array for name, array in entry.items() if name in names})
        tick(done + 1)


def observe_extremes(session: "onnxruntime.InferenceSession", inputs: Sequence[CalibrationInput], tick: Tick) -> list[ChannelExtremes]:
    """Run the texts and record each channel's extremes; `tick` is called with the number of texts done."""
    extremes: list[ChannelExtremes] = []
    for activations in _runs(session, inputs, tick):
        rows = [activation.reshape(-1, activation.shape[-1]) for activation in activations]
        seen = [ChannelExtremes(row.min(axis=0), row.max(axis=0)) for row in rows]
        extremes = [
            ChannelExtremes(np.minimum(old.lowest, new.lowest), np.maximum(old.highest, new.highest))
            for old, new in zip(extremes or seen, seen, strict=True)
        ]
    return extremes


@dataclass(frozen=True)
class Clipping:
    """How rare extremes are left out of a range; method `percentile` keeps `percentile` percent of the values."""

    method: Literal["percentile", "entropy"]
    percentile: float
    symmetric: bool


def clipped_ranges(
    session: "onnxruntime.InferenceSession",
    inputs: Sequence[CalibrationInput],
    divisors: Sequence[NDArray[np.float32] | None],
    clipping: Clipping,
    tick: Tick,
) -> list[tuple[float, float]]:
    """Run the texts and find the bounds of each activation, without rare extremes.

    `divisors` are what the channels of each activation are divided by first; None for nothing.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(clipping.method, clipping.symmetric, HISTOGRAM_BINS, QUANTIZED_BINS, clipping.percentile, "same")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        for activations in _runs(session, inputs, tick):
            smoothed = [
                activation if divisor is None else activation / divisor for activation, divisor in zip(activations, divisors, strict=True)
            ]
            collector.collect(dict(enumerate(smoothed)))
        found = collector.compute_collection_result()
    return [(float(found[index][0]), float(found[index][1])) for index in range(len(divisors))]


@dataclass(frozen=True)
class ActivationScale:
    """uint8 parameters of an activation: a value is about `(stored - zero_point) * scale`."""

    scale: np.float32
    zero_point: np.uint8


def activation_scale(lowest: float, highest: float, *, symmetric: bool) -> ActivationScale:
    """The uint8 parameters of a range, which is widened to include 0: padding and zeros must stay exact.

    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 1; as onnxruntime/quantization/quant_utils.py, compute_scale_zp.
    """
    low, high = min(lowest, 0.0), max(highest, 0.0)
    if symmetric:
        low, high = min(low, -high), max(high, -low)
    scale = (high - low) / 255
    if scale < np.finfo(np.float32).tiny:
        return ActivationScale(np.float32(1), np.uint8(0))
    # The middle of 0..255 is between two steps; symmetric ranges take the upper one, as in ONNX Runtime.
    return ActivationScale(np.float32(scale), np.uint8(128 if symmetric else round(-low / scale)))
