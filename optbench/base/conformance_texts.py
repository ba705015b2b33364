"""The texts of the conformance check: what users send, and what tokenizers stumble over."""

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["conformance_texts"]

TEXTS = (
    "",
    " ",
    " \t\n\r  ",
    "\x00",
    "red\x00shoe \x01\x1b[31m\x7f",
    "waterproof running shoes for women, size 38",
    "Red RED red rEd SHOE iPhone McDonald",
    "caf\u00e9 na\u00efve \u00c9COLE \u00dcber \u00e5ngstr\u00f6m",  # composed
    "cafe\u0301 nai\u0308ve E\u0301COLE U\u0308ber a\u030angstro\u0308m",  # decomposed
    "\u0130stanbul \u0131I iI Stra\u00dfe STRASSE \u1e9e \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",  # case that changes length
    "\u0627\u0644\u0633\u0651\u0644\u0627\u0645\u064f \u0639\u0644\u064a\u0643\u0645 \u0640\u0640 \u0661\u0662\u0663",  # Arabic
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u202eabc\u202c (123)",  # Hebrew with points, an override of direction
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f",  # ZWJ, flags
    "\u7ea2\u8272\u7684\u978b\u5b50\uff0c\u9632\u6c34\u3002red\u978b",  # Chinese
    "\u8d64\u3044\u9774 \uff76\uff80\uff76\uff85 \u304c \u304b\u3099 \u30ab\u30bf\u30ab\u30ca",  # Japanese, half width, decomposed
    "\ube68\uac04 \uc2e0\ubc1c \u1112\u1161\u11ab\u1100\u1173\u11af",  # Korean, composed and decomposed
    "\u0e23\u0e2d\u0e07\u0e40\u0e17\u0e49\u0e32\u0e2a\u0e35\u0e41\u0e14\u0e07",  # Thai
    "\u0932\u093e\u0932 \u091c\u0942\u0924\u0947 \u0915\u094d\u0937",  # Hindi
    "\u043a\u0440\u0430\u0441\u043d\u044b\u0439 \u0431\u043e\u0442 \u0451\u0439 \u0435\u0308\u0438\u0306",  # Russian
    "\uff32\uff45\uff44 \uff53\uff48\uff4f\uff45 \uff11\uff12\uff13 \u3000wide\u3000space",  # full width
    "\ufb01ne o\ufb00er \u00b2 \u00bd \u2122 \u2116 \u212b \u2460 \u33a1",  # compatibility characters
    "red\u200bshoe soft\u00adhyphen \ufeffmark no\u00a0break \u2060joiner",  # zero width
    "one\rtwo\r\nthree\u2028four\u2029five\x0bsix\x0cseven\x85eight",  # line ends
    "\ue000 \ufffd \U0010ffff \U0001fbff \u0378",  # private, replacement, unassigned
    "!!! ??? ... --- ''' \"\"\" `` <<>> ((())) // \\\\ @#$%^&*_+=|~",
    "<b>Sale</b> &amp; **bold** [link](http://a.b/c?d=1&e=%20) `code` {x: [1]}",
    "1,234.56 3.14e-10 0x1F 12/31/2026 +49 (0)30 12345678901234567890 ABC-123_45",
    "don't can't rock'n'roll C++ C# #tag @user e-mail a.b@c.de o\u2019clock",
    "-" * 40 + " " + "SALE " * 20,
    "a" * 300 + " " + "\u00e9" * 120,  # longer than a WordPiece word may be
)
# Of many models: they must be read as this model's own tokenizer reads them.
SPECIAL = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|endoftext|>", "##ing", "\u2581the")
WORDS = ("Red", "running", "shoe,", "waterproof;", "boot", "42", "for", "caf\u00e9")


def conformance_texts(tokenizer: "Tokenizer", max_tokens: int) -> list[str]:
    """32 texts: `TEXTS`, the special tokens of this tokenizer and of others as text, and one of three times the longest input."""
    own = [str(token) for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    specials = " ".join(f"red{token}shoe {token}" for token in dict.fromkeys((*own[:16], *SPECIAL)))
    words = itertools.islice(itertools.cycle(WORDS), 3 * max_tokens)
    return [*TEXTS, specials, " ".join(words)]
