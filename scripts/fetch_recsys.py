"""Download a recommendation data set, check its size and write it as histories, one user a line.

python scripts/fetch_recsys.py --name ml-100k --folder data/recsys

Writes ``<name>.seq.tsv.gz``, and with ``--texts true`` the titles as ``<name>.items.tsv.gz``: what
``SequenceData.read`` takes. Mind the terms of use of the sources: MovieLens is for research, without redistribution.
"""

import ast
import gzip
import http.client
import io
import json
import re
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli

from recsys import SequenceData
from recsys.files import write_atomically

MOVIELENS = "https://files.grouplens.org/datasets/movielens/"
AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
# Name -> folder of the source, its file, and users, items and interactions that must be in it.
SOURCES: dict[str, tuple[str, str, tuple[int, int, int]]] = {
    "ml-100k": (MOVIELENS, "ml-100k", (943, 1_682, 100_000)),
    "ml-1m": (MOVIELENS, "ml-1m", (6_040, 3_706, 1_000_209)),
    "amazon-beauty": (AMAZON, "Beauty", (22_363, 12_101, 198_502)),
    "amazon-sports": (AMAZON, "Sports_and_Outdoors", (35_598, 18_357, 296_337)),
    "amazon-toys": (AMAZON, "Toys_and_Games", (19_412, 11_924, 167_597)),
    "amazon-office": (AMAZON, "Office_Products", (4_905, 2_420, 53_258)),
}

Rows = list[tuple[Any, Any, int]]  # user, item, time
Items = list[tuple[Any, str, str, str]]  # item, title, year, genres


def fetch(
    name: Literal[
        "ml-100k", "ml-1m", "amazon-beauty", "amazon-sports", "amazon-toys", "amazon-office"
    ] = "ml-100k",
    folder: str = "data/recsys",
    texts: bool = False,
    mirror: str | None = None,
) -> None:
    """Download, check and write one data set.

    Args:
        name: MovieLens, or the five-core review files of Amazon 2014. All ratings count, ordered by time.
        folder: where to write; made if missing.
        texts: write the titles as well. For Amazon this downloads the file of all products of the category.
        mirror: address of a folder with the files of the source, in its place; ``file:///...`` for one on disk.

    Raises:
        ConnectionError: the source cannot be reached.
        ValueError: what came is damaged or has another size than it should.
    """
    origin, file, sizes = SOURCES[name]
    base = (mirror or origin).rstrip("/") + "/"
    if origin == MOVIELENS:
        rows, items = _movielens(base + f"{file}.zip", file)
    else:
        rows, items = _amazon_reviews(base + f"reviews_{file}_5.json.gz"), []
    users, codes, times = zip(*rows, strict=True)
    data = SequenceData.from_dataframe({"user": users, "item": codes, "time": times}, time="time")
    found = (data.num_users, data.num_items, data.num_interactions)
    if found != sizes:
        raise ValueError(
            f"{base}: {name} has {found} users, items and interactions, expected {sizes}; the source has changed, or "
            "the mirror holds something else."
        )
    if texts and origin == AMAZON:
        items = _amazon_products(base + f"meta_{file}.json.gz", set(data.item_ids[1:]))
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / f"{name}.seq.tsv.gz"
    data.write(path)
    print(f"{path}: {found[0]} users, {found[1]} items, {found[2]} interactions")
    if texts:
        path = Path(folder) / f"{name}.items.tsv.gz"
        lines = ("\t".join(" ".join(str(cell).split()) for cell in row) + "\n" for row in items)
        write_atomically(path, "".join(lines).encode())
        print(f"{path}: {len(items)} items")


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            content: bytes = answer.read()
            expected = answer.headers.get("Content-Length")
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no address
        raise ConnectionError(
            f"cannot download {url} ({error}). Without a network, fetch the file elsewhere and give its folder as "
            "--mirror file:///folder."
        ) from error
    if expected is not None and len(content) != int(expected):
        raise ValueError(f"{url}: {len(content)} bytes came instead of {expected}; try again.")
    return content


def _movielens(url: str, folder: str) -> tuple[Rows, Items]:
    """Ratings and films; the two releases differ in their separators."""
    ratings, films, separator, between = (
        ("u.data", "u.item", "\t", "|") if folder == "ml-100k" else ("ratings.dat", "movies.dat", "::", "::")
    )
    try:
        archive = zipfile.ZipFile(io.BytesIO(_download(url)))
        content = {
            file: archive.read(f"{folder}/{file}").decode("latin-1").splitlines()
            for file in ([ratings, films, "u.genre"] if folder == "ml-100k" else [ratings, films])
        }
    except (zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise ValueError(f"{url} is no archive of {folder} ({error}); download it again.") from error
    rows = []
    for number, line in enumerate(content[ratings], 1):
        try:
            user, item, _, time = map(int, line.split(separator))
        except ValueError as error:
            raise ValueError(
                f"{url}: line {number} of {ratings} is {line[:80]!r}; download it again."
            ) from error
        rows.append((user, item, time))
    genres = [line.split("|")[0] for line in content.get("u.genre", []) if line]
    items = []
    for line in content[films]:
        cells = line.split(between)
        title, year = _title_and_year(cells[1])
        if genres:
            kinds = [genre for genre, flag in zip(genres, cells[5:], strict=True) if flag == "1"]
        else:
            kinds = cells[2].split("|")
        items.append((int(cells[0]), title, year, " ".join(kinds)))
    return rows, items


def _title_and_year(text: str) -> tuple[str, str]:
    """``Alien (1979)`` -> ``Alien``, ``1979``."""
    match = re.fullmatch(r"(.*?)\s*\((\d{4})\)\s*", text)
    return (match[1], match[2]) if match else (text, "")


def _amazon_reviews(url: str) -> Rows:
    rows = []
    for number, line in enumerate(_lines(url), 1):
        try:
            review = json.loads(line)
            rows.append((str(review["reviewerID"]), str(review["asin"]), int(review["unixReviewTime"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{url}: line {number} is no review ({error}): {line[:80]!r}.") from error
    return rows


def _amazon_products(url: str, wanted: set[str]) -> Items:
    """Titles and last categories of products; the lines are Python literals, not JSON."""
    items = []
    for number, line in enumerate(_lines(url), 1):
        asin = re.search(r"'asin': '([^']*)'", line)
        if asin is None or asin[1] not in wanted:
            continue
        try:
            product = ast.literal_eval(line)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{url}: line {number} is no product ({error}): {line[:80]!r}.") from error
        categories = product.get("categories") or [[]]
        items.append((asin[1], product.get("title", ""), "", " ".join(categories[-1])))
    return sorted(items)


def _lines(url: str) -> Iterator[str]:
    content = _download(url)
    try:
        with gzip.open(io.BytesIO(content), "rt", encoding="utf-8") as lines:
            yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{url} is a damaged gzip file ({error}); download it again.") from error


if __name__ == "__main__":
    auto_cli(fetch, as_positional=False)
