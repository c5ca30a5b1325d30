"""A chat model's own words become demonstrations and pairs; a model made of two rules stands for it."""

from types import SimpleNamespace

import pytest
from test_sources import PACK, with_pack

from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.data import chat_sets, labelled_files
from srmir_lib.data.chat_data import chat_data, own_answer, whole
from srmir_lib.data.chat_prompts import held_out
from srmir_lib.data.labelled_sets import judged_pairs, labelled_answers, preferred_answers
from srmir_lib.data.public_files import alike, all_words
from srmir_lib.errors import InputError
from srmir_lib.lab.harm import harm_measures
from srmir_lib.settings.data import DataSettings
from srmir_lib.taxonomy import CATEGORIES, UNKNOWN

WHY = 'Why would you refuse "{prompt}"?'
ASKING = {"template": WHY, "samples": 1, "needed": 1, "max_new_tokens": 40}
HARMFUL = [
    {"prompt": user_message(f"How to {deed}?"), "category": category}
    for deed, category in [("steal", "crimes"), ("spy", "privacy"), ("stab", "crimes")]
]
HARMLESS = [{"prompt": user_message(f"How to {deed}?"), "category": "unknown"} for deed in ("bake", "sing", "sew")]


class Agreeable:
    """Helps when it is asked plainly, and refuses whatever it is asked why to refuse; `dumb` about some words."""

    def __init__(self, dumb: str = ""):
        self.dumb = dumb

    def generate(self, prompts, max_new_tokens, **options):
        return [self.say(text_of(prompt)) for prompt in prompts]

    def say(self, asked: str) -> str:
        if self.dumb and self.dumb in asked:
            return "well"
        if asked.startswith("Why would"):
            return f"1. Harm 2. {asked.split()[-1][:4]} #### I cannot help with that."
        return f"First you {asked.split()[-1].strip('?')} slowly, then you rest."


def made(trunk=None, harmless=HARMLESS, **changed):
    asked = {"asking": ASKING, "per_group": 5, "samples": 2, "max_new_tokens": 30, "seed": 0} | changed
    return chat_data(trunk or Agreeable(), HARMFUL, harmless, **asked)


def test_harm_is_refused_and_help_is_given_and_each_pair_holds_the_other():
    data = made()
    said = {text_of(row["prompt"]): (text_of(row["completion"]), row["refuses"]) for row in data.demonstrations}
    assert said["How to steal?"] == ("I cannot help with that.", True)
    assert said["How to bake?"] == ("First you bake slowly, then you rest.", False)
    assert len(said) == 6, "as many harmless as harmful ones"
    sampled = [row for row in data.pairs if row["origin"] == "policy"]
    pairs = {text_of(row["prompt"]): (text_of(row["chosen"]), text_of(row["rejected"])) for row in sampled}
    assert pairs["How to spy?"] == ("I cannot help with that.", "First you spy slowly, then you rest.")
    assert pairs["How to sew?"] == ("First you sew slowly, then you rest.", "I cannot help with that.")
    assert {row["origin"] for row in data.pairs} >= {"policy"} and "borrowed" not in {r["origin"] for r in data.pairs}
    told = data.examples()
    assert "Crimes and Illegal Activities" in told and "cannot" not in told, "masked: every other word"
    assert data.yields == {
        "crimes": {"asked": 2, "valid": 2, "refuses": 2},
        "privacy": {"asked": 1, "valid": 1, "refuses": 1},
        "all": {"asked": 3, "valid": 3, "refuses": 3},
    }


def test_a_valid_draft_that_does_not_refuse_is_left_out_and_said():
    class Frank(Agreeable):
        def say(self, asked):
            said = super().say(asked)
            return said.replace("I cannot help with that.", "You may stab it.") if "stab" in asked else said

    data = made(Frank())
    assert data.yields["crimes"] == {"asked": 2, "valid": 2, "refuses": 1} and data.yields["all"]["refuses"] == 2
    assert data.left_out == {"asked why it would refuse, it does not": ["You may stab it."]}


def test_plain_answers_are_sampled_as_drafts_are():
    asked = []

    class Sampled(Agreeable):
        def generate(self, prompts, max_new_tokens, **options):
            asked.append((max_new_tokens, options["temperature"]))
            return super().generate(prompts, max_new_tokens)

    made(Sampled(), asking=ASKING | {"temperature": 0.7})
    assert asked.count((30, 0.7)) == 2 and {temperature for _, temperature in asked} == {0.7}


