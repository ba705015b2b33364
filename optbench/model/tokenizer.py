"""Text to token ids, with the artifact's tokenizer.json and the tokenizers library alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optbench.errors import ArtifactError
from optbench.model.checkpoint import read_body, read_max_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

__all__ = ["encode_batch", "load_tokenizer"]


def load_tokenizer(folder: Path) -> "Tokenizer":
    """The folder's tokenizer, which truncates at the model's longest input and pads a batch to its longest row.

    Raises:
        ArtifactError: tokenizer.json is missing or broken.
        BaseModelError: config.json, which says how to pad, is missing or broken.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ArtifactError(f"{path}: missing; save the model's fast tokenizer there (AutoTokenizer(...).save_pretrained)")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for every broken file
        raise ArtifactError(f"{path}: not a tokenizer: {error}; download the model again") from error
    pad_id = read_body(folder).pad_id
    tokenizer.enable_truncation(read_max_tokens(folder))
    tokenizer.enable_padding(pad_id=pad_id, pad_token=tokenizer.id_to_token(pad_id) or "[PAD]")
    return tokenizer


def encode_batch(tokenizer: "Tokenizer", texts: Sequence[str]) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
    """Tokenize a batch.

    Returns:
        input_ids and attention_mask, each (len(texts), longest row) int64; (0, 0) for no texts.
    """
    import numpy as np

    rows = tokenizer.encode_batch_fast(list(texts))
    shape = (len(rows), len(rows[0].ids) if rows else 0)
    ids = np.array([row.ids for row in rows], dtype=np.int64).reshape(shape)
    mask = np.array([row.attention_mask for row in rows], dtype=np.int64).reshape(shape)
    return ids, mask
