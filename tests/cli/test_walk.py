"""The way of a new user: the guide's commands in their order, on a tiny model."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optbench import cli
from optbench.artifact.folder import Artifact, open_artifact

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"
WALK = ("init", "check", "plan", "apply", "report", "verify", "publish", "pull")
# The tiny model's weights are random numbers, and its figures are not the subject.
EASED = {
    "speedup_min: 1.5": "speedup_min: 0.001",
    "accuracy_loss_max: 0.01 ": "accuracy_loss_max: 0.9 ",
    "  batch: 1\n": "  batch: 1\n  rounds: 6\n  processes: 1\nfidelity: {cosine_mean_min: 0, cosine_min: -1, texts: 32}\n",
}


def commands_of_the_guide() -> list[list[str]]:
    block = re.search(r"<!-- test: elsewhere tests/cli/test_walk.py -->\n```sh\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


def test_guide_leads_from_a_model_to_a_published_artifact(
    make_checkpoint: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(make_checkpoint().path, tmp_path / "my-model")
    (tmp_path / "my-model" / "manifest.json").unlink()
    (tmp_path / "my-model" / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTBENCH_CACHE", str(tmp_path / "cache"))
    commands = commands_of_the_guide()
    assert tuple(words[1] for words in commands) == WALK
    for words in commands:
        done = CliRunner().invoke(cli.app, words[1:])
        assert done.exit_code == 0, f"{shlex.join(words)}: {done.exception!r}\n{done.output}"
        if words[1] == "init":
            recipe = Path("my-model.yaml")
            text = recipe.read_text(encoding="utf-8")
            for given, eased in EASED.items():
                assert given in text
                text = text.replace(given, eased)
            recipe.write_text(text, encoding="utf-8")
        if words[1] == "apply":
            # The summary's next command is the guide's.
            assert done.stdout.rstrip().splitlines()[-1].split(maxsplit=1) == ["next", "optbench report exported/my-model"]
            assert "my-model: pass" in done.stdout
    assert open_artifact(Path("pulled")).sha256 == open_artifact(Path("exported/my-model")).sha256
