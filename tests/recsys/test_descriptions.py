"""Descriptions by a language model, asked of a server in this process: failures, costs, killed and resumed runs."""

import json
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from recsys.data import Sequences
from recsys.descriptions import describe, item_prompts, user_prompts

ROOT = Path(__file__).parents[2]


class Stub:
    """A chat endpoint that answers ``about <prompt>``, after failing as it is told.

    Attributes:
        asked: prompts in the order of their arrival.
        failures: prompt -> statuses to answer with first; ``"cut"`` closes the connection, ``"junk"`` is no JSON.
        always: a status for every request.
        seconds: to think.
    """

    def __init__(self):
        self.asked, self.keys, self.bodies = [], [], []
        self.failures, self.always, self.seconds, self.text = {}, None, 0.0, None
        self.headers = {"Retry-After": "0"}
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"]
                stub.asked.append(prompt)
                stub.bodies.append((self.path, body))
                stub.keys.append(self.headers.get("Authorization"))
                time.sleep(stub.seconds)
                waiting = stub.failures.get(prompt, [])
                failure = stub.always or (waiting.pop(0) if waiting else None)
                if failure == "cut":
                    self.connection.close()
                elif failure == "junk":
                    self.answer(200, b"<html>")
                elif failure is not None:
                    self.answer(failure, f"failed for {stub.keys[-1]}".encode())
                else:
                    text = f"about {prompt}" if stub.text is None else stub.text
                    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
                    self.answer(
                        200,
                        json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode(),
                    )

            def answer(self, status, content):
                self.send_response(status)
                for name, value in stub.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # clients that are killed, connections that are closed
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def stub():
    made = Stub()
    yield made
    made.close()


@pytest.fixture
def ask(stub, tmp_path):
    """``describe`` with the stub and a file in a temporary folder."""

    def call(prompts, **options):
        return describe(
            prompts,
            tmp_path / "answers.jsonl",
            **{"base_url": stub.url, "model": "stub", "pause": 0.01, **options},
        )

    return call


# ---------------------------------------------------------------------- prompts


def test_item_prompts_show_the_text_and_what_came_before_in_training():
    texts = [None, "Soap (rose)", "Cream", None, "Brush" + "x" * 2000]
    train = Sequences.from_lists([[1, 2, 4], [3, 4], [2, 1, 3, 2], []])
    prompts = item_prompts(texts, train, "cosmetics", contexts=2, context_length=1)
    assert [prompt is None for prompt in prompts] == [True, False, False, True, False]
    assert "cosmetics" in prompts[1]
    assert "Soap (rose)" in prompts[1]
    assert "- Cream" in prompts[1]  # what came before it
    assert prompts[2].count("- Soap (rose)") == 1  # item 3, before the other, has no text
    assert "- Cream" in prompts[4]
    assert len(prompts[4]) < 2000
    assert "customers came" not in item_prompts(texts, train, "cosmetics", contexts=0)[1]
    assert prompts == item_prompts(texts, train, "cosmetics", contexts=2, context_length=1)


def test_no_more_contexts_are_shown_than_asked_for():
    train = Sequences.from_lists([[1, 2]] * 9 + [[1, 1, 1, 2]] * 9)
    prompt = item_prompts([None, "Soap", "Cream"], train, "cosmetics", contexts=5, context_length=2)[2]
    assert prompt.count("\n- ") == 5
    assert "Soap; Soap; Soap" not in prompt


def test_user_prompts_list_titles_in_order():
    prompts = user_prompts(
        [None, "Soap", None, "Cream"], Sequences.from_lists([[3, 2, 1], [2], []]), "cosmetics"
    )
    assert "1. Cream\n2. Soap" in prompts[0]
    assert prompts[1:] == [None, None]


def test_prompts_need_a_text_or_none_for_each_item():
    with pytest.raises(ValueError, match="items up to 3 for 2 texts"):
        item_prompts([None, "Soap"], Sequences.from_lists([[3]]), "cosmetics")
    with pytest.raises(ValueError, match="items up to 3 for 2 texts"):
        user_prompts([None, "Soap"], Sequences.from_lists([[3]]), "cosmetics")


# ---------------------------------------------------------------------- asking


