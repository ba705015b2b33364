"""A small synthetic tokenizer for random bases: it splits any text, and common shop words into one or two tokens.

A real tokenizer comes with its model. This one has the model family's algorithm (WordPiece, or Unigram with byte fallback), special tokens
and template, so lengths and timings resemble the real one's. Its pieces are the words below, syllables, letters and bytes, far fewer than
the rows of the body's vocabulary.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from optbench.errors import BaseModelError
from optbench.model.body import Body

__all__ = ["FORMAT", "write_tokenizer"]

FORMAT = 1
"""Incremented when the same body gets other pieces or ids."""

WORDS = """
the of and to in for with on at by from is are was be it this that or not no as an you your we our my me i he she they his her its
can will all any new more most best top good great high low big little one two three four five six seven eight nine ten first last
what how where when which who why do does did have has had get buy find need want make made use used like about under over between
out up down off into per than then there here other same each every very well also just only best-selling free fast easy quick

red blue green black white grey gray brown pink purple yellow orange gold silver beige navy cream dark light bright clear color
small medium large extra mini slim wide narrow long short tall thin thick heavy soft hard warm cool hot cold wet dry old young
cotton wool leather suede silk linen denim nylon polyester steel stainless iron metal wood wooden oak pine walnut bamboo glass
plastic rubber ceramic stone marble paper canvas fleece velvet mesh foam copper brass aluminum carbon fiber

shoe shoes boot boots sneaker sandal slipper heel heels sole lace socks running hiking walking trail training waterproof dress
shirt blouse skirt pants trouser jeans shorts jacket coat sweater hoodie vest suit tie belt hat cap scarf glove gloves underwear
bra swimsuit bikini pajama robe uniform costume sleeve collar pocket zip button size fit style fashion women woman men man kids kid
girl boy baby toddler child children adult unisex ladies mens womens watch watches ring necklace bracelet earring jewelry sunglasses
bag bags backpack handbag wallet purse suitcase luggage travel case cover sleeve pouch tote

laptop computer desktop notebook tablet phone smartphone mobile camera lens tripod screen monitor display tv television speaker
speakers headphone headphones earbuds microphone keyboard mouse charger charging cable adapter battery power bank usb hdmi wireless
bluetooth wifi router modem printer ink toner scanner drive disk memory card ssd ram gb tb inch hz watt volt processor graphics
gaming game games console controller smart home digital audio video music player radio remote control sensor light lights led lamp
bulb fan heater cooler air conditioner vacuum cleaner robot washing machine dishwasher fridge refrigerator freezer oven microwave
toaster kettle coffee maker blender mixer grill iron

kitchen knife fork spoon plate bowl cup mug glass bottle pot pan lid cutting board baking tray storage box container jar basket
rack shelf table chair chairs desk sofa couch bed mattress pillow blanket sheet curtain rug carpet mirror frame clock candle vase
door window wall floor lock key drawer cabinet wardrobe bench stool cushion towel bathroom shower toilet soap shampoo conditioner
cream lotion oil perfume makeup lipstick mascara brush comb razor toothbrush toothpaste skin hair face body hand nail care

garden outdoor plant plants flower seed soil hose tool tools drill hammer saw screwdriver wrench screw nail paint ladder tape glue
tent sleeping camping fishing bike bicycle helmet ball football basketball tennis golf yoga mat weight weights dumbbell fitness gym
treadmill skate ski swim surf car truck tire tyre engine brake filter seat motor motorcycle auto part parts kit set pack pair piece
toy toys doll puzzle book books pen pencil marker notebook paper art craft gift card party birthday christmas wedding holiday dog
cat pet food bed collar leash fish bird

organic fresh milk bread cheese butter egg eggs meat beef chicken pork rice pasta flour sugar salt pepper sauce tea juice water wine
beer chocolate candy snack fruit apple banana lemon berry nut nuts vegetable tomato potato onion garlic protein vitamin vegan gluten
sugar-free powder capsule tablet supplement health medical mask

price cheap sale discount offer deal order delivery shipping store shop online brand quality review rating stock return warranty
compatible replacement portable adjustable foldable rechargeable cordless electric electronic automatic manual professional original
classic modern vintage retro luxury premium basic standard pro plus max ultra lite edition series model version type design pattern
print striped floral plain solid cotton-rich resistant proof non stick anti slip noise cancelling canceling high-speed heavy-duty

