"""The section of the model card that a recipe's author writes: Markdown that stays within its section."""

__all__ = ["section_problem"]

END = "the end of the section"


def section_problem(text: str) -> str | None:
    """Why this Markdown cannot be a section of a model card; None if it can.

    A heading as large as the card's own, an unclosed code fence and raw HTML would change or hide the sections after it.
    """
    from markdown_it import MarkdownIt

    # What is left open in `text` would swallow this last heading.
    tokens = MarkdownIt("commonmark").parse(f"{text}\n\n## {END}\n")
    for token in tokens:
        line = (token.map[0] if token.map else 0) + 1
        if token.type == "html_block" or any(child.type == "html_inline" for child in token.children or ()):
            return f"line {line}: raw HTML; write Markdown"
    headings = [(token.tag, (token.map or [0])[0] + 1) for token in tokens if token.type == "heading_open"]
    if not tokens or tokens[-1].type != "heading_close" or tokens[-2].content != END:
        return "a code fence is not closed; end it with ```"
    for tag, line in headings[:-1]:
        if tag in ("h1", "h2"):
            return f"line {line}: a heading of the card's own level; begin it with ###"
    return None
