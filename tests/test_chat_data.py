"""A chat model's own words become demonstrations and pairs; a model made of two rules stands for it."""

import pytest

from srmir_lib.conversations import text_of, user_message
from srmir_lib.data.chat_data import chat_data, own_answer
from srmir_lib.errors import InputError

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


def made(trunk=None, **changed):
    asked = {"asking": ASKING, "per_group": 5, "samples": 2, "max_new_tokens": 30, "seed": 0} | changed
    return chat_data(trunk or Agreeable(), HARMFUL, HARMLESS, **asked)


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
    assert data.yields == {
        "crimes": {"asked": 2, "valid": 2, "refuses": 2},
        "privacy": {"asked": 1, "valid": 1, "refuses": 1},
    }


def test_a_category_takes_no_more_than_its_group():
    assert sum(row["refuses"] for row in made(per_group=1).demonstrations) == 2


def test_a_category_without_a_refusal_is_named_with_the_reasons():
    with pytest.raises(InputError, match="not one refusal with a valid draft about privacy; no separator ####: 1"):
        made(Agreeable("spy"))


def test_no_answer_to_a_harmless_prompt_is_counted():
    data = made(Agreeable("sing"))
    assert data.left_out["no whole answer to a harmless prompt"] == 1
    assert len(data.demonstrations) == 5


def test_the_longest_whole_answer_is_the_best():
    assert own_answer(["Yes.", "Yes, take the pan.", "Yes, take the pan and", "I cannot say more of this."]) == (
        "Yes, take the pan."
    )
    assert own_answer(["go " * 30 + ".", "I'm sorry.", "and so on"]) is None
