"""The license of a base: its SPDX form, and whether a modified copy may be shared under it."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["NOT_STATED", "SPDX", "hub_license", "sharing_problem", "to_spdx"]

# One license, or several joined as SPDX writes them: the form only, since a recipe check does not load SPDX's list.
SPDX = r"^[A-Za-z0-9][A-Za-z0-9.+-]*( (AND|OR|WITH) [A-Za-z0-9][A-Za-z0-9.+-]*)*$"
# SPDX's word for "the author does not say": https://spdx.github.io/spdx-spec
NOT_STATED = "NOASSERTION"
# Licenses, in lower case, that allow sharing modified copies, which quantized models are. SPDX's list 3.27 does not say it of a license.
SHARES_MODIFIED = (
    *("apache-*", "mit", "mit-0", "bsd-*", "isc", "zlib", "unlicense", "0bsd", "bsl-1.0", "mpl-*", "epl-*", "artistic-*", "afl-*"),
    *("gpl-*", "lgpl-*", "agpl-*", "eupl-*", "cc0-*", "cc-by-[0-9]*", "cc-by-sa-*", "cc-by-nc-[0-9]*", "cc-by-nc-sa-*", "pddl-*"),
    *("odc-by-*", "odbl-*", "cdla-*", "openrail*", "creativeml-openrail-*", "bigscience-*", "ecl-*", "upl-*", "ms-pl", "wtfpl", "ncsa"),
)
NO_DERIVATIVES = ("cc-by-nd-*", "cc-by-nc-nd-*")
# Licenses that model hubs know by their SPDX identifier in lower case.
HUB_LICENSES = frozenset(
    [
        *("agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "gpl-3.0", "isc", "lgpl-3.0", "mit", "mpl-2.0", "unlicense"),
        *("cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-4.0"),
    ]
)


def to_spdx(stated: str) -> str | None:
    """The license that a model card or a package states, as SPDX; None for words that name none."""
    from license_expression import ExpressionError, get_spdx_licensing

    word = stated.strip()
    if word.lower() in ("", "other", "unknown") or re.fullmatch(SPDX, word) is None:
        return None
    licensing = get_spdx_licensing()
    try:
        # The list also maps some LicenseRef names to licenses; who writes LicenseRef means none of the list.
        if "licenseref-" not in word.lower() and not licensing.unknown_license_keys(word):
            return str(licensing.parse(word))
    except ExpressionError:
        return None
    # A hub writes identifiers in lower case, and so its names for licenses that SPDX does not list.
    return f"LicenseRef-{word}" if word == word.lower() else word


def hub_license(expression: str) -> dict[str, str]:
    """A license as a model card's front matter names it."""
    name = expression.lower()
    return {"license": name} if name in HUB_LICENSES else {"license": "other", "license_name": name}


def sharing_problem(expression: str, *, checked: bool = False) -> str | None:
    """Why a modified copy may not be shared, if it may not: of alternatives (OR) one is enough, of joined licenses (AND) all must allow it.

    `checked`: somebody has read a license that is not on optbench's list, and it allows it.
    """
    from license_expression import ExpressionError, Licensing

    try:
        # Without a list of licenses: names are compared here as they are written.
        return _problem(Licensing().parse(expression), checked)
    except ExpressionError:
        return None if checked else _unknown(expression)


def _problem(node: Any, checked: bool) -> str | None:
    if node.isliteral:
        # A WITH clause only adds permissions.
        name = getattr(node, "license_symbol", node).key
        if _matches(name, NO_DERIVATIVES):
            return f"the license of the base, {name}, does not allow sharing modified copies, and this is one"
        return None if checked or _matches(name, SHARES_MODIFIED) else _unknown(name)
    problems = [_problem(part, checked) for part in node.args]
    if node.operator.strip() == "OR":
        return None if None in problems else problems[0]
    return next((problem for problem in problems if problem), None)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _unknown(name: str) -> str:
    read = "read it, and give --license-checked if it allows sharing modified copies"
    return f"the license of the base, {name}, is not on optbench's list: {read}"
