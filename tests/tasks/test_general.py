"""General texts: in every language that is promised, and the same on any machine."""

from optbench.tasks.general import LANGUAGES, general_texts


def test_every_language_has_distinct_short_and_long_texts() -> None:
    for language in LANGUAGES:
        texts = general_texts(60, languages=(language,))
        assert len(set(texts)) == 60, language
        lengths = sorted(map(len, texts))
        assert 2 * lengths[10] < lengths[-5], language


def test_languages_get_equal_shares_and_the_seed_decides() -> None:
    texts = general_texts(60, 3, ("en", "ru", "th"))
    assert [sum(low <= text[0] <= high for text in texts) for low, high in ("Ѐӿ", "กๆ")] == [20, 20]
    assert texts == general_texts(60, 3, ("en", "ru", "th")) != general_texts(60, 4, ("en", "ru", "th"))
    assert general_texts(0) == ()
