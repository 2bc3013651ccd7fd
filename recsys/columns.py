"""Which column of a table is the user, the item and the time: the one that was named, or the one with a usual name.

Nothing is guessed: of two columns that may be meant neither is taken, and a column that may hold times is not passed
over, since histories would then be in the order of the file without anyone knowing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contrastive.errors import InvalidValue
from recsys.times import counts_rows, looks_like_times

AUTO = "auto"
"""Look for a column of times; None would take the order of the file."""


@dataclass(frozen=True)
class Role:
    """What a column is for.

    Args:
        given: the column's name; None or ``"auto"`` looks for one.
        usual: names that it may have, the likeliest groups first: of the first group with a name that is there, just
            one may be. Compared without case, blanks and signs, so that ``user_id`` is ``userId`` and ``USER ID``.
        required: whether there has to be one.
        option: whether the caller can name the column.
    """

    given: str | None
    usual: tuple[tuple[str, ...], ...]
    required: bool = False
    option: bool = True


_USER = (
    (
        *(
            "user_id",
            "uid",
            "customer_id",
            "client_id",
            "visitor_id",
            "member_id",
            "account_id",
            "reviewer_id",
        ),
        *(
            "buyer_id",
            "person_id",
            "shopper_id",
            "user_no",
            "user_code",
            "customer_no",
            "viewer_id",
            "reader_id",
        ),
    ),
    ("user", "customer", "client", "visitor", "member", "reviewer", "buyer"),
    ("session_id", "session"),
)
_ITEM = (
    (
        *(
            "item_id",
            "iid",
            "product_id",
            "movie_id",
            "film_id",
            "article_id",
            "book_id",
            "song_id",
            "track_id",
        ),
        *("video_id", "game_id", "news_id", "business_id", "venue_id", "poi_id", "goods_id", "sku", "sku_id"),
        *("asin", "isbn", "stock_code", "anime_id", "recipe_id", "show_id", "content_id", "product_code"),
    ),
    ("item", "product", "movie", "article", "book", "song", "track", "parent_asin"),
)
_TIME = (
    (
        *("timestamp", "time", "date", "datetime", "ts", "t", "unix_timestamp", "unix_time", "unix", "epoch"),
        *(
            "time_stamp",
            "date_time",
            "event_time",
            "event_timestamp",
            "event_date",
            "time_ms",
            "timestamp_ms",
        ),
        *("timestamp_s", "time_s", "ts_ms", "unix_time_ms", "epoch_ms", "unix_review_time", "review_time"),
        *("created_at", "ordered_at", "rated_at", "viewed_at", "purchased_at", "clicked_at", "occurred_at"),
        *("order_date", "purchase_date", "transaction_date", "invoice_date", "review_date", "rating_date"),
        *("order_time", "purchase_time", "transaction_time", "interaction_time", "click_time", "visit_time"),
        *(
            "rating_time",
            "rating_timestamp",
            "interaction_timestamp",
            "creation_date",
            "creation_time",
            "t_dat",
        ),
        *("utc_time", "utc_timestamp", "local_time"),
    ),
)
_TIME_WORDS = {"time", "times", "date", "dates", "datetime", "timestamp", "timestamps", "ts", "epoch", "day"}
# Whole names that mean a time unless the column counts the rows or says yes and no.
_TIME_NAMES = {
    *("when", "stamp", "tstamp", "dt", "dtm", "moment", "instant", "created", "createdon", "week", "month"),
    *(
        "ordered",
        "rated",
        "viewed",
        "clicked",
        "purchased",
        "visited",
        "watched",
        "zeit",
        "datum",
        "fecha",
        "wann",
    ),
}
_NUMBERS_OF_THINGS = {"id", "ids", "no", "nr", "number", "code", "key", "ean", "isbn", "upc", "phone", "zip"}


def user_role(given: str | None) -> Role:
    """Of the users' ids."""
    return Role(given, _USER, required=True)


def item_role(given: str | None) -> Role:
    """Of the items' ids."""
    return Role(given, _ITEM, required=True)


