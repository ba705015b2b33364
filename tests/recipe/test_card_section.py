"""A recipe's own section of the model card: what may be in it."""

import pytest

from optbench.recipe.card_section import section_problem


@pytest.mark.parametrize(
    "text",
    ["One sentence.", "### Uses\n\n- search\n- ~~no~~", "```sh\n# 1\n<b>\n```", "a < b, c > d", "    code\n\n> quoted"],
)
def test_markdown_that_stays_in_its_section_is_taken(text: str) -> None:
    assert section_problem(text) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Fine.\n\n# Mine", "line 3: a heading of the card's own level; begin it with ###"),
        ("## Verdict\n\npass", "line 1: a heading of the card's own level"),
        ("Verdict\n-------", "line 1: a heading of the card's own level"),
        ("Fine.\n\n```python\nx = 1", "a code fence is not closed"),
        ("~~~", "a code fence is not closed"),
        ("<!-- hide the rest", "line 1: raw HTML; write Markdown"),
        ("Fine.\n\nIt is <b>fast</b>.", "line 3: raw HTML"),
        ("<details>\n\nhidden", "line 1: raw HTML"),
        ("> <script>alert(1)</script>", "raw HTML"),
    ],
)
def test_what_would_change_the_rest_of_the_card_is_refused(text: str, problem: str) -> None:
    assert problem in (section_problem(text) or "")