def test_prompts_are_asked_once_and_answers_kept(stub, ask, tmp_path, capsys):
    prompts = [None, "a", "b", "a", "é\n☃"]
    expected = [None, "about a", "about b", "about a", "about é\n☃"]
    assert ask(prompts, temperature=0.5) == expected
    assert sorted(stub.asked) == ["a", "b", "é\n☃"]
    path, body = stub.bodies[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "stub"
    assert body["temperature"] == 0.5
    assert stub.keys == [None] * 3
    assert "3 prompts to ask of stub, 0 answered before" in capsys.readouterr().out
    assert ask([*prompts, "c"], temperature=0.5) == [*expected, "about c"]
    assert stub.asked[3:] == ["c"]
    assert "1 prompts to ask of stub, 3 answered before" in capsys.readouterr().out
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4
    ask(["a"], temperature=0.6)  # another question
    ask(["a"], temperature=0.6, model="other")
    assert stub.asked[4:] == ["a", "a"]


@pytest.mark.parametrize("failure", [429, 500, 503, "cut", "junk"])
def test_passing_failures_are_tried_again(stub, ask, failure):
    stub.failures = {"a": [failure, failure]}
    assert ask(["a", "b"]) == ["about a", "about b"]
    assert stub.asked.count("a") == 3


def test_pauses_double_unless_the_endpoint_names_one(stub, ask):
    stub.failures, stub.headers = {"a": [500, 500, 500]}, {}
    start = time.monotonic()
    ask(["a"], pause=0.05)
    assert time.monotonic() - start >= 0.05 + 0.1 + 0.2
    stub.failures, stub.headers = {"b": [429]}, {"Retry-After": "0.3"}
    start = time.monotonic()
    ask(["b"])
    assert time.monotonic() - start >= 0.3
    stub.failures, stub.headers = {"c": [429]}, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert ask(["c"]) == ["about c"]


def test_an_endpoint_that_stays_away_stops_the_run_and_keeps_the_answers(stub, ask):
    stub.failures = {"b": [503] * 9}
    with pytest.raises(ConnectionError, match=r"failed 3 times.*status 503.*call again"):
        ask(["a", "b"], workers=1, retries=2)
    assert stub.asked == ["a", "b", "b", "b"]
    assert ask(["a", "b"]) == ["about a", "about b"]
    assert stub.asked.count("a") == 1
    stub.close()
    with pytest.raises(ConnectionError, match="refused"):
        ask(["z"], retries=0)


def test_a_refused_prompt_has_no_answer_and_the_others_go_on(stub, ask):
    stub.failures = {"b": [400]}
    with pytest.warns(UserWarning, match="1 of 3 prompts were refused.*status 400"):
        assert ask(["a", "b", "c"]) == ["about a", None, "about c"]
    assert ask(["a", "b", "c"]) == ["about a", "about b", "about c"]  # asked again


def test_an_endpoint_that_refuses_everything_is_not_asked_forever(stub, ask):
    stub.text = " "
    with pytest.raises(ConnectionError, match="the first 10 prompts were all refused: an empty answer"):
        ask([str(number) for number in range(100)], workers=1)
    assert len(stub.asked) == 10


@pytest.mark.parametrize("status", [401, 404, 302])
def test_what_concerns_all_prompts_stops_at_once(stub, ask, status):
    stub.always, stub.headers = status, {"Location": "http://127.0.0.1:9/elsewhere"}
    with pytest.raises(ConnectionError, match=f"status {status}"):
        ask([str(number) for number in range(50)], workers=1)
    assert len(stub.asked) == 1


def test_the_key_comes_from_the_environment_and_is_written_nowhere(stub, ask, tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="MY_KEY with the API key is not set"):
        ask(["a"], api_key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", "secret-123")
    ask(["a"], api_key_variable="MY_KEY")
    assert stub.keys == ["Bearer secret-123"]
    stub.always = 401  # an endpoint that repeats the key
    with pytest.raises(ConnectionError, match=r"failed for Bearer \*\*\*") as raised:
        ask(["b"], api_key_variable="MY_KEY")
    seen = capsys.readouterr()
    for text in (str(raised.value), seen.out, seen.err, (tmp_path / "answers.jsonl").read_text()):
        assert "secret-123" not in text


def test_costs_are_named_and_bounded(stub, ask, capsys):
    prompts = ["x" * 4000, "y" * 4000]
    options = {"price_in": 1000.0, "price_out": 5000.0, "max_tokens": 100}  # a thousand tokens cost 1 and 5
    with pytest.raises(ValueError, match=r"may cost 3.00, max_cost is 2.90; nothing was asked"):
        ask(prompts, max_cost=2.9, **options)
    assert stub.asked == []
    assert ask(prompts, max_cost=3.01, **options)[0] == "about " + prompts[0]
    assert "3.00 at most at the given prices" in capsys.readouterr().out
    with pytest.raises(ConnectionError, match=r"stopped after 1 of 9 answers: 1.50 were spent"):
        ask([f"short {n}" for n in range(9)], max_cost=1.4, workers=1, **{**options, "max_tokens": 1})
    with pytest.raises(ValueError, match="max_cost needs price_in"):
        ask(prompts, max_cost=1.0)


def test_a_line_that_was_cut_off_is_asked_again(stub, ask, tmp_path):
    ask(["a", "b"], workers=1)
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    assert ask(["a", "b"]) == ["about a", "about b"]
    assert stub.asked == ["a", "b", "b"]
    lines = file.read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["about a", "about b"]
    file.write_text("\n".join(["damaged", *lines]) + "\n")
    with pytest.raises(ValueError, match=r"line 1 of .*answers.jsonl is damaged"):
        ask(["a"])


def test_a_killed_run_goes_on_where_it_was(stub, tmp_path):
    stub.seconds = 0.01
    file = tmp_path / "answers.jsonl"
    command = [sys.executable, Path(__file__).with_name("ask.py"), str(stub.server.server_port), str(file)]
    with subprocess.Popen(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 60
        while len(stub.asked) < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    known = file.read_bytes().count(b"\n")
    assert 40 <= known < 200
    before = len(stub.asked)
    stub.seconds = 0.0
    prompts = [f"prompt {number}" for number in range(200)]
    answers = describe(prompts, file, base_url=stub.url, model="stub")
    assert answers == [f"about {prompt}" for prompt in prompts]
    assert len(stub.asked) - before == 200 - known
    assert file.read_bytes().count(b"\n") == 200


def test_options_out_of_range_are_refused(ask, tmp_path):
    with pytest.raises(ValueError, match="base_url is 'file:///etc'"):
        describe(["a"], tmp_path / "x", base_url="file:///etc", model="m")
    with pytest.raises(ValueError, match="workers is 0"):
        ask(["a"], workers=0)
    assert ask([]) == []
    assert ask([None, None]) == [None, None]
    assert not list(tmp_path.iterdir())
    assert np.array(ask([None])).tolist() == [None]
