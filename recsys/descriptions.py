"""Descriptions of items and users by a language model, to be embedded instead of bare titles.

    prompts = item_prompts(data.texts, split.train, domain="cosmetics")
    answers = describe(prompts, "answers.jsonl", base_url="http://localhost:8000/v1", model="qwen3-8b")
    vectors = embed_texts(answers)

What is asked for follows Cui et al. 2025 (arXiv 2503.04162), in words of our own. Any endpoint that speaks OpenAI's
chat protocol will do, a local one too. Every answer is written to a file at once, so a run that breaks off, for
whatever reason, goes on where it was.
"""

import hashlib
import json
import os
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from contrastive.checks import check_number, check_whole
from contrastive.errors import InvalidValue
from recsys.data import Sequences

CHARACTERS_PER_TOKEN = 4  # roughly, of English
_TEXT, _TITLE = 1000, 120  # characters of an item's own text, and of one that it stands beside
_LONGEST_PAUSE = 60.0  # seconds between two attempts
_HOPELESS = 10  # refused prompts without a single answer, after which there is no point in going on
_OF_THE_PROMPT = (400, 413, 422)  # statuses that say something about one prompt, not about the endpoint
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # statuses after which to try again


# ---------------------------------------------------------------------- prompts


def item_prompts(
    texts: Sequence[str | None],
    train: Sequences,
    domain: str,
    contexts: int = 5,
    context_length: int = 10,
    seed: int = 0,
) -> list[str | None]:
    """One question for each item: what it is, and who would choose it.

    Args:
        texts: text of each item code, the first of padding; items without one get no prompt.
        train: training histories. What preceded an item in them is shown, so they must hold nothing that is to be
            predicted.
        domain: what the items are, as ``"cosmetics"``.
        contexts: histories that are shown, drawn from those with the item in them.
        context_length: items of each that are shown at most.
        seed: of that draw.

    Returns:
        A prompt, or None, for each of ``texts``.

    Raises:
        ValueError: a history holds an item without an entry in ``texts``, or a number is negative.
    """
    contexts = check_whole("item_prompts", "contexts", contexts, 0)
    context_length = check_whole("item_prompts", "context_length", context_length)
    seed = check_whole("item_prompts", "seed", seed, 0)
    if int(train.items.max(initial=0)) >= len(texts):
        raise InvalidValue(
            f"item_prompts: items up to {train.items.max(initial=0)} for {len(texts)} texts; give a text or None for "
            "every item."
        )
    rows = np.repeat(np.arange(len(train)), train.lengths)
    places = np.arange(len(train.items)) - train.offsets[rows]
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(places > 0))
    chosen = chosen[np.argsort(train.items[chosen], kind="stable")]
    items = train.items[chosen]
    first = np.searchsorted(items, np.arange(len(texts) + 1))
    before = train.windows(rows[chosen], np.maximum(places[chosen] - context_length, 0), places[chosen])
    prompts: list[str | None] = []
    for item, text in enumerate(texts):
        if not text:
            prompts.append(None)
            continue
        shown = [
            _titles(texts, before[case])
            for case in range(first[item], min(first[item] + contexts, first[item + 1]))
        ]
        lines = [f"You know {domain} well. Here is what a shop says of one item:", "", text[:_TEXT], ""]
        if any(shown):
            lines += ["Some customers came to it after these, in this order:"]
            lines += [f"- {'; '.join(titles)}" for titles in shown if titles] + [""]
        lines += [
            'Answer with one JSON object and nothing else. "summary": what the item is and what sets it apart, in at '
            'most 80 words. "customers": what kind of person chooses it and what else they like, in at most 50 words. '
            "Be specific; leave out what would be true of most items."
        ]
        prompts.append("\n".join(lines))
    return prompts


