"""Commands on artifacts: verify, extend, publish, pull."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from optbench.cli.options import ArtifactPath, CacheFolder, Json, cache_at
from optbench.cli.progress import watching
from optbench.cli.terminal import counted, print_json, print_line, print_tables, print_warnings
from optbench.errors import PublishError

__all__ = ["extend", "publish", "pull", "verify"]

PublicKey = Annotated[
    str | None, typer.Option("--public-key", help="Require a signature by this minisign public key: a file, or the key itself.")
]
Sha256 = Annotated[str | None, typer.Option("--sha256", help="Require this artifact hash.")]


def verify(
    artifact: ArtifactPath,
    loaders: Annotated[
        str | None,
        typer.Option("--loaders", help="Also load it with these libraries, comma-separated, or all. The first run installs some."),
    ] = None,
    public_key: PublicKey = None,
    sha256: Sha256 = None,
    cache: CacheFolder = None,
    as_json: Json = False,
) -> None:
    """Check every byte of an artifact and that its graph is safe to load; with --loaders, that other libraries give the same vectors.

    Exits with 1 if there is a problem or a loader gives other vectors, with 3 if a loader cannot run.
    """
    from optbench.loaders.conformance import LoaderRow, Status, check_loaders, loader_names, loader_texts
    from optbench.publish.signature import check_folder
    from optbench.record.audit import audit
    from optbench.report.loaders import loader_table
    from optbench.report.table import Table

    chosen = loader_names(loaders) if loaders else ()
    with watching() as watch:
        watch.begin("verify")
        found = audit(artifact)
        problems = list(found.problems)
        if sha256 is not None and found.sha256 not in (None, sha256):
            problems.append(f"{artifact}: sha256 is {found.sha256}, expected {sha256}")
        if public_key is not None and found.sha256 is not None:
            try:
                check_folder(artifact, public_key)
            except PublishError as error:
                problems.append(str(error))
        watch.end(f"{counted(found.files, 'file')}, {counted(len(problems), 'problem')}")
        rows: tuple[LoaderRow, ...] = ()
        # An artifact that failed is not opened.
        if chosen and not problems:
            watch.begin("loaders")
            texts = loader_texts()
            rows = check_loaders(artifact, chosen, texts, cache_at(cache).environments, watch.update)
            watch.end(f"{counted(len(rows), 'loader')}, {len(texts)} texts")
    if as_json:
        print_json(
            "verify",
            **found.model_dump(mode="json", exclude={"problems"}),
            problems=problems,
            loaders=[row.model_dump(mode="json") for row in rows],
        )
    else:
        signed = "no" if not found.signed else "yes" if public_key else "yes, but not checked; pass --public-key"
        facts = [
            ["sha256", found.sha256 or ""],
            ["kind", f"{found.kind}, {found.weights} weights"],
            ["size", f"{found.files} files, {found.size_bytes / 1e6:.1f} MB"],
            ["measured", found.measured or "no record has this sha256"],
            ["signed", signed],
        ]
        print_tables([Table(str(artifact), ["", ""], facts if found.sha256 else []), loader_table(rows)])
        print_warnings(problems)
    statuses = {row.status for row in rows}
    if problems or statuses & {Status.DIFFERS, Status.FAILS}:
        raise typer.Exit(1)
    if Status.CANNOT_RUN in statuses:
        raise typer.Exit(3)


def extend(
    artifact: ArtifactPath,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to create.")],
    other: Annotated[
        Path | None,
        typer.Option("--with", help="An artifact of the same model whose graph to add. Default: convert the ONNX graph to OpenVINO."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Copy an artifact and add a graph in the other format, so that both ONNX and OpenVINO loaders can use the folder."""
    from optbench.loaders.second_graph import extend as extend_artifact

    with watching() as watch:
        watch.begin("extend")
        extended = extend_artifact(artifact, output, other=other)
        watch.end(f"{extended.size_bytes / 1e6:.1f} MB")
    if as_json:
        print_json("extend", folder=str(output), sha256=extended.sha256, size_bytes=extended.size_bytes)
    else:
        print_line(f"{output}  sha256 {extended.sha256}")


