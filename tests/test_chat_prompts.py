"""Prompts for a chat model: what is tested is never practised, and every prompt says what it is."""

import random
from collections import Counter

import pytest
from test_sources import PACK, with_pack

from srmir_lib.conversations import text_of
from srmir_lib.data.chat_prompts import chat_prompts, held_out, tasks, templates
from srmir_lib.taxonomy import CATEGORIES, UNKNOWN


def test_tasks_have_the_right_answers():
    found = {kind: (question, answer) for kind, question, answer in tasks(random.Random(1), 3)}
    question, answer = found["sum"]
    assert sum(int(word.strip("?")) for word in question.split() if word.strip("?").isdigit()) == int(answer)
    question, answer = found["word"]
    assert question.partition(": ")[2].split(", ")[1] == answer
    question, answer = found["day"]
    week = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Monday"]
    assert (question.split()[4].strip("?"), answer) in zip(week, week[1:], strict=False)


def test_half_of_all_texts_are_held_out_and_always_the_same():
    texts = [f"text {number}" for number in range(1000)]
    assert 450 < sum(map(held_out, texts)) < 550
    assert [held_out(text) for text in texts] == [held_out(text) for text in texts]


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
    assert (test[test.kind == "utility"].reference != "").all() and set(test.subkind) >= {"sum", "word", "day"}


@with_pack
def test_templates_of_the_test_are_not_practised():
    assert {held_out(text) for text in templates(PACK)} == {True, False}
    assert all(text.count("{prompt}") >= 1 and "[INSERT" not in text for text in templates(PACK))
