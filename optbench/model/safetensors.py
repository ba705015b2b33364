"""Safetensors files as bytes: check that one is whole, merge shards and copy rows without loading tensors.

The format: 8 bytes (little-endian) with the header's length, a JSON header `{name: {dtype, shape, data_offsets}}` with an optional
`__metadata__`, then the tensors without gaps. Source: https://github.com/huggingface/safetensors, README.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from optbench.errors import BaseModelError
from optbench.machine.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["TensorSpan", "check_file", "copy_rows", "encode_header", "find_prefix", "merge_shards", "read_header"]

# The library refuses a longer header (MAX_HEADER_SIZE).
HEADER_BYTES_MAX = 100_000_000
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
COPY_BYTES = 8 * 1024 * 1024
# The table of token vectors in every family that optbench supports.
TABLE = "embeddings.word_embeddings.weight"
# transformers refuses a file that names no framework.
METADATA = {"format": "pt"}


@dataclass(frozen=True)
class TensorSpan:
    """A tensor's place in a file: `size_bytes` bytes from `offset`."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


def read_header(path: Path) -> dict[str, TensorSpan]:
    """Read which tensors a file holds, and check that it is whole.

    Raises:
        BaseModelError: truncated, too long, or not safetensors; says how many bytes were found and expected.
    """
    from safetensors import SafetensorError, safe_open

    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or length > HEADER_BYTES_MAX:
            raise BaseModelError(f"{path}: {size_bytes} bytes that do not start like safetensors; download the file again")
        content = file.read(length)
    if len(content) < length:
        raise BaseModelError(f"{path}: truncated: {size_bytes} bytes, the header alone takes {8 + length}; download the file again")
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        spans = {
            name: TensorSpan(
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in header.items()
        }
        expected_bytes = max((span.offset + span.size_bytes for span in spans.values()), default=8 + length)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{path}: its header is not safetensors ({error}); download the file again") from error
    if size_bytes != expected_bytes:
        fault = "truncated" if size_bytes < expected_bytes else "too long"
        raise BaseModelError(f"{path}: {fault}: {size_bytes} bytes, expected {expected_bytes} by its header; download the file again")
    try:
        # The library checks the rest: overlaps and gaps, sizes against shapes, unknown types. It maps the file and reads no tensor.
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise BaseModelError(f"{path}: not whole ({error}); download the file again") from error
    return spans


def check_file(path: Path) -> None:
    """Check that a file is whole and holds tensors.

    Raises:
        BaseModelError: says why it is not.
    """
    if not read_header(path):
        raise BaseModelError(f"{path}: holds no tensor; download the file again")


def encode_header(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] = METADATA) -> bytes:
    """The bytes before the first tensor, for tensors (dtype and shape by name) stored in the mapping's order."""
    document: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size_bytes = ITEM_BYTES[dtype] * prod(shape)
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size_bytes]}
        offset += size_bytes
    content = json.dumps(document, separators=(",", ":")).encode()
    # Readers map the file, so tensors start at a multiple of 8, as the library writes them.
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def merge_shards(shards: Sequence[Path], out: Path, progress: Progress) -> None:
    """Write the tensors of several files into one, block by block.

    Raises:
        BaseModelError: a shard is broken, or two hold a tensor of the same name.
    """
    places: dict[str, tuple[Path, TensorSpan]] = {}
    for shard in shards:
        for name, span in read_header(shard).items():
            if name in places:
                raise BaseModelError(f"{shard}: holds {name}, which {places[name][0].name} holds too; download the model again")
            if span.dtype not in ITEM_BYTES:
                raise BaseModelError(f"{shard}: {name} is {span.dtype}; optbench reads fp32, fp16 and bf16 checkpoints")
            places[name] = (shard, span)
    # Widest items first, in the library's order: each tensor starts at a multiple of its item size.
    names = sorted(places, key=lambda name: (-ITEM_BYTES[places[name][1].dtype], name))
    total_bytes = sum(span.size_bytes for _, span in places.values()) or 1
    done_bytes = 0
    with out.open("wb") as target:
        target.write(encode_header({name: (places[name][1].dtype, places[name][1].shape) for name in names}))
        for name in names:
            shard, span = places[name]
            with shard.open("rb") as source:
                source.seek(span.offset)
                _copy(source, target, span.size_bytes)
            done_bytes += span.size_bytes
            progress(f"joining {len(shards)} shards", done_bytes / total_bytes)


def copy_rows(
    source: Path, out: Path, *, rows: "Mapping[str, NDArray[np.int64]]", leave_out: Collection[str] = (), prefix: str = ""
) -> None:
    """Copy a file block by block, and of the tensors in `rows` only the rows with these indices, in their order.

    `prefix` is removed from the names that begin with it.

    Raises:
        BaseModelError: the source is broken, or holds a type that optbench does not read.
    """
    import numpy as np

    spans = {name: span for name, span in read_header(source).items() if name not in leave_out}
    foreign = next((name for name, span in spans.items() if span.dtype not in ITEM_BYTES), None)
    if foreign is not None:
        raise BaseModelError(f"{source}: {foreign} is {spans[foreign].dtype}; optbench reads fp32, fp16 and bf16 checkpoints")
    names = sorted(spans, key=lambda name: (-ITEM_BYTES[spans[name].dtype], name))
    shapes = {name: (len(rows[name]), *spans[name].shape[1:]) if name in rows else spans[name].shape for name in names}
    with source.open("rb") as file, out.open("wb") as target:
        target.write(encode_header({name.removeprefix(prefix): (spans[name].dtype, shapes[name]) for name in names}))
        for name in names:
            span = spans[name]
            if name not in rows:
                file.seek(span.offset)
                _copy(file, target, span.size_bytes)
                continue
            row_bytes = span.size_bytes // span.shape[0]
            table = np.memmap(source, dtype=np.uint8, mode="r", offset=span.offset, shape=(span.shape[0], row_bytes))
            block = max(COPY_BYTES // row_bytes, 1)
            for start in range(0, len(rows[name]), block):
                target.write(table[rows[name][start : start + block]].tobytes())


def find_prefix(names: Collection[str]) -> str:
    """What stands before the transformer's tensor names, such as `bert.` or `0.auto_model.`; empty for nothing, or where it is unclear."""
    prefixes = {name.removesuffix(TABLE) for name in names if name.endswith(TABLE)}
    return prefixes.pop() if len(prefixes) == 1 else ""


def _copy(source: BinaryIO, target: BinaryIO, size_bytes: int) -> None:
    while size_bytes:
        block = source.read(min(COPY_BYTES, size_bytes))
        if not block:
            raise BaseModelError(f"{source.name}: became shorter while it was read; do not change the folder, and run again")
        target.write(block)
        size_bytes -= len(block)