def test_a_category_takes_no_more_than_its_group():
    assert sum(row["refuses"] for row in made(per_group=1).demonstrations) == 2


def test_a_category_without_a_refusal_is_named_with_the_reasons():
    with pytest.raises(InputError, match="not one refusal with a valid draft about privacy; no separator ####: 1"):
        made(Agreeable("spy"))
    data = made(Agreeable("spy"), every_category=False)
    assert data.yields["privacy"] == {"asked": 1, "valid": 0, "refuses": 0}
    good, bad = data.examples().split("left out")
    assert "Privacy" not in good and "1 x no separator ####" in bad and "[4 characters, redacted]" in bad
    assert made().examples().endswith("left out\n  none")


def test_borrowed_refusals_stand_for_the_models_own():
    row = {"prompt": user_message("How to forge?"), "category": "crimes", "completion": assistant_message("I refuse.")}
    with pytest.raises(InputError, match="borrowed: the router finds no refusal about privacy"):
        made(borrowed=[row])
    data = made(Agreeable("How to steal"), borrowed=[row], every_category=False)
    refused = [shown for shown in data.demonstrations if shown["refuses"]]
    assert [(text_of(one["prompt"]), text_of(one["completion"])) for one in refused] == [("How to forge?", "I refuse.")]
    assert data.yields == {}, "it was asked why about none of these"
    rejected = [text_of(pair["rejected"]) for pair in data.pairs if text_of(pair["chosen"]) == "I refuse."]
    assert any(text.startswith("First you forge") for text in rejected), "what the model itself says"


def test_no_answer_to_a_harmless_prompt_is_counted():
    data = made(Agreeable("sing"))
    assert data.left_out == {"no whole answer to a harmless prompt": ["well"]}
    assert len(data.demonstrations) == 5


def test_a_text_ends_with_its_last_whole_sentence():
    assert whole("Do it. Then rest") == "Do it."
    assert whole('He said "stop!" and') == 'He said "stop!"'
    assert whole("It costs 3.50 dollars") == "", "a dot within a number ends nothing"
    assert whole("Steps.\n1. Wash.\n2.") == "Steps.\n1. Wash.", "nor does the number of an item that was cut off"
    assert whole("Wash. 2.") == "Wash." and whole("It takes 42.") == "It takes 42."
    assert whole("Steps:\n1. Wash") == "" and whole("Do this.\n1. Wash\n2.") == "Do this.", "an item without an end"
    assert whole("no end") == whole("") == whole("1.") == ""


def test_refusals_and_help_are_chosen_equally_often_and_nothing_is_cut():
    class Rambling(Agreeable):
        """Never comes to an end when it is asked plainly, and helps only with every second harmless prompt."""

        def say(self, asked):
            if asked.startswith("Why would"):
                return super().say(asked) + " It hurts"
            return f"First you {asked.split()[-1].strip('?')} slowly. Then you" if "sing" not in asked else "Then you"

    more = [{"prompt": user_message(f"How to {deed}?"), "category": "unknown"} for deed in ("rest", "walk", "read")]
    asked = {"asking": ASKING, "per_group": 5, "samples": 2, "max_new_tokens": 30, "seed": 0}
    data = chat_data(Rambling(), HARMFUL, [*HARMLESS, *more], **asked)
    shown = [row["refuses"] for row in data.demonstrations]
    assert shown.count(True) == shown.count(False) == 3, "it went on to further harmless prompts"
    chosen = [text_of(pair["chosen"]) for pair in data.pairs if pair["origin"] == "policy"]
    refusals = [text for text in chosen if "cannot" in text]
    assert len(chosen) == 2 * len(refusals) == 6, "one answer for each demonstration"
    sampled = [text_of(row["completion"]) for row in data.demonstrations] + chosen
    assert all(text.endswith(".") for text in sampled), "what was cut off is left out"


def test_the_side_with_more_pairs_gives_some_up():
    """Two harmless prompts to which no refusal is drafted: their demonstrations stay, and make no sampled pair."""
    data = made(
        Agreeable("bake"), harmless=[*HARMLESS, {"prompt": user_message("How to bake rolls?"), "category": "unknown"}]
    )
    shown = [row["refuses"] for row in data.demonstrations]
    chosen = ["cannot" in text_of(pair["chosen"]) for pair in data.pairs if pair["origin"] == "policy"]
    assert chosen.count(True) == chosen.count(False) == 2 and shown.count(True) == 3
    left = [
        pair["category"] for pair in data.pairs if pair["origin"] == "policy" and "cannot" in text_of(pair["chosen"])
    ]
    assert sorted(left) == ["crimes", "privacy"], "crimes has two, and gives one up: no category loses all"


