import base64
import io
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from contrastive.evaluation.page import Html, element, facts, folded, join, note, page, table, thumbnail

# HTML has no way to write these; and it reads a carriage return as a line feed.
UNWRITABLE = "".join(map(chr, [0, 13]))
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=UNWRITABLE), max_size=30)


class Reader(HTMLParser):
    """Collects tags with their attributes, and all text outside the style sheet."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += "" if self.tags and self.tags[-1][0] == "style" else data


@given(TEXT)
def test_text_and_attributes_come_out_as_they_went_in(text):
    read = Reader(element("p", text, title=text))
    assert read.text == text
    assert read.tags == [("p", {"title": text})]


@given(TEXT)
def test_no_part_of_a_page_lets_text_become_markup(text):
    parts = [
        note(text),
        table((text, text), [(text, text)], text),
        facts([(text, text)]),
        folded(text, text),
        thumbnail(torch.zeros(1, 2, 2), text),
        join(text),
    ]
    plain = [note(""), table(("", ""), [("", "")], ""), facts([("", "")]), folded("", ""), parts[4], join("")]
    for part, empty in zip(parts, plain, strict=True):
        assert [tag for tag, _ in Reader(part).tags] == [tag for tag, _ in Reader(empty).tags]
    whole = Reader(page(text, note(text), {text: note(text)}))
    assert [tag for tag, _ in whole.tags] == [
        tag for tag, _ in Reader(page("", note(""), {"": note("")})).tags
    ]


def test_markup_is_kept_and_text_is_not():
    assert element("p", Html("<b>x</b>"), "<b>") == "<p><b>x</b>&lt;b&gt;</p>"
    assert element("a", "x", href=None, class_="y", aria_label="z") == '<a class="y" aria-label="z">x</a>'
    assert element("img", src="a") == '<img src="a">'


def test_table_names_rows_and_columns_and_stresses_one_row():
    tags = Reader(table(("name", "value"), [("a", "1"), ("b", "2")], "numbers", marked="b")).tags
    assert [attributes["scope"] for tag, attributes in tags if tag == "th"] == ["col", "col", "row", "row"]
    assert [attributes for tag, attributes in tags if tag == "tr"] == [{}, {}, {"class": "marked"}]
    assert [tag for tag, _ in tags].count("caption") == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_thumbnail_holds_the_pixels(channels, dtype):
    pixels = torch.arange(channels * 4 * 6, dtype=torch.uint8).view(channels, 4, 6) * 3
    image = pixels if dtype == torch.uint8 else pixels.float() / 255
    ((tag, attributes),) = Reader(thumbnail(image, "six by four")).tags
    assert (tag, attributes["alt"], attributes["width"], attributes["height"]) == (
        "img",
        "six by four",
        "6",
        "4",
    )
    kind, data = attributes["src"].split(",")
    assert kind == "data:image/png;base64"
    decoded = Image.open(io.BytesIO(base64.b64decode(data)))
    read = torch.tensor(list(decoded.tobytes()), dtype=torch.uint8).view(4, 6, channels).permute(2, 0, 1)
    assert torch.equal(read, pixels)


def test_thumbnail_scales_large_images_down_and_refuses_other_shapes():
    attributes = Reader(thumbnail(torch.rand(3, 200, 400), "large", longest=100)).tags[0][1]
    assert (attributes["width"], attributes["height"]) == ("100", "50")
    with pytest.raises(ValueError, match=r"thumbnail\(image=.*\(2, 4, 4\).*expected.*choose"):
        thumbnail(torch.zeros(2, 4, 4), "two channels")
