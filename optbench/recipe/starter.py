"""A starter recipe for a model: what its own files say, sensible steps, and the other choices as comments."""

import json
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from optbench.base.hub import fetch_from_hub
from optbench.base.layout import find_files
from optbench.base.obtain import find_package
from optbench.base.source import HubSource, PackageSource, PathSource, parse_source
from optbench.errors import BaseModelError, RecipeError
from optbench.machine.progress import Progress, silent
from optbench.model.checkpoint import Description, Pooling, describe, read_body, read_max_tokens, read_prompts
from optbench.recipe.load import load_recipe

__all__ = ["Model", "read_model", "render_recipe", "write_recipe"]

LENGTHS = (8, 16, 32, 64, 128)
# From here on most of a table belongs to languages that one service never sees: BERT's has 30,522 rows, XLM-R's 250,002.
LARGE_VOCABULARY = 100_000
# A model card is some kilobytes; its front matter stands first.
CARD_BYTES_MAX = 1024 * 1024
# SPDX's own word for "the author does not say": https://spdx.github.io/spdx-spec
NOT_STATED = "NOASSERTION"
# Hub cards write identifiers in lower case, and some that SPDX has since replaced.
SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "cc0-1.0": "CC0-1.0",
    "mpl-2.0": "MPL-2.0",
    "gpl-3.0": "GPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only",
    "lgpl-3.0": "LGPL-3.0-only",
}


@dataclass(frozen=True)
class Model:
    """What a recipe's `base:` says, as read off the model.

    Attributes:
        name: the last part of its source, in the letters that a recipe's name may have.
        source: as the recipe writes it.
        revision: the hub's commit; None for other sources.
        license: SPDX; `NOASSERTION` where the model states none.
        license_from: where that stands.
        description: body, pooling, normalization, prompts, longest input.
    """

    name: str
    source: str
    revision: str | None
    license: str
    license_from: str
    description: Description


def read_model(
    text: str,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    license_id: str | None = None,
    progress: Progress = silent,
) -> Model:
    """Read what a model says of itself; of a hub's, only the small files are fetched.

    Args:
        text: a folder, or a source as recipes write it.
        pooling: for a model without modules.json, which does not say.
        normalize: likewise.
        license_id: instead of what the model states.
        progress: told of what is fetched.

    Raises:
        BaseModelError: it cannot be had or read, is of an unknown architecture, or does not say how it pools.
    """
    source = _parse(text)
    revision, stated, place = None, None, "the model's card"
    match source:
        case PathSource():
            folder = source.folder.expanduser()
            name = folder.absolute().name
            find_files(folder)
            stated, place = _card_license(folder / "README.md"), "README.md"
        case PackageSource():
            package = find_package(source)
            folder = package.files["config.json"].parent
            name = source.folder.rpartition("/")[2] or source.distribution
            stated = _card_license(folder / "README.md")
            if stated is None:
                about = metadata.metadata(source.distribution)
                stated, place = about["License-Expression"] or about["License"], "the package"
        case HubSource():
            fetched = fetch_from_hub(source.repository, source.revision, progress, weights=False)
            folder, revision, stated = fetched.files["config.json"].parent, fetched.commit, fetched.license
            name = source.repository.partition("/")[2]
            source = HubSource(source.repository)
        case _:
            raise BaseModelError(f"{text}: random weights have no model to read; copy a recipe and edit its body")
    description = _describe(folder, pooling, normalize)
    found = license_id or (_spdx(stated) if stated else None)
    given = "given" if license_id else place
    name = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:64] or "model"
    return Model(name, str(source), revision, found or NOT_STATED, given if found else "", description)


def _parse(text: str) -> Any:
    if re.match(r"(hub|path|package):", text) or text == "random":
        try:
            return parse_source(text)
        except ValueError as error:
            raise BaseModelError(str(error)) from error
    if not Path(text).expanduser().is_dir():
        raise BaseModelError(f"{text}: no such folder; give a model's folder, hub:ORG/NAME or package:DISTRIBUTION")
    return PathSource(Path(text))


def _describe(folder: Path, pooling: Pooling | None, normalize: bool | None) -> Description:
    if (folder / "modules.json").is_file():
        found = describe(folder)
        for option, given, said in (("--pooling", pooling, found.pooling), ("--normalize", normalize, found.normalize)):
            if given not in (None, said):
                raise BaseModelError(f"{folder / 'modules.json'}: says {said}, {option} says {given}; leave the option out")
        return found
    if pooling is None or normalize is None:
        raise BaseModelError(
            f"{folder}: has no modules.json, so how it pools and whether it normalizes is unknown; give --pooling mean or cls, and "
            "--normalize or --no-normalize, as the model's card says"
        )
    return Description(
        body=read_body(folder),
        pooling=pooling,
        normalize=normalize,
        prompts=read_prompts(folder),
        max_tokens=read_max_tokens(folder),
    )


