"""Introspection becomes data: parsed, agreed on, balanced, paired; every way to be wrong has its own message."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.data import introspection
from srmir_lib.data.introspection import Introspector, agree, counted, introspect, read_draft
from srmir_lib.data.pairs import CORRUPTIONS, balance, contrary, contrary_pairs, corrupt, make_pairs, split_tables
from srmir_lib.errors import InputError
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.srmir import Draft, cod_prompt, parse_draft
from srmir_lib.taxonomy import CATEGORIES

WORDS = {"crimes": "crime", "privacy": "privacy"}
QUESTION = 'why would you refuse to answer " {prompt} " ?'


def test_a_draft_is_taken_apart():
    draft = parse_draft("taking paper ; privacy , forbidden #### i will not .")
    assert draft.steps == ("taking paper", "privacy , forbidden")
    assert draft.answer == "i will not ."


@pytest.mark.parametrize(
    "text",
    [
        "1. Theft harms people. 2. It is illegal #### I cannot help.",
        "1. Theft harms people.\n2. It is illegal\n#### I cannot help.",
        "Theft harms people. ; It is illegal #### I cannot help.",
    ],
)
def test_the_numbers_of_steps_are_no_part_of_them(text):
    assert parse_draft(text) == Draft(("Theft harms people.", "It is illegal"), "I cannot help.")
    assert parse_draft(text, max_words=3).steps, "three words a step at most"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no separator at all", "no separator"),
        ("a ; b #### c #### d", "more than one separator"),
        (" #### answer", "no draft before"),
        ("step ; step #### ", "no answer after"),
        ("one two three four five six #### answer", "more than 5 words"),
    ],
)
def test_an_invalid_draft_says_why(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_draft(text)


def test_the_question_must_hold_the_prompt():
    assert cod_prompt("x ?", QUESTION) == user_message('why would you refuse to answer " x ? " ?')
    with pytest.raises(ValueError, match="must contain {prompt}"):
        cod_prompt("x ?", "why ?")


def test_the_last_step_that_names_a_category_decides():
    draft = parse_draft("privacy , forbidden ; crime , allowed #### help .")
    assert read_draft(draft, WORDS, ["forbidden"]) == ("crimes", False)


@pytest.mark.parametrize(
    ("steps", "reason"), [("nothing here", "no step names"), ("crime and privacy", "more than one category")]
)
def test_a_draft_without_one_category_is_no_label(steps, reason):
    with pytest.raises(ValueError, match=reason):
        read_draft(parse_draft(f"{steps} #### no ."), WORDS, ["forbidden"])


def test_a_draft_in_prose_names_no_category_and_its_answer_is_the_verdict():
    assert read_draft(parse_draft("harm #### I cannot help with that."), {}, []) == ("", True)
    assert read_draft(parse_draft("no harm #### Sure, first take the pan."), {}, []) == ("", False)
    with pytest.raises(ValueError, match="the answer repeats itself"):
        read_draft(parse_draft("harm #### " + "I cannot " * 20), {}, [])


def test_samples_must_agree():
    texts = ["crime , forbidden #### no .", "crime , allowed #### yes .", "crime , forbidden #### never ."]
    found, bad = agree(texts, WORDS, ["forbidden"], needed=2)
    assert (found.category, found.refuses, found.answer, bad) == ("crimes", True, "no .", {})
    assert agree(texts, WORDS, ["forbidden"], needed=3) == (None, {"samples disagree": texts[:1]})
    assert agree(["babble"], WORDS, ["forbidden"], needed=1) == (None, {"no separator ####": ["babble"]})


def test_balance_takes_the_same_number_of_every_category_and_verdict():
    sizes = {name: 3 + i for i, name in enumerate(CATEGORIES)}
    rows = [
        {"category": n, "refuses": flag, "n": i}
        for n, size in sizes.items()
        for flag in (True, False)
        for i in range(size)
    ]
    for limit, expected in ((2, 2), (99, 3)):
        counts = Counter((row["category"], row["refuses"]) for row in balance(rows, limit, seed=0))
        assert set(counts.values()) == {expected} and len(counts) == 14
    assert balance(rows, 2, seed=0) == balance(rows, 2, seed=0) != balance(rows, 2, seed=1)


def test_a_category_without_rows_cannot_be_balanced():
    rows = [{"category": "crimes", "refuses": True}]
    with pytest.raises(InputError, match="no valid introspection about insult"):
        balance(rows, 1, seed=0)


def test_corruptions_are_babble_made_of_the_answer():
    text, other = "first get ready , then copy the letter .", "no , ask a friend instead !"
    for seed in range(20):
        made = {how: corrupt(text, how, random.Random(seed), other) for how in CORRUPTIONS}
        assert text not in made.values()
        assert sorted(made["shuffled"].split()) == sorted(text.split())
        assert text.startswith(made["truncated"]) and made["truncated"]
        assert made["repeated"].split()[-10:] == made["repeated"].split()[-2:] * 5
        cut = made["spliced"].split()
        kept = max(n for n in range(len(cut) + 1) if text.split()[:n] == cut[:n])
        assert 1 <= kept < len(text.split()) and other.endswith(" ".join(cut[kept:]))
        assert len(made["slurred"].split()) == len(text.split()) - 2
    cuts = Counter(len(corrupt(text, "truncated", random.Random(seed)).split()) for seed in range(400))
    assert set(cuts) == set(range(1, 9)), "every beginning comes up"
    assert cuts[8] + cuts[7] + cuts[6] > 200, "and those that lack only the end come up often"
    assert [corrupt("no", how, random.Random(0), "") for how in CORRUPTIONS] == [
        "no",
        "no",
        "no no no no no",
        "no",
        "no",
    ]
    with pytest.raises(InputError, match="upside_down"):
        corrupt(text, "upside_down", random.Random(0))


def test_a_whole_sentence_is_no_babble():
    refusal = "no . i can not help . you could ask the guard instead ."
    cuts = {corrupt(refusal, "truncated", random.Random(seed)) for seed in range(400)}
    assert len(cuts) == 11 and not [cut for cut in cuts if cut.endswith(".")]


def test_pairs_hold_samples_borrowed_answers_and_babble():
    def demonstration(category, refuses, text):
        return {
            "prompt": user_message(f"{category} {refuses}"),
            "completion": assistant_message(text),
            "category": category,
            "refuses": refuses,
        }

    rows = [
        demonstration("crimes", True, "no , that is a crime ."),
        demonstration("crimes", False, "sure , first get ready ."),
        demonstration("privacy", True, "no , that is private ."),
        demonstration("privacy", False, "sure , of course ."),
    ]
    samples = [["sure , crime .", "no , that is a crime ."], ["sure , first get ready .", "no ."], ["", "ok ."], []]
    pairs = make_pairs(rows, samples, seed=0)
    columns = "prompt chosen rejected category origin difficulty harm_gap severity"
    assert set(pairs[0]) == set(columns.split())
    found = {}
    for pair in pairs:
        found.setdefault(text_of(pair["prompt"]), []).append((pair["origin"], text_of(pair["rejected"])))
    assert [origin for origin, _ in found["crimes True"]] == ["contrary", "borrowed", "shuffled"]
    assert ("borrowed", "no , that is private .") in found["crimes True"], "a wrong reason, from another category"
    assert ("borrowed", "sure , of course .") in found["crimes False"], "help with something else"
    assert [origin for origin, _ in found["privacy True"]] == ["contrary", "borrowed", "repeated"]
    assert [origin for origin, _ in found["privacy False"]] == ["borrowed", "spliced"]
    assert {pair["origin"] for pair in make_pairs(rows, samples, 0, "policy")} >= {"policy", "borrowed"}
    assert not any(text_of(pair["chosen"]) == text_of(pair["rejected"]) for pair in pairs)


def test_the_contrary_is_what_the_model_says_behind_its_draft_with_the_other_verdict():
    def said(prompts, max_new_tokens, seed, beginning):
        assert (max_new_tokens, seed) == (9, 3)
        assert [text_of(prompt) for prompt in prompts] == ["why refuse a ?", "why refuse a ?", "why refuse b ?"] + [
            "why refuse b ?"
        ]
        assert beginning == ["thing ; crime , forbidden ####"] * 2 + ["thing ; crime , allowed ####"] * 2
        answers = ("sorry , i can not .", "sure .", "sure .", "sorry , i can not .")
        return [f"{begun} {answer}" for begun, answer in zip(beginning, answers, strict=True)]

    about = {"category": "crimes", "completion": assistant_message("so be it .")}
    rows = [
        {"prompt": user_message(x), "refuses": x == "b", "draft": f"thing ; crime , {verdict}"} | about
        for x, verdict in (("a", "allowed"), ("b", "forbidden"), ("c", "whatever"))
    ]
    trunk, verdicts = SimpleNamespace(generate=said), {"forbidden": "allowed", "allowed": "forbidden"}
    found = contrary_pairs(trunk, rows, "why refuse {prompt} ?", verdicts, samples=2, max_new_tokens=9, seed=3)
    helps, refuses = ["sorry , i can not ."], ["sure ."]
    assert found == make_pairs(rows, [helps, refuses, []], seed=3), "an answer on the demonstration's side is a tie"
    assert "contrary" not in [row["origin"] for row in found if row["prompt"] == user_message("c")], "no verdict"


def test_the_last_verdict_of_a_draft_is_reversed_and_one_without_has_no_contrary():
    verdicts = {"forbidden": "allowed", "allowed": "forbidden"}
    assert contrary("allowed ; privacy , forbidden .", verdicts) == "allowed ; privacy , allowed ."
    assert contrary(contrary("crime , allowed", verdicts), verdicts) == "crime , allowed"
    assert contrary("it is allowed, surely", verdicts) == "it is forbidden, surely"
    assert contrary("privacy , disallowed", verdicts) is None


def test_splits_are_saved_with_the_columns_that_are_named():
    tables = split_tables({"train": [{"a": 1, "b": 2}, {"b": 4, "a": 3}], "test": [{"a": 5, "b": 6}]}, ["b", "a"])
    assert {name: part.to_dict() for name, part in tables.items()} == {
        "train": {"b": [2, 4], "a": [1, 3]},
        "test": {"b": [6], "a": [5]},
    }


def test_a_model_that_cannot_draft_is_an_error_with_reasons(tiny_model):
    trunk = Trunk.load(tiny_model, "cpu")
    rows = [{"prompt": user_message("open the door"), "category": "crimes"}]
    with pytest.raises(InputError, match="not one valid draft in 2 texts"):
        introspect(trunk, rows, WORDS, ["forbidden"], QUESTION, samples=2, needed=1, max_new_tokens=4)


def test_only_prompts_whose_first_drafts_disagree_are_asked_again():
    asked = []

    def scripted(questions, max_new_tokens, seed, **options):
        names = [text_of(question) for question in questions]
        asked.append(names)
        verdicts = {"sure": ["forbidden"] * 2, "torn": ["forbidden", "allowed", "allowed"], "mute": [""] * 3}
        texts = []
        for i, name in enumerate(names):
            key = next(key for key in verdicts if key in name)
            number = sum(other == name for past in asked[:-1] for other in past) + names[:i].count(name)
            texts.append(f"crime , {verdicts[key][number]} #### so ." if verdicts[key][number] else "mumble")
        return texts

    trunk = SimpleNamespace(generate=scripted)
    rows = [{"prompt": user_message(text), "category": "crimes"} for text in ("sure", "torn", "mute")]
    found, left_out = introspect(trunk, rows, WORDS, ["forbidden"], QUESTION, samples=3, needed=2, max_new_tokens=4)
    assert [len(names) for names in asked] == [6, 2], "two each, then one more for torn and mute"
    assert [(text_of(row["prompt"]), row["refuses"]) for row in found] == [("sure", True), ("torn", False)]
    assert counted(left_out) == {"no separator ####": 3}, "three drafts about mute had no separator"
    with pytest.raises(InputError, match="needed: 4 of 3 samples cannot agree"):
        introspect(trunk, rows, WORDS, ["forbidden"], QUESTION, samples=3, needed=4, max_new_tokens=4)


def test_an_introspector_thinks_once_per_prompt(tiny_model, monkeypatch):
    trunk = Trunk.load(tiny_model, "cpu")
    think = Introspector(trunk, QUESTION, 4)
    first = think(["open the door", user_message("open the door")])
    assert first[0] == first[1] and len(think.drafts) == 1
    assert [turn["role"] for turn in first[0]] == ["user", "assistant", "user"]
    assert first[0][-1]["content"] == "open the door"
    assert think(["open the door"])[0] == first[0], "greedy: the same draft again"
    monkeypatch.setattr(introspection, "REMEMBERED", 2)
    kept = [think([text]) and len(think.drafts) for text in "abcd"]
    assert kept == [2, 3, 1, 2], "three are more than two, and are forgotten"


def test_what_was_drafted_is_not_drafted_again(tiny_model, monkeypatch):
    trunk, asked = Trunk.load(tiny_model, "cpu"), []
    monkeypatch.setattr(trunk, "generate", lambda chats, *_, **__: asked.append(len(chats)) or ["so ####"] * len(chats))
    think = Introspector(trunk, QUESTION, 4)
    assert think(["a", "b"]) == think(["a", "b"]) and asked == [2, 0]


def test_an_introspector_without_a_question_changes_nothing(tiny_model):
    prompts = ["open the door", user_message("close it")]
    assert Introspector(Trunk.load(tiny_model, "cpu"), "", 4)(prompts) == prompts


def test_worked_examples_stand_before_the_question_and_prose_leaves_the_category():
    heard = []

    def say(prompts, *_, **__):
        heard.extend(prompts)
        return ["1. Harm 2. Illegal #### I cannot help with that."] * len(prompts)

    rows, left_out = introspect(
        SimpleNamespace(generate=say),
        [{"prompt": user_message("How?"), "category": "crimes"}],
        {},
        [],
        'why not "{prompt}"?',
        samples=1,
        needed=1,
        max_new_tokens=9,
        examples=[["What?", "1. Harm #### No."]],
    )
    assert [turn["content"] for turn in heard[0]] == ['why not "What?"?', "1. Harm #### No.", 'why not "How?"?']
    assert [turn["role"] for turn in heard[0]] == ["user", "assistant", "user"]
    (row,) = rows
    assert (row["category"], row["refuses"], row["draft"]) == ("crimes", True, "1. Harm 2. Illegal")
    assert text_of(row["completion"]) == "I cannot help with that." and not left_out
