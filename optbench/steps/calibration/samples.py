"""Calibration inputs: a sample of the recipe's texts and hostile texts, tokenized as the model will see them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from optbench.errors import StepError
from optbench.model.checkpoint import read_prompts
from optbench.model.tokenizer import encode_batch, load_tokenizer
from optbench.tasks.hostile import hostile_texts

__all__ = ["CalibrationInput", "calibration_inputs"]

CalibrationInput = dict[str, NDArray[np.int64]]
"""A graph's inputs by name, `input_ids` and `attention_mask`, each (1, tokens)."""


def calibration_inputs(
    folder: Path, texts: Sequence[str], samples: int, seed: int, where: str, *, hostile: int = 0
) -> list[CalibrationInput]:
    """Draw texts, duplicates counted once, and tokenize each at its own length, without padding, which would widen every range.

    `hostile` is the number of hostile texts that are made from the seed and added, every second one with the query prompt.

    Returns:
        One entry per text, the shortest first, so that an engine meets each length once.
    """
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    if not distinct:
        raise StepError(f"{where}: no calibration texts; name an accuracy task in the recipe, or --task")
    # Drawn at random: all queries come before all documents.
    drawn = [distinct[index] for index in np.random.default_rng(seed).permutation(len(distinct))[:samples]]
    prompts = read_prompts(folder)
    for index, text in enumerate(hostile_texts(hostile, "calibration", seed)):
        drawn.append((prompts.document if index % 2 else prompts.query) + text)
    tokenizer = load_tokenizer(folder)
    inputs = []
    for text in drawn:
        ids, mask = encode_batch(tokenizer, [text])
        inputs.append({"input_ids": ids, "attention_mask": mask})
    return sorted(inputs, key=lambda entry: (entry["input_ids"].shape[1], entry["input_ids"].tobytes()))