def _card_license(path: Path) -> str | None:
    """The license in a model card's front matter."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(CARD_BYTES_MAX)
        block = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        front = YAML(typ="safe", pure=True).load(block[1]) if block else None
    except (OSError, ValueError, YAMLError):  # a card is for people; one that cannot be read states nothing
        return None
    stated = front.get("license") if isinstance(front, dict) else None
    return stated if isinstance(stated, str) else None


def _spdx(stated: str) -> str | None:
    """A card's license as an SPDX identifier; None for words that name none."""
    word = stated.strip()
    if word.lower() in ("", "other", "unknown"):
        return None
    known = SPDX.get(word.lower())
    if known or re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*( (AND|OR|WITH) [A-Za-z0-9][A-Za-z0-9.+-]*)*", word) is None:
        return known
    # Capitals are SPDX's own spelling; a lower-case word that is not in the table is a hub's name for a license of its own.
    return word if word != word.lower() else f"LicenseRef-{word}"


def render_recipe(model: Model, name: str) -> str:
    """The recipe as text. Lines that begin with `# - ` or `#   ` are choices: valid as they stand once `# ` is taken away."""
    about, body = model.description, model.description.body
    fields = {key: value for key, value in body.model_dump(mode="json").items() if value is not None}
    lengths = [length for length in LENGTHS if length <= about.max_tokens] or [about.max_tokens]
    said = f"  # {model.license_from}" if model.license_from else "  # the model states none: write its SPDX identifier"
    lines = [
        f"# Written by optbench init from {model.source}. Every key: optbench schema.",
        f"name: {name}",
        f"description: {name} with static int8 for CPUs.",
        "base:",
        f"  source: {_quote(model.source)}",
        *([f"  revision: {model.revision}"] if model.revision else []),
        f"  license: {model.license}{said}",
        "  body:",
        *(f"    {key}: {_scalar(value)}" for key, value in fields.items()),
        f"  pooling: {about.pooling}",
        f"  normalize: {json.dumps(about.normalize)}",
        f"  prompts: {{query: {_quote(about.prompts.query)}, document: {_quote(about.prompts.document)}}}",
        f"  max_tokens: {about.max_tokens}",
        "targets:",
        "  # Over the fastest fp32 engine of the machine; baseline_ms and latency_ms instead judge milliseconds on a named box.",
        "  speedup_min: 1.5",
        "  accuracy_loss_max: 0.01  # 0.01 is 1 %",
        "engines:",
        "  - {engine: openvino, inference_precision: f32}",
        "steps:",
        *(_trimming() if body.vocabulary >= LARGE_VOCABULARY else []),
        "  - step: export_onnx",
        "  - step: convert_openvino",
        "  - step: quantize_static",
        "  # Instead of quantize_static, where inputs are mostly below 32 tokens: int4 weights.",
        "  # - step: compress_weights",
        "  #   weights: int4_sym",
        "  #   method: gptq",
        "  # For memory, not for speed: the embedding table in 8 bits.",
        "  # - step: compress_tables",
        "workload:",
        f"  lengths: {lengths}  # tokens",
        "  batch: 1",
        "tasks:",
        "  # Synthetic and English: name judged texts of your own beside it, or instead.",
        "  - task: retail",
        "  # - task: beir",
        "  #   path: path/to/beir-folder",
    ]
    return "\n".join(lines) + "\n"


def _trimming() -> list[str]:
    return [
        "  # The vocabulary serves many languages; keep the pieces that yours use.",
        "  # - step: trim_vocabulary",
        "  #   corpus: [texts.en.txt, texts.fr.txt]",
    ]


def _scalar(value: Any) -> str:
    """A value as recipes write it: 1.0e-12, which every YAML parser reads as a number."""
    return re.sub(r"^(\d+)e", r"\1.0e", str(value)) if isinstance(value, float) else str(value)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def write_recipe(model: Model, path: Path | None, name: str | None = None) -> Path:
    """Write a model's starter recipe, and make sure that it is one.

    Args:
        model: as `read_model` gives it.
        path: where to; `<name>.yaml` in the current folder when left out.
        name: the recipe's; from the source when left out.

    Raises:
        RecipeError: a file is there already, the name is not one, or it cannot be written.
    """
    name = name or model.name
    path = path or Path(f"{name}.yaml")
    text = render_recipe(model, name)
    with TemporaryDirectory() as scratch:
        draft = Path(scratch) / path.name
        draft.write_text(text, encoding="utf-8")
        try:
            load_recipe(draft)
        except RecipeError as error:
            raise RecipeError(str(error).replace(str(draft), str(path))) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{path}: is there already, and nothing is overwritten; move it away, or name another --output") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror}; name another file with --output") from error
    return path
