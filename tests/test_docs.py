"""The documents: every command and program in them works, the recipe reference is current, every link and path exists.

An invisible line before a code block says how this file treats it:

    <!-- test: run -->                   run it, in a folder with tiny models under the names that the documents use
    <!-- test: parse, because ... -->    do not run it: check the commands and options against the command line
    <!-- test: elsewhere FILE -->        do not run it: check that FILE does, or that FILE's docstring says how to run it

A block without such a line fails, unless its language (json, yaml, ...) is not run.
"""

import hashlib
import re
import shlex
import shutil
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from typer.testing import CliRunner

from bench import readme_table
from bench.peers import docs_tables
from optbench import cli
from optbench.artifact.folder import Artifact
from optbench.artifact.manifest import Kind
from optbench.measure.latency import measure_latency
from optbench.recipe.reference import render_reference
from optbench.record.record import Record
from optbench.record.verdict import judge
from optbench.report.card import render_card
from optbench.run import measure
from optbench.run.apply import export_artifact

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "guide.md"]
DOCUMENTS += sorted(path for path in (ROOT / "docs").glob("*.md") if path not in DOCUMENTS)
LOG = ROOT / "bench" / "LOG.md"
MARK = re.compile(r"<!-- test: (run|parse|elsewhere)\b[, ]*(.*?) *-->")
FENCE = re.compile(r"^( *)```(\w*)$")
# Languages of blocks that are shown and not run.
DATA = {"json", "yaml", "text"}
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"])
PLACEHOLDER = re.compile("NAME|RECIPE")
README_LINES_MAX = 120
ENTRY_LINES_MAX = 15
# Text that ends before a code block: a sentence, a label, a table row or a heading.
ENDS = re.compile(r"[.:|)]$|^#|^```$")
# Text that starts after one: a new sentence, heading, list item, table or comment.
STARTS = re.compile(r"^\s*(?:[A-Z#|<!`*\[-]|\d+\.)")


@dataclass(frozen=True)
class Block:
    where: str
    language: str
    how: str
    detail: str
    text: str

    @property
    def commands(self) -> Iterator[list[str]]:
        """Each command's words; comments are dropped, and `a && b` are two."""
        for line in self.text.splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            if words:
                yield words


def read_blocks(path: Path) -> Iterator[Block]:
    lines = path.read_text(encoding="utf-8").splitlines()
    index = 0
    while index < len(lines):
        if fence := FENCE.match(lines[index]):
            end = lines.index(f"{fence[1]}```", index + 1)
            mark = MARK.search(lines[index - 1])
            text = textwrap.dedent("\n".join(lines[index + 1 : end]))
            where = f"{path.relative_to(ROOT)}:{index + 1}"
            yield Block(where, fence[2], mark[1] if mark else "", mark[2] if mark else "", text)
            index = end
        index += 1


BLOCKS = [block for path in DOCUMENTS for block in read_blocks(path)]


def by(how: str) -> list[object]:
    return [pytest.param(block, id=block.where) for block in BLOCKS if block.how == how]


def test_every_block_says_how_it_is_tested() -> None:
    unmarked = [block.where for block in BLOCKS if not block.how and block.language not in DATA]
    assert not unmarked, f"{', '.join(unmarked)}: put <!-- test: run --> on the line before; see the top of this file"
    assert {block.how for block in BLOCKS} >= {"run", "parse", "elsewhere"}


def test_recipe_reference_is_fresh_and_every_key_has_a_meaning() -> None:
    page = render_reference()
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == page, "run: optbench schema --markdown > docs/recipe.md"
    bare = re.findall(r"^\| `(\w+)` \|.*\|  \|$", page, re.MULTILINE)
    assert not bare, f"{', '.join(bare)}: give the field a description"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        goal = path.parent / file if file else path
        assert goal.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, f"{path.name}: {target}"


