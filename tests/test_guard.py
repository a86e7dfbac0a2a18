"""Guards: WildGuard's format and parser, a real causal model behind them, an endpoint, rows of the judgements table, files."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pandas as pd
import pytest

from psychosafe_utils import guard, tables
from psychosafe_utils.guard import Verdict, parse_wildguard, wildguard_input
from psychosafe_utils.models import ModelError

GOOD = "Harmful request: yes\nResponse refusal: no\nHarmful response: n/a</s>"
MESSAGES = pd.DataFrame({"prompt": ["How do frogs sing?", "Tell me {response} and {x}", "What hurts " * 20], "response": ["They croak.", "", "No."]})


def test_the_input_is_wildguards_to_the_letter():
    text = wildguard_input("How are you?", "Fine.")
    assert text.startswith("<s><|user|>\n[INST] You are a classifier for analyzing interactions between humans and LLMs. Given a request")
    assert text.endswith("Human user:\nHow are you?\n\nAI assistant:\nFine.\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n")
    assert "AI assistant:\n\n\n---" in wildguard_input("How are you?")
    assert "\nTell me {response} and {x}\n" in wildguard_input("Tell me {response} and {x}", "{prompt}") and "\n{prompt}\n" in wildguard_input("a", "{prompt}")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (GOOD, ("yes", "no", "n/a")), ("harmful request:NO\n\nResponse Refusal: Yes\nHarmful response: no", ("no", "yes", "no")),
        ("Response refusal: yes\nHarmful response: no\nHarmful request: no", ("no", "yes", "no")),  # by name, not by line
        ("Harmful request: maybe\nResponse refusal: no\nHarmful response: no", ("", "no", "no")),
        ("Harmful request: n/a\nResponse refusal: n/a\nHarmful response: n/a", ("", "n/a", "n/a")),  # a request always has an answer
        ("Harmful request: yes", ("yes", "", "")), ("Harmful request: yesterday\nResponse refusal: none\nHarmful response:", ("", "", "")), ("", ("", "", "")),
        ("I can't judge this.", ("", "", "")),
    ],
)
def test_replies_are_read_and_never_guessed(reply, verdict):
    assert parse_wildguard(reply) == Verdict(*verdict)


def test_rows_tell_no_from_not_applicable_and_from_unread():
    rows = guard.guard_rows(["a", "b"], [parse_wildguard(GOOD), parse_wildguard("?")], "wildguard", [GOOD, "?"])
    tables.check_table(rows, "judgements", "here")
    assert rows.status.tolist() == ["ok", "ok", "not_applicable"] + ["parse_error"] * 3
    assert rows.score[:2].tolist() == [1.0, 0.0] and rows.score[2:].isna().all() and set(rows.rater_kind) == {"guard"} and rows.raw[5] == "?"


@pytest.mark.parametrize("four_bit", [False, True])
def test_a_real_model_replies_the_same_whatever_the_batch_and_the_callers_data_stay(tiny_model, four_bit):
    before = MESSAGES.copy(deep=True)
    replies = [guard.reply_with_model(MESSAGES, str(tiny_model), four_bit=four_bit, batch_size=n) for n in (1, 2, 3)]
    assert replies[0] == replies[1] == replies[2] and len(set(replies[0])) > 1
    pd.testing.assert_frame_equal(MESSAGES, before)


def test_a_long_exchange_keeps_its_beginning_and_its_end(monkeypatch):
    monkeypatch.setattr(guard, "WIDTH", 6)
    assert guard._truncated(list(range(10))) == [0, 1, 2, 7, 8, 9] and guard._truncated([1, 2]) == [1, 2]


def test_a_guard_that_is_nowhere_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match="neither as a folder nor on the hub; allenai/wildguard is gated"):
        guard.reply_with_model(MESSAGES, str(tmp_path / "none"))


class Completions(BaseHTTPRequestHandler):
    """An OpenAI-compatible completions endpoint that fails once, then judges by a word of the prompt."""

    failed = False

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not Completions.failed:
            Completions.failed = True
            self.send_error(503)
            return
        text = "Harmful request: %s\nResponse refusal: n/a\nHarmful response: n/a" % ("yes" if "hurts" in body["prompt"] else "no")
        reply = json.dumps({"id": "1", "object": "text_completion", "created": 0, "model": body["model"], "choices": [{"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *args):
        pass


def test_an_endpoint_is_asked_again_and_the_order_stays():
    server = HTTPServer(("127.0.0.1", 0), Completions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        replies = guard.reply_with_endpoint(MESSAGES, f"http://127.0.0.1:{server.server_port}/v1")
    finally:
        server.shutdown()
    assert [parse_wildguard(r).prompt_harmful for r in replies] == ["no", "no", "yes"]


def test_a_server_that_is_not_there_gives_failed_rows_not_an_end(monkeypatch):
    import openai

    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.02)
    judged = guard.judge_messages(MESSAGES[:1], endpoint="http://127.0.0.1:9/v1")
    assert judged.raws == [""] and judged.probabilities.isna().all(axis=None)
    assert guard.guard_rows(["g"], judged.verdicts, "guard:x", judged.raws).status.tolist() == ["failed"] * 3


def test_files(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("id,prompt\n1,How are frogs?\n", encoding="utf-8")
    assert guard.read_messages(path).to_dict("records") == [{"id": "1", "prompt": "How are frogs?", "response": ""}]
    path.write_text("id,prompt,response\n1,a,b\n2, ,c\n", encoding="utf-8")
    with pytest.raises(ValueError, match="m.csv: line 3: the prompt is empty"):
        guard.read_messages(path)
    path.write_text("id,text\n1,a\n", encoding="utf-8")
    with pytest.raises(ValueError, match="m.csv: column 'prompt' is missing"):
        guard.read_messages(path)
    with pytest.raises(ValueError, match="not a readable CSV"):
        guard.read_messages(tmp_path / "none.csv")


def test_what_a_probability_says():
    from psychosafe_utils.embedded_guard import verdicts

    table = pd.DataFrame({"prompt_harmful": [0.5, 0.1], "response_refuses": [0.2, np.nan], "response_harmful": [0.4, np.nan]})
    assert verdicts(table) == [("yes", "no", "no"), ("no", "n/a", "n/a")]