def publish(
    artifact: ArtifactPath,
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="A folder, an fsspec URL (s3://, gs://), hf://org/name or oci://host/name:tag.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files that would be sent, and send nothing.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Read every file that is already there, and send again those that are damaged.")
    ] = False,
    allow_inconclusive: Annotated[bool, typer.Option("--allow-inconclusive", help="Publish even if the verdict is inconclusive.")] = False,
    license_checked: Annotated[
        bool,
        typer.Option(
            "--license-checked", help="Confirm that the base model's license, which you have read, allows sharing modified copies."
        ),
    ] = False,
    pull_request: Annotated[bool, typer.Option("--pull-request", help="Open a pull request; hf:// only.")] = False,
    sign: Annotated[
        Path | None,
        typer.Option("--sign", help="Sign with this minisign secret key; its password, if any, may be in OPTBENCH_SIGN_PASSWORD."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish an artifact that is verified, measured and passes its targets. If interrupted, run again: only missing files are sent.

    Exits with 1 if the verdict is fail, with 3 if it is inconclusive, with 2 for any other reason not to publish.
    """
    from optbench.publish import clear, open_destination, secret_key
    from optbench.publish import publish as send
    from optbench.record.verdict import Outcome

    if repair and pull_request:
        raise typer.BadParameter("cannot be combined with --pull-request, which leaves the branch as it was", param_hint="--repair")
    target = open_destination(destination, pull_request=pull_request)
    # The key first: its password is asked for, or found to be wrong, before gigabytes are hashed.
    with secret_key(sign) if sign else nullcontext() as key, watching() as watch:
        watch.begin("check")
        clearance = clear(artifact, allow_inconclusive=allow_inconclusive, license_checked=license_checked)
        watch.end("may be published" if not clearance.reasons else "may not be published")
        if not clearance.reasons:
            watch.begin(f"publish to {target.url}")
            published = send(artifact, target, watch.update, key=key, repair=repair, dry_run=dry_run)
            verb = "would send" if dry_run else "sent"
            watch.end(f"{verb} {len(published.sent)} of {published.files} files, {published.sent_bytes / 1e6:.1f} MB")
    if clearance.reasons:
        if as_json:
            print_json("publish", published=None, **clearance.model_dump(mode="json"))
        print_warnings([f"not published: {reason}" for reason in clearance.reasons])
        raise typer.Exit(3 if clearance.inconclusive else 1 if clearance.outcome is Outcome.FAIL else 2)
    if as_json:
        print_json("publish", published=published.model_dump(mode="json"), **clearance.model_dump(mode="json"))
        return
    for name in published.sent:
        print_line(f"{verb} {name}{', which was damaged there' if name in published.repaired else ''}")
    if not published.sent:
        by = ", by name and size; --repair compares every byte" if published.compared == "sizes" else ", byte for byte" if repair else ""
        print_line(f"everything is already there{by}")
    print_line(f"{published.where}  sha256 {published.sha256}")


def pull(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Where it is published, in any form that publish accepts.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to create.")],
    public_key: PublicKey = None,
    sha256: Sha256 = None,
    as_json: Json = False,
) -> None:
    """Download an artifact. FOLDER appears complete and verified, or not at all. If interrupted, run again to resume."""
    from optbench.publish import open_destination
    from optbench.publish import pull as fetch

    origin = open_destination(source)
    with watching() as watch:
        watch.begin(f"pull {origin.url}")
        pulled = fetch(origin, folder, watch.update, public_key=public_key, sha256=sha256)
        watch.end(f"{pulled.files} files, {pulled.fetched_bytes / 1e6:.1f} MB downloaded; signature: {pulled.signature}")
    if as_json:
        print_json("pull", **pulled.model_dump(mode="json"))
        return
    print_line(f"{pulled.folder}  sha256 {pulled.sha256}")
