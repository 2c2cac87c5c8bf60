"""Documents of each kind: their chunks, where these stand, what is above them, and what is left out."""

import json
from typing import Any

import pytest

pytest.importorskip("docx")
pytest.importorskip("pypdf")

from document_files import MARKDOWN, PAGE, PYTHON, at_its_place, files, read
from nestling.records.words import folded_text
from scripts.bench.documents import pdf_file

FILES = files()


def texts(reading: Any) -> list[tuple[str, str]]:
    return [(row["title"], row["text"]) for row in reading.rows]


def dropped(reading: Any) -> dict[str, int]:
    return {each.reason: each.count for each in reading.dropped}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("max_tokens", "overlap"), [(256, 0), (8, 2)])
def test_every_chunk_stands_where_it_says(name: str, max_tokens: int, overlap: int) -> None:
    reading = read(name, FILES[name], max_tokens=max_tokens, overlap=overlap)
    assert reading.rows
    for row in reading.rows:
        found = at_its_place(row, FILES[name])
        if name.endswith((".jsonl", ".csv")):  # a row as it is written
            assert all(
                value in folded_text(found) for value in map(folded_text, row["text"].split(": ")[-1].split("\n"))
            )
        elif max_tokens == 8 and name.endswith(".docx"):  # a part of a paragraph names the whole
            assert folded_text(row["text"]) in folded_text(found)
        else:
            assert folded_text(row["text"]) == folded_text(found)
    assert [row["_id"] for row in reading.rows] == [f"{name}#{number + 1}" for number in range(len(reading.rows))]


def test_nothing_of_a_text_is_lost_or_repeated_without_overlap() -> None:
    for name in ("birds.md", "code/main.go", "code/nest.py", "latin.txt", "sixteen.txt"):
        whole, cut = (read(name, FILES[name], max_tokens=size) for size in (256, 8))
        one, other = ("".join(folded_text(row["text"]) for row in each.rows) for each in (whole, cut))
        assert one == other
    assert folded_text(PYTHON) == "".join(folded_text(row["text"]) for row in read("a.py", PYTHON).rows)


def test_markdown_stands_below_its_headings() -> None:
    reading = read("a.md", MARKDOWN)
    (swallows, owls) = texts(reading)
    assert swallows == ("Birds", "Swallows build their *nests* of mud.\nThey return each year.")
    assert owls[0] == "Birds > Owls"
    assert owls[1].startswith("- hunt at night\n- hear `well`\n\n```python\n# no heading\n```\n\n| bird | eggs |")
    assert reading.rows[1]["metadata"]["headings"] == ["Birds", "Owls"]
    assert dropped(reading) == {"settings before a page": 1}


def test_sections_below_equal_headings_are_chunks_of_their_own() -> None:
    """They were one, as if the second heading were not there."""
    markdown = "# Birds\n\n## Food\n\nFlies.\n\n## Food\n\nMice.\n\nVoles.\n"
    html = "<h1>Birds</h1><h2>Food</h2><p>Flies.</p><h2>Food</h2><p>Mice.<p>Voles."
    for reading in (read("a.md", markdown), read("a.html", html)):
        assert texts(reading) == [("Birds > Food", "Flies."), ("Birds > Food", "Mice.\n\nVoles.")]


def test_a_hidden_paragraph_ends_without_its_tag() -> None:
    """As browsers end it; all that followed was left out."""
    page = "<p>Swallows.<p hidden>Draft <b>one</b><p>Owls.<div><p hidden>Draft two</div>Wrens.<p hidden>Draft<h2>Jays"
    assert texts(read("a.html", f"{page}</h2>Robins.")) == [("", "Swallows.\n\nOwls.\n\nWrens."), ("Jays", "Robins.")]
    nested = "<div hidden>Draft <div>one</div> <p>two</div><p>Owls."
    assert texts(read("a.html", nested)) == [("", "Owls.")]


