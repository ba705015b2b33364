"""The optional dependencies: which extra of optbench installs which library."""

from importlib.util import find_spec

from optbench.errors import MissingExtraError

__all__ = ["missing_extra", "require_extra"]

# By extra, the top-level modules that only this extra installs.
EXTRAS = {
    "build": ("torch", "transformers", "nncf", "onnx_ir", "onnxscript", "threadpoolctl"),
    "train": ("accelerate", "datasets", "sentence_transformers"),
    "publish": ("minisign", "oras"),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "report": ("altair", "jinja2", "vl_convert"),
    "mteb": ("mteb",),
    "loaders": ("fastembed",),
    "parquet": ("pyarrow",),
}


def require_extra(extra: str, purpose: str) -> None:
    """Check that the libraries of an extra are installed; imports none of them. `purpose` begins the message: what needs them.

    Raises:
        MissingExtraError: names the missing libraries and the command that installs them.
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise _missing(extra, missing, purpose)


def missing_extra(error: ModuleNotFoundError, purpose: str) -> MissingExtraError | None:
    """The error for an import that failed; None when no extra installs that module."""
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    return None if extra is None else _missing(extra, [module], purpose)


def _missing(extra: str, modules: list[str], purpose: str) -> MissingExtraError:
    verb = "is" if len(modules) == 1 else "are"
    return MissingExtraError(f"{purpose} needs {', '.join(modules)}, which {verb} not installed; run pip install 'optbench[{extra}]'")
