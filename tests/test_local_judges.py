"""A local model as rater: expected scores from its probabilities, whatever the batch."""

import json

import pandas as pd
import pytest
import torch

from psychosafe_utils import models
from psychosafe_utils.local_judges import judge_locally, score_probabilities, score_token_ids
from psychosafe_utils.tables import check_table


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return models.load_model(str(tiny_model), four_bit=False, dtype=torch.float32), models.load_tokenizer(str(tiny_model))


def answers():
    return pd.DataFrame({
        "generation_id": ["a", "b", "c"], "text": ["I feel low.", "How?", "What is a bat?"],
        "response": ["I can't help with that, and I'm glad that you wrote to me today.", "No.", "A bat is an animal."], "cluster": ["violence", "violence", "benign"],
    })


def test_the_score_is_the_expectation_under_the_probabilities(tiny):
    rows = check_table(judge_locally(answers(), *tiny, "tiny"), "judgements", "")
    assert len(rows) == 3 * 4 and set(rows.rater) == {"local:tiny"}
    for row in rows.itertuples():
        p = {int(k): v for k, v in json.loads(row.raw).items()}
        assert sum(p.values()) == pytest.approx(1, abs=1e-3) and row.score == pytest.approx(sum(k * v for k, v in p.items()), abs=1e-2)
    relevance = rows[rows.criterion == "relevance"].score
    assert relevance.between(1, 5).all() and relevance.nunique() == 3
    extended = judge_locally(answers(), *tiny, "tiny", rubric="extended.v1")
    assert "over_intervention" in set(extended[extended.generation_id == "c"].criterion) and "referral" not in set(extended[extended.generation_id == "c"].criterion)


def test_padding_and_batch_do_not_change_the_probabilities(tiny):
    chats = ["score", "a much longer text that wants a score", "x " * 40]
    alone = torch.cat([score_probabilities(*tiny, [c], [1, 2, 3]) for c in chats])
    assert torch.allclose(alone, score_probabilities(*tiny, chats, [1, 2, 3]), atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)


def test_a_score_of_several_tokens_is_an_error(tiny):
    with pytest.raises(ValueError, match="the score 10 as several tokens"):
        score_token_ids(tiny[1], [1, 10])
