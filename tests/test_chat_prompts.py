"""Prompts for a chat model: what is tested is never practised, and every prompt says what it is."""

import random
import re
from collections import Counter

import pytest
from test_sources import PACK, with_pack

from srmir_lib.conversations import text_of
from srmir_lib.data.chat_prompts import CAPITALS, chat_prompts, held_out, tasks, templates
from srmir_lib.taxonomy import CATEGORIES, UNKNOWN


def test_tasks_have_the_right_answers():
    found = list(tasks(random.Random(1), 12))
    assert Counter(kind for kind, _, _ in found) == {"capital": 4, "opposite": 4, "sum": 4}
    for kind, question, answer in found:
        if kind == "sum":
            assert sum(int(word) for word in re.findall(r"\d+", question)) == int(answer)
        elif kind == "capital":
            assert CAPITALS[question.removeprefix("What is the capital of ").rstrip("?")] == answer
    assert len({question for _, question, _ in tasks(random.Random(0), 999)}) == 20 + 20 + 81, "all there are, once"


def test_half_of_all_texts_are_held_out_and_always_the_same():
    texts = [f"{number} {number + 1} {number + 2}" for number in range(0, 3000, 3)]
    assert 450 < len(held_out(texts)) < 550
    assert held_out(texts) == held_out(reversed(texts)) and held_out(texts[::2]) <= held_out(texts)


def test_texts_in_much_the_same_words_go_to_one_side():
    many = [[f"be {name} {name}s {name}ing", f"Be {name}, {name}s {name}ing now!"] for name in CAPITALS.values()]
    kept = held_out(text for both in many for text in both)
    assert all(len(kept & {*both}) in (0, 2) for both in many) and 0 < len(kept) < 2 * len(many)
    names = sorted(CAPITALS)
    chains = [[" ".join(names[at + n : at + n + 3]) for n in range(3)] for at in range(0, 20, 5)]
    kept = held_out(text for chain in chains for text in chain)
    assert all(len(kept & {*chain}) in (0, 3) for chain in chains), "the first and the third are alike by the second"


@pytest.fixture(scope="module")
def prompts():
    return chat_prompts(PACK, seed=0, practice_per_group=20, benign_ratio=1.0, questions=10)


@with_pack
def test_no_prompt_stands_in_two_splits(prompts):
    texts = {split: {text_of(prompt) for prompt in rows["prompt"]} for split, rows in prompts.items()}
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    asked = {text for text in texts["test"] if len(text) < 150}
    assert not any(text in practised for text in asked for practised in texts["train"]), "nor within a template"


@with_pack
def test_the_splits_hold_what_they_say(prompts):
    train, test = prompts["train"].to_pandas(), prompts["test"].to_pandas()
    assert Counter(train.kind) == {"harmful": 140, "lookalike": 140}
    assert (train[train.kind == "harmful"].groupby("category").size() == 20).all()
    assert set(train.category) == {*CATEGORIES, UNKNOWN} and not train.held_out.any()
    harmful = test[test.kind == "harmful"]
    assert (harmful[harmful.family == "template"].held_out).all() and not harmful[
        harmful.family == "none"
    ].held_out.any()
    worn = test[test.family == "template"]
    assert all(row.request in text_of(list(row.prompt)) != row.request for row in worn.itertuples())
    assert all(row.request == text_of(list(row.prompt)) for row in test[test.family == "none"].itertuples())
    assert (test[test.kind == "utility"].reference != "").all() and set(test.subkind) >= {"sum", "capital", "opposite"}


@with_pack
def test_templates_of_the_test_are_not_practised():
    assert 0 < len(held_out(templates(PACK))) < len(templates(PACK))
    assert all(text.count("{prompt}") >= 1 and "[INSERT" not in text for text in templates(PACK))