der die das und für mit von zu im auf ein eine nicht rot blau schwarz weiß grün klein groß schuh schuhe stiefel kleid hemd hose jacke
tasche tisch stuhl lampe bett herren damen kinder wasser küche garten
le la les de des du un une et pour avec sans sur dans rouge bleu noir blanc vert petit grand chaussure chaussures robe chemise
pantalon veste sac table chaise lampe lit homme femme enfant eau cuisine jardin
el los las una y para con sin en rojo azul negro blanco verde pequeño grande zapato zapatos vestido camisa pantalones chaqueta bolsa
mesa silla cama hombre mujer niño agua cocina jardín
"""
ENDINGS = "s es ed er ers est ing ings ly y al able ful less ness ment tion sion ity ive ous ic ize ized proof wear ware ware's 's"
VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
# Printable ASCII, then Latin, Greek and Cyrillic letters; anything else becomes bytes or [UNK].
LETTERS = [
    chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0x180), *range(0x391, 0x3CA), *range(0x410, 0x460)) if chr(code).isprintable()
]


@dataclass(frozen=True)
class _Specials:
    begin: str
    end: str
    pad: str
    unknown: str
    mask: str

    @property
    def in_order(self) -> list[str]:
        return [self.begin, self.end, self.unknown, self.mask]


BERT_SPECIALS = _Specials("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
ROBERTA_SPECIALS = _Specials("<s>", "</s>", "<pad>", "<unk>", "<mask>")
MPNET_SPECIALS = _Specials("<s>", "</s>", "<pad>", "[UNK]", "<mask>")


def _syllables() -> Iterator[str]:
    """Two letters, then three: an unlisted word takes about one token per three letters."""
    yield from map("".join, itertools.product(CONSONANTS, VOWELS))
    yield from map("".join, itertools.product(VOWELS, CONSONANTS))
    yield from map("".join, itertools.product(CONSONANTS, VOWELS, CONSONANTS))


def _lower_letters() -> list[str]:
    return list(dict.fromkeys(letter for letter in LETTERS if letter == letter.lower()))


def _words() -> list[str]:
    return list(dict.fromkeys(word for word in WORDS.split() if word.isalpha()))


def _wordpieces() -> Iterator[str]:
    letters = _lower_letters()
    yield from letters
    yield from (f"##{letter}" for letter in letters if letter.isalnum())
    yield from _words()
    yield from (f"##{piece}" for piece in ENDINGS.split() if piece.isalpha())
    for piece in itertools.chain(_words(), _syllables()):
        yield piece
        yield f"##{piece}"


def _scored_pieces() -> Iterator[tuple[str, float]]:
    """Pieces of the Unigram model; a higher score wins, so one word beats its syllables and they beat its letters."""
    # Bytes stand for what no other piece covers; their scores are never compared.
    yield from ((f"<0x{byte:02X}>", 0.0) for byte in range(256))
    yield "▁", -3.0
    yield from ((letter, -12.0) for letter in _lower_letters())
    yield from ((f"▁{letter}", -11.0) for letter in _lower_letters() if letter.isalnum())
    yield from ((f"▁{word}", -8.0) for word in _words())
    yield from ((piece, -7.0) for piece in ENDINGS.split())
    for word in _words():
        yield word, -8.5
    for syllable in _syllables():
        yield f"▁{syllable}", -10.0
        yield syllable, -10.0


def _order(specials: _Specials, pieces: Iterator[tuple[str, float]], body: Body) -> dict[str, float]:
    """Pieces with their scores in the order of their ids: the pad token at the body's pad id, the other special tokens around it."""
    needed = len(specials.in_order) + 1
    if body.vocabulary < needed or body.pad_id >= body.vocabulary:
        raise BaseModelError(
            f"body: vocabulary {body.vocabulary} with pad_id {body.pad_id}; random weights need a vocabulary of at least {needed} "
            "and a pad_id below it: correct the recipe's body"
        )
    fillers = ((f"[unused{index}]", -100.0) for index in itertools.count())
    supply = itertools.chain(((special, 0.0) for special in specials.in_order), pieces)
    ordered: dict[str, float] = {}
    while len(ordered) < body.vocabulary:
        if len(ordered) == body.pad_id:
            ordered[specials.pad] = 0.0
            continue
        entry = next(supply, None)
        if entry is None:
            if len(ordered) > body.pad_id:
                break  # the body's other rows have no piece
            entry = next(fillers)
        piece, score = entry
        ordered.setdefault(piece, score)
    return ordered


def write_tokenizer(body: Body, max_tokens: int, folder: Path) -> dict[str, int]:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` for a random base.

    Returns:
        The ids of `begin`, `end`, `pad` and `unknown`.

    Raises:
        BaseModelError: the body's vocabulary has no room for the special tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    unigram = body.architecture in ("XLMRobertaModel", "RobertaModel")
    specials = {"BertModel": BERT_SPECIALS, "MPNetModel": MPNET_SPECIALS}.get(body.architecture, ROBERTA_SPECIALS)
    if unigram:
        ordered = _order(specials, _scored_pieces(), body)
        pieces = list(ordered)
        tokenizer = Tokenizer(models.Unigram(list(ordered.items()), unk_id=pieces.index(specials.unknown), byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    else:
        ordered = _order(specials, ((piece, 0.0) for piece in _wordpieces()), body)
        pieces = list(ordered)
        vocabulary = {piece: index for index, piece in enumerate(pieces)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=specials.unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*specials.in_order, specials.pad)])
    begin, end = specials.begin, specials.end
    ids = {
        name: pieces.index(token) for name, token in (("begin", begin), ("end", end), ("pad", specials.pad), ("unknown", specials.unknown))
    }
    bert = body.architecture == "BertModel"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} $B:1 {end}:1" if bert else f"{begin} $A {end} {end} $B {end}",
        special_tokens=[(begin, ids["begin"]), (end, ids["end"])],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special_map = {
        "bos_token": begin,
        "eos_token": end,
        "cls_token": begin,
        "sep_token": end,
        "pad_token": specials.pad,
        "unk_token": specials.unknown,
        "mask_token": specials.mask,
    }
    config = {
        **special_map,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_tokens,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"] if bert else ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }
    for name, document in (("special_tokens_map.json", special_map), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return ids
