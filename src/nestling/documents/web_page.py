"""HTML as blocks, with the places of their texts in the source; what every page of a site repeats is left out.

The standard library's parser is the one that says where a text stands. It builds no tree, so that depth costs nothing.
"""

from html import unescape
from html.parser import HTMLParser

from nestling.documents.blocks import Block, Extraction, Piece, below, line_starts, path_of

NEW_BLOCK = {
    *(
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
    ),
    *(
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "li",
        "main",
        "nav",
        "ol",
    ),
    *("p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "title", "tr", "ul"),
}
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
UNSEEN = {"button", "iframe", "noscript", "script", "select", "style", "svg", "template", "textarea"}
BOILERPLATE = {"aside", "footer", "nav"}
BOILERPLATE_ROLES = {"banner", "complementary", "contentinfo", "navigation", "search"}
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
# So many blocks in a row that are links, for the most part, are a menu.
MENU, LINK_SHARE = 3, 0.8


class _Blocks(HTMLParser):
    """Collects blocks (block, whether boilerplate, whether in the main part, whether of links)."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.starts = line_starts(text, "\n")
        self.title = ""
        self.found: list[tuple[Block, bool, bool, bool]] = []
        self.headings: list[tuple[int, str]] = []
        self.section = 0
        self.parts: list[tuple[str, int, int]] = []  # of the block: text, start, end
        self.linked = 0
        self.heading: str | None = None
        self.in_title = self.in_pre = self.in_link = False
        # Element -> how deep in elements of its name; none is in it at 0.
        self.unseen = self.boilerplate = self.main = ("", 0)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID and tag not in NEW_BLOCK:
            if tag == "br":
                self._add("\n" if self.in_pre else " ", len(self.get_starttag_text() or ""))
            return
        if tag in NEW_BLOCK:
            self._end_block()
        values = dict(attrs)
        role = values.get("role") or ""
        self.unseen = _entered(self.unseen, tag, tag in UNSEEN or "hidden" in values)
        self.boilerplate = _entered(
            self.boilerplate, tag, not self.main[1] and (tag in BOILERPLATE or role in BOILERPLATE_ROLES)
        )
        self.main = _entered(self.main, tag, tag == "main" or role == "main")
        if tag == "a":  # ends the one before; without href it is a place to link to, which old pages never close
            self.in_link = "href" in values
        self.in_title |= tag == "title"
        self.in_pre |= tag == "pre"
        self.heading = tag if tag in HEADINGS else self.heading
        if tag in ("td", "th") and self.parts:
            self._add(" | ", 0)

    def handle_endtag(self, tag: str) -> None:
        if tag in NEW_BLOCK:
            self._end_block()
        self.unseen, self.boilerplate, self.main = (
            _left(each, tag) for each in (self.unseen, self.boilerplate, self.main)
        )
        self.in_link &= tag != "a"
        self.in_title &= tag != "title"
        self.in_pre &= tag != "pre"
        self.heading = None if tag == self.heading else self.heading

    def handle_data(self, data: str) -> None:
        self._add(data, len(data))

    def handle_entityref(self, name: str) -> None:
        self._add(unescape(f"&{name};"), len(name) + 2)

    def handle_charref(self, name: str) -> None:
        self._add(unescape(f"&#{name};"), len(name) + 3)

    def close(self) -> None:
        super().close()
        self._end_block()

    def _add(self, text: str, length: int) -> None:
        if not self.unseen[1]:
            line, column = self.getpos()
            at = self.starts[line - 1] + column
            self.parts.append((text, at, at + length))
            self.linked += len(text.strip()) if self.in_link else 0

    def _end_block(self) -> None:
        parts, linked, self.parts, self.linked = self.parts, self.linked, [], 0
        text = "".join(part for part, _, _ in parts)
        if not text.strip(" |\t\r\n"):
            return
        if self.in_title:
            self.title = self.title or text
        elif self.heading:
            self.headings = below(self.headings, int(self.heading[1]), text)
            self.section += 1
        else:
            headings = path_of(self.headings, self.title)
            block = _block(text, parts, headings, self.section, flows=not self.in_pre)
            of_links = linked > LINK_SHARE * len("".join(text.split(" | ")).strip())
            self.found.append((block, bool(self.boilerplate[1]), bool(self.main[1]), of_links))


def read_web_page(text: str) -> Extraction:
    """The blocks of a page without menus, heads and feet, and without what is outside of its <main> if it has one."""
    parser = _Blocks(text)
    parser.feed(text)
    parser.close()
    in_main = any(main for _, _, main, _ in parser.found)
    kept = [not boilerplate and (main or not in_main) for _, boilerplate, main, _ in parser.found]
    for begin, end in _menus([links for _, _, _, links in parser.found]):
        kept[begin:end] = [False] * (end - begin)
    if not any(kept):  # a page of links, or one whose menu is never closed
        kept = [True] * len(kept)
    extraction = Extraction([each[0] for each, keep in zip(parser.found, kept, strict=True) if keep])
    extraction.dropped["boilerplate"] += kept.count(False)
    return extraction


def _block(
    text: str, parts: list[tuple[str, int, int]], headings: tuple[str, ...], section: int, *, flows: bool
) -> Block:
    pieces, at = [], 0
    for part, start, end in parts:
        pieces.append(Piece(at, start, end))
        at += len(part)
    return Block(text, pieces[0].start, pieces[-1].end, headings, pieces=pieces, flows=flows, section=section)


def _entered(inside: tuple[str, int], tag: str, enters: bool) -> tuple[str, int]:
    """The element (name, depth) that is open after a start tag, if one is open or this tag opens it."""
    inside = _without_paragraph(inside, tag)
    name, depth = inside
    if depth:
        return name, depth + (tag == name)
    return (tag, 1) if enters else inside


def _left(inside: tuple[str, int], tag: str) -> tuple[str, int]:
    inside = _without_paragraph(inside, tag)
    name, depth = inside
    return (name, depth - 1) if depth and tag == name else inside


def _without_paragraph(inside: tuple[str, int], tag: str) -> tuple[str, int]:
    """A paragraph needs no end tag: it ends where another block begins, or one around it ends."""
    return ("", 0) if inside[0] == "p" and tag in NEW_BLOCK else inside


def _menus(of_links: list[bool]) -> list[tuple[int, int]]:
    """Begin and end of each run of at least `MENU` blocks of links."""
    edges = [
        number for number in range(len(of_links) + 1) if [False, *of_links, False][number] != [*of_links, False][number]
    ]
    return [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if end - begin >= MENU]