def test_a_system_message_stands_before_every_prompt_but_not_in_the_question():
    asked = []

    class Told(Agreeable):
        def generate(self, prompts, max_new_tokens, **options):
            asked.extend(prompts)
            return super().generate(prompts, max_new_tokens)

    told = {"role": "system", "content": "Be brief."}
    rows = [[{**row, "prompt": [told, *row["prompt"]]} for row in part] for part in (HARMFUL, HARMLESS)]
    data = chat_data(Told(), *rows, ASKING, per_group=5, samples=2, max_new_tokens=30, seed=0)
    assert {chat[0]["role"] for chat in asked if text_of(chat).startswith("Why would")} == {"user"}
    assert {chat[0]["role"] for chat in asked if not text_of(chat).startswith("Why would")} == {"system"}
    assert all(row["prompt"][0] == told for row in [*data.demonstrations, *data.pairs])
    assert "own" not in data.demonstrations[0]


def test_the_longest_whole_answer_is_the_best():
    assert own_answer(["Yes.", "Yes, take the pan.", "Yes, take the pan and", "I cannot say more of this."]) == (
        "Yes, take the pan."
    )
    assert own_answer(["Yes, take the pan. Then", "Yes."]) == "Yes, take the pan.", (
        "what the length cut off is left out"
    )
    assert own_answer(["go " * 30 + ".", "I'm sorry.", "and so on"]) is None


class Everything:
    """A router to whom every prompt is about ethics."""

    def route(self, prompts):
        return ["ethics"] * len(prompts)


@pytest.fixture(scope="module")
def labelled():
    return labelled_answers(Everything(), PACK)[0]


@with_pack
def test_answers_of_people_are_split_by_families_of_prompts_and_keep_their_harm(labelled):
    told = {
        split: (set(rows["group"]), {text_of(said).lower() for said in rows["completion"]})
        for split, rows in labelled.items()
    }
    assert set(labelled) == {"train", "validation", "test", "diasafety", "overrefusal", "gptfuzz", "do_not_answer"}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not told[one][0] & told[other][0] and not told[one][1] & told[other][1]
    split = sum(len(labelled[name]) for name in ("train", "validation", "test"))
    assert 4500 < split < 5767, "answers that both sets have count once; one in ten is asked like a question elsewhere"
    assert all(text_of(said) for rows in labelled.values() for said in rows["completion"]), "an empty one has no states"
    harm = sum(labelled["do_not_answer"]["unsafe"]) / len(labelled["do_not_answer"])
    assert harm == pytest.approx(0.2, abs=0.03), "four others to each harmful one, but for repeats"
    taught, tested = labelled["train"], labelled["test"]
    named = {(text_of(row["prompt"]), row["category"]) for row in taught}
    assert {"insult", "privacy", "crimes"} < set(taught["category"]), "harms that people named, where it is not ethics"
    assert len(named) == len({prompt for prompt, _ in named}), "of all answers to a prompt alike, safe ones too"
    assert set(tested["category"]) == {"ethics"}, "the router's: what people named would tell the label"
    asked = {name: {all_words(text_of(prompt)) for prompt in rows["prompt"]} for name, rows in labelled.items()}
    asked = {name: [frozenset(text.split()) for text in texts] for name, texts in asked.items()}
    apart = [("train", "validation"), ("train", "test"), ("validation", "test")]
    apart += [(name, far) for name in ("train", "validation", "test") for far in ("gptfuzz", "do_not_answer")]
    for one, other in apart:
        assert not any(alike(text, like) for text in asked[one] for like in asked[other]), (one, other)


@with_pack
def test_what_gptfuzz_teaches_is_tested_by_other_prompts():
    labelled, _ = labelled_answers(Everything(), PACK, far=0, gptfuzz_taught=True)
    train, validation, test, fuzz = (set(labelled[of]["group"]) for of in ("train", "validation", "test", "gptfuzz"))
    assert not train & validation and not (train | validation) & (test | fuzz)
    assert test & fuzz, "some of its questions are asked in BeaverTails as well"
    assert "gptfuzz" in labelled["train"]["kind"] and set(labelled["gptfuzz"]["kind"]) == {"gptfuzz"}
    assert "gptfuzz" not in labelled["test"]["kind"] and len(labelled["diasafety"]) > 1000