def described_role(like: str | None = None) -> Role:
    """Of the items' ids in a table that describes them: as the interactions have it, a usual name, or ``id``."""
    return Role(None, (*([(like,)] if like else []), *_ITEM, ("id",)), required=True, option=False)


def time_role(given: str | None) -> Role:
    """Of the times."""
    return Role(AUTO if given is None else given, _TIME)


def choose(
    has: Sequence[str],
    roles: Mapping[str, Role],
    where: str,
    call: str,
    sample: Callable[[], Mapping[str, Any]] = dict,
) -> dict[str, str]:
    """The column of each role that has one.

    Args:
        has: the table's columns.
        roles: what is looked for; a role ``"time"`` that is found by its name must not miss other times.
        where: the table, for errors.
        call: for errors.
        sample: gives the first values of each column, Arrow arrays, by which times are known whatever their name. It
            is called only if no column of times was named or found.

    Raises:
        ValueError: a column is missing or stands twice, or several may be meant.
    """
    chosen: dict[str, str] = {}
    listed = ", ".join(map(str, has)) or "none"
    for role, wish in roles.items():
        if wish.given in (None, AUTO):
            names = _usual(has, wish.usual)
        else:
            names = [str(wish.given)] * has.count(wish.given)
            if len(names) != 1:
                raise InvalidValue(
                    f"{call}: {where} has {len(names)} columns {wish.given!r} for the {role}; it has {listed}. "
                    f"Name the column with {role}= (--data.{role}= on the command line), or rename it."
                )
        if len(set(names)) > 1:
            advice = (
                f"Name one of them with {role}= (--data.{role}= on the command line)."
                if wish.option
                else "Rename the others."
            )
            raise InvalidValue(
                f"{call}: {where} has several columns that may be the {role}: {', '.join(names)}. {advice}"
            )
        if len(names) > 1:
            raise InvalidValue(
                f"{call}: {where} has {len(names)} columns {names[0]!r} for the {role}; it has {listed}. Name the "
                f"column with {role}=, or rename it."
            )
        if names:
            chosen[role] = names[0]
        elif wish.required:
            wanted = " or ".join(repr(name) for name in dict.fromkeys(group[0] for group in wish.usual[:2]))
            named = f"Name the column with {role}= (--data.{role}= on the command line), or rename it."
            advice = named if wish.option else "Rename the column."
            raise InvalidValue(
                f"{call}: {where} has no columns {wanted} for the {role}; it has {listed}. {advice}"
            )
    if "time" in roles and "time" not in chosen:
        _refuse_unread_times([name for name in has if name not in chosen.values()], sample(), where, call)
    return chosen


def _usual(has: Sequence[str], usual: tuple[tuple[str, ...], ...]) -> list[str]:
    for group in usual:
        plain = {_plain(name) for name in group}
        found = [name for name in has if _plain(name) in plain]
        if found:
            return found
    return []


def _plain(name: Any) -> str:
    return re.sub(r"[\W_]+", "", str(name)).casefold()


def _refuse_unread_times(names: Sequence[str], sample: Mapping[str, Any], where: str, call: str) -> None:
    """Refuse the order of the file where a column may hold times."""
    may = [name for name in names if _may_be_time(str(name), sample.get(name))]
    if may:
        several = "columns that may be" if len(may) > 1 else "a column that may be"
        raise InvalidValue(
            f"{call}: {where} has {several} the time: {', '.join(map(str, may))}. Name the one with time= "
            f"(--data.time={may[0]} on the command line), or take histories in the order of the file with time=None "
            "(--data.time=null)."
        )


def _may_be_time(name: str, values: Any) -> bool:
    if _sounds_like_time(name):
        return True
    if values is None:
        return _plain(name) in _TIME_NAMES
    if _words(name)[-1:] and _words(name)[-1] in _NUMBERS_OF_THINGS:
        return False
    return looks_like_times(values) or (_plain(name) in _TIME_NAMES and not counts_rows(values))


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]


def _sounds_like_time(name: str) -> bool:
    words = _words(name)
    return (
        bool(_TIME_WORDS & set(words))
        or (len(words) > 1 and words[-1] in ("at", "dt"))
        or _plain(name).endswith(("timestamp", "datetime", "unixtime", "eventtime", "eventdate"))
    )
