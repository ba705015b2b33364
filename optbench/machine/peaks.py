"""A machine's peak read bandwidth and matrix products, measured in a fresh process.

All threads run at once, each on its own data: none waits for a slower one, as within a shared product, so a busy machine disturbs the
figures least. A round takes a few milliseconds, less than a scheduler's time slice, and the best round counts: a floor needs what the
machine can do.
"""

import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from statistics import median
from threading import Barrier, Thread
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from optbench.errors import MachineError
from optbench.machine.cpu import read_machine, usable_threads
from optbench.machine.frozen import Frozen
from optbench.machine.progress import Progress, silent
from optbench.machine.worker import Worker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Arithmetic", "Peaks", "last_level_cache_bytes", "measure_peaks"]

logger = logging.getLogger(__name__)

Arithmetic = Literal["fp32", "bf16", "int8"]
Kernel = Callable[[], object]

# Large enough that the last-level cache holds little of it, small enough for any machine that holds a model.
READ_BUFFERS_OF_CACHE = 16
READ_BYTES_MIN, READ_BYTES_MAX = 256 * 2**20, 2**30
# One round of reads: a millisecond or two.
ROUND_BYTES, READ_SECTIONS = 128 * 2**20, 8
# (rows per thread, inputs, outputs): the projections of a body of hidden size 1024, with enough rows to be bound by arithmetic.
SHAPES = ((256, 1024, 1024), (256, 1024, 4096))
READ_SECONDS, GEMM_SECONDS = 1.0, 1.0
ROUNDS_MIN = 5


class Peaks(Frozen):
    """Measured peaks.

    Attributes:
        read_gb_per_s: streaming read of memory by all threads, 1e9 bytes per second.
        cache_bytes: the last-level caches that this process's cores share; 0 where unknown.
        cache_read_gb_per_s: the same with a buffer of half that size; None where the size is unknown.
        gemm_tops: matrix products by arithmetic, 1e12 operations per second, where a multiply-add counts as two; int8 is uint8 by int8 or
            int8 by int8 into int32. bf16 only where the CPU has it.
        kernels: by figure, the reader or the library's product that was fastest.
        medians: by figure, the median round; far below the peak on a busy machine.
    """

    threads: int = Field(ge=1)
    read_gb_per_s: float = Field(gt=0)
    cache_bytes: int = Field(default=0, ge=0)
    cache_read_gb_per_s: float | None = Field(default=None, gt=0)
    gemm_tops: dict[Arithmetic, float]
    kernels: dict[str, str] = Field(default_factory=dict)
    medians: dict[str, float] = Field(default_factory=dict)


def measure_peaks(threads: int | None = None, progress: Progress = silent) -> Peaks:
    """Measure the peaks in a fresh process, in about ten seconds on a quiet machine; with `usable_threads()` by default.

    Raises:
        MachineError: the process was killed, or there is too little free memory.
    """
    # One thread per library: the threads are started here.
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with Worker(serve_peaks, {"threads": threads or usable_threads()}, one) as worker:
        return Peaks.model_validate(worker.request({}, progress))


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int:
    """The total size of the last-level caches of this process's cores; 0 where the kernel does not say."""
    caches: dict[str, tuple[int, int]] = {}
    for cpu in os.sched_getaffinity(0):
        for folder in (root / f"cpu{cpu}" / "cache").glob("index*"):
            try:
                if (folder / "type").read_text().strip() == "Instruction":
                    continue
                level, size = int((folder / "level").read_text()), (folder / "size").read_text().strip()
                shared = f"{level}: {(folder / 'shared_cpu_list').read_text().strip()}"
                caches[shared] = (level, int(size.removesuffix("K")) * 1024)
            except (OSError, ValueError):
                continue
    last = max((level for level, _ in caches.values()), default=0)
    return sum(size for level, size in caches.values() if level == last)