def test_a_quotation_without_an_end_takes_no_other_rows() -> None:
    """They were one row, whose text was the rest of the table."""
    table = 'title,text\nOwl,Hunts at night\nSwallow,"Nests of mud\nWren,Sings\n'
    reading = read("a.csv", table)
    assert texts(reading) == [("Owl", "Hunts at night")]
    assert dropped(reading) == {"rest of a table that cannot be parsed": 1}
    ended = read("a.csv", table.replace('"', "") + 'Jay,5" long\nTit,"eats\nseeds"')
    assert texts(ended)[-2:] == [("Jay", '5" long'), ("Tit", "eats\nseeds")]
    assert dropped(ended) == {}
    assert texts(read("a.csv", 'title,text\nOwl,"Hunts at night')) == [("Owl", "Hunts at night")]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_page_that_begins_with_a_rule_has_no_settings(end: str) -> None:
    """Of Windows' line ends it was tried in how many ways they could be an end of settings."""
    lines = ["---", "", *(f"Swallow {number} builds a nest of mud." for number in range(30))]
    reading = read("a.md", end.join(lines).encode())
    assert reading.rows[0]["text"].startswith("---\n\nSwallow 0 builds")
    assert reading.rows[-1]["text"].endswith("Swallow 29 builds a nest of mud.")
    assert dropped(reading) == {}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_settings_end_at_their_first_end(end: str) -> None:
    lines = ["---", "title: Birds", "---", "Owls hunt.", "", "---", "", "They sleep."]
    reading = read("a.md", end.join(lines).encode())
    assert "".join(row["text"] for row in reading.rows).startswith("Owls hunt.")
    assert dropped(reading) == {"settings before a page": 1}


def test_a_web_page_is_its_text_without_what_is_around_it() -> None:
    reading = read("a.html", PAGE)
    assert texts(reading) == [
        ("Birds & bees > Swallows", "They build nests of mud & straw, café walls! included."),
        ("Birds & bees > Swallows > Young", "eggs | days\n\n5 | 18\n\none\n  two"),
    ]
    assert dropped(reading) == {"boilerplate": 2}


def test_of_a_page_with_a_main_part_only_that_is_read_and_menus_are_not() -> None:
    menu = "<ul>" + "".join(f"<li><a href=/{n}>Page number {n}</a></li>" for n in range(4)) + "</ul>"
    reading = read("a.html", f"<p>Ad</p><main>{menu}<p>Text with <a>a link</a>.</p></main><p>Contact</p>")
    assert (texts(reading), dropped(reading)) == ([("", "Text with a link.")], {"boilerplate": 6})
    assert len(read("a.html", menu).rows) == 1  # rather than nothing


def test_a_place_to_link_to_is_no_link() -> None:
    """Old pages name their places with <a name=…> and never close it; what follows was a menu."""
    parts = "".join(f"<a name=part{n}><h2>Part {n}</h2><p>Swallows build nests.</p><p>Owls hunt.</p>" for n in range(3))
    reading = read("a.html", f"<p>Of birds.</p>{parts}")
    assert [text for _, text in texts(reading)] == ["Of birds.", *["Swallows build nests.\n\nOwls hunt."] * 3]
    assert dropped(reading) == {}
    menu = "<li><a href=/one>Page one<li><a href=/two>Page two<li><a href=/three>Page three"  # each ends the one before
    reading = read("a.html", f"<ul>{menu}<li><a name=text></ul><p>Owls hunt.</p>")
    assert (texts(reading), dropped(reading)) == ([("", "Owls hunt.")], {"boilerplate": 3})


def test_a_break_in_code_ends_a_line() -> None:
    assert texts(read("a.html", "<pre>one<br>  two</pre><p>three<br>four</p>")) == [("", "one\n  two\n\nthree four")]


def test_pages_of_a_pdf_lose_running_heads_and_empty_ones_are_counted() -> None:
    reading = read("a.pdf", FILES["paper.pdf"])
    assert [(row["text"], row["metadata"]["page"]) for row in reading.rows] == [
        ("Swallows build nests of mud. They return.", 1),
        ("Owls hunt at night.", 2),
        ("Wrens are small.", 4),
    ]
    assert dropped(reading) == {"page without text": 1, "running head or foot": 3}


def test_an_outline_of_a_pdf_gives_headings() -> None:
    from io import BytesIO

    from pypdf import PdfWriter

    writer = PdfWriter(clone_from=BytesIO(pdf_file([["Swallows build."], ["Owls hunt."], ["Owls sleep."]])))
    writer.add_metadata({"/Title": "Birds"})
    chapter = writer.add_outline_item(title="Swallows", page_number=0)
    writer.add_outline_item(title="Nests", page_number=0, parent=chapter)
    writer.add_outline_item(title="Owls", page_number=1)
    file = BytesIO()
    writer.write(file)
    titles = [row["title"] for row in read("a.pdf", file.getvalue()).rows]
    assert titles == ["Birds > Swallows > Nests", "Birds > Owls", "Birds > Owls"]


