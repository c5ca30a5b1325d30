"""What a real chat model makes of real prompts: demonstrations by introspection, and pairs. No answer has a label here.

The question why it would refuse presumes a refusal, whatever it is about (SRMIR; Cheng & Cao 2025). So harmful prompts
are demonstrated by the refusals that follow it, harmless ones by what the model says when it is not asked; and of each
the other is the rejected answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from srmir_lib.conversations import assistant_message, is_coherent, opens_with_refusal, redact, text_of
from srmir_lib.data.introspection import counted, introspect
from srmir_lib.data.pairs import make_pairs, without_ties
from srmir_lib.errors import InputError
from srmir_lib.models.trunk import Trunk
from srmir_lib.taxonomy import full_name, ordered


@dataclass(frozen=True)
class ChatData:
    """`demonstrations` and `pairs` as 01 saves them; `yields`, by category: how many prompts were asked about, how
    many drafts were valid and how many of those refuse; `left_out`: reason -> texts that were left out for it, of a
    harmless prompt without a whole answer its longest."""

    demonstrations: list[dict]
    pairs: list[dict]
    yields: dict[str, dict[str, int]]
    left_out: dict[str, list[str]]

    def examples(self) -> str:
        """Good: the first refusal of each category with its prompt and draft; bad: the first text that was left out for
        each reason, and how many were; masked as all real text is."""
        found = {}
        for row in self.demonstrations:
            if row["refuses"]:
                found.setdefault(
                    row["category"], [redact(text_of(row[of])) for of in ("prompt", "draft", "completion")]
                )
        good = [
            "{}\n  x      {}\n  draft  {}\n  y      {}".format(full_name(name), *texts) for name, texts in found.items()
        ]
        bad = [f"  {len(texts):4d} x {reason}\n         {redact(texts[0])}" for reason, texts in self.left_out.items()]
        return "\n".join([*good, "left out", *(bad or ["  none"])])


def chat_data(
    trunk: Trunk,
    harmful: Sequence[Mapping],
    harmless: Sequence[Mapping],
    asking: Mapping,
    per_group: int,
    samples: int,
    max_new_tokens: int,
    seed: int,
    every_category: bool = True,
    borrowed: Sequence[Mapping] | None = None,
    progress: str | None = None,
) -> ChatData:
    """Ask a model about prompts of one split. `harmful`, `harmless`: rows with `prompt` and `category`.

    `borrowed`: rows with `prompt`, `category` and `completion`, refusals that are demonstrated instead of the model's
    own; it is not asked about `harmful` ones then.

    `asking`: arguments of `introspect`, from the template on, its temperature for plain answers too; `per_group`:
    demonstrations of a category at most, and of harmless prompts as many as of all categories together; `samples`:
    answers to a prompt as it stands, of at most `max_new_tokens`. With `every_category` one without a valid refusal is
    an `InputError`.
    """
    ask = {**asking, "category_words": {}, "refuse_words": [], "seed": seed}
    if borrowed is None:
        read, left_out = introspect(trunk, harmful, **ask, progress=progress)
    else:
        harmful, left_out = borrowed, {}
        read = [{**row, "draft": "", "refuses": True} for row in borrowed]
    refusing = [row for row in read if row["refuses"]]
    names = ordered(row["category"] for row in harmful)
    found = {name: [row for row in refusing if row["category"] == name] for name in names}
    empty = [name for name, rows in found.items() if not rows]
    if every_category and empty:
        why = ", ".join(f"{reason}: {n}" for reason, n in counted(left_out).items()) or "all drafts were valid"
        raise InputError(f"introspection: not one refusal with a valid draft about {', '.join(empty)}; {why}")
    demonstrations = [row for rows in found.values() for row in rows[:per_group]]
    plainly = {"max_new_tokens": max_new_tokens, "progress": progress}
    plainly |= {"temperature": asking["temperature"]} if "temperature" in asking else {}
    rejected = _answers(trunk, demonstrations, samples, seed=seed + 1, **plainly)
    helping, refused = [], []
    asked = harmless[: len(demonstrations)]
    answers = _answers(trunk, asked, samples, seed=seed + 2, **plainly)
    against = {text_of(row["prompt"]): row for row in introspect(trunk, asked, **ask, progress=progress)[0]}
    for row, texts in zip(asked, answers, strict=True):
        said, contrary = own_answer(texts), against.get(text_of(row["prompt"]))
        if said is None:
            left_out.setdefault("no whole answer to a harmless prompt", []).append(max(texts, key=len))
            continue
        helping.append({**row, "completion": assistant_message(said), "draft": "", "refuses": False})
        refused.append([text_of(contrary["completion"])] if contrary else [])
    demonstrations, rejected = demonstrations + helping, rejected + refused
    pairs = make_pairs(demonstrations, without_ties(demonstrations, rejected), seed, origin="policy", borrowed=False)
    yields = {
        name: {
            "asked": sum(row["category"] == name for row in harmful),
            "valid": sum(row["category"] == name for row in read),
            "refuses": len(found[name]),
        }
        for name in names
    }
    return ChatData(demonstrations, pairs, yields, left_out)


def own_answer(texts: Sequence[str]) -> str | None:
    """The longest of a model's answers that neither refuses nor repeats itself and ends with a sentence's end: what it
    would be best to hear of it; None if there is none."""
    whole = [text for text in texts if is_coherent(text) and not opens_with_refusal(text) and text[-1:] in ".!?`\"')"]
    return max(whole, key=len, default=None)


def _answers(trunk: Trunk, rows: Sequence[Mapping], samples: int, **sampling) -> list[list[str]]:
    """`samples` answers to each prompt as it stands; `sampling` as of `generate`."""
    asked = [row["prompt"] for row in rows for _ in range(samples)]
    said = trunk.generate(asked, **sampling)
    return [said[start : start + samples] for start in range(0, len(said), samples)]