def user_prompts(texts: Sequence[str | None], histories: Sequences, domain: str) -> list[str | None]:
    """One question for each history: what its user likes.

    Args:
        texts: text of each item code, the first of padding; items without one are passed over.
        histories: row per question, as the ``sequences`` of :class:`~recsys.semantic.Prefixes`; oldest item first.
        domain: what the items are, as ``"cosmetics"``.

    Returns:
        A prompt for each history; None where none of its items has a text.

    Raises:
        ValueError: a history holds an item without an entry in ``texts``.
    """
    if int(histories.items.max(initial=0)) >= len(texts):
        raise InvalidValue(
            f"user_prompts: items up to {histories.items.max()} for {len(texts)} texts; give a text or None for each."
        )
    prompts: list[str | None] = []
    for row in range(len(histories)):
        titles = _titles(texts, histories[row])
        prompt = "\n".join(
            [
                f"You know {domain} well. A customer has chosen these items, the latest last:",
                "",
                *(f"{place}. {title}" for place, title in enumerate(titles, 1)),
                "",
                "Say in one paragraph of at most 100 words what this customer looks for: kinds of items, brands, "
                "styles, occasions, and where their interest seems to be moving. Be specific; leave out what would be "
                "true of most customers.",
            ]
        )
        prompts.append(prompt if titles else None)
    return prompts


def _titles(texts: Sequence[str | None], items: Any) -> list[str]:
    found = (texts[item] for item in items.tolist())
    return [text[:_TITLE] for text in found if text]


# ---------------------------------------------------------------------- asking


class _Refused(Exception):
    """The endpoint cannot answer this one prompt."""


class _Broken(Exception):
    """There is no use in asking for anything more now."""


class _Answer(NamedTuple):
    text: str
    tokens_in: int
    tokens_out: int


def describe(
    prompts: Sequence[str | None],
    file: str | os.PathLike[str],
    *,
    base_url: str,
    model: str,
    api_key_variable: str | None = None,
    price_in: float | None = None,
    price_out: float | None = None,
    max_cost: float | None = None,
    max_tokens: int = 300,
    temperature: float = 0.0,
    workers: int = 4,
    retries: int = 6,
    pause: float = 1.0,
    timeout: float = 60.0,
) -> list[str | None]:
    """Have a language model answer prompts, by ``POST {base_url}/chat/completions``.

    Before the first request it prints how much is to be asked and, if prices are given, what it will cost at most.

    Args:
        prompts: N of them; None gets None. Equal ones are asked once.
        file: where answers are kept, one JSON object a line. Prompts that it has an answer to, for the same model and
            options, are not asked again; a last line that was cut off is removed.
        base_url: of the endpoint, as ``"https://api.openai.com/v1"`` or ``"http://localhost:8000/v1"``.
        model: name of the model there.
        api_key_variable: environment variable that holds the key; None sends none. The key is written nowhere.
        price_in: price of a million tokens that are sent.
        price_out: price of a million tokens that are answered.
        max_cost: refuse to begin if it may cost more, in the currency of the prices; and stop once it has.
        max_tokens: longest answer.
        temperature: 0 for the most likely answer.
        workers: requests at a time.
        retries: further attempts after a passing failure (busy, 5xx, no connection, no answer in time).
        pause: seconds before the first of them; doubled each time, unless the endpoint names a time.
        timeout: seconds to wait for an answer.

    Returns:
        N answers; None for a prompt that was None or, with a warning, that the endpoint refused.

    Raises:
        ValueError: an option is out of its range, the variable with the key is not set, the estimate exceeds
            ``max_cost``, or the file is damaged elsewhere than at its end.
        ConnectionError: the endpoint cannot be reached, stays busy, or rejects the key or the model. What was answered
            until then is in the file; call again to go on.
    """
    for option, number, least in (
        ("max_tokens", max_tokens, 1),
        ("workers", workers, 1),
        ("retries", retries, 0),
    ):
        check_whole("describe", option, number, least)
    for option, amount, interval in (
        ("temperature", temperature, "[0, inf)"),
        ("pause", pause, "[0, inf)"),
        ("timeout", timeout, "(0, inf)"),
        ("price_in", price_in or 0, "[0, inf)"),
        ("price_out", price_out or 0, "[0, inf)"),
        ("max_cost", max_cost or 0, "[0, inf)"),
    ):
        check_number("describe", option, amount, interval)
    key = _check_access(base_url, api_key_variable, price_in, price_out, max_cost)
    options = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    names = [None if prompt is None else _name(prompt, options) for prompt in prompts]
    path = Path(file)
    answers = _read_answers(path)
    todo = {
        name: prompt
        for name, prompt in zip(names, prompts, strict=True)
        if name is not None and prompt is not None and name not in answers
    }
    prices = None if price_in is None or price_out is None else (price_in / 1e6, price_out / 1e6)
    asked = sum(map(len, todo.values())) / CHARACTERS_PER_TOKEN
    bound = None if prices is None else asked * prices[0] + len(todo) * max_tokens * prices[1]
    print(
        f"describe: {len(todo):,} prompts to ask of {model}, {len(set(names) - {None}) - len(todo):,} answered before; "
        f"about {asked:,.0f} tokens to send and at most {len(todo) * max_tokens:,} to get"
        + ("" if bound is None else f", {bound:,.2f} at most at the given prices"),
        flush=True,
    )
    if max_cost is not None and bound is not None and bound > max_cost:
        raise InvalidValue(
            f"describe: this may cost {bound:,.2f}, max_cost is {max_cost:,.2f}; nothing was asked. Raise max_cost, "
            "lower max_tokens, or give fewer prompts."
        )
    if todo:
        endpoint = _Endpoint(
            f"{base_url.rstrip('/')}/chat/completions", key, options, retries, pause, timeout
        )
        refused = _ask_all(endpoint, todo, path, answers, workers, prices, max_cost)
        if refused:
            warnings.warn(
                f"describe: {len(refused):,} of {len(todo):,} prompts were refused and have no answer, the first: "
                f"{refused[0]}",
                stacklevel=2,
            )
    return [None if name is None else answers.get(name) for name in names]