def serve_peaks(payload: dict[str, Any], progress: Progress) -> Iterator[Any]:
    """The child's side of `measure_peaks`."""
    yield
    threads = int(payload["threads"])
    cache = last_level_cache_bytes()
    kernels: dict[str, str] = {}
    medians: dict[str, float] = {}

    def best(figure: str, candidates: dict[str, tuple[list[Kernel], int]], seconds: float) -> float:
        """The best rate among candidates, in work per second; each maps a name to one kernel per thread and their work."""
        found: dict[str, tuple[float, float]] = {}
        for name, (each, work) in candidates.items():
            taken = time_rounds(each, seconds)
            found[name] = work / min(taken), work / median(taken)
        kernels[figure] = max(found, key=lambda name: found[name][0])
        peak, medians[figure] = found[kernels[figure]]
        return peak

    progress("reading memory", 0.0)
    size = min(max(READ_BUFFERS_OF_CACHE * cache, READ_BYTES_MIN), READ_BYTES_MAX)
    read = best("read_gb_per_s", _readers(size, READ_SECTIONS, threads), READ_SECONDS) / 1e9
    progress("reading the cache", 0.1)
    cache_read = best("cache_read_gb_per_s", _readers(cache // 2, 1, threads), READ_SECONDS / 2) / 1e9 if cache else None
    tops: dict[str, float] = {}
    arithmetics = ["fp32", "int8", *(["bf16"] if read_machine().has_bf16 else [])]
    for index, arithmetic in enumerate(arithmetics):
        progress(f"multiplying {arithmetic} matrices", 0.2 + 0.8 * index / len(arithmetics))
        tops[arithmetic] = best(arithmetic, _products(arithmetic, threads), GEMM_SECONDS) / 1e12
    yield {
        "threads": threads,
        "read_gb_per_s": read,
        "cache_bytes": cache,
        "cache_read_gb_per_s": cache_read,
        "gemm_tops": tops,
        "kernels": kernels,
        "medians": {figure: rate / (1e9 if figure.endswith("gb_per_s") else 1e12) for figure, rate in medians.items()},
    }


def time_rounds(kernels: list[Kernel], seconds: float, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Run the kernels at once, each in its own thread, round after round, for some seconds and at least ROUNDS_MIN rounds.

    Each kernel releases the GIL while it works.

    Returns:
        seconds of each round, from the first kernel's start to the last one's end. The first round, which touches the memory and builds
        the kernels, is left out.
    """
    spans: list[list[tuple[float, float]]] = [[] for _ in kernels]
    failures: list[BaseException] = []
    end = clock() + seconds
    going = True

    def decide() -> None:
        nonlocal going
        rounds = len(spans[0])
        going = not failures and (rounds <= ROUNDS_MIN or clock() < end)

    barrier = Barrier(len(kernels), action=decide)

    def run(kernel: Kernel, mine: list[tuple[float, float]], cpu: int | None) -> None:
        if cpu is not None:
            os.sched_setaffinity(0, {cpu})  # of this thread
        while True:
            barrier.wait()
            if not going:
                return
            start = clock()
            try:
                kernel()
            except Exception as error:  # raised below: an exception in a thread is otherwise only printed
                failures.append(error)
            mine.append((start, clock()))

    threads = [Thread(target=run, args=each) for each in zip(kernels, spans, _own_cpus(len(kernels)), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [max(stop for _, stop in each) - min(start for start, _ in each) for each in zip(*spans, strict=True)][1:]


def _own_cpus(threads: int) -> list[int] | list[None]:
    """One CPU for each thread, where there are as many: on a busy machine, two threads may otherwise share one for seconds."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed if len(allowed) == threads else [None] * threads


def _readers(size: int, sections: int, threads: int) -> dict[str, tuple[list[Kernel], int]]:
    """Two ways to read a buffer of `size` bytes that the threads share: the C library's memchr, and numpy's maximum.

    A round reads the next few sections of each thread's part, so that rounds stay short for a large buffer.
    """
    import numpy as np
    import psutil

    if psutil.virtual_memory().available < 2 * size:
        raise MachineError(f"measuring the read bandwidth needs twice {size / 1e6:.0f} MB of free memory; close other programs")
    # Written, not only allocated: untouched pages all map to one page of zeros.
    buffer = np.full((threads, sections, max(1, size // 4 // threads // sections)), 1.0, dtype=np.float32)
    count = max(1, round(ROUND_BYTES / threads / buffer[0, 0].nbytes))
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p

    def search(section: "NDArray[np.float32]") -> None:
        memchr(section.ctypes.data, 0x55, section.nbytes)  # 1.0 is 00 00 80 3f: the search runs to the end

    def reader(read: "Callable[[NDArray[np.float32]], object]", part: "NDArray[np.float32]") -> Kernel:
        coming = cycle(part)
        return lambda: [read(next(coming)) for _ in range(count)]

    work = threads * count * buffer[0, 0].nbytes
    return {name: ([reader(read, part) for part in buffer], work) for name, read in (("memchr", search), ("numpy.max", np.max))}


def _products(arithmetic: str, threads: int) -> dict[str, tuple[list[Kernel], int]]:
    """The kernels for one arithmetic: onnxruntime's MLAS, torch's oneDNN."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    makers: dict[str, Callable[[int, int, int], Kernel]] = {}
    if arithmetic == "bf16":
        makers["torch"] = lambda m, k, n: _torch_product(torch.bfloat16, m, k, n)
    elif arithmetic == "fp32":
        # torch's is MKL's, which reached a fifteenth of this on a Zen 5.
        makers["onnxruntime"] = lambda m, k, n: _onnxruntime_product("MatMul", np.float32, np.float32, m, k, n)
    else:
        makers["onnxruntime"] = lambda m, k, n: _onnxruntime_product("MatMulInteger", np.uint8, np.int8, m, k, n)
        makers["torch"] = lambda m, k, n: _torch_product(torch.int8, m, k, n)
    found: dict[str, tuple[list[Kernel], int]] = {}
    for name, make in makers.items():
        for m, k, n in SHAPES:
            try:
                found[f"{name} {m}x{k}x{n}"] = [make(m, k, n) for _ in range(threads)], 2 * m * k * n * threads
            except (RuntimeError, NotImplementedError) as error:
                # The library lacks this product for this CPU: the other one is measured.
                logger.info("%s has no %s product: %s", name, arithmetic, error)
    return found


def _torch_product(dtype: Any, m: int, k: int, n: int) -> Kernel:
    import torch

    generator = torch.Generator().manual_seed(0)
    if dtype == torch.int8:
        left, right = (torch.randint(-127, 128, size, dtype=dtype, generator=generator) for size in ((m, k), (k, n)))
        whole = torch.empty(m, n, dtype=torch.int32)
        torch._int_mm(left, right, out=whole)  # an unsupported CPU raises here, not in a thread
        return lambda: torch._int_mm(left, right, out=whole)
    left, right = (torch.randn(*size, generator=generator).to(dtype) for size in ((m, k), (n, k)))
    out = torch.empty(m, n, dtype=dtype)
    # (out, in), as a Linear stores its weight: the faster layout in bf16.
    return lambda: torch.mm(left, right.t(), out=out)


def _onnxruntime_product(operator: str, left: Any, right: Any, m: int, k: int, n: int) -> Kernel:
    """A graph of one product whose second factor is a constant, and so packed once, as weights are."""
    import numpy as np
    import onnxruntime
    from onnx import helper, numpy_helper

    generator = np.random.default_rng(0)
    constant, row = generator.integers(-100, 100, (k, n)).astype(right), generator.integers(0, 100, (m, k)).astype(left)
    outcome = np.float32 if operator == "MatMul" else np.int32
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["y"])],
        "product",
        [helper.make_tensor_value_info("a", helper.np_dtype_to_tensor_dtype(np.dtype(left)), [m, k])],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(outcome)), [m, n])],
        [numpy_helper.from_array(constant, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    # Bound to one buffer: otherwise each round would allocate its output.
    binding = session.io_binding()
    binding.bind_cpu_input("a", row)
    binding.bind_output("y", "cpu")
    return lambda: session.run_with_iobinding(binding)
