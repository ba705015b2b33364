"""Small JSON files of a checkpoint, which a stranger may have written."""

import json
from pathlib import Path
from typing import Any

from optbench.errors import BaseModelError

__all__ = ["read_json", "read_object"]

# A config file has some kilobytes; the bound keeps a hostile one out of memory.
JSON_BYTES_MAX = 16 * 1024 * 1024


def read_json(path: Path) -> Any:
    """Parse a small JSON file.

    Raises:
        BaseModelError: missing, too large, or not JSON; says where.
    """
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            raise BaseModelError(f"{path}: larger than {JSON_BYTES_MAX} bytes, which no such file has; download the model again")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BaseModelError(f"{path}: {error.strerror}; a checkpoint needs it: download the model again") from error
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"{path}: not JSON ({error}); the file may be truncated: download the model again") from error


def read_object(path: Path, *, required: bool = True) -> dict[str, Any]:
    """Parse a small JSON file that holds an object; empty where the file is missing and not `required`.

    Raises:
        BaseModelError: missing, too large, or not a JSON object; says where.
    """
    if not required and not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise BaseModelError(f"{path}: a JSON {type(value).__name__}, expected an object; download the model again")
    return value
