"""The oras client as optbench uses it: one try a request, and a login of the kind that the registry asks for.

oras-py 0.2 answers a registry that asks for a user and password itself (`Basic`: docker-registry behind htpasswd, many private ones) as if
it had named a token server, and reads `~/.docker/config.json` only.
"""

import os
from pathlib import Path
from typing import Any

from optbench.errors import PublishError

__all__ = ["load_login", "make_client"]


def make_client(host: str) -> Any:
    """A client of the registry at `host`; as in Docker, a registry on this machine is reached over http.

    Raises:
        ImportError: oras is not installed.
    """
    import oras.auth.token
    import oras.provider

    class Login(oras.auth.token.TokenAuth):  # type: ignore[misc]
        scheme = "Bearer"

        def get_auth_header(self) -> dict[str, str]:
            return {"Authorization": f"{self.scheme} {self.token}"} if self.token else {}

        def authenticate_request(self, original: Any, headers: dict[str, str], refresh: bool = False) -> tuple[dict[str, str], bool]:
            if not original.headers.get("Www-Authenticate", "").lower().startswith("basic"):
                answered, changed = super().authenticate_request(original, headers, refresh)
            else:
                self.scheme, self.token = "Basic", getattr(self, "_basic_auth", None)
                answered, changed = {**headers, **self.get_auth_header()}, self.token is not None
            if not changed:
                original.close()
                raise self.refusal(wrong=True)
            return answered, changed

        def refusal(self, *, wrong: bool) -> PublishError:
            if not hasattr(self, "_basic_auth"):
                return PublishError(f"{host}: needs a user and password; run docker login {host}, or oras login {host}")
            if wrong:
                return PublishError(f"{host}: wrong user or password; run docker login {host} again")
            return PublishError(f"{host}: its user may not do that; ask for write permission there, or log in as another user")

    class OneTry(oras.provider.Registry):  # type: ignore[misc]
        def do_request(self, *arguments: Any, **options: Any) -> Any:
            # Without the library's five retries, which sleep for minutes in between: the next run resumes anyway.
            response = oras.provider.Registry.do_request.__wrapped__(self, *arguments, **options)
            if response.status_code in (401, 403):
                response.close()
                # A registry with a token server refuses a wrong password there, before this.
                raise self.auth.refusal(wrong=response.status_code == 401 and self.auth.scheme == "Basic")
            return response

    oras.logger.setup_logger(quiet=True)  # it prints to stderr
    client = OneTry(insecure=host.partition(":")[0] in ("localhost", "127.0.0.1"))
    login = Login()
    login.session, login.prefix, login._tls_verify = client.auth.session, client.auth.prefix, client.auth._tls_verify
    client.auth = login
    return client


def load_login(client: Any, container: Any) -> None:
    """Find the user and password for a registry where `docker login` leaves them, or the helper that has them."""
    folder = os.environ.get("DOCKER_CONFIG")
    path = Path(folder or "~/.docker").expanduser() / "config.json"
    client.auth.load_configs(container, configs=[str(path)] if path.is_file() else [])
