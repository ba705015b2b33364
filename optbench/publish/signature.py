"""Sign and verify manifests, and with them every byte of an artifact, in minisign's format.

The password of a protected secret key comes from OPTBENCH_SIGN_PASSWORD or the terminal. Neither key nor password is printed, logged or
stored.
"""

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.artifact.manifest import MANIFEST, SIGNATURE
from optbench.errors import PublishError

if TYPE_CHECKING:
    from minisign import PublicKey, SecretKey

__all__ = ["PASSWORD_VARIABLE", "check_folder", "check_signature", "read_public_key", "secret_key", "sign"]

PASSWORD_VARIABLE = "OPTBENCH_SIGN_PASSWORD"
KEY_BYTES_MAX = 16 * 1024


def _minisign() -> Any:
    try:
        import minisign
    except ImportError as error:
        raise PublishError("signatures need py-minisign, which is not installed; run pip install 'optbench[publish]'") from error
    return minisign


def read_public_key(key: str) -> "PublicKey":
    """Read a public key from a minisign file, or from the base64 text that such a file contains.

    Raises:
        PublishError: `key` is neither.
    """
    minisign = _minisign()
    path = Path(key)
    try:
        if path.is_file():
            if path.stat().st_size > KEY_BYTES_MAX:
                raise PublishError(f"{path}: larger than the limit of {KEY_BYTES_MAX} bytes for a key")
            return minisign.PublicKey.from_bytes(path.read_bytes())
        return minisign.PublicKey.from_base64(key)
    except (ValueError, IndexError, OSError) as error:
        raise PublishError(f"{key[:80]!r}: not a minisign public key ({error}); give its file, or its 56 characters") from error


@contextmanager
def secret_key(path: Path) -> Iterator["SecretKey"]:
    """Open a minisign secret-key file, asking for its password if it has one; the key is wiped from memory at the end.

    Raises:
        PublishError: the key cannot be read, or the password is wrong.
    """
    minisign = _minisign()
    try:
        if path.stat().st_size > KEY_BYTES_MAX:
            raise PublishError(f"{path}: larger than the limit of {KEY_BYTES_MAX} bytes for a key")
        key = minisign.SecretKey.from_bytes(path.read_bytes())
    except (ValueError, IndexError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PublishError(f"{path}: cannot use the secret key: {reason}; minisign -G creates one") from error
    if key.is_encrypted():
        password, source = _password(path)
        try:
            key.decrypt(password)
        except ValueError as error:
            if "wrong password" in str(error):
                raise PublishError(f"{path}: wrong password; {source}") from error
            raise PublishError(f"{path}: cannot use the secret key: {error}; minisign -G creates one") from error
    with key:
        yield key


def sign(content: bytes, key: "SecretKey", comment: str) -> bytes:
    """Sign a manifest. The signature also covers `comment`; equal arguments give equal signatures."""
    return bytes(key.sign(content, trusted_comment=comment)) + b"\n"


def _password(key_path: Path) -> tuple[str, str]:
    """The password, and what to do if it is wrong."""
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is not None:
        return password, f"correct {PASSWORD_VARIABLE}, which it was read from"
    if not sys.stdin.isatty():
        raise PublishError(f"{key_path}: protected by a password; set {PASSWORD_VARIABLE}, or run in a terminal")
    return getpass.getpass(f"Password of {key_path.name}: "), "run again and type it as minisign took it"


def check_signature(content: bytes, signature: bytes | None, public_key: str, where: str) -> None:
    """Check that a key signed a manifest.

    Raises:
        PublishError: there is no signature, or it is not by this key for this content.
    """
    key = read_public_key(public_key)
    if signature is None:
        raise PublishError(f"{where}: not signed; ask its publisher for a signature, or omit the public key")
    minisign = _minisign()
    try:
        key.verify(content, minisign.Signature.from_bytes(signature))
    except (ValueError, IndexError) as error:
        raise PublishError(f"{where}: its signature does not match this manifest and public key ({error}); do not use it") from error


def check_folder(folder: Path, public_key: str) -> None:
    """Check that a key signed the artifact in a folder, as `check_signature` does."""
    signature = folder / SIGNATURE
    content = signature.read_bytes() if signature.is_file() else None
    check_signature((folder / MANIFEST).read_bytes(), content, public_key, str(folder))
