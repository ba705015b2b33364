"""A starter recipe for a model: the base as its files describe it, default steps, and alternatives as comments."""

import json
import re
import textwrap
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from optbench.base.hub import fetch_from_hub
from optbench.base.layout import find_files
from optbench.base.license import NOT_STATED, to_spdx
from optbench.base.package import find_package
from optbench.base.source import HubSource, PackageSource, PathSource, parse_source
from optbench.errors import BaseModelError, RecipeError
from optbench.machine.progress import Progress, silent
from optbench.model.checkpoint import Description, Layout, Pooling, describe
from optbench.model.settings import read_named_prompts
from optbench.recipe.load import load_recipe
from optbench.tasks.general import LANGUAGES

__all__ = ["Model", "read_model", "render_recipe", "write_recipe"]

LENGTHS = (8, 16, 32, 64, 128)
# BERT's vocabulary has 30,522 tokens, XLM-R's 250,002: most of them belong to languages that one service never sees.
LARGE_VOCABULARY = 100_000
# A model card takes a few kilobytes, and begins with its front matter.
CARD_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True)
class Model:
    """The content of a recipe's `base:` entry, read from a model.

    Attributes:
        name: the last part of the source, in characters that a recipe's name may have.
        revision: the hub's commit; None for other sources.
        license: SPDX; `NOASSERTION` if the model states none.
        license_from: where the license is stated.
        languages: those that the model's card states and that there are general texts in; empty if it states none.
        states_prompts: whether its files say what stands before queries and documents, be it nothing.
    """

    name: str
    source: str
    revision: str | None
    license: str
    license_from: str
    description: Description
    languages: tuple[str, ...] = ()
    states_prompts: bool = True

    @property
    def findings(self) -> dict[str, str]:
        """What its files say, in words, by subject."""
        about, body = self.description, self.description.body
        prompts = ", ".join(f"{name} {text!r}" for name, text in about.prompts.model_dump().items() if text) or "none"
        default = f"; {about.default_prompt} where none is named" if about.default_prompt else ""
        return {
            "family": f"{body.architecture}, {body.layers} layers of {body.hidden}, {body.parameters / 1e6:.1f} million parameters",
            "pooling": f"{about.pooling}, {'normalized' if about.normalize else 'not normalized'}, {about.embedding_dimension} components",
            "prompts": (prompts if self.states_prompts else "not stated") + default,
            "longest input": f"{about.max_tokens} tokens",
            "similarity": about.similarity,
            "license": f"{self.license} ({self.license_from})" if self.license_from else "not stated",
        }


def read_model(
    text: str,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    license_id: str | None = None,
    progress: Progress = silent,
) -> Model:
    """Read a model's description from its files; from a hub, only the small files are downloaded.

    `text` is a folder, or a source in a recipe's notation. A model without modules.json requires `pooling` and `normalize`.
    `license_id` overrides the license that the model states.

    Raises:
        BaseModelError: the model cannot be found or read, or it does not specify its pooling.
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
            raise BaseModelError(f"{text}: random weights have no files to read; copy a recipe and edit its body")
    description = _describe(folder, pooling, normalize)
    found = license_id or (to_spdx(stated) if stated else None)
    given = "given" if license_id else place
    name = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:64] or "model"
    states_prompts = bool({"query", "document", "passage"} & set(read_named_prompts(folder)))
    languages = _card_languages(folder / "README.md")
    return Model(name, str(source), revision, found or NOT_STATED, given if found else "", description, languages, states_prompts)


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
                raise BaseModelError(f"{folder / 'modules.json'}: has {said}, but {option} is {given}; omit the option")
        return found
    if pooling is None or normalize is None:
        raise BaseModelError(
            f"{folder}: has no modules.json, which specifies pooling and normalization; give --pooling mean or cls, and "
            "--normalize or --no-normalize, as in the model card"
        )
    return describe(folder, Layout(pooling, normalize))


def _front_matter(path: Path) -> dict[str, Any]:
    """A model card's front matter; empty if it has none that can be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(CARD_BYTES_MAX)
        block = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        front = YAML(typ="safe", pure=True).load(block[1]) if block else None
    except (OSError, ValueError, YAMLError):  # an unreadable card states nothing
        return {}
    return front if isinstance(front, dict) else {}


def _card_license(path: Path) -> str | None:
    """The license in a model card's front matter."""
    stated = _front_matter(path).get("license")
    return stated if isinstance(stated, str) else None


