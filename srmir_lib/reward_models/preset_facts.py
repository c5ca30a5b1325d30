"""What a preset for a model and pairs of one's own is made of: sizes, lengths, a design, and a question for probes."""

from collections import Counter
from collections.abc import Sequence

from srmir_lib.artifacts import as_written
from srmir_lib.conversations import render, user_message
from srmir_lib.data.check import Check
from srmir_lib.data.own_sets import ROOM
from srmir_lib.errors import InputError
from srmir_lib.models.kinds import window_of
from srmir_lib.models.loading import config_of, load_tokenizer, pick_device
from srmir_lib.models.plan import size_of
from srmir_lib.reward_models.probes import probe_questions
from srmir_lib.settings.reward_training import Probe
from srmir_lib.taxonomy import UNKNOWN

ASKED = "Is the answer above good as to {category}?", "Is the answer above good?"


def preset_facts(found: Check, design: str = "") -> dict:
    """The fields of `runner.new_preset.Facts`, for a model and pairs that `check` found to go together.

    `design`: shared or separate; empty: shared, if the model serves. One that it does not serve is an `InputError`.
    """
    tokenizer, config = load_tokenizer(found.model), config_of(found.model)
    rows = [row for part in found.pairs.splits.values() for row in part]
    tokens, window = [found.tokens[row["file"], row["row"]] for row in rows], window_of(config)
    problems = {name: found.works[name].why * (not found.works[name].works) for name in ("shared", "separate")}
    if window is not None and max(tokens) + ROOM > window:
        problems["shared"] = f"a pair has {max(tokens)} tokens, more than its window of {window}; use design separate"
    design = design or ("separate" if problems["shared"] else "shared")
    if problems[design]:
        raise InputError(f"design {design}: {problems[design]}")
    with as_written(found.model):
        probe = probe_texts(tokenizer, found.pairs.categories)
    train = found.pairs.splits["train"]
    counts = Counter(row["category"] for row in train)
    chosen = [row["chosen"][0]["content"] for row in train[:1000]]
    answers = sorted(map(len, tokenizer(chosen, add_special_tokens=False)["input_ids"]))
    return {
        "base_model": found.model,
        "preferences": found.pairs.source,
        "design": design,
        "counts": {name: counts[name] for name in found.pairs.categories},
        "tokens": tokens,
        "answer": answers[int(0.95 * (len(answers) - 1))],
        "probe": probe,
        "size": size_of(found.model).weights,
        "cuda": pick_device().type == "cuda",
    }


def probe_texts(tokenizer, categories: Sequence[str]) -> tuple[str, str]:
    """What probes ask behind an answer, with {category} and without: a user's next question as the chat template writes
    it, or as plain text where that does not come back from the tokenizer whole."""
    written = [follow_up(tokenizer, question) for question in ASKED]
    try:
        probe_questions(tokenizer, Probe(text=written[0]), [*categories, UNKNOWN])
    except InputError:
        written = [f" {question}" for question in ASKED]
        probe_questions(tokenizer, Probe(text=written[0]), [*categories, UNKNOWN])
    return tuple(written)


def follow_up(tokenizer, question: str) -> str:
    """The text of a user's question behind an answered one, up to where its answer starts; "" if the template writes
    earlier turns in another way then."""
    asked, answered = user_message("a"), [{"role": "assistant", "content": "b"}]
    before = render(tokenizer, [asked], [answered])[0]
    whole = render(tokenizer, [[*asked, *answered, *user_message(question)]])[0]
    return whole.removeprefix(before) if whole.startswith(before) else ""