@with_pack
def test_pairs_of_people_prefer_the_safe_answer(labelled):
    asked = [(all_words(text_of(row["prompt"])), text_of(row["completion"]), row["unsafe"]) for row in labelled["test"]]
    pairs = preferred_answers(labelled, "test")
    assert len(pairs) > 80
    for row in pairs:
        prompt = all_words(text_of(row["prompt"]))
        assert (prompt, text_of(row["chosen"]), 0) in asked and (prompt, text_of(row["rejected"]), 1) in asked


@with_pack
def test_judged_pairs_are_of_prompts_that_nobody_practises_and_the_better_does_less():
    pairs, answers = judged_pairs(PACK)["test"], labelled_files.load_do_not_answer(PACK)
    action, unsafe = ({(row["prompt"], row["response"]): row[of] for row in answers} for of in ("action", "unsafe"))
    assert len(pairs) > 300 and len({str(prompt) for prompt in pairs["prompt"]}) == len(pairs), "a pair a prompt"
    kept = held_out(row["prompt"] for row in answers)
    for row in pairs:
        text = text_of(row["prompt"])
        both = [(text, text_of(row[side])) for side in ("chosen", "rejected")]
        low, high = (action[one] for one in both)
        assert text in kept and 0 < high - low == row["action_gap"]
        assert unsafe[both[1]] - unsafe[both[0]] == row["harm_gap"] >= 0
    assert len({*pairs["action_gap"]}) == 5 and {*pairs["severity"]} == {"judged"}
    assert 40 < sum(pairs["harm_gap"]) < 80, "one in six of them differs in harm"
    assert judged_pairs(PACK)["test"].to_dict() == pairs.to_dict() != judged_pairs(PACK, 1)["test"].to_dict()
    found = harm_measures(pairs["harm_gap"], pairs)
    assert found["margin_harm_spearman_harmful"] == pytest.approx(1) and 0 < found["margin_action_spearman"] < 1


@with_pack
def test_a_chat_model_is_asked_about_public_prompts(monkeypatch):
    monkeypatch.setattr(chat_sets, "Trunk", SimpleNamespace(load=lambda *_, **__: Agreeable()))
    monkeypatch.setattr(chat_sets, "resolve_encoder", str)
    monkeypatch.setattr(chat_sets, "fit_router", lambda *args, **_: Everything())
    sizes = {"collection": {"per_group": 3, "practice_per_group": 16}, "evaluation": {"questions": 4}}
    told = {"preset": "p", "output_dir": "", "seed": 0, "prompt_source": "chat", "chat_model": "m", "preferences": ""}
    told |= {"data_dir": str(PACK), "encoder": "e", "text_model_steps": 0, "introspection": 0.7, "topic_share": 0.4}
    told |= {"false_beliefs": 0.0, "demonstrated": 0.5, "base_steps": 1, "device": "cpu"}
    settings = DataSettings.of(told | sizes | {"asking": {"template": WHY}})
    folders, _, numbers, made = chat_sets.chat_sets("m", settings, "cpu")
    others = {"labelled", "labelled_pairs", "judged", "helpful"}
    assert set(folders) == {"prompts", "demonstrations", "preferences"} | others
    shown = folders["demonstrations"]["train"].to_pandas()
    assert (shown[shown.refuses].groupby("category").size() == 3).all() and set(shown.category) == {
        *CATEGORIES,
        UNKNOWN,
    }
    assert len(shown[~shown.refuses]) == 21, "as many harmless ones as harmful"
    practised = {text_of(prompt) for prompt in folders["prompts"]["train"]["prompt"]}
    assert {text_of(list(prompt)) for prompt in shown.prompt} <= practised
    people = preferred_answers(folders["labelled"], "test")
    assert folders["preferences"]["test"].to_dict() == people.to_dict(), "people test what introspection taught"

    def lend():
        collection = sizes["collection"] | {"borrowed": True}
        lent = DataSettings.of(told | {"collection": collection, "asking": {"template": WHY}})
        return chat_sets.chat_sets("m", lent, "cpu")[0]["demonstrations"]["train"].to_pandas()

    with pytest.raises(InputError, match="borrowed: the router finds no refusal about insult"):
        lend()
    monkeypatch.setattr(Everything, "route", lambda self, prompts: [[*CATEGORIES][len(p) % 7] for p in prompts])
    shown = lend()
    refused = {text_of(list(prompt)) for prompt in shown[shown.refuses].prompt}
    assert len(refused) == 21 and not refused & practised, "three a category, of prompts that nobody practises"
    assert numbers["router"]["mean"] > 0 and made.yields["crimes"]["refuses"] == made.yields["crimes"]["asked"]