def test_a_word_file_is_read_below_its_headings_with_tables() -> None:
    assert texts(read("a.docx", FILES["report.docx"])) == [
        ("The birds > Swallows", "They build nests of mud."),
        ("The birds > Swallows > Young", "eggs | days\n5 | 18"),
    ]


def test_functions_and_methods_are_chunks_with_what_is_above_them() -> None:
    found = texts(read("a.py", PYTHON))
    assert [title for title, _ in found] == ["", "greet", "Nest", "Nest > lay", ""]
    assert found[1][1].startswith("# Says hello.\n@staticmethod\ndef greet")
    assert found[3][1] == "    def lay(self):\n        self.eggs += 1"
    assert texts(read("b.py", "print 'old'\n\nx = 1\n")) == [("", "print 'old'\n\nx = 1")]


def test_rows_are_chunks_of_their_own() -> None:
    table = read("a.csv", FILES["table.csv"])
    assert texts(table) == [("Swallow", "Builds nests,\nof mud"), ("Owl", 'Hunts at "night"')]
    assert texts(read("a.tsv", "bird\teggs\nwren\t6\t?\n")) == [("", "bird: wren\neggs: 6\ncolumn 3: ?")]
    lines = read("a.jsonl", FILES["lines.jsonl"])
    assert texts(lines) == [("Swallow", "Builds nests"), ("", "name: owl\neggs: 3")]
    assert [row["metadata"]["row"] for row in lines.rows] == [1, 4]
    assert dropped(lines) == {"line that is no JSON": 1, "line that is no JSON object": 1}


def test_a_long_text_in_a_table_is_read_and_so_is_what_follows() -> None:
    """The csv module stops at a cell of 128 KiB, as if its quotation never ended."""
    article = "Swallows build nests of mud. " * 6000
    table = f'title,text\nSwallow,"{article}"\nOwl,Hunts at night\n'
    reading = read("a.csv", table)
    assert dropped(reading) == {}
    assert {row["title"] for row in reading.rows} == {"Swallow", "Owl"}
    assert sum(row["text"].count("nests") for row in reading.rows) == 6000
    last = read("a.csv", f'title,text\nOwl,Hunts at night\nSwallow,"{article}"')
    assert {row["title"] for row in last.rows} == {"Swallow", "Owl"}
    never = read("a.csv", f'title,text\nOwl,Hunts at night\nSwallow,"{article}\n' + "Wren,Sings\n" * 3)
    assert texts(never) == [("Owl", "Hunts at night")]
    assert dropped(never) == {"rest of a table that cannot be parsed": 1}


@pytest.mark.parametrize(
    ("encoding", "told"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("utf-16", "utf-16-le"), ("utf-32", "utf-32-le"), ("cp1252", None)],
)
def test_encodings_are_told(encoding: str, told: str | None) -> None:
    text = "Die Vögel bauen große Nester. " * 9 + "\n\nDas Käuzchen hört gut und jagt über Wiesen."
    reading = read("a.txt", text.encode(encoding), max_tokens=12)
    assert reading.encoding == told if told else reading.encoding is not None
    assert " ".join(row["text"] for row in reading.rows).replace("\n\n", " ") == " ".join(text.split())
    for row in reading.rows:
        assert at_its_place(row, text.encode(encoding)) == row["text"]


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("a.html", '<meta charset="Shift_JIS"><p>燕は泥で巣を作る。</p>', "shift_jis"),
        ("a.py", "# -*- coding: koi8-r -*-\nname = 'ласточка'\n", "koi8_r"),
        ("a.html", '<meta charset="base64"><p>Die Vögel bauen große Nester über der Tür.</p>', "cp1252"),
    ],
)
def test_declared_encodings_are_believed_where_they_can_be(name: str, text: str, encoding: str) -> None:
    reading = read(name, text.encode(encoding))
    assert reading.rows[0]["text"] in text
    assert reading.encoding == encoding or "base64" in text


def test_rows_can_be_written_as_json() -> None:
    for name, data in FILES.items():
        reading = read(name, data)
        assert type(reading).from_json(json.loads(json.dumps(reading.to_json()))) == reading
