"""File types by suffix: which files are weights, which may run code, and which no artifact holds."""

from collections.abc import Iterable
from pathlib import PurePosixPath

__all__ = ["ARTIFACT_WEIGHTS", "is_refused", "is_weights", "pickles_among"]

# What an artifact keeps weights and graphs in. `.bin` is OpenVINO's.
ARTIFACT_WEIGHTS = (".safetensors", ".onnx", ".onnx_data", ".bin")
# Other frameworks' weights: pickle, or formats that may carry one, so loading them can run code.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
OTHER_WEIGHTS = (".safetensors.index.json", ".bin.index.json", ".ot", ".gguf")
# Programs, pickles, which are programs too, and archives.
REFUSED = (
    *(".py", ".pyc", ".so", ".dll", ".dylib", ".exe", ".sh", ".js", ".jar"),
    *(".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".keras", ".mar"),
    *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".whl"),
)


def is_weights(name: str) -> bool:
    """Whether a file holds weights, or their index, of any framework."""
    return name.endswith((*ARTIFACT_WEIGHTS, *PICKLES, *OTHER_WEIGHTS))


def pickles_among(names: Iterable[str]) -> list[str]:
    """The pickled weights at the top of a checkpoint, sorted."""
    return sorted(name for name in names if "/" not in name and name.endswith(PICKLES) and name != "training_args.bin")


def is_refused(name: str) -> bool:
    """Whether no artifact holds such a file: a program, a pickle or an archive; `.bin` is OpenVINO's weights in its own folder only."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in REFUSED or (suffix == ".bin" and not name.startswith("openvino/"))
