"""A model as judge: its replies parsed without guessing, and no judgement lost or doubled behind a connection that fails in every way."""

import json
import os
import random
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest

from psychosafe_utils import models
from psychosafe_utils.journals import read_rows
from psychosafe_utils.llm_judges import (
    Endpoint, family_note, judge_messages, judge_with_endpoint, judging_cost, model_family, parse_reply, plan_calls, reply_schema,
)
from psychosafe_utils.rubrics import rubric_items
from psychosafe_utils.tables import check_table

ITEMS = rubric_items("published.v2")
GOOD = {name: {"evidence": "", "score": item["scale"][-1]} for name, item in ITEMS.items()}


def answers(n, cluster="violence"):
    return pd.DataFrame({
        "generation_id": [f"g{i}" for i in range(n)], "text": [f"Message {i}?" for i in range(n)],
        "response": [f"I can't help with that, number {i}." for i in range(n)], "cluster": cluster,
    })


def fate(message):
    """What goes wrong with a message, each of eight kinds for a tenth of them, and whether it lasts."""
    rng = random.Random(message)
    return rng.choice(("429", "500", "slow", "drop", "truncated", "not_json", "off_scale", "refuses", "", "")), rng.random() < 0.3


class Upstream:
    """A judge behind HTTP whose faults follow from what is asked; where there is a real server, what goes well is its reply."""

    def __init__(self, faults=True, real=""):
        self.asked, self.faults, self.real, self.lock = {}, faults, real, threading.Lock()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                upstream.answer(self, body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, handler, body):
        message = body["messages"][1]["content"].split("<message>\n")[1].split("\n</message>")[0]
        with self.lock:
            self.asked[message] = self.asked.get(message, 0) + 1
            n = self.asked[message]
        kind, lasting = fate(message) if self.faults else ("", False)
        if n > 1 and not lasting:
            kind = ""
        if kind == "slow":
            time.sleep(5)
            return handler.connection.close()
        if kind == "drop":
            return handler.connection.close()
        content = {
            "off_scale": json.dumps(GOOD | {"relevance": {"evidence": "", "score": 9}}), "refuses": "I'm sorry, but I can't assist with that.",
            "not_json": '{"refusal": {"evid',
        }.get(kind, json.dumps(GOOD))
        text = self.forward(body) if self.real and kind in ("", "truncated") else json.dumps({
            "id": "x", "object": "chat.completion", "created": 0, "model": "m", "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}],
        }).encode()
        handler.send_response(int(kind) if kind.isdigit() else 200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        if kind == "429":
            handler.send_header("retry-after-ms", "20")
        handler.end_headers()
        handler.wfile.write(text[: len(text) // 2] if kind == "truncated" else text)
        if kind == "truncated":
            handler.connection.close()

    def forward(self, body):
        request = urllib.request.Request(f"{self.real}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            return reply.read()


@pytest.fixture
def upstream():
    made = []

    def make(**given):
        made.append(Upstream(**given))
        return made[-1]

    yield make
    for each in made:
        each.server.shutdown()
        each.server.server_close()


def test_a_good_reply_gives_scores_with_the_words_they_rest_on():
    reply = "Here: " + json.dumps(GOOD | {"refusal": {"evidence": "can't help", "score": 1}}) + " done"
    parsed = parse_reply(reply, ITEMS)
    assert parsed["refusal"] == (1.0, "ok", "can't help") and parsed["relevance"] == (5.0, "ok", "")


@pytest.mark.parametrize("reply, status", [
    ("", "parse_error"), ("relevance 5", "parse_error"), ("{}", "parse_error"), ('{"relevance": 5}', "parse_error"), ("[1]", "parse_error"),
    ('{"relevance": {"score": "5"}}', "parse_error"), ('{"relevance": {"score": true}}', "parse_error"), ('{"relevance": {"score": 4.5}}', "off_scale"),
    ('{"relevance": {"score": 0}}', "off_scale"), ('{"relevance": {"score": 6}}', "off_scale"), ("I can't rate this, I'm sorry.", "judge_refused"),
    ('{"relevance": {"evidence": 3, "score": 2}}', "ok"), ('{"relevance": {"score": 5.0}}', "ok"),
])
def test_other_replies_are_a_status_and_no_score(reply, status):
    score, found, _ = parse_reply(reply, ITEMS)["relevance"]
    assert found == status and (score is not None) == (status == "ok")


def test_the_rubric_comes_before_the_response_and_the_evidence_before_the_score():
    system, user = judge_messages(ITEMS, "Message 7", "Answer 7")
    assert "it could answer almost any message" in system["content"] and "Answer 7" not in system["content"]
    assert user["content"].index("Message 7") < user["content"].index("Answer 7")
    schema = reply_schema(ITEMS)["properties"]["relevance"]
    assert list(schema["properties"]) == ["evidence", "score"] and schema["properties"]["score"]["enum"] == [1, 2, 3, 4, 5]


def test_a_judge_of_the_same_family_must_be_allowed_and_is_then_named():
    assert model_family("Qwen/Qwen3.5-27B") == "qwen" and model_family("SmolLM2-135M-Instruct") == "smollm"
    with pytest.raises(ValueError, match="'Qwen3-8B' is of the family of 'Qwen/Qwen3.5-27B'"):
        family_note("Qwen3-8B", ["Qwen/Qwen3.5-27B"], allow_own=False)
    assert family_note("Qwen3-8B", ["Qwen/Qwen3.5-27B"], allow_own=True) == " (own family)"
    assert family_note("Qwen3-8B", ["SmolLM2-135M-Instruct"], allow_own=False) == ""


def test_one_call_for_all_or_one_an_item_repeats_and_harmless_messages():
    endpoint = Endpoint("http://x/v1", "m", together=False, repeats=2)
    calls = plan_calls(answers(2), endpoint, "published.v2")
    assert len(calls) == 2 * 2 * 4 and len({c["key"] for c in calls}) == 16
    assert len(plan_calls(answers(2), endpoint._replace(together=True, repeats=1), "published.v2")) == 2
    harmless = plan_calls(answers(1, "benign"), Endpoint("http://x/v1", "m"), "extended.v1")[0]["items"]
    assert "over_intervention" in harmless and "referral" not in harmless


def test_500_judgements_behind_a_failing_connection_none_lost_none_doubled(upstream, tmp_path):
    server, journal = upstream(), tmp_path / "j.jsonl"
    endpoint = Endpoint(server.url, "judge", workers=32, timeout=4.0, retries=2, price_in=2.0, price_out=8.0)
    rows = check_table(judge_with_endpoint(answers(500), endpoint, journal=journal), "judgements", "")
    assert len(rows) == 500 * 4 and not rows.duplicated(["generation_id", "criterion"]).any()
    assert set(rows.status) == {"ok", "failed", "off_scale", "judge_refused", "parse_error"}
    assert rows.score.notna().equals(rows.status == "ok")
    fates = answers(500).set_index("generation_id").text.map(fate)
    status = rows.groupby("generation_id").status.agg(lambda s: (set(s) - {"ok"} or {"ok"}).pop())
    expected = {"off_scale": "off_scale", "refuses": "judge_refused", "not_json": "parse_error", "": "ok"}
    for generation_id, (kind, lasting) in fates.items():
        passes = kind != "refuses" and not lasting
        assert status[generation_id] == ("ok" if passes else expected.get(kind, "failed")), (generation_id, kind, lasting)
    assert len(read_rows(journal)) == 500

    failed = rows[rows.status == "failed"].generation_id.nunique()
    before, server.faults = sum(server.asked.values()), False
    again = judge_with_endpoint(answers(500), endpoint, journal=journal)
    assert 0 < failed < 120 and sum(server.asked.values()) - before == failed
    assert (again.status != "failed").all() and len(again) == 2000
    kept = rows.status != "failed"
    assert again[kept.to_numpy()].reset_index(drop=True).equals(rows[kept].reset_index(drop=True))


def test_an_unusable_reply_is_asked_again_once_and_equal_calls_are_made_once(upstream, tmp_path):
    server = upstream(faults=False)
    same = pd.concat([answers(1), answers(1).assign(generation_id="twin")], ignore_index=True)
    rows = judge_with_endpoint(same, Endpoint(server.url, "judge"), journal=tmp_path / "j.jsonl")
    assert sum(server.asked.values()) == 1 and set(rows.generation_id) == {"g0", "twin"} and (rows.status == "ok").all()
    cost = judging_cost(tmp_path / "j.jsonl", Endpoint(server.url, "judge", price_in=2.0, price_out=8.0))
    assert cost.calls == 1 and cost.tokens_in == 100 and cost.cost == pytest.approx((100 * 2 + 10 * 8) / 1e6)


def test_repeats_are_raters_of_their_own(upstream, tmp_path):
    rows = judge_with_endpoint(answers(1), Endpoint(upstream(faults=False).url, "judge", repeats=2), journal=tmp_path / "j.jsonl")
    assert set(rows.rater) == {"llm:judge", "llm:judge #2"} and len(rows) == 8


def test_a_real_server_enforces_the_schema(llama_server, tmp_path):
    """No score can be off its scale there; a reply may still be cut at the token limit, because the embedded model repeats itself."""
    rows = judge_with_endpoint(answers(2), Endpoint(llama_server, models.EMBEDDED, workers=2, max_tokens=600), journal=tmp_path / "j.jsonl")
    assert len(rows) == 8 and set(rows.status) <= {"ok", "parse_error"} and (rows.status == "ok").any()
    assert rows.raw.str.match(r'\s*{\s*"refusal":\s*{\s*"evidence":').all()


def test_a_real_judge_behind_a_failing_connection(llama_server, upstream, tmp_path):
    """PSYCHOSAFE_JUDGEMENTS says how many answers are judged, 12 unless told."""
    n = int(os.environ.get("PSYCHOSAFE_JUDGEMENTS", "12"))
    server, journal = upstream(real=llama_server), tmp_path / "j.jsonl"
    endpoint = Endpoint(server.url, models.EMBEDDED, workers=4, max_tokens=200, timeout=60.0, retries=2)
    rows = judge_with_endpoint(answers(n), endpoint, journal=journal)
    print(rows.status.value_counts().to_dict())
    assert len(rows) == n * 4 and not rows.duplicated(["generation_id", "criterion"]).any() and len(read_rows(journal)) == n
    assert rows.score.notna().equals(rows.status == "ok") and {"ok", "judge_refused"} <= set(rows.status)
    failed = rows[rows.status == "failed"].generation_id.nunique()
    before, server.faults = sum(server.asked.values()), False
    assert (judge_with_endpoint(answers(n), endpoint, journal=journal).status != "failed").all()
    assert sum(server.asked.values()) - before >= failed  # a reply may have to be asked for again


def test_a_server_that_ignores_the_schema_is_asked_again_and_its_replies_are_checked(transformers_server, tmp_path):
    url, model = transformers_server
    rows = judge_with_endpoint(answers(1), Endpoint(url, model, workers=1, max_tokens=24), journal=tmp_path / "j.jsonl")
    assert len(rows) == 4 and (rows.status == "parse_error").all() and (rows.raw != "").all()
    assert judging_cost(tmp_path / "j.jsonl", Endpoint(url, model)).tokens_out == 2 * 24  # asked twice, cut twice
