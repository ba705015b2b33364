"""Build the embedded retail task from the hand-written catalog, byte for byte the same on every run.

    python bench/make_retail_task.py            # writes optbench/tasks/data/retail.json
    python bench/make_retail_task.py --check    # exit status 1 if the committed file differs

A query names a kind of product as shoppers do, with none, one or two constraints, sometimes misspelled, or describes a use. A
grade follows from the catalog: 3 meets every constraint, 2 the right kind with one of two met, 1 the right kind with none met or
a substitute, 0 anything else. The pool of a query holds every product of its kind, substitutes, neighbors from the same aisle,
the products of other kinds whose titles share most of its words, and a few at random.
"""

import argparse
import itertools
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
CATALOG = Path(__file__).resolve().parent / "retail_catalog.yaml"
OUT = ROOT / "optbench" / "tasks" / "data" / "retail.json"

SEED = 20
PRODUCTS_PER_KIND = 9
CALIBRATION_PRODUCTS_PER_KIND = 12
SUBSTITUTES, AISLE, LEXICAL, RANDOM = 5, 6, 6, 3
# The catalog lists kinds aisle by aisle: kinds within this many lines are neighbors.
AISLE_REACH = 3
# Phrases that start so follow the noun: "tripod for smartphone", but "silent mouse".
BEHIND = frozenset({"against", "bed", "drop", "easy", "fits", "for", "from", "in", "keeps", "on", "that", "to", "where", "with", "without"})


@dataclass(frozen=True)
class Product:
    kind: str
    title: str
    brand: str
    values: frozenset[str]


@dataclass(frozen=True)
class Query:
    text: str
    kind: str
    wants: frozenset[str]


def title_words(value: str) -> str:
    return value.split("|", maxsplit=1)[0]


def shopper_words(value: str, generator: random.Random) -> str:
    """What a shopper types for a value: one of the alternatives, or else the title's words."""
    return generator.choice(value.split("|")[1:] or [value]).lower()


def make_products(kind: dict[str, Any], count: int, brands: list[str], series: list[str], generator: random.Random) -> list[Product]:
    combinations = list(itertools.product(*kind["axes"]))
    generator.shuffle(combinations)
    products = []
    for number in range(count):
        values = [title_words(value) for value in combinations[number % len(combinations)]]
        brand, name = generator.choice(brands), kind["kind"].title().replace("'S", "'s")
        head = generator.choice([f"{brand} {generator.choice(series)} {name}", f"{brand} {name} {generator.choice(series)}"])
        products.append(Product(kind["kind"], f"{head}, {', '.join(values)}", brand, frozenset(values) | {brand}))
    return products


def compose(name: str, phrases: list[str]) -> str:
    front = [phrase for phrase in phrases if phrase.split()[0] not in BEHIND]
    behind = [phrase for phrase in phrases if phrase.split()[0] in BEHIND]
    return " ".join([*front, name, *behind])


def misspell(text: str, generator: random.Random) -> str:
    """Make a typo in the longest word: swap two letters, drop one or double one."""
    word = max(text.split(), key=len)
    at = generator.randrange(1, len(word) - 2)
    wrong = generator.choice(
        [word[:at] + word[at + 1] + word[at] + word[at + 2 :], word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]]
    )
    return text.replace(word, wrong, 1)


def make_queries(kind: dict[str, Any], products: list[Product], generator: random.Random) -> list[Query]:
    names = [kind["kind"], *kind["also"], *kind["also"]]  # shoppers seldom use the catalog's own noun
    queries = []
    if generator.random() < 0.4:
        queries.append(Query(generator.choice(kind["also"]), kind["kind"], frozenset()))

    def constrained(axes: int) -> Query:
        # Constraints come from a product, so that at least one meets them.
        product = generator.choice(products)
        chosen = generator.sample(kind["axes"], axes)
        values = [next(value for value in axis if title_words(value) in product.values) for axis in chosen]
        text = compose(generator.choice(names), [shopper_words(value, generator) for value in values])
        return Query(text, kind["kind"], frozenset(title_words(value) for value in values))

    queries += [constrained(1), constrained(1), constrained(2), constrained(2)]
    branded = generator.choice(products)
    if generator.random() < 0.3:
        queries.append(Query(f"{branded.brand.lower()} {generator.choice(names)}", kind["kind"], frozenset({branded.brand})))
    if generator.random() < 0.5:
        right = constrained(generator.choice([1, 2]))
        queries.append(Query(misspell(right.text, generator), right.kind, right.wants))
    queries += [Query(use["text"].lower(), kind["kind"], frozenset(use.get("wants", ()))) for use in kind["uses"]]
    return queries


