"""Signatures of a manifest, and so of every byte, in minisign's form: `minisign -V` reads them too.

The secret key stays in its file; a password that protects it comes from the terminal or from OPTBENCH_SIGN_PASSWORD, and
neither is printed, logged or stored.
"""

import getpass
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optbench.artifact.folder import MANIFEST, SIGNATURE
from optbench.errors import PublishError

if TYPE_CHECKING:
    from minisign import PublicKey

__all__ = ["PASSWORD_VARIABLE", "check_folder", "check_signature", "read_public_key", "sign"]

PASSWORD_VARIABLE = "OPTBENCH_SIGN_PASSWORD"  # the variable's name
KEY_BYTES_MAX = 16 * 1024


def _minisign() -> Any:
    try:
        import minisign
    except ImportError as error:
        raise PublishError("signatures need the library py-minisign; pip install 'optbench[publish]'") from error
    return minisign


def read_public_key(key: str) -> "PublicKey":
    """A public key: minisign's file, or the base64 text that such a file holds.

    Raises:
        PublishError: neither.
    """
    minisign = _minisign()
    path = Path(key)
    try:
        if path.is_file():
            if path.stat().st_size > KEY_BYTES_MAX:
                raise PublishError(f"{path}: larger than {KEY_BYTES_MAX} bytes, which no key is")
            return minisign.PublicKey.from_bytes(path.read_bytes())
        return minisign.PublicKey.from_base64(key)
    except (ValueError, IndexError, OSError) as error:
        raise PublishError(f"{key[:80]!r}: is no minisign public key ({error}); name its file, or give its 56 characters") from error


def sign(content: bytes, key_path: Path, comment: str) -> bytes:
    """Sign a manifest; the same bytes, key and comment give the same signature.

    Args:
        content: the manifest's bytes.
        key_path: minisign's secret-key file.
        comment: what the signature says about itself, and vouches for.

    Raises:
        PublishError: no key, a wrong password.
    """
    minisign = _minisign()
    try:
        if key_path.stat().st_size > KEY_BYTES_MAX:
            raise PublishError(f"{key_path}: larger than {KEY_BYTES_MAX} bytes, which no key is")
        key = minisign.SecretKey.from_bytes(key_path.read_bytes())
        if key.is_encrypted():
            key.decrypt(_password(key_path))
    except (ValueError, IndexError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PublishError(f"{key_path}: the secret key cannot be used: {reason}; make one with minisign -G") from error
    with key:
        return bytes(key.sign(content, trusted_comment=comment)) + b"\n"


def _password(key_path: Path) -> str:
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is None:
        if not sys.stdin.isatty():
            raise PublishError(f"{key_path}: is protected by a password; set {PASSWORD_VARIABLE}, or run in a terminal")
        password = getpass.getpass(f"Password of {key_path.name}: ")
    return password


def check_signature(content: bytes, signature: bytes | None, public_key: str, where: str) -> None:
    """Check who signed a manifest.

    Raises:
        PublishError: no signature, or not this key's over these bytes.
    """
    key = read_public_key(public_key)
    if signature is None:
        raise PublishError(f"{where}: is not signed; ask its publisher for a signed one, or leave the public key out")
    minisign = _minisign()
    try:
        key.verify(content, minisign.Signature.from_bytes(signature))
    except (ValueError, IndexError) as error:
        raise PublishError(f"{where}: its signature is not of this manifest by this public key ({error}); do not use it") from error


def check_folder(folder: Path, public_key: str) -> None:
    """Check who signed the artifact in a folder.

    Raises:
        PublishError: as `check_signature`.
    """
    signature = folder / SIGNATURE
    content = signature.read_bytes() if signature.is_file() else None
    check_signature((folder / MANIFEST).read_bytes(), content, public_key, str(folder))