def _check_access(
    base_url: str,
    api_key_variable: str | None,
    price_in: float | None,
    price_out: float | None,
    max_cost: float | None,
) -> str | None:
    if not base_url.startswith(("http://", "https://")):
        raise InvalidValue(
            f"describe: base_url is {base_url!r}; give one that begins with http:// or https://."
        )
    if max_cost is not None and (price_in is None or price_out is None):
        raise InvalidValue("describe: max_cost needs price_in and price_out, per million tokens.")
    if api_key_variable is None:
        return None
    key = os.environ.get(api_key_variable, "").strip()
    if not key:
        raise InvalidValue(
            f"describe: the environment variable {api_key_variable} with the API key is not set; set it, or pass "
            "api_key_variable=None for an endpoint that needs none."
        )
    return key


def _name(prompt: str, options: dict[str, Any]) -> str:
    text = json.dumps([prompt, options], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _read_answers(path: Path) -> dict[str, str]:
    """Answers by the name of their prompt; the rest of a line that was cut off is taken away."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as cut:
            cut.truncate(whole)
    answers = {}
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            record = json.loads(line)
            answers[record["prompt"]] = record["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidValue(
                f"describe: line {number} of {path} is damaged ({error}); remove that line, or give another file."
            ) from error
    return answers


def _ask_all(
    endpoint: "_Endpoint",
    todo: dict[str, str],
    path: Path,
    answers: dict[str, str],
    workers: int,
    prices: tuple[float, float] | None,
    max_cost: float | None,
) -> list[str]:
    """Ask everything, writing each answer at once; returns why prompts were refused."""
    refused: list[str] = []
    broken: list[Exception] = []
    spent, done, lock = 0.0, 0, threading.Lock()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:

        def keep(name: str, answer: _Answer) -> None:
            nonlocal done, spent
            tokens = [answer.tokens_in, answer.tokens_out]
            record = {
                "prompt": name,
                "answer": answer.text,
                "model": endpoint.options["model"],
                "tokens": tokens,
            }
            out.write(json.dumps(record) + "\n")
            out.flush()
            os.fsync(out.fileno())
            answers[name] = answer.text
            done += 1
            if prices is not None:
                spent += tokens[0] * prices[0] + tokens[1] * prices[1]
            if max_cost is not None and spent > max_cost:
                raise _Broken(f"{spent:,.2f} were spent, more than max_cost={max_cost:,.2f}")

        def ask(name: str, prompt: str) -> None:
            if endpoint.stop.is_set():
                return
            try:
                try:
                    answer = endpoint.ask(prompt)
                    with lock:
                        keep(name, answer)
                except _Refused as reason:
                    refused.append(str(reason))
                    if not done and len(refused) >= _HOPELESS:
                        raise _Broken(
                            f"the first {len(refused)} prompts were all refused: {reason}"
                        ) from None
            except Exception as problem:
                broken.append(problem)
                endpoint.stop.set()  # before this thread takes the next prompt

        executor = ThreadPoolExecutor(workers)
        try:
            wait([executor.submit(ask, name, prompt) for name, prompt in todo.items()])
        finally:  # also on an interrupt
            endpoint.stop.set()
            executor.shutdown(wait=True, cancel_futures=True)
    if broken and not isinstance(broken[0], _Broken):
        raise broken[0]
    if broken:
        raise ConnectionError(
            f"describe: stopped after {done:,} of {len(todo):,} answers: {broken[0]}. They are in {path}; call again "
            "to go on."
        )
    return refused


class _Endpoint:
    """One address that is asked, with patience.

    Args:
        url: of the chat completions.
        key: sent as bearer token; None sends none.
        options: sent with each prompt.
        retries: further attempts after a passing failure.
        pause: seconds before the first of them.
        timeout: seconds to wait for an answer.
    """

    def __init__(
        self, url: str, key: str | None, options: dict[str, Any], retries: int, pause: float, timeout: float
    ) -> None:
        self.url, self.options = url, options
        self.stop = threading.Event()
        self._key, self._retries, self._pause, self._timeout = key, retries, pause, timeout
        self._opener = urllib.request.build_opener(_NoRedirection)

    def ask(self, prompt: str) -> _Answer:
        """The answer to a prompt.

        Raises:
            _Refused: there is none to this prompt.
            _Broken: the endpoint does not work, or the run is being stopped.
        """
        body = json.dumps({**self.options, "messages": [{"role": "user", "content": prompt}]}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        for attempt in range(self._retries + 1):
            if self.stop.is_set():
                raise _Broken("it was stopped")
            delay = min(self._pause * 2**attempt, _LONGEST_PAUSE)
            try:
                request = urllib.request.Request(self.url, body, headers, method="POST")
                with self._opener.open(request, timeout=self._timeout) as response:
                    return _parse(json.load(response))
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"status {error.code}, {self._excerpt(error)}"
                if error.code in _OF_THE_PROMPT:
                    raise _Refused(problem) from None
                if error.code not in _PASSING:
                    raise _Broken(f"{self.url} answered with {problem}") from None
                delay = _named_delay(error.headers.get("Retry-After"), delay)
            except (
                OSError,
                HTTPException,
                ValueError,
            ) as error:  # no connection, no time, half an answer, no JSON
                problem = f"{type(error).__name__}: {error}"
            if attempt < self._retries:
                self.stop.wait(delay)
        raise _Broken(f"{self.url} failed {self._retries + 1} times, at last with {problem}")

    def _excerpt(self, error: urllib.error.HTTPError) -> str:
        """The beginning of what an error says, without the key that some endpoints repeat in it."""
        try:
            text = " ".join(error.read(2000).decode("utf-8", "replace").split())
        except (OSError, HTTPException):
            text = ""
        return (text.replace(self._key, "***") if self._key else text)[:200] or "no reason given"


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Leaves redirections alone: the key would go along to wherever they point."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


def _parse(document: Any) -> _Answer:
    try:
        text = document["choices"][0]["message"]["content"]
        usage = document.get("usage") or {}
        counts = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    except (LookupError, TypeError, AttributeError) as error:
        raise InvalidValue(f"no chat completion: {json.dumps(document)[:200]}") from error
    if not isinstance(text, str) or not text.strip():
        raise _Refused("an empty answer")
    return _Answer(text.strip(), *counts)


def _named_delay(header: str | None, delay: float) -> float:
    """Seconds that ``Retry-After`` asks for, within reason; a date is not worth reading."""
    try:
        return min(max(float(header or ""), 0.0), _LONGEST_PAUSE)
    except ValueError:
        return delay
