"""Tampered artifacts: two hundred of them, and each is found and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from optbench.artifact.folder import Artifact, seal
from optbench.artifact.manifest import MANIFEST, FileEntry, Kind, Manifest
from optbench.record import audit as audit_module
from optbench.record.audit import audit, measured_sha256, name_problems


def names_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def flip_bit(folder: Path, chance: Random) -> str:
    """One bit of any file, the manifest among them."""
    name = chance.choice(names_of(folder))
    content = bytearray((folder / name).read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    (folder / name).write_bytes(content)
    return name


def truncate(folder: Path, chance: Random) -> str:
    name = chance.choice(names_of(folder))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: chance.randrange(len(content))])
    return name


def append(folder: Path, chance: Random) -> str:
    name = chance.choice(names_of(folder))
    with (folder / name).open("ab") as file:
        file.write(chance.randbytes(chance.randrange(1, 9)))
    return name


def rename(folder: Path, chance: Random) -> str:
    name = chance.choice(names_of(folder))
    (folder / name).rename(folder / f"{name}.{chance.randrange(1000)}")
    return name


def swap(folder: Path, chance: Random) -> str:
    """Two files change their contents."""
    one, other = chance.sample([name for name in names_of(folder) if name != MANIFEST], 2)
    first, second = (folder / one).read_bytes(), (folder / other).read_bytes()
    (folder / one).write_bytes(second)
    (folder / other).write_bytes(first)
    return one


def remove(folder: Path, chance: Random) -> str:
    name = chance.choice(names_of(folder))
    (folder / name).unlink()
    return name


def add(folder: Path, chance: Random) -> str:
    name = chance.choice(["extra.json", "onnx/model.onnx", ".hidden", "1_Pooling/more.json", "tokenizer.py", "records/late.json"])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(chance.randbytes(8))
    return name


def link(folder: Path, chance: Random) -> str:
    """A file becomes a link to its own bytes elsewhere."""
    name = chance.choice(names_of(folder))
    outside = folder.parent / f"{folder.name}-outside"
    shutil.move(folder / name, outside)
    (folder / name).symlink_to(outside)
    return name


def resealed(change: Callable[[Path, Random], str]) -> Callable[[Path, Random], str]:
    """The change, and a manifest that agrees with it: what an attacker without the publisher's key can do."""

    def apply(folder: Path, chance: Random) -> str:
        named = change(folder, chance)
        (folder / MANIFEST).unlink()
        shutil.move(folder, folder.parent / "staging")
        seal(folder.parent / "staging", folder, Kind.ONNX, "random")
        return named

    return apply


def add_program(folder: Path, chance: Random) -> str:
    name = chance.choice(["modeling.py", "custom_ops.so", "weights.pkl", "onnx/lib.dll", "more.tar.gz", "pytorch_model.bin", "w.npz"])
    (folder / name).write_bytes(b"x")
    return name


def name_foreign_module(folder: Path, _: Random) -> str:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "os.system"
    (folder / "modules.json").write_text(json.dumps(modules))
    return "modules.json"


def name_remote_code(folder: Path, chance: Random) -> str:
    name = chance.choice(["config.json", "tokenizer_config.json"])
    document = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    (folder / name).write_text(json.dumps({**document, "auto_map": {"AutoModel": "evil--model.Evil"}}))
    return name


def leave_the_folder(folder: Path, chance: Random) -> str:
    """An ONNX graph whose weights are elsewhere, or that needs a library."""
    import onnx

    path = folder / "onnx" / "model.onnx"
    model = onnx.load(path)
    if chance.random() < 0.5:
        model.graph.node[0].domain = "com.evil"
    else:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=chance.choice(["/etc/passwd", "../config.json", "../../x"]))
    path.write_bytes(model.SerializeToString())
    return "onnx/model.onnx"


