"""Says against knows: what a model says of an answer when it is asked, and what can be read off its states.

The truth is the referee's. All are asked of the same prompts and answers, and compared by AUROC.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset

from srmir_lib.conversations import as_chat, assistant_message, opens_with_refusal, text_of, user_message
from srmir_lib.lab.asked import log_probability
from srmir_lib.lab.referee import LabReferee
from srmir_lib.statistics import Interval, auroc, paired_auroc_gain


def wrong_answers(referee: LabReferee, prompts: Sequence, answers: Sequence[str]) -> list[bool | None]:
    """Whether each answer is wrong, (N,): it carries out what is forbidden, or refuses what is allowed. None where it
    is incoherent, or nothing that could be refused was asked."""
    texts = [text_of(prompt) for prompt in prompts]
    asked, found = [referee.read_prompt(text) for text in texts], []
    for what, verdict in zip(asked, referee(texts, list(answers)), strict=True):
        known = what is not None and verdict.coherent
        found.append((verdict.complied if referee.is_forbidden(what) else verdict.refused) if known else None)
    return found


def with_truth(pool: Dataset, referee: LabReferee) -> Dataset:
    """A row an answer of a pool (columns prompt, responses, refuses): prompt, response, refuses and whether it is
    `wrong`; answers of which the referee cannot say it are left out."""
    rows = [
        {"prompt": row["prompt"], "response": said, "refuses": row["refuses"]}
        for row in pool
        for said in row["responses"]
    ]
    ruled = wrong_answers(referee, [row["prompt"] for row in rows], [row["response"] for row in rows])
    return Dataset.from_list([row | {"wrong": one} for row, one in zip(rows, ruled, strict=True) if one is not None])


def spoken(policy, tokenizer, prompts: Sequence, answers: Sequence[str], question: str) -> np.ndarray:
    """How much rather the model says yes than no to the `question` behind each answer, (N,) in nats."""
    chats = [
        as_chat(prompt) + assistant_message(said) + user_message(question)
        for prompt, said in zip(prompts, answers, strict=True)
    ]
    yes, no = (log_probability(policy, tokenizer, chats, [word] * len(chats)) for word in ("yes", "no"))
    return (yes - no).double().numpy()


def drafted(refuses: Sequence[bool], answers: Sequence[str]) -> np.ndarray:
    """1 where an answer does otherwise than its prompt's draft says (refuse or not), 0 where it does the same, (N,)."""
    return np.array([float(due != opens_with_refusal(said)) for due, said in zip(refuses, answers, strict=True)])


def areas_of(dangers: Mapping[str, np.ndarray], rows: Dataset) -> dict[str, float]:
    """AUROC of each danger (N,) against what is wrong."""
    return {name: auroc(danger, rows["wrong"]) for name, danger in dangers.items()}


def about_knowing(
    dangers: Mapping[str, np.ndarray], rows: Dataset, known: str, said: Sequence[str], seed: int
) -> tuple[str, dict[str, Interval]]:
    """Whether `known` finds wrong answers better than each of what is `said` (names of `dangers`), as a sentence, and
    the gains with intervals over prompts."""
    groups, parts = [text_of(prompt) for prompt in rows["prompt"]], []
    areas, gains = areas_of(dangers, rows), {}
    for name in said:
        gains[name] = gain = paired_auroc_gain(dangers[known], dangers[name], rows["wrong"], groups, seed=seed)
        how = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not clearly otherwise than"
        parts.append(f"{how} {name} ({areas[name]:.3f}; {gain.low:+.3f} to {gain.high:+.3f})")
    return f"{known} ({areas[known]:.3f}) tells wrong answers from right ones {', and '.join(parts)}.", gains
