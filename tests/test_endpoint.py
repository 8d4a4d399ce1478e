"""An endpoint against a real server, of this process, that speaks the protocol or breaks it."""

import email.utils
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest

from rlhf_jax import judges
from rlhf_jax.feedback import Pairs
from rlhf_jax.judges import Texts, Unanswered
from rlhf_jax.judges.transport import retry_after

KEY = "sk-not-a-real-key-0123456789"
CHOICES = ("A", "B")


class Server(ThreadingHTTPServer):
    """Answers each request by ``self.reply(question, how many times it was asked)``.

    A reply is a string (what the model says), a dict (the JSON), bytes (the body), ``(status,
    headers, body)``, or a function that is given the handler.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.headers, self.asked = [], [], {}
        self.lock = threading.Lock()
        self.reply = lambda question, tries: "A"

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the test."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question, server = body["messages"][-1]["content"], self.server
        with server.lock:
            server.requests.append((self.path, body))
            server.headers.append(dict(self.headers))
            tries = server.asked[question] = server.asked.get(question, 0) + 1
        reply = server.reply(question, tries)
        if callable(reply):
            reply(self)
            return
        status, headers, reply = reply if isinstance(reply, tuple) else (200, {}, reply)
        if isinstance(reply, str):
            reply = said(reply)
        raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(raw), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


def said(text, finish_reason="stop", tokens=None, **message):
    """A reply as the protocol has it; ``tokens`` are the likeliest at the first position."""
    choice = {"index": 0, "finish_reason": finish_reason}
    choice["message"] = {"role": "assistant", "content": text, **message}
    if tokens is not None:
        likely = [{"token": token, "logprob": math.log(p)} for token, p in tokens.items()]
        choice["logprobs"] = {"content": [{**likely[0], "top_logprobs": likely}]}
    return {"object": "chat.completion", "choices": [choice]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        yield server
        server.shutdown()
        thread.join()


def connect(server, **settings):
    settings = {"retries": 2, "backoff": 0.01, "timeout": 5.0, **settings}
    return judges.endpoint(server.url, model="toy", **settings)


def ask(server, *questions, **settings):
    return connect(server, **settings).ask(list(questions), CHOICES)


def reason(server, reply, method="ask", **settings):
    """Why there is no answer."""
    server.reply = reply if callable(reply) else lambda question, tries: reply
    assistant = connect(server, **settings)
    arguments = (["q"], CHOICES) if method == "ask" else (["q"],)
    (answer,) = getattr(assistant, method)(*arguments)
    assert isinstance(answer, Unanswered)
    return answer.reason


# What it asks and reads


def test_the_request_is_what_the_protocol_says(server, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    settings = {"seed": 3, "max_tokens": None, "max_completion_tokens": 5}
    assistant = connect(server, key_variable="TEST_JUDGE_KEY", system="Be fair.", settings=settings)
    assert assistant.ask(["Which?"], CHOICES) == [math.inf]
    assert assistant.generate(["Say A."]) == ["A"]
    assert server.requests[0] == (
        "/v1/chat/completions",
        {
            "model": "toy",
            "messages": [
                {"role": "system", "content": "Be fair."},
                {"role": "user", "content": "Which?"},
            ],
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
            "seed": 3,
            "max_completion_tokens": 5,
        },
    )
    assert "temperature" not in server.requests[1][1]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.headers[0]["Content-Type"] == "application/json"
    ask(server, "q")
    assert "Authorization" not in server.headers[-1]


@pytest.mark.parametrize(
    ("tokens", "log_odds"),
    [
        ({"A": 0.6, "B": 0.2, "C": 0.1}, math.log(3)),
        ({"B": 0.5, " A": 0.25, "A": 0.125}, math.log(0.75)),
        ({"The": 0.6, "A": 0.1, "B": 0.3}, -math.log(3)),
        # B is not listed: no likelier than the least that is, nor than what all these leave.
        ({"A": 0.5, "C": 0.1}, math.log(5)),
        ({"A": 0.95, "C": 0.04}, math.log(95)),
        ({"A": 1.0}, math.log(1e9)),
    ],
)
def test_log_odds_from_probabilities(server, tokens, log_odds):
    server.reply = lambda question, tries: said("B", tokens=tokens)
    assert ask(server, "q") == [pytest.approx(log_odds, rel=1e-5)]


def test_probabilities_that_say_nothing(server):
    split = said("A", tokens={"x": 0.9, "A": 0.05})
    found = reason(server, split, least_mass=0.1)
    assert found == "'A' and 'B' have probability 0.05 together, below 0.1"
    # Neither is listed at the first position: the words decide.
    server.reply = lambda question, tries: said("**Answer: B**", tokens={"**": 0.9})
    assert ask(server, "q") == [-math.inf]
    # A blank first token is passed over.
    reply = said("A", tokens={"A": 0.75, "B": 0.25})
    content = reply["choices"][0]["logprobs"]["content"]
    blank = {"token": "\n", "logprob": -0.1}
    content.insert(0, {**blank, "top_logprobs": [blank, {"token": "B", "logprob": -3.0}]})
    server.reply = lambda question, tries: reply
    assert ask(server, "q") == [pytest.approx(math.log(3))]
    # A position without a list says nothing, and nor does what comes after it.
    content[1]["top_logprobs"] = []
    content.append(said("", tokens={"B": 0.9, "A": 0.1})["choices"][0]["logprobs"]["content"][0])
    reply["choices"][0]["message"]["content"] = "C"
    assert ask(server, "q")[0].reason == "neither 'A' nor 'B': 'C'"


def test_probabilities_are_those_of_the_token_that_makes_the_choice(server):
    """In "Answer: B" the first token is no choice, and the little it leaves to A is no answer."""
    reply = said("Answer: B", tokens={"Answer": 0.98, "A": 0.01})
    content = reply["choices"][0]["logprobs"]["content"]
    for tokens in ({":": 1.0}, {" B": 0.8, " A": 0.2}):
        content.extend(said("", tokens=tokens)["choices"][0]["logprobs"]["content"])
    server.reply = lambda question, tries: reply
    assert ask(server, "q") == [pytest.approx(-math.log(4))]


@pytest.mark.parametrize(
    ("text", "answer"),
    [("A", math.inf), (" b.", -math.inf), ("(B)", -math.inf), ("Answer: **A**", math.inf)],
)
def test_choices_in_words(server, text, answer):
    server.reply = lambda question, tries: text
    assert ask(server, "q", top_log_probs=0) == [answer]
    assert "logprobs" not in server.requests[0][1]


def test_a_server_without_log_probs_is_asked_without(server):
    refused = (400, {}, {"error": {"message": "unknown field: logprobs"}})
    server.reply = lambda question, tries: refused if tries == 1 else "B"
    assert ask(server, "q") == [-math.inf]
    assert [("logprobs" in body) for _, body in server.requests] == [True, False]


def test_a_judge_behind_an_address(server):
    """The server's model prefers the longer answer by 1 nat, and the first place by 3."""

    def reply(question, tries):
        first, second = question.split("|")[2:4]
        log_odds = 3 + (len(first) > len(second)) - (len(first) < len(second))
        p = 1 / (1 + math.exp(-log_odds))
        return "Well..." if "?" in question else said("A", tokens={"A": p, "B": 1 - p})

    server.reply = reply
    template = "{rubric}|{prompt}|{first}|{second}|"
    judge = judges.pairwise(connect(server).ask, rubric="", template=template)
    prompts = ["p", "p?", "p"]
    pairs = Pairs(Texts(prompts, ["long", "a", "b"]), Texts(prompts, ["s", "a", "longer"]))
    verdicts = judge(pairs)
    np.testing.assert_allclose(verdicts.log_odds, [1, np.nan, -1], atol=1e-5)
    np.testing.assert_allclose(verdicts.position_bias, [3, np.nan, 3], atol=1e-5)
    human = judges.as_human(judge, labels="hard")
    with pytest.warns(UserWarning, match="1 of 3 pairs .* row 1: as given: neither 'A' nor 'B'"):
        comparison = human(jax.random.key(0), pairs)
    assert comparison.answered.tolist() == [True, False, True]
    np.testing.assert_array_equal(comparison.preference, [1, 0.5, 0])