@pytest.fixture
def sandbox(
    tmp_path: Path, make_checkpoint: Callable[..., Artifact], make_artifact: Callable[..., Artifact], make_record: Callable[..., Record]
) -> Path:
    """A folder with what the documents name: a tiny `my-model`, and artifacts with their records as apply exports them."""
    shutil.copytree(make_checkpoint().path, tmp_path / "my-model")
    (tmp_path / "my-model" / "manifest.json").unlink()
    (tmp_path / "my-model" / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "exported").mkdir()
    artifact = make_artifact(Kind.OPENVINO)
    # The tiny model's weights are random; those that are published are not.
    measured = hashlib.sha256(artifact.manifest.model_copy(update={"weights": "real"}).to_bytes()).hexdigest()
    record = make_record()
    final = record.final.model_copy(update={"artifact_sha256": measured})
    record = record.model_copy(update={"points": (*record.points[:-1], final)})
    folder = export_artifact(replace(artifact, weights="real"), record, tmp_path, render_card(record, judge(record)))
    for name in ("my-model", "minilm-l6"):
        shutil.copytree(folder, tmp_path / "exported" / name)
    return tmp_path


def run_block(block: Block) -> None:
    if block.language == "python":
        exec(compile(block.text, block.where, "exec"), {"__name__": "docs"})  # noqa: S102  # our own
        return
    for words in block.commands:
        assert words[0] == "optbench", f"{block.where}: {shlex.join(words)} is no command of optbench: mark its block `elsewhere`"
        redirect = words.index(">") if ">" in words else len(words)
        arguments = [match for word in words[1:redirect] for match in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, f"{block.where}: {shlex.join(words)}: {result.exception!r}\n{result.output}"
        if redirect < len(words):
            Path(words[redirect + 1]).write_text(result.stdout, encoding="utf-8")
            assert result.stdout == (ROOT / words[redirect + 1]).read_text(encoding="utf-8"), f"{words[redirect + 1]} is stale"


def test_commands_and_programs_of_the_documents_run_in_their_order(sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sandbox)
    monkeypatch.setenv("OPTBENCH_CACHE", str(sandbox / "cache"))
    # That the commands do what is written is the subject here, not how steady their figures are.
    monkeypatch.setattr(measure, "measure_latency", partial(measure_latency, processes=1))
    run = [block for block in BLOCKS if block.how == "run"]
    assert run
    for block in run:
        run_block(block)
    assert (sandbox / "my-model.yaml").is_file()
    assert (sandbox / "pulled" / "openvino" / "openvino_model.xml").is_file()


def check_install(words: list[str], where: str) -> None:
    """Check that `pip install` names this package, with extras that it has."""
    requirement = Requirement(words[-1].replace(".[", "optbench["))
    assert words[:-1] in (["pip", "install"], ["pip", "install", "-e"]), f"{where}: {shlex.join(words)}"
    assert requirement.name == "optbench", f"{where}: installs {requirement.name}"
    unknown = requirement.extras - EXTRAS
    assert not unknown, f"{where}: pyproject.toml has no extra {', '.join(unknown)}"


@pytest.mark.parametrize("block", by("parse"))
def test_options_of_a_command_that_is_not_run_are_the_commands_own(block: Block) -> None:
    assert block.detail.startswith("because "), f"{block.where}: say why it is not run"
    commands = typer.main.get_group(cli.app).commands
    every = [words for other in BLOCKS if other.how in ("run", "elsewhere") and other.language == "sh" for words in other.commands]
    run = {words[1] for words in every if words[0] == "optbench"}
    for words in block.commands:
        if words[0] == "pip":
            check_install(words, block.where)
            continue
        assert words[1] in run or "seconds" in block.detail, f"{block.where}: no document has a block that runs optbench {words[1]}"
        # Parsed as the shell would pass it; nothing is called.
        context = commands[words[1]].make_context(words[1], list(words[2:]))
        assert context.params, block.where


@pytest.mark.parametrize("block", by("elsewhere"))
def test_command_that_runs_elsewhere_is_found_there(block: Block) -> None:
    text = (ROOT / block.detail).read_text(encoding="utf-8").replace("--quiet ", "")
    for words in block.commands:
        if words[0] == "optbench":
            assert f'"{words[1]}"' in text, f"{block.where}: {block.detail} does not run optbench {words[1]}"
            typer.main.get_group(cli.app).commands[words[1]].make_context(words[1], list(words[2:]))
            continue
        assert shlex.join(words).replace("'", "") in text.replace("'", ""), f"{block.where}: {shlex.join(words)} is not in {block.detail}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_named_in_a_sentence_or_a_workflow_exists_with_its_options(path: Path) -> None:
    commands = typer.main.get_group(cli.app).commands
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"`optbench\s+([a-z][^`]*)`", text) + re.findall(r"- run: optbench ([^|#\n]*)", text)
    for name, *rest in map(str.split, named):
        assert name in commands, f"{path.name}: optbench {name}"
        known = {option for parameter in commands[name].params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        unknown = {word for word in rest if word.startswith("--")} - known
        assert not unknown, f"{path.name}: optbench {name} has no {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_extras_named_in_a_sentence_exist(path: Path) -> None:
    named = re.findall(r"pip install '?(optbench\[[^]]*\])", path.read_text(encoding="utf-8"))
    for requirement in map(Requirement, named):
        assert requirement.extras <= EXTRAS, f"{path.name}: {requirement}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_sentence_runs_through_a_code_block(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip() and not MARK.search(line)]
    fences = [index for index, line in enumerate(lines) if line.lstrip().startswith("```")]
    for begin, end in zip(fences[::2], fences[1::2], strict=True):
        assert begin == 0 or ENDS.search(lines[begin - 1]), f"{path.name}: ends in a code block: {lines[begin - 1]}"
        after = lines[end + 1 : end + 2]
        assert not after or STARTS.match(after[0]), f"{path.name}: starts after a code block: {after[0]}"


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md", LOG], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_modules_named_in_a_sentence_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    files = {name for name in re.findall(r"\b((?:optbench|bench|tests|docs|recipes)/[\w./-]*\w)", text) if not PLACEHOLDER.search(name)}
    missing = {name for name in files if not (ROOT / name).exists()}
    for name in re.findall(r"`optbench((?:\.[a-z_]+)+)(?:\.[A-Z]\w*)?`", text):
        module = ROOT / "optbench" / name[1:].replace(".", "/")
        if not (module.is_dir() or module.with_suffix(".py").is_file()):
            missing.add(f"optbench{name}")
    assert not missing, f"{path.name} names {', '.join(sorted(missing))}"


def test_result_tables_are_those_of_the_newest_records() -> None:
    records = readme_table.exported_records()
    assert readme_table.summary(records).strip() in (ROOT / "README.md").read_text(encoding="utf-8"), "run: python bench/readme_table.py"
    assert readme_table.steps(records).strip() in (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), (
        "run: python bench/readme_table.py"
    )


def test_comparison_tables_are_those_of_the_newest_results() -> None:
    page = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    assert docs_tables.section().strip() in page, "run: python bench/peers/docs_tables.py"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES_MAX


def test_every_notebook_entry_has_its_form_and_every_claim_its_entry() -> None:
    summary, *entries = re.split(r"^### ", LOG.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = set()
    for entry in entries:
        title, *body = re.split(r"^## ", entry, flags=re.MULTILINE)[0].strip().splitlines()
        assert re.fullmatch(r"[A-Z]\d+\. .+\? \(.+\)", title), f"{title}: expected `A1. Question? (date, machine)`"
        assert any("**Decision**:" in line for line in body), f"{title}: states no decision"
        assert len(body) <= ENTRY_LINES_MAX, f"{title}: {len(body)} lines"
        names.add(title.partition(".")[0])
    claimed = {name for row in re.findall(r"^\|.*\| ([A-Z]\d[^|]*) \|$", summary, re.MULTILINE) for name in row.split(", ")}
    assert claimed, "no table of claims"
    assert claimed <= names, f"no entry {', '.join(sorted(claimed - names))}"
