"""The web application of the explorer: routes between the page and the catalogues.

FastAPI and one hand-written page, rather than a framework that builds pages from Python: this serves a dozen routes,
nothing else is reachable, every request is checked against a schema, and the page works without network.

Ids come from the page as strings and are looked up in the index's own table; rows are numbers within it; no path is
ever made of anything that was sent. What is wrong is answered by a 4xx status and ``{"error": sentence}``, what is
still being computed by 202 and ``{"status": "not yet", "message": sentence}``.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException as StarletteHTTPException

from contrastive.encoders.fingerprint import same_encoder
from contrastive.errors import InvalidValue
from contrastive.retrieval.explorer.background import Background
from contrastive.retrieval.explorer.catalogue import Catalogue, check_clusters
from contrastive.retrieval.explorer.guard import UPLOAD_PATH, Guard, content_policy
from contrastive.retrieval.explorer.pictures import TooLarge
from contrastive.retrieval.explorer.upload import DECODERS, ImageEncoder
from contrastive.retrieval.index import Index

Side = Literal["main", "other"]
Value = str | bool | int | float
Id = Annotated[str, Field(max_length=1000)]
FORMULAS = tuple("=+-@\t\r\n＝＋－＠")  # how a cell begins that spreadsheets compute


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Range(_Strict):
    """A closed range; None leaves a side open."""

    low: float | None
    high: float | None


class SearchRequest(_Strict):
    """Neighbours of an item, or of a vector."""

    id: Id | None = None
    vector: Annotated[list[float], Field(max_length=65_536)] | None = None
    k: int = Field(default=12, ge=1, le=100)
    filter: dict[Id, Value | list[Value] | Range] = Field(default_factory=dict, max_length=20)

    @model_validator(mode="after")
    def _one_query(self) -> "SearchRequest":
        if (self.id is None) == (self.vector is None):
            raise InvalidValue("give an id or a vector, one of them")
        return self


class ExportRequest(_Strict):
    """A selection to download."""

    format: Literal["csv", "json"]
    ids: list[Id] = Field(min_length=1, max_length=20_000)


def build_app(
    index: Index,
    other: Index | None = None,
    encoder: ImageEncoder | None = None,
    *,
    names: tuple[str, str] = ("index", "other"),
    host: str = "127.0.0.1",
) -> FastAPI:
    """The application over an index, to be served by any ASGI server.

    Args:
        index: the index to look at.
        other: a second one, whose neighbours of the same id are shown beside.
        encoder: encodes uploaded images for ``index``; None for no uploads.
        names: what the page calls the two.
        host: the address that the server will be bound to; requests for other hosts are refused.

    Raises:
        ValueError: an index is empty, or ``encoder`` is not the one that ``index`` was made with.
    """
    sides: dict[str, Catalogue] = {"main": Catalogue(index, names[0])}
    if other is not None:
        sides["other"] = Catalogue(other, names[1])
    main = sides["main"]
    made_with = index.manifest.get("fingerprint")
    if encoder is not None and made_with and not same_encoder(encoder.fingerprint, made_with):
        raise InvalidValue(
            f"explore(run=...): the index {names[0]!r} was made with another encoder (fingerprint {made_with[:12]}…) "
            f"than that of the run ({str(encoder.fingerprint)[:12]}…); give the run that the embeddings are from"
        )
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    app = FastAPI(title="contrastive explorer", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, host=host, policy=content_policy(page))
    app.add_exception_handler(StarletteHTTPException, _tell)
    app.add_exception_handler(RequestValidationError, _tell_schema)
    random, background = np.random.default_rng(), Background()

    @cache
    def decoders() -> CapacityLimiter:  # some versions need a loop that runs
        return CapacityLimiter(DECODERS)

    def side_of(name: Side) -> Catalogue:
        if name not in sides:
            raise HTTPException(404, "there is no second index here; start the explorer with other=...")
        return sides[name]

    def computed(what: str, side: Side, work: Callable[[], Any]) -> Any:
        """A result of the thread in the background, or that it is not there yet."""
        found = background.ask((what, side), work)
        if not found.done():
            told = f"Not yet: computing the {what} of {sides[side].name!r}."
            return JSONResponse({"status": "not yet", "message": told}, 202, {"Retry-After": "1"})
        if (error := found.exception()) is not None:
            raise HTTPException(500, f"the {what} cannot be computed ({type(error).__name__}: {error})")
        return found.result()

    @app.get("/")
    def read_page() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/favicon.ico")  # browsers ask for it unasked
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/api/info")
    def info() -> dict[str, Any]:
        return {
            "upload": encoder is not None,
            "sides": {name: _describe(side) for name, side in sides.items()},
        }

    @app.get("/api/map")
    def read_map(side: Side = "main") -> Any:
        catalogue = side_of(side)
        return computed("map", side, lambda: _drawn(catalogue))

    @app.get("/api/clusters")
    def clusters(k: int, side: Side = "main") -> Any:
        catalogue = side_of(side)
        try:
            check_clusters(k)
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return computed(f"{k} clusters", side, lambda: catalogue.clusters(k))

    @app.get("/api/random")
    def draw() -> dict[str, str]:
        return {"id": str(main.ids[random.integers(len(main))])}

    @app.get("/thumbnail/{side}/{row}")
    def thumbnail(side: Side, row: int) -> Response:
        content = side_of(side).thumbnail(row)
        if content is None:
            raise HTTPException(404, "this item has no thumbnail")
        return Response(content, media_type="image/png")

    @app.post("/api/search")
    def search(asked: SearchRequest) -> dict[str, Any]:
        filter = {
            name: wanted.model_dump() if isinstance(wanted, Range) else wanted
            for name, wanted in asked.filter.items()
        }
        return {name: _search(side, asked, filter, name == "main") for name, side in sides.items()}

    @app.post(UPLOAD_PATH)
    async def encode(request: Request) -> dict[str, list[float]]:
        if encoder is None:
            raise HTTPException(
                404, "images cannot be encoded here; start the explorer with run=..., an encoder"
            )
        if not request.headers.get("content-type", "").startswith("image/"):
            raise HTTPException(
                415, "an image file is expected as the body, with its Content-Type, as image/png"
            )
        try:
            # Who waits here holds no thread, so that searches find one.
            features = await to_thread.run_sync(encoder, await request.body(), limiter=decoders())
        except TooLarge as error:
            raise HTTPException(413, str(error)) from error
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        return {"vector": features.tolist()}

    @app.post("/api/export")
    def export(asked: ExportRequest) -> Response:
        records = []
        for item in asked.ids:
            for side in sides.values():
                if (row := side.find(item)) is not None:
                    records.append({"id": item, **side.values([row])[0]})
                    break
            else:
                raise HTTPException(404, f"no item has the id {item!r}")
        content, kind = _as_csv(records) if asked.format == "csv" else _as_json(records)
        disposition = f'attachment; filename="selection.{asked.format}"'
        return Response(content, media_type=kind, headers={"Content-Disposition": disposition})

    return app


def _describe(side: Catalogue) -> dict[str, Any]:
    return {
        "name": side.name,
        "count": len(side),
        "dim": side.index.dim,
        "metric": side.index.metric,
        "thumbnails": side.has_thumbnails,
        "columns": [column.describe() for column in side.columns],
    }


def _drawn(side: Catalogue) -> dict[str, Any]:
    found = side.map()
    return {
        "method": found.method,
        "ids": [str(item) for item in side.ids[found.rows]],
        "rows": found.rows.tolist(),
        "points": found.points.round(4).tolist(),
        "colours": side.colours(),
    }


def _search(side: Catalogue, asked: SearchRequest, filter: dict[str, Any], first: bool) -> dict[str, Any]:
    """Query and neighbours of one index, or the sentence that says why there are none in the second."""
    row: int | None = None
    if asked.id is not None:
        row = side.find(asked.id)
        if row is None:
            sentence = f"no item of {side.name!r} has the id {asked.id!r}"
            if first:
                raise HTTPException(404, sentence)
            return {"problem": sentence}
        vector = side.vector(row)
    elif not first:
        return {"problem": "uploaded images are encoded for the first index only"}
    else:
        vector = np.array(asked.vector, np.float32)
    try:
        found = side.neighbours(vector, asked.k, filter, itself=row)
    except ValueError as error:
        if first:
            raise HTTPException(422, str(error)) from error
        return {"problem": str(error)}
    return {
        "query": None if row is None else side.item(row),
        "neighbours": [side.item(near) | {"score": score} for near, score in found],
    }


def _as_csv(records: list[dict[str, Any]]) -> tuple[str, str]:
    names = list(dict.fromkeys(name for record in records for name in record))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\r\n")
    writer.writerow({name: _harmless(name) for name in names})
    writer.writerows({name: _harmless(cell) for name, cell in record.items()} for record in records)
    return buffer.getvalue(), "text/csv"


def _harmless(cell: Any) -> Any:
    """A cell that spreadsheets show and do not compute; numbers stay numbers, as an id of -1 is."""
    if not isinstance(cell, str) or not cell.startswith(FORMULAS) or re.fullmatch(r"-[0-9]+", cell):
        return cell
    return f"'{cell}"


def _as_json(records: list[dict[str, Any]]) -> tuple[str, str]:
    return json.dumps(records, indent=1, ensure_ascii=False), "application/json"


async def _tell(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def _tell_schema(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Where several types are possible each one complains; the deepest complaint is about what was meant.
    worst = max(error.errors(), key=lambda one: len(one["loc"]))
    if worst["loc"][:1] == ("path",):
        return JSONResponse({"error": "there is nothing here"}, 404)
    place = ".".join(str(part) for part in worst["loc"][1:]) or "the request"
    return JSONResponse({"error": f"{place}: {worst['msg']}"}, 422)
