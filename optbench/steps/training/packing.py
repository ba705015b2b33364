"""Several texts one after another in a row: little padding, and batches of a few shapes instead of one for each length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["pack", "pool", "run_packed"]

# Attention's cost is quadratic in a row's tokens; rows of 64 made a training of all-MiniLM-L6-v2 no faster.
ROW_TOKENS = 128


def pack(rows: Sequence[Sequence[int]], pad_id: int) -> "dict[str, torch.Tensor]":
    """Lay texts out in as few rows of 128 tokens as first-fit decreasing finds; of a multiple of 128 where a text is longer.

    `rows` are the token ids of each text, without padding.

    Returns:
        input_ids, texts (the text of each token, from 1; 0 for padding) and positions (in the text, from 0), each (rows, tokens) int64.
    """
    import torch

    width = -(-max(map(len, rows)) // ROW_TOKENS) * ROW_TOKENS
    free: list[int] = []
    places: list[tuple[int, int]] = [(0, 0)] * len(rows)
    for text in sorted(range(len(rows)), key=lambda text: -len(rows[text])):
        needed = len(rows[text])
        row = next((row for row, left in enumerate(free) if left >= needed), len(free))
        if row == len(free):
            free.append(width)
        places[text] = row, width - free[row]
        free[row] -= needed
    ids = torch.full((len(free), width), pad_id)
    texts, positions = torch.zeros_like(ids), torch.zeros_like(ids)
    for text, (tokens, (row, start)) in enumerate(zip(rows, places, strict=True), 1):
        span = slice(start, start + len(tokens))
        ids[row, span] = torch.tensor(tokens)
        texts[row, span] = text
        positions[row, span] = torch.arange(len(tokens))
    return {"input_ids": ids, "texts": texts, "positions": positions}


def run_packed(body: Any, packed: "dict[str, torch.Tensor]") -> "torch.Tensor":
    """The states after a body's last layer, (rows, tokens, hidden), float32: for each text the same as without the others.

    Relative positions (MPNet's) are right within a row; absolute ones are passed, offset to where the body's table begins.
    """
    import torch

    texts = packed["texts"]
    padding = body.embeddings.position_embeddings.padding_idx
    states = body.embeddings(input_ids=packed["input_ids"], position_ids=packed["positions"] + (0 if padding is None else padding + 1))
    apart = texts[:, None, :, None] != texts[:, None, None, :]
    mask = torch.zeros(apart.shape).masked_fill(apart, torch.finfo(torch.float32).min)
    last: torch.Tensor = body.encoder(states, attention_mask=mask)[0]
    # A mean over tokens in bf16 would lose another 8 bits.
    return last.float()


def pool(states: "torch.Tensor", packed: "dict[str, torch.Tensor]", pooling: str) -> "torch.Tensor":
    """One vector per text, (texts, hidden): its first token's state if `pooling` is "cls", else the mean over its tokens."""
    import torch

    texts = packed["texts"].flatten()
    if pooling == "cls":
        first = (packed["positions"].flatten() == 0) & (texts > 0)
        return states.flatten(0, 1)[first][texts[first].argsort()]
    own = (texts[None] == torch.arange(1, int(texts.max()) + 1)[:, None]).to(states.dtype)
    return own @ states.flatten(0, 1) / own.sum(1, keepdim=True)
