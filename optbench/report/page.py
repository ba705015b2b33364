"""The HTML page: records in one file that works offline, on a phone and with a screen reader.

Text from records is untrusted: templates escape it, the figures' data is JSON, and the content security policy allows only the page's
own scripts.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import optbench
from optbench.record.record import Record
from optbench.report.peers import PeerRun
from optbench.report.plots import require_plots
from optbench.report.sections import Difference, Sections
from optbench.report.text import printable

__all__ = ["Difference", "render_page"]

TEMPLATES = Path(__file__).parent / "templates"


def _printable_value(value: Any) -> Any:
    """Strip control characters from every string that a template inserts, except the page's own markup."""
    return printable(value) if type(value) is str else value


@cache
def _scripts() -> tuple[str, str]:
    """Vega, Vega-Lite and vega-embed in one, and the page's own."""
    import vl_convert

    # The stub requires an argument that the function does not.
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    own = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    # Any end tag within a script element ends it.
    vega, page = (script.replace("</script", "<\\/script").replace("<!--", "<\\!--") for script in (bundle, own))
    return vega, page


def render_page(
    records: Sequence[Record],
    *,
    floors: Mapping[str, Mapping[int, float]] | None = None,
    differences: Sequence[Difference] = (),
    peers: Sequence[PeerRun] = (),
    peers_from: str = "",
) -> str:
    """Render the page of one or more records.

    `floors` has milliseconds by token length, for int8 weights, under the machine's fingerprint and the recipe's name, joined with a
    space. `peers_from` is the path of the peers' results, quoted for a shell.

    Raises:
        OptbenchError: the plotting libraries are not installed.
    """
    require_plots()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    parts = Sections(records, floors or {}, differences).parts(peers, peers_from)
    scripts = _scripts()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable_value,
    )
    only = parts[1].title if len(records) == 1 else f"Report of {len(records)} records"
    return environment.get_template("page.html.j2").render(
        title=only,
        version=optbench.__version__,
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),  # noqa: S704  # the project's own file
        scripts=[Markup(script) for script in scripts],  # noqa: S704  # the libraries' own
        hashes=["sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        parts=parts,
    )
