"""A town as a notebook shows it: its map, and its base model with what that reads, knows and does."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from srmir_lib.conversations import assistant_message, text_of, user_message
from srmir_lib.data.pairs import SAID, corrupt
from srmir_lib.errors import InputError
from srmir_lib.evaluation.evaluate import evaluate_policy
from srmir_lib.evaluation.plots import GRID, INK, label, subplots
from srmir_lib.lab.corpus import CURRICULUM, READ_REGISTERS, conversation
from srmir_lib.lab.grammar import (
    ASK,
    CHECK_QUESTION,
    COD_QUESTION,
    LADDER,
    Prompt,
    answer,
    kind_names,
    make_prompt,
)
from srmir_lib.lab.pretraining import cached_base_model, copy_model
from srmir_lib.lab.referee import LabReferee
from srmir_lib.lab.world import NAMES, OBJECTS, OCCASIONS, VERBS, World, all_acts
from srmir_lib.models.trunk import Trunk
from srmir_lib.papers.srmir import SEPARATOR
from srmir_lib.statistics import Interval, bootstrap_interval
from srmir_lib.taxonomy import CATEGORIES, COLOURS

FORBIDDEN, DEMONSTRATED = "#555555", "D"


def town_map(world: World) -> Figure:
    """Left: the topic whose business every kind of thing is. Right: the by-laws, those that are read by topic and those
    that are read by kind of act; dark is forbidden, a diamond marks a cell with demonstrations."""
    keys = list(CATEGORIES)
    figure, panels = subplots(1, 3, figsize=(10, 3.3), width_ratios=[2.5, *(max(1, n) for n in sides(world))])
    square(panels[0], list(OBJECTS), [""], "topic of a thing")
    for o, topic in enumerate(world.topic):
        panels[0].add_patch(Rectangle((0, o), 1, 1, color=COLOURS[keys[topic]], alpha=0.35))
        panels[0].text(0.5, o + 0.5, label(keys[topic]), ha="center", va="center", fontsize=7)
    for axis, by_topic in zip(panels[1:], (True, False), strict=True):
        columns = [c for c, own in enumerate(world.by_topic) if own == by_topic]
        if not columns:
            axis.set_axis_off()
            continue
        names = [label(key) for key in keys] if by_topic else list(VERBS)
        square(axis, names, [list(OCCASIONS)[c] for c in columns], f"law by {'topic' if by_topic else 'kind of act'}")
        for x, c in enumerate(columns):
            for r in range(7):
                dark = world.harm[r][c]
                axis.add_patch(Rectangle((x, r), 1, 1, facecolor=FORBIDDEN if dark else "white", edgecolor=GRID))
                if world.demonstrated[r][c]:
                    axis.plot(x + 0.5, r + 0.5, DEMONSTRATED, color="white" if dark else INK, markersize=4)
    return figure


def sides(world: World) -> tuple[int, int]:
    """How many kinds of occasion have a law by topic, and how many one by kind of act."""
    return sum(world.by_topic), len(world.by_topic) - sum(world.by_topic)


def square(axis, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """An empty table: rows from the top, names at both sides."""
    axis.set(xlim=(0, len(columns)), ylim=(len(rows), 0), title=title)
    axis.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=7)
    axis.tick_params(length=0)


def one_act(world: World, verb: str = "copy", noun: str = "letter", occasion: str = "at night") -> str:
    """How the by-laws decide about one act, in words."""
    act = next(act for act in all_acts() if (act.verb, act.object, act.occasion) == (verb, noun, occasion))
    kinds, law = kind_names(act), "topic" if world.by_topic[act.kinds[2]] else "kind of act"
    verdict = "forbidden" if world.is_harmful(act) else "allowed"
    topic = label(world.category(act))
    return f"{verb} the {noun} {occasion}: {kinds[0]} {kinds[1]} → {topic}; {kinds[2]}, by {law} → {verdict}"


def base_trunk(world: World, cache: str | Path, folder: str | Path, steps: int, seed: int, device: str) -> Trunk:
    """The base model of a town, from the `cache` or built now, copied to `folder` and loaded from there."""
    return Trunk.load(copy_model(cached_base_model(world, cache, steps, seed), folder), device, "float32")


def diet(world: World, seed: int = 0) -> list[dict]:
    """What the base model reads: a row for each kind of conversation, with its share of the conversations of every
    part of the curriculum, and one of them."""
    rng = random.Random(f"diet-{seed}")
    acts = [act for act in all_acts() if world.split_of(act) == "train"]
    rows = []
    for kind in dict.fromkeys(kind for _, mix in CURRICULUM for kind in mix):
        shares = {f"part {number}": mix.get(kind, 0.0) for number, (_, mix) in enumerate(CURRICULUM, 1)}
        talk = [turn["content"] for turn in conversation(kind, world, acts, rng)]
        rows.append({"kind": kind} | shares | {"example": " → ".join(talk)})
    return [row for row in rows if any(row[f"part {number}"] for number in range(1, len(CURRICULUM) + 1))]


def known_facts(world: World) -> dict:
    """The facts that the referee reads, and beside them, for whoever measures policies, the (topic, occasion) groups
    that the base model believes wrongly (`mistaken`)."""
    return world.facts() | {"mistaken": sorted(map(list, world.mistaken))}


def compliance(trunk: Trunk, world: World, prompts: Sequence[Mapping], seed: int) -> Interval:
    """Share of `prompts`, rows of forbidden requests, with which the base model complies when it is asked plainly."""
    answered = evaluate_policy(trunk.model, trunk.tokenizer, prompts, LabReferee(world.facts()), seed=seed)
    return bootstrap_interval([row["complied"] for row in answered])


def knowledge(trunk: Trunk, world: World, size: int, seed: int) -> dict[str, float]:
    """How often the base model's verdict is the one that it was taught, about `size` acts that it has not read of.

    *asked*: "is it forbidden ?", greedy. *judges*: whether an answer, every second time a refusal, is wrong in the
    act's own category, on occasions of which it has read answers judged, and *judges, other occasions*, of which it has
    not.
    *tells, greedy*: a draft without dice, which says the verdict that the model finds likelier.
    """
    rng = random.Random(f"knowledge-validation-{seed}")
    acts = rng.sample([act for act in all_acts() if world.split_of(act) == "validation"], size)
    prompts = [make_prompt(act, rng, rng.choice(READ_REGISTERS)) for act in acts]

    believed = [world.belief(act)[1] for act in acts]

    def right(questions: Sequence, yes: Sequence[bool]) -> list[bool]:
        said = trunk.generate(questions, 2, temperature=0)
        return [(text.strip() == "yes") == expected for text, expected in zip(said, yes, strict=True)]

    asked = right([ASK.format(prompt=prompt.text) for prompt in prompts], believed)
    refused = [number % 2 == 1 for number in range(len(prompts))]
    questions = [judged_answer(prompt, world, of, rng) for prompt, of in zip(prompts, refused, strict=True)]
    judges = right(questions, [forbidden != refusal for forbidden, refusal in zip(believed, refused, strict=True)])
    drafts = trunk.generate([COD_QUESTION.format(prompt=prompt.text) for prompt in prompts], 64, temperature=0)
    told = ["forbidden" in text.partition(SEPARATOR)[0] for text in drafts]
    seen = [world.judged[act.kinds[2]] for act in acts]
    parts = {"tells, greedy": [said == forbidden for said, forbidden in zip(told, believed, strict=True)]}
    parts["asked"] = asked
    parts["judges"] = [ok for ok, read in zip(judges, seen, strict=True) if read]
    parts["judges, other occasions"] = [ok for ok, read in zip(judges, seen, strict=True) if not read]
    return {name: sum(found) / len(found) for name, found in parts.items()}


def judged_answer(prompt: Prompt, world: World, refused: bool, rng: random.Random) -> list[dict]:
    """The prompt, an answer that refuses or one that helps, and the question whether it is wrong in its category."""
    category = world.category(prompt.act)
    said = assistant_message(answer(prompt, "reasoned_refusal" if refused else "full", rng, category))
    return user_message(prompt.text) + said + user_message(CHECK_QUESTION.format(name=NAMES[category]))


def ladder(world: World, pairs: Sequence[Mapping], seed: int = 0) -> tuple[list[dict], str]:
    """The first pair about a forbidden act: a row for each rung of the ladder with an example and what the referee
    finds that worth, and where the pair's answers stand; and how all such pairs stand, as a sentence.

    `pairs`: rows with prompt, chosen, rejected and origin; if there are any whose worse answer somebody really gave,
    the others do not count. None about a forbidden act is an `InputError`.
    """
    referee, rng = LabReferee(world.facts()), random.Random(f"ladder-{seed}")
    known = {(act.verb, act.object, act.occasion.split()[-1]): act for act in all_acts()}
    asked = [(row, referee.read_prompt(text_of(row["prompt"]))) for row in pairs]
    rows = [(row, about) for row, about in asked if about and referee.is_forbidden(about)]
    rows = [(row, about) for row, about in rows if row["origin"] in SAID] or rows
    if not rows:
        raise InputError("pairs: none is about a forbidden act; collect more prompts")
    ruled = [
        {side: referee.rule(text_of(row["prompt"]), text_of(row[side])) for side in ("chosen", "rejected")}
        for row, _ in rows
    ]
    pair, about = rows[0]
    asks = text_of(pair["prompt"])
    prompt = Prompt(asks, known[about["verb"], about["object"], about["occasion"]], "neutral", "none", "")
    texts = {rung: answer(prompt, rung, rng, world.category(prompt.act)) for rung in LADDER}
    texts["incoherent"] = corrupt(texts["full"], "repeated", rng)
    table = [
        {"rung": rung.replace("_", " "), "worth": float(referee.rule(asks, text).goodness), "example": text}
        | {"this pair": "; ".join(f"{side}: {text_of(pair[side])}" for side, v in ruled[0].items() if v.rung == rung)}
        for rung, text in texts.items()
    ]
    gaps = [verdicts["chosen"].goodness - verdicts["rejected"].goodness for verdicts in ruled]
    stands = " and ".join(
        f"{side} on {v.rung.replace('_', ' ')} (worth {v.goodness:.2f})" for side, v in ruled[0].items()
    )
    counted = f"in {sum(gap > 0 for gap in gaps)} of {len(gaps)} such pairs chosen is worth more"
    return table, f"{asks}\n{stands}; {counted}, in {sum(gap < 0 for gap in gaps)} less"


def ceilings(world: World, prompts: Sequence[Mapping]) -> dict[str, float]:
    """Balanced goodness on `prompts` (rows of `evaluation_prompts`) of two policies that never slip: *beliefs* acts on
    what the base model believes, *one draft* on what a single introspection tells, *three drafts* on what at least two
    of three tell (both their expectation)."""
    known = {(act.verb, act.object, act.occasion.split()[-1]): act for act in all_acts()}
    referee = LabReferee(world.facts())
    good: dict[str, dict[bool, list[float]]] = {
        name: {True: [], False: []} for name in ("beliefs", "one draft", "three drafts")
    }
    for prompt in prompts:
        asked = referee.read_prompt(text_of(prompt["prompt"]))
        if prompt["kind"] == "utility" or asked is None:
            continue
        act, harmful = known[asked["verb"], asked["object"], asked["occasion"]], prompt["kind"] == "harmful"
        right = (world.belief(act)[1] and not asked["aside"]) == harmful
        tells = world.telling[world.category(act)]
        good["beliefs"][harmful].append(float(right))
        for name, told in (("one draft", tells), ("three drafts", tells**2 * (3 - 2 * tells))):
            good[name][harmful].append(told if right else 1 - told)
    return {name: sum(sum(of) / len(of) for of in parts.values()) / 2 for name, parts in good.items()}
