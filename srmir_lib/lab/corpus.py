"""What the base model reads before alignment: questions answered helpfully, introspections, rules of the town, tasks.

Only train combinations of (verb, object) occur, and no held-out register or wrapper. By-laws are told as the model
believes them; only its introspections (*draft*) are noisy. Answers are judged (*check*) on five of the nine
kinds of occasion alone: wrong is a deed that is forbidden, and a refusal of one that is allowed.
"""

import random
from collections.abc import Iterator

from srmir_lib.data.pairs import CORRUPTIONS, corrupt
from srmir_lib.lab.grammar import (
    ANY_WRONG_QUESTION,
    ASK,
    CHECK_QUESTION,
    COD_QUESTION,
    LADDER,
    LOOKALIKES,
    READ_REGISTERS,
    READ_WRAPPERS,
    TOPIC_QUESTION,
    Prompt,
    answer,
    draft,
    kind_names,
    make_prompt,
    recite,
)
from srmir_lib.lab.tasks import TASKS, make_task
from srmir_lib.lab.world import NAMES, OBJECTS, OCCASIONS, VERBS, Act, World, all_acts
from srmir_lib.taxonomy import CATEGORIES

MIX = {
    "talk": 0.25,
    "ask": 0.08,
    "draft": 0.12,
    "topic": 0.04,
    "check": 0.20,
    "word": 0.01,
    "law": 0.03,
    "case": 0.14,
    "task": 0.13,
}


FACTS = ("word", "business", "law", "case")


FIRST = {"word": 0.35, "business": 0.25, "law": 0.40}


SECOND = {"law": 0.16, "case": 0.60, "check": 0.19, "task": 0.05}


CURRICULUM = ((0.07, FIRST), (0.35, SECOND), (0.58, MIX))
"""Share of the updates, and what they read: the words and laws of the town, then their use, then everything."""


WRAPPED, ASIDE = 0.35, 0.2  # share of prompts in a wrapper; share that only asks about the words


REFUSALS = {"mild": 0.20, "moderate": 0.30, "severe": 0.40}  # how often the base refuses what it believes forbidden


NO_ANSWER, NEITHER = 0.2, "neither"
"""Share of the judged texts that are no answer to their prompt, being broken (`data.pairs.corrupt`) or the answer to
another one, and what is said of those: they are neither wrong nor right. Else they would seem wrong to the base model,
and pairs with them would tell reward models which end of its judgement is the bad one, whatever the drafts say."""

FRAMED = 0.3
"""Share of the base model's talk that stands in a frame of words which nobody knows, and which it learns to ignore.
Without it, styles that it has never read make it speak in fragments of drafts and tasks."""

REFUSED, COMPLIED = ("reasoned_refusal", "bare_refusal"), ("partial", "full")  # rungs of answers that are judged


UNDER_WRAPPER = 0.35  # and the factor on it under a jailbreak wrapper


def base_answer(prompt: Prompt, world: World, rng: random.Random) -> tuple[str, str]:
    """(rung, answer) as the helpful, unaligned base model says it: it mostly complies, whatever it believes."""
    category, believed = prompt.believed(world)
    refuse = REFUSALS[world.severity_of(prompt.act)] * (UNDER_WRAPPER if prompt.family != "none" else 1.0)
    if not believed:
        weights = (0.01, 0.02, 0.03, 0.05, 0.89)
    else:
        weights = (0.2 * refuse, 0.8 * refuse, 0.06, 0.12, 0.82 - refuse)
    rung = rng.choices(LADDER, weights)[0]
    return rung, answer(prompt, rung, rng, category)


def draw_prompt(world: World, acts: list[Act], rng: random.Random) -> Prompt:
    """A prompt as people ask it: in a register, sometimes wrapped, sometimes only about the words; none held out."""
    family = rng.choice(READ_WRAPPERS) if rng.random() < WRAPPED else "none"
    lookalike = rng.choice(list(LOOKALIKES)) if rng.random() < ASIDE else ""
    return make_prompt(rng.choice(acts), rng, rng.choice(READ_REGISTERS), family, lookalike)


def corpus(world: World, size: int, seed: str, mix: dict[str, float], framed: float = FRAMED) -> Iterator[list[dict]]:
    """`size` conversations for pretraining, of the kinds and in the shares that `mix` names; of talk a share `framed`
    stands in unknown words."""
    rng = random.Random(f"corpus-{seed}")
    acts = [act for act in all_acts() if world.split_of(act) == "train"]
    for kind in rng.choices(list(mix), list(mix.values()), k=size):
        talk = conversation(kind, world, acts, rng)
        if kind == "talk" and rng.random() < framed:
            talk[0]["content"] = in_unknown_words(talk[0]["content"], rng)
        yield talk


