"""What trimming XLM-R's vocabulary to English, French and German saves.

    python bench/studies/trim_xlmr.py DATA [--hidden 1024]

DATA contains xlmr-tokenizer/, stsb/ and xquadr/. The corpora are XQuAD-R's English and German sentences and the first half of each STS
benchmark file. The second half is unseen: it shows what happens to texts that need removed tokens. The table is as wide as that of
snowflake-arctic-embed-l-v2.0; its values do not matter.
"""

import argparse
import json
import lzma
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optbench.artifact.folder import seal
from optbench.artifact.manifest import Kind
from optbench.machine.cpu import read_machine
from optbench.machine.worker import peak_rss_bytes
from optbench.model.body import Body
from optbench.model.checkpoint import Description, Prompts, write_layout
from optbench.model.safetensors import encode_header
from optbench.model.tokenizer import load_tokenizer
from optbench.steps.base import CalibrationTexts, RecipeFiles, StepContext
from optbench.steps.trim_vocabulary import TrimVocabulary
from optbench.tasks.base import PairData, RetrievalData
from optbench.tasks.sts import Sts
from optbench.tasks.xquadr import XquadR

LANGUAGES = ("en", "fr", "de")
ROWS = 250_002


def write_base(data: Path, folder: Path, hidden: int) -> None:
    """Write a checkpoint with the real tokenizer and a table written block by block."""
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(lzma.decompress((data / "xlmr-tokenizer" / "tokenizer.json.xz").read_bytes()))
    body = Body(architecture="XLMRobertaModel", layers=1, hidden=hidden, heads=1, feed_forward=1, vocabulary=ROWS, positions=514, pad_id=1)
    config = {"model_type": "xlm-roberta", "num_hidden_layers": 1, "hidden_size": hidden, "num_attention_heads": 1, "intermediate_size": 1}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": ROWS, "max_position_embeddings": 514, "pad_token_id": 1}))
    write_layout(folder, Description(body=body, pooling="cls", normalize=True, prompts=Prompts(query="query: "), max_tokens=512))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header({"embeddings.word_embeddings.weight": ("F32", (ROWS, hidden))}))
        for start in range(0, ROWS, 4096):
            file.write(np.ones((min(4096, ROWS - start), hidden), dtype=np.float32).tobytes())


def write_corpora(data: Path, folder: Path) -> tuple[list[Path], dict[str, Sequence[str]]]:
    """The corpora, and for each language the texts that are not in them."""
    corpora: list[Path] = []
    unseen: dict[str, Sequence[str]] = {}
    for language in LANGUAGES:
        pairs = Sts(path=data / "stsb" / f"stsb-{language}-test.csv").load()
        if not isinstance(pairs, PairData):
            raise TypeError
        half = len(pairs.first) // 2
        texts = [*pairs.first[:half], *pairs.second[:half]]
        seen = set(texts)
        unseen[language] = [text for text in (*pairs.first[half:], *pairs.second[half:]) if text not in seen]
        path = data / "xquadr" / f"{language}.json"
        if path.is_file():
            found = XquadR(path=path).load()
            if not isinstance(found, RetrievalData):
                raise TypeError
            texts += found.documents.values()
        corpora.append(folder / f"{language}.txt")
        corpora[-1].write_text("".join(" ".join(text.split()) + "\n" for text in texts), encoding="utf-8")
    return corpora, unseen


def main() -> None:
    """Trim the vocabulary and print what it saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--hidden", type=int, default=1024)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(arguments.data, folder / "staging", arguments.hidden)
        source = seal(folder / "staging", folder / "base", Kind.CHECKPOINT, "random")
        corpora, unseen = write_corpora(arguments.data, folder)
        (folder / "out").mkdir()
        values = {CalibrationTexts: (), RecipeFiles: folder}
        context = StepContext(scratch=folder, machine=read_machine(), values=values)
        report = TrimVocabulary(corpus=tuple(corpora)).run(source, folder / "out", context)
        print(json.dumps(report.facts, indent=1))
        print(f"peak of this process: {peak_rss_bytes() / 1e6:.0f} MB")
        before, after = load_tokenizer(source.path), load_tokenizer(folder / "out")
        for language, texts in unseen.items():
            rows = [(before.encode(text), after.encode(text)) for text in texts]
            same = sum(old.tokens == new.tokens for old, new in rows) / len(rows)
            longer = sum(len(new.ids) for _, new in rows) / sum(len(old.ids) for old, _ in rows)
            print(f"{language}: of {len(rows)} texts outside the corpora {same:.1%} are tokenized as before; {longer:.3f} x the tokens")


if __name__ == "__main__":
    main()
