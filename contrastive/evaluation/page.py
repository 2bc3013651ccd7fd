"""A page of HTML in one file: elements that escape what is put into them, tables, thumbnails, a style sheet.

Markup is a :class:`Html`; any other string is text. An element escapes its text children and its attributes,
so a class called ``<b>`` or a path with quotes in it can never become markup.
"""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from contrastive.errors import InvalidValue


class Html(str):
    """Markup, inserted as it is. :func:`element` makes it; wrap only text that is known to be markup."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | int | None) -> Html:
    """Return ``<tag attributes>children</tag>``.

    Children that are not :class:`Html` are escaped. Attributes that are None are left out; an underscore in a
    name stands for a hyphen, and one at its end is dropped (``class_="note"``, ``aria_label="..."``).
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    closing = "" if tag in ("img", "meta") else f"</{tag}>"
    return Html(f"<{tag}{written}>{join(*children)}{closing}")


def join(*parts: str) -> Html:
    """Concatenate markup and text, escaping the text."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def note(text: str) -> Html:
    """Return the sentence that stands where a part of the page is missing."""
    return element("p", text, class_="note")


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str,
    *,
    class_: str | None = None,
    marked: str | None = None,
) -> Html:
    """Return a table that scrolls sideways by itself where the screen is too narrow.

    Args:
        header: name of each column.
        rows: cells of each row; the first one names the row.
        caption: what the numbers are.
        class_: ``"explained"`` if the last column is prose, ``"prose"`` if all of them are.
        marked: name of the row to stress.
    """
    body = []
    for name, *cells in rows:
        row = [element("th", name, scope="row"), *(element("td", cell) for cell in cells)]
        body.append(element("tr", *row, class_="marked" if name == marked else None))
    head = element("tr", *(element("th", name, scope="col") for name in header))
    whole = (element("caption", caption), element("thead", head), element("tbody", *body))
    content = element("table", *whole, class_=class_)
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=caption)


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Return a list of names and values."""
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs)
    )


def folded(summary: str, text: str) -> Html:
    """Return a text as it stands in a file, behind a line that opens it."""
    return element("details", element("summary", summary), element("pre", element("code", text), tabindex=0))


def thumbnail(image: Tensor, alt: str, longest: int = 96) -> Html:
    """Return an image as an ``<img>`` that holds its own PNG.

    Args:
        image: (C, H, W), C = 1 or 3, uint8 or float in [0, 1].
        alt: what it shows, for those who cannot see it.
        longest: sides above so many pixels are scaled down. The page does not smooth small images.

    Raises:
        ValueError: the image has another shape.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InvalidValue(
            f"thumbnail(image=...): got shape {tuple(image.shape)}; expected (1, H, W) or (3, H, W); "
            "choose which channels to show"
        )
    if image.is_floating_point():
        image = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = image.permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((longest, longest))
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return element("img", src=source, alt=alt, width=picture.width, height=picture.height)


def page(title: str, introduction: str, sections: Mapping[str, str]) -> str:
    """Return the whole document: a heading, links to the sections, and each section under its own heading."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    names = {heading: "-".join(heading.lower().split()) for heading in sections}
    links = (element("a", heading, href=f"#{name}") for heading, name in names.items())
    parts = (
        element("section", element("h2", heading, id=names[heading]), body, aria_labelledby=names[heading])
        for heading, body in sections.items()
    )
    header = element(
        "header", element("h1", title), introduction, element("nav", *links, aria_label="Sections")
    )
    document = element("html", head, element("body", header, element("main", *parts)), lang="en")
    return f"<!doctype html>\n{document}\n"


STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1b1f24; --muted: #5b6570; --rule: #d9dee4; --paper: #fefefe; --card: #f3f5f8;
  --accent: #1f6fb5; --good: #1a7f4b; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e7ebef; --muted: #9da8b3; --rule: #343c45; --paper: #14181c; --card: #1d2329;
    --accent: #6cb2ee; --good: #5cc98f; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 70rem; padding: 2.5rem 1.25rem 4rem;
  background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 {
  margin: 0 0 .4rem; font-size: clamp(1.6rem, 4vw, 2.2rem); line-height: 1.2;
  letter-spacing: -.015em; text-wrap: balance;
}
h2 { margin: 3rem 0 .5rem; font-size: 1.25rem; line-height: 1.3; scroll-margin-top: 1rem; }
p { max-width: 46rem; margin: .4rem 0 .9rem; }
a { color: var(--accent); text-underline-offset: .15em; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1rem 0 0; font-size: .92rem; }
.lead, .note, .small, figcaption, caption { color: var(--muted); }
.lead { overflow-wrap: anywhere; }
.note { padding-left: .8rem; border-left: 3px solid var(--rule); overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .86rem; }
pre {
  margin: .5rem 0; padding: .8rem 1rem; border-radius: .5rem; background: var(--card);
  line-height: 1.45; overflow-x: auto;
}
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }

.scroll { margin: .8rem 0 1.4rem; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; text-align: left; font-size: .92rem; }
th, td {
  padding: .38rem .9rem; border-bottom: 1px solid var(--rule);
  text-align: right; font-weight: 400; white-space: nowrap;
}
th:first-child { padding-left: .2rem; text-align: left; }
thead th { color: var(--muted); font-size: .9rem; }
.marked th, .marked td { font-weight: 650; }
.panels table { font-size: .9rem; }
.panels th, .panels td { padding: .38rem .4rem; }
.panels tbody th { white-space: normal; }
.explained td:last-child, .explained thead th:last-child {
  min-width: 14rem; text-align: left; white-space: normal;
}
.prose td, .prose th { min-width: 9rem; vertical-align: top; text-align: left; white-space: normal; }
.bar { display: inline-block; width: 5rem; height: .5rem; margin-left: .5rem; border-radius: .25rem; }
.bar { background: linear-gradient(90deg, #3f90da var(--share), var(--rule) var(--share)); }

.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 1rem;
  margin: 1rem 0 1.4rem; padding: 0; list-style: none;
}
.cards li { padding: .9rem 1.1rem; border-radius: .7rem; background: var(--card); }
.cards span { display: block; }
.value { font-size: 2.2rem; font-weight: 650; line-height: 1.25; letter-spacing: -.02em; }
.cards li { font-size: .92rem; }

figure { margin: 0; min-width: 0; }
figcaption { font-size: .92rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.panels { display: grid; gap: 1.2rem 1.8rem; margin: 1rem 0; }
.panels { grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.panels.wide { grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem 1.8rem; margin: 1rem 0; }
.strip { display: grid; gap: .5rem; width: calc(var(--count) * 5.4rem); max-width: 100%; }
.strip { grid-template-columns: repeat(var(--count), minmax(0, 1fr)); }
.strip figure:first-child { position: relative; }
.strip figure:first-child::after {
  content: ""; position: absolute; top: 0; right: -.27rem; height: 100%; border-right: 1px solid var(--muted);
}
.strip img {
  display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: contain;
  border-radius: .3rem; background: var(--card); image-rendering: pixelated;
}
.strip figcaption { margin-top: .25rem; font-size: .78rem; line-height: 1.3; overflow-wrap: anywhere; }
.file { display: block; color: var(--muted); font-size: .92em; }
.good, .bad { font-weight: 700; }
.good { color: var(--good); }
.bad { color: var(--bad); }

dl { display: grid; gap: .7rem 1.6rem; margin: .8rem 0 1.2rem; }
dl { grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
dt { color: var(--muted); font-size: .88rem; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
"""