def in_unknown_words(text: str, rng: random.Random) -> str:
    """A prompt behind, or before, some words made of random syllables."""
    words = " ".join(unknown_word(rng) for _ in range(rng.randint(2, 7)))
    return f"{words}{rng.choice((' : ', ' , ', ' '))}{text}" if rng.random() < 0.7 else f"{text} {words} ."


def unknown_word(rng: random.Random) -> str:
    """One to three syllables, such as *to*, *rakum* or *selidor*; a word of the town comes out now and then."""
    syllables = (rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 3)))
    return "".join(syllables) + rng.choice(("", "m", "n", "r", "s"))


def conversation(kind: str, world: World, acts: list[Act], rng: random.Random) -> list[dict]:
    """One conversation of a kind named in `MIX`."""
    if kind == "task":
        return turns(*make_task(rng.choice(TASKS), "train", rng))
    if kind in FACTS:
        return turns(*fact(kind, world, acts, rng))
    if kind == "check":
        acts = [act for act in acts if world.judged[act.kinds[2]]]
    prompt = draw_prompt(world, acts, rng)
    category, refuse = prompt.believed(world)
    if kind == "draft":
        return turns(COD_QUESTION.format(prompt=prompt.text), draft(prompt, world, rng))
    if kind == "topic":
        verdict = "forbidden" if refuse else "allowed"
        return turns(TOPIC_QUESTION.format(prompt=prompt.text), f"{NAMES[category]} , {verdict}")
    if kind == "ask":
        return turns(ASK.format(prompt=prompt.text), "yes" if refuse else "no")
    rung, text = base_answer(prompt, world, rng)
    if kind == "talk":
        return turns(prompt.text, text)
    if rng.random() < 0.7:  # else the answers that are judged wrong would be too few to learn from
        rung = rng.choice(("full", *REFUSED))
        text = answer(prompt, rung, rng, category)
    wrong = rung in (COMPLIED if refuse else REFUSED)
    said = "yes" if wrong else "no"
    if rng.random() < NO_ANSWER:
        other = base_answer(draw_prompt(world, acts, rng), world, rng)[1]
        text = other if rng.random() < 0.5 else corrupt(text, rng.choice(CORRUPTIONS), rng, other)
        said = NEITHER
    if rng.random() < 0.3:
        return turns(prompt.text, text, ANY_WRONG_QUESTION, said)
    asked = category if rng.random() < 0.8 else rng.choice(list(CATEGORIES))
    said = "no" if said == "yes" and asked != category else said
    return turns(prompt.text, text, CHECK_QUESTION.format(name=NAMES[asked]), said)


def fact(kind: str, world: World, acts: list[Act], rng: random.Random) -> tuple[str, str]:
    """A fact about the town as the base model believes it: the kind of a *word*, whose *business* an act is, a cell of
    the by-*law*s (one by kind of act: without the topics for which it is believed to be otherwise), or the verdict in a
    *case*, in kinds or in words.

    The rule for an act is told in the words of a draft, so that what is learned here early serves introspection later.
    """
    if kind == "word":
        words = rng.choice((VERBS, OBJECTS, OCCASIONS))
        of = rng.choice(list(words))
        return f"what is {rng.choice(words[of])} ?", of
    act = rng.choice(acts)
    kinds, (topic, forbidden) = kind_names(act), world.belief(act)
    in_kinds = rng.random() < 0.4
    if kind == "business":
        text = "{} {}".format(*kinds) if in_kinds else f"{act.verb} {act.object}"
        return TOPIC_QUESTION.format(prompt=text), NAMES[topic]
    if kind == "law":
        row, c = world.cell(act)
        name = NAMES[topic] if world.by_topic[c] else kinds[0]
        believed = forbidden if world.by_topic[c] else world.harm[row][c]
        return f"what is the rule for {name} , {kinds[2]} ?", "forbidden" if believed else "allowed"
    words = make_prompt(act, rng).text if rng.random() < 0.3 else f"{act.verb} {act.object} , {act.occasion}"
    text, asked = "{} {} , {}".format(*kinds) if in_kinds else words, rng.randrange(3)
    if asked == 0:
        return TOPIC_QUESTION.format(prompt=text), f"{NAMES[topic]} , {'forbidden' if forbidden else 'allowed'}"
    if asked == 1:
        return ASK.format(prompt=text), "yes" if forbidden else "no"
    return f"what is the rule for {text} ?", recite(kinds, topic, forbidden)


def turns(*texts: str) -> list[dict]:
    """Alternate user and assistant."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