def _card_languages(path: Path) -> tuple[str, ...]:
    """The languages in a model card's front matter; `multilingual` is none that could be named."""
    stated = _front_matter(path).get("language")
    listed = stated if isinstance(stated, list) else [stated]
    return tuple(language for language in map(str, listed) if language in LANGUAGES)


def render_recipe(model: Model, name: str) -> str:
    """The recipe as YAML. Comments that begin with `# - ` or `#   ` are alternatives, valid once `# ` is removed."""
    about, body = model.description, model.description.body
    fields = {key: value for key, value in body.model_dump(mode="json").items() if value is not None}
    lengths = [length for length in LENGTHS if length <= about.max_tokens] or [about.max_tokens]
    said = f"  # {model.license_from}" if model.license_from else "  # not stated by the model: write its SPDX identifier"
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
        f"  prompts: {{query: {_quote(about.prompts.query)}, document: {_quote(about.prompts.document)}}}"
        + ("" if model.states_prompts else "  # not stated by the model: write the prefixes that its card names"),
        f"  max_tokens: {about.max_tokens}",
        *(f"  {key}: {value}" for key, value in _settings(about).items()),
        "targets:",
        "  # Over the fastest fp32 engine on the machine; or set baseline_ms and latency_ms for one reference machine (box).",
        "  speedup_min: 1.5",
        "  accuracy_loss_max: 0.01  # 0.01 is 1 %",
        "engines:",
        "  - {engine: openvino, inference_precision: f32}",
        "steps:",
        *(_trimming() if body.vocabulary >= LARGE_VOCABULARY else []),
        "  - step: export_onnx",
        "  - step: convert_openvino",
        "  - step: quantize_static",
        "  # Instead of quantize_static, if most inputs have fewer than 32 tokens: int4 weights.",
        "  # - step: compress_weights",
        "  #   weights: int4_sym",
        "  #   method: gptq",
        "  # Saves memory, not time: the embedding table in 8 bits.",
        "  # - step: compress_tables",
        "workload:",
        f"  lengths: {lengths}  # tokens",
        "  batch: 1",
        *_calibration(model),
        "tasks:",
        "  # Synthetic and English: add or substitute judged texts of your own.",
        "  - task: retail",
        "  # - task: beir",
        "  #   path: path/to/beir-folder",
    ]
    return "\n".join(lines) + "\n"


def _calibration(model: Model) -> list[str]:
    """What a model of other languages than English calibrates on; nothing for an English one: the defaults are English."""
    large = model.description.body.vocabulary >= LARGE_VOCABULARY
    languages = model.languages or (LANGUAGES if large else ())
    if set(languages) <= {"en"}:
        return []
    return [
        "calibration:",
        "  # The retail task is English. Better than these general texts are your own: titles, passages, queries.",
        f"  texts: {64 if 'en' in languages else 0}",
        "  general: 128",
        *textwrap.wrap(f"languages: [{', '.join(languages)}]", 100, initial_indent="  ", subsequent_indent="    "),
        "  # files: [texts.txt]",
    ]


def _settings(about: Description) -> dict[str, str]:
    """The keys that most models leave at their defaults."""
    settings = {"dimension": about.dimension, "default_prompt": about.default_prompt}
    found = {key: _quote(value) if isinstance(value, str) else str(value) for key, value in settings.items() if value is not None}
    return found if about.similarity == "cosine" else {**found, "similarity": about.similarity}


def _trimming() -> list[str]:
    return [
        "  # The vocabulary covers many languages; keep the tokens of yours.",
        "  # - step: trim_vocabulary",
        "  #   corpus: [texts.en.txt, texts.fr.txt]",
    ]


def _scalar(value: Any) -> str:
    """A value in YAML: 1.0e-12, which every parser reads as a number, not 1e-12."""
    return re.sub(r"^(\d+)e", r"\1.0e", str(value)) if isinstance(value, float) else str(value)


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def write_recipe(model: Model, path: Path | None, name: str | None = None) -> Path:
    """Write a model's starter recipe and check it; by default under the model's name, to `<name>.yaml` in the current folder.

    Raises:
        RecipeError: the file exists or cannot be written, or the name is invalid.
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
        raise RecipeError(f"{path}: exists and is not overwritten; move it away, or choose another --output") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror}; choose another file with --output") from error
    return path