def grade(query: Query, product: Product, near: dict[str, list[str]]) -> int:
    if product.kind != query.kind:
        return 1 if product.kind in near[query.kind] else 0
    met = len(query.wants & product.values)
    if met == len(query.wants):
        return 3
    return 2 if met else 1


def pool(query: Query, products: list[Product], kinds: list[str], near: dict[str, list[str]], generator: random.Random) -> list[int]:
    place = kinds.index(query.kind)
    aisle = kinds[max(0, place - AISLE_REACH) : place + AISLE_REACH + 1]
    words = set(query.text.split())

    def shared_words(number: int) -> int:
        return len(words & set(products[number].title.lower().replace(",", "").split()))

    own = [number for number, product in enumerate(products) if product.kind == query.kind]
    substitutes = [number for number, product in enumerate(products) if product.kind in near[query.kind]]
    others = [number for number, product in enumerate(products) if product.kind not in (query.kind, *near[query.kind])]
    generator.shuffle(substitutes)
    generator.shuffle(others)
    chosen = own + substitutes[:SUBSTITUTES]
    for count, candidates in (
        (AISLE, [number for number in others if products[number].kind in aisle]),
        (LEXICAL, sorted(others, key=shared_words, reverse=True)),
        (RANDOM, others),
    ):
        chosen += [number for number in candidates if number not in chosen][:count]
    return sorted(chosen)


def unique(queries: list[Query]) -> list[Query]:
    return list({query.text: query for query in reversed(queries)}.values())[::-1]


def build() -> bytes:
    catalog = YAML(typ="safe").load(CATALOG.read_text(encoding="utf-8"))
    generator = random.Random(SEED)  # noqa: S311  # a draw, not a secret
    near = {kind["kind"]: kind["near"] for kind in catalog["kinds"]}

    def fill(kinds: list[dict[str, Any]], count: int) -> tuple[list[Product], list[Query]]:
        products: list[Product] = []
        queries: list[Query] = []
        for kind in kinds:
            made = make_products(kind, count, catalog["brands"], catalog["series"], generator)
            products += made
            queries += make_queries(kind, made, generator)
        return list({product.title: product for product in products}.values()), unique(queries)

    products, queries = fill(catalog["kinds"], PRODUCTS_PER_KIND)
    # Shuffled: the order of the file must not reveal the kind.
    generator.shuffle(products)
    entries = []
    for query in queries:
        judged: list[list[int]] = [[], [], [], []]
        for number in pool(query, products, list(near), near, generator):
            judged[grade(query, products[number], near)].append(number)
        entries.append({"text": query.text, "judged": judged})
    spare_products, spare_queries = fill(catalog["calibration"], CALIBRATION_PRODUCTS_PER_KIND)
    content = {
        "about": "Synthetic retail task of optbench, Apache-2.0, made by bench/make_retail_task.py; judged: product numbers by grade 0..3",
        "products": [product.title for product in products],
        "queries": entries,
        "calibration": {"queries": [query.text for query in spare_queries], "products": [product.title for product in spare_products]},
    }
    # One product or query per line, for readable diffs.
    lines = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return (lines.replace('{"text"', '\n{"text"').replace('","', '",\n"') + "\n").encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    content = build()
    if parser.parse_args().check:
        return int(OUT.read_bytes() != content)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(content)
    print(f"{OUT}: {len(content)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