# What goes wrong


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (b"<html>Bad gateway</html>", "malformed reply: not JSON: '<html>Bad gateway</html>'"),
        (b'{"choices": [{"logprobs": ', "malformed reply: not JSON"),
        (b"\xff\xfe", "malformed reply: not JSON"),
        ([1], "malformed reply: not an object: '[1]'"),
        ({"error": "busy"}, """malformed reply: no choices: '{"error": "busy"}'"""),
        ({"choices": []}, "malformed reply: no choices"),
        ({"choices": ["A"]}, "malformed reply: no choices"),
        ({"choices": [{"text": "A"}]}, "malformed reply: no message"),
        (said(["A"]), "malformed reply: content is no text"),
        ("Both are good.", "neither 'A' nor 'B': 'Both are good.'"),
        ("A better answer is B", "neither 'A' nor 'B'"),
        (said(None), "neither 'A' nor 'B': ''"),
        (said("Let me think", "length"), "cut off, neither 'A' nor 'B': 'Let me think'"),
        (said("", "content_filter"), "stopped by a content filter"),
        (said(None, refusal="I cannot."), "refused: 'I cannot.'"),
        (said("A", tokens={"A": 2.0}), "malformed reply: logprobs that are none"),
        ({"choices": [{**said("A")["choices"][0], "logprobs": [1]}]}, "logprobs that are none"),
        ((404, {}, b"logprobs"), "status 404: 'logprobs'"),
        ((401, {}, {"error": "no key"}), """status 401: '{"error": "no key"}'"""),
        ((302, {"Location": "http://127.0.0.1:1/"}, b"moved"), "status 302: 'moved'"),
    ],
)
def test_what_is_wrong_is_told_and_not_tried_again(server, reply, message):
    assert message in reason(server, reply)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (said("and so", "length"), "cut off at the token limit: 'and so'"),
        (said("  "), "an empty reply"),
        (said("", "content_filter"), "stopped by a content filter"),
    ],
)
def test_texts_that_are_none(server, reply, message):
    assert reason(server, reply, "generate") == message