def hostile_manifest(folder: Path, chance: Random) -> str:
    """A manifest that lists what no folder can hold, or says other things than it did."""
    path = folder / MANIFEST
    document: dict[str, Any] = json.loads(path.read_text())
    entry = {"sha256": "0" * 64, "size_bytes": 0}
    name = chance.choice(["../escape", "/etc/cron.d/x", "a/../../b", "a\\b", "./x", "a//b", "\x1b[2J", "", "."])
    change: Callable[[], Any] = chance.choice(
        [
            lambda: document["files"].update({name: entry}),
            lambda: document.update(schema_version=chance.randrange(2, 99)),
            lambda: document.update(kind=chance.choice(["pickle", "checkpoint", "openvino", 7])),
            lambda: document.update(weights="stolen"),
            lambda: document.update(run="rm -rf"),
            lambda: document["files"]["config.json"].update(size_bytes=chance.choice([-1, 2**80, "many", 1.5])),
            lambda: document["files"]["config.json"].update(sha256=chance.choice(["", "0" * 63, "Z" * 64, "0" * 64])),
            lambda: document.pop(chance.choice(["files", "kind", "weights"])),
        ]
    )
    change()
    path.write_text(json.dumps(document, sort_keys=True, indent=1) + "\n")
    return MANIFEST


# How often each is done; together two hundred.
CHANGES: dict[str, tuple[int, Callable[[Path, Random], str]]] = {
    "bit flip": (70, flip_bit),
    "truncation": (20, truncate),
    "bytes appended": (10, append),
    "rename": (15, rename),
    "two files swapped": (5, swap),
    "removal": (10, remove),
    "extra file": (10, add),
    "link": (10, link),
    "hostile manifest": (25, hostile_manifest),
    "program, resealed": (10, resealed(add_program)),
    "foreign module, resealed": (3, resealed(name_foreign_module)),
    "remote code, resealed": (4, resealed(name_remote_code)),
    "graph that leaves its folder, resealed": (8, resealed(leave_the_folder)),
}


def test_two_hundred_are_tampered_with() -> None:
    assert sum(count for count, _ in CHANGES.values()) == 200


@pytest.mark.parametrize("change", CHANGES)
def test_every_tampered_artifact_is_found_and_the_file_named(change: str, make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    count, tamper = CHANGES[change]
    source = make_artifact(Kind.ONNX).path
    missed = []
    for seed in range(count):
        folder = tmp_path / str(seed)
        shutil.copytree(source, folder)
        named = tamper(folder, Random(f"{change} {seed}"))  # noqa: S311
        problems = audit(folder).problems
        # Of a manifest and a file that disagree nothing says which was changed: the file is named then.
        if not problems or not (named == MANIFEST or any(named in problem for problem in problems)):
            missed.append((seed, named))
    assert missed == []


@pytest.mark.parametrize("kind", [Kind.ONNX, Kind.OPENVINO, Kind.CHECKPOINT])
def test_untouched_artifact_has_no_problem(make_artifact: Callable[..., Artifact], kind: Kind) -> None:
    artifact = make_artifact(kind)
    found = audit(artifact.path)
    assert (found.problems, found.sha256, found.kind, found.measured) == ((), artifact.sha256, kind, None)


def test_every_problem_is_named_however_many(make_artifact: Callable[..., Artifact], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(make_artifact(Kind.ONNX).path, folder)
    names = [name for name in names_of(folder) if name != MANIFEST]
    for name in names:
        (folder / name).unlink()
    for index in range(30):
        (folder / f"extra{index}.json").write_bytes(b"")
    problems = audit(folder).problems
    assert len(problems) == len(names) + 30
    assert all(any(name in problem for problem in problems) for name in names)


def manifest_of(files: dict[str, int]) -> Manifest:
    entries = {name: FileEntry(sha256="0" * 64, size_bytes=size) for name, size in files.items()}
    return Manifest(kind=Kind.ONNX, weights="real", files=entries)


def test_sizes_are_bounded_by_the_manifest_alone() -> None:
    huge = audit_module.SMALL_BYTES_MAX + 1
    assert name_problems(manifest_of({"onnx/model.onnx": huge, "onnx/model.onnx_data": huge})) == []
    assert "for a file without weights" in name_problems(manifest_of({"config.json": huge}))[0]


def test_names_that_some_file_systems_cannot_tell_apart_are_refused() -> None:
    assert "duplicate name" in name_problems(manifest_of({"README.md": 1, "readme.md": 1}))[0]


def test_measured_hash_leaves_out_the_evidence_and_other_engines_graphs() -> None:
    measured = manifest_of({"onnx/model.onnx": 1, "config.json": 1})
    exported = manifest_of(
        {"onnx/model.onnx": 1, "config.json": 1, "README.md": 1, "engine.json": 1, "records/x.json": 1, "openvino/openvino_model.xml": 1}
    )
    assert measured_sha256(exported) == measured_sha256(measured)
    assert measured_sha256(exported) != measured_sha256(manifest_of({"onnx/model.onnx": 2, "config.json": 1}))
