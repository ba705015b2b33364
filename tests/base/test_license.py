"""Licenses: which allow sharing modified copies, and how cards and packages spell them."""

import pytest

from optbench.base.license import hub_license, sharing_problem, to_spdx


@pytest.mark.parametrize(
    "expression",
    [
        *("MIT", "Apache-2.0", "apache-2.0", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-SA-4.0", "MIT AND Apache-2.0", "GPL-3.0-only WITH x"),
        *("Unknown-1 OR MIT", "MIT OR CC-BY-ND-4.0 AND Unknown-1", "OpenRAIL++", "bigscience-bloom-rail-1.0"),
    ],
)
def test_licenses_that_allow_modified_copies(expression: str) -> None:
    assert sharing_problem(expression) is None


@pytest.mark.parametrize(
    "expression", ["CC-BY-ND-4.0", "CC-BY-NC-ND-4.0", "cc-by-nd-4.0", "MIT AND CC-BY-ND-4.0", "CC-BY-NC-ND-3.0-IGO WITH x"]
)
def test_licenses_that_forbid_modified_copies_are_not_overridden(expression: str) -> None:
    assert "does not allow sharing modified copies" in str(sharing_problem(expression, checked=True))


@pytest.mark.parametrize(
    "expression",
    ["NOASSERTION", "NONE", "LicenseRef-own", "LicenseRef-Apache", "MIT AND LicenseRef-own", "MITX", "CC-BY-NC", "A WITH B WITH C"],
)
def test_unknown_license_needs_somebody_to_read_it(expression: str) -> None:
    assert "--license-checked" in str(sharing_problem(expression))
    assert sharing_problem(expression, checked=True) is None


@pytest.mark.parametrize(
    ("stated", "spdx"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("gpl-3.0", "GPL-3.0-only"),
        ("cc-by-nc-sa-4.0", "CC-BY-NC-SA-4.0"),
        ("Apache-2.0 OR MIT", "Apache-2.0 OR MIT"),
        ("gemma", "LicenseRef-gemma"),
        ("LicenseRef-Apache", "LicenseRef-Apache"),
        ("Acme-1.0", "Acme-1.0"),
        ("MIT AND AND", None),
        ("Apache License, Version 2.0", None),
        ("other", None),
        ("", None),
    ],
)
def test_stated_license_becomes_spdx(stated: str, spdx: str | None) -> None:
    assert to_spdx(stated) == spdx


def test_license_that_the_hub_does_not_list_gets_a_name() -> None:
    assert hub_license("Apache-2.0") == {"license": "apache-2.0"}
    assert hub_license("Elastic-2.0") == {"license": "other", "license_name": "elastic-2.0"}