def drop(handler):
    """Hangs up without a word."""
    handler.close_connection = True
    handler.connection.close()


def half(handler):
    """Promises more than it sends."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')


@pytest.mark.parametrize("failure", [(429, {}, b""), (500, {}, b""), (503, {}, b"x"), drop, half])
def test_what_may_pass_is_tried_again(server, failure):
    server.reply = lambda question, tries: failure if tries < 3 else "A"
    assert ask(server, "q") == [math.inf]
    assert len(server.requests) == 3
    server.asked.clear()
    (answer,) = ask(server, "q", retries=1)
    assert "(tried 2 times)" in answer.reason
    assert len(server.requests) == 5


def test_failures_are_those_of_their_rows(server):
    server.reply = lambda question, tries: (500, {}, b"down") if question == "1" else question
    answers = ask(server, "A", "1", "B", "?", retries=0)
    assert answers[0] == math.inf and answers[2] == -math.inf
    assert answers[1] == Unanswered("status 500: 'down'")
    assert answers[3] == Unanswered("neither 'A' nor 'B': '?'")
    assert ask(server) == []


def test_retry_after_is_obeyed(server):
    waits = (429, {"Retry-After": "0.3"}, b"")
    server.reply = lambda question, tries: waits if tries == 1 else "A"
    start = time.monotonic()
    assert ask(server, "q") == [math.inf]
    assert time.monotonic() - start >= 0.3
    found = reason(server, (429, {"Retry-After": "3600"}, b""))
    assert found.startswith("status 429; asked to wait 3600 s, more than max_wait=60")
    assert len(server.requests) == 3


def test_retry_after_is_seconds_or_a_date():
    soon = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert retry_after({"Retry-After": soon}) == pytest.approx(100, abs=20)
    assert retry_after({"Retry-After": email.utils.formatdate(0, usegmt=True)}) == 0
    assert retry_after({"Retry-After": "-5"}) == 0
    assert retry_after({"Retry-After": "soon"}) is None
    assert retry_after({"Retry-After": "nan"}) is None
    assert retry_after({}) is None


def test_silence_is_timed_out(server):
    release = threading.Event()
    server.reply = lambda question, tries: lambda handler: release.wait(5)
    start = time.monotonic()
    (answer,) = ask(server, "q", timeout=0.2, retries=1)
    release.set()
    assert answer == Unanswered("no reply within 0.2 s (tried 2 times)")
    assert time.monotonic() - start < 4


def test_dripping_is_timed_out(server):
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    server.reply = lambda question, tries: drip
    start = time.monotonic()
    assert ask(server, "q", timeout=0.2, retries=0) == [Unanswered("no reply within 0.2 s")]
    assert time.monotonic() - start < 4


def test_nobody_there(server):
    assistant = judges.endpoint("http://127.0.0.1:9/v1", model="toy", retries=0, timeout=2.0)
    (answer,) = assistant.generate(["q"])
    assert answer.reason.startswith("the connection failed (ConnectionRefusedError")


def test_concurrency_is_bounded_and_order_kept(server):
    now, most, three = 0, 0, threading.Barrier(3)

    def reply(question, tries):
        """Answers once three are asked at a time, and counts before the client can know."""
        nonlocal now, most
        with server.lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)  # in which a fourth would come
        three.wait(timeout=30)
        with server.lock:
            now -= 1
        return f"text {question}"

    server.reply = reply
    questions = [str(n) for n in range(12)]
    texts = connect(server, concurrency=3, timeout=60.0).generate(questions)
    assert texts == [f"text {n}" for n in range(12)]
    assert most == 3


# The key


def test_the_key_is_never_told(server, monkeypatch, capfd, caplog):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    caplog.set_level("DEBUG")
    # Repeated by the server, also where the excerpt ends within it.
    for said_by_server in (f"bad key {KEY}", "x" * 190 + KEY):
        for reply in ((401, {}, said_by_server.encode()), said_by_server, said_by_server.encode()):
            found = reason(server, reply, key_variable="TEST_JUDGE_KEY")
            assert KEY[:6] not in found

    def no_status_line(handler):
        handler.wfile.write(handler.headers["Authorization"].encode() + b"\r\n\r\n")

    found = reason(server, lambda *_: no_status_line, key_variable="TEST_JUDGE_KEY", retries=0)
    assert found == "the connection failed (BadStatusLine): 'Bearer [key]'"
    assistant = connect(server, key_variable="TEST_JUDGE_KEY")
    assert KEY not in repr(assistant)
    assert KEY not in "".join(capfd.readouterr()) and KEY not in caplog.text


def test_the_key_goes_nowhere_else(server, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    server.reply = lambda question, tries: (307, {"Location": server.url + "/elsewhere"}, b"")
    (answer,) = ask(server, "q", key_variable="TEST_JUDGE_KEY")
    assert answer.reason.startswith("status 307")
    assert [path for path, _ in server.requests] == ["/v1/chat/completions"]


@pytest.mark.parametrize("key", ["", "sk-secret\n", "sk secret", "sk-s\u00e9cret"])
def test_a_key_that_is_none(server, monkeypatch, key):
    monkeypatch.setenv("TEST_JUDGE_KEY", key)
    with pytest.raises(ValueError, match="TEST_JUDGE_KEY") as error:
        connect(server, key_variable="TEST_JUDGE_KEY")
    assert "secret" not in str(error.value)
    monkeypatch.delenv("TEST_JUDGE_KEY")
    with pytest.raises(ValueError, match="TEST_JUDGE_KEY is not set"):
        connect(server, key_variable="TEST_JUDGE_KEY")


@pytest.mark.parametrize(
    ("url", "settings", "message"),
    [
        ("ftp://x", {}, "url must begin with http"),
        ("http://", {}, "url must begin with http"),
        ("http://x:port", {}, "url must begin with http"),
        ("http://me:secret@x", {}, "url must have no password"),
        ("http://x/v1?key=secret", {}, "url must have no password, query"),
        ("http://x/v1/chat/completions", {}, "url must stop before /chat/completions"),
        ("http://x", {"timeout": 0}, "timeout must be positive, not 0"),
        ("http://x", {"concurrency": 0}, "concurrency must be positive, not 0"),
        ("http://x", {"retries": -1}, "retries must not be negative: -1"),
        ("http://x", {"least_mass": 1.5}, "least_mass must be from 0 to 1, not 1.5"),
    ],
)
def test_bad_settings_are_named(url, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        judges.endpoint(url, model="toy", **settings)
    assert "secret" not in str(error.value)


def test_bad_questions_are_named(server):
    with pytest.raises(ValueError, match="questions must be strings: row 1 is 3"):
        connect(server).generate(["q", 3])
    for choices in (("A", " a"), ("A", "")):
        with pytest.raises(ValueError, match="choices must be two different words, not"):
            connect(server).ask(["q"], choices)
    assert server.requests == []
