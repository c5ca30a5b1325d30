"""Says against knows: what a model says of an answer when it is asked, and what can be read off its states.

The truth is the referee's. All are asked of the same prompts and answers, and compared by AUROC.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from datasets import Dataset
from torch import Tensor

from srmir_lib.conversations import as_chat, assistant_message, opens_with_refusal, text_of, user_message
from srmir_lib.data import margins
from srmir_lib.lab.asked import log_probability
from srmir_lib.lab.referee import LabReferee
from srmir_lib.models.embeddings import embed
from srmir_lib.policies.groups import sample_groups
from srmir_lib.reward_models.readouts import ReadOuts
from srmir_lib.settings.appendices import Watching
from srmir_lib.statistics import auroc, paired_auroc_gain


def refusals_due(referee: LabReferee, prompts: Sequence) -> list[bool | None]:
    """Whether each prompt deserves a refusal, (N,), by the facts of the town; None where nothing can be refused."""
    asked = [referee.read_prompt(text_of(prompt)) for prompt in prompts]
    return [None if what is None else referee.is_forbidden(what) for what in asked]


def wrong_answers(referee, prompts: Sequence, answers: Sequence[str], due: Sequence[bool | None]) -> list[bool | None]:
    """Whether each answer is wrong, (N,): it does harm where a refusal is `due` (N,), refuses where none is, or is no
    language. None where it is empty, or nobody knows what is due."""
    verdicts, found = referee([text_of(prompt) for prompt in prompts], list(answers)), []
    for refuse, said, verdict in zip(due, answers, verdicts, strict=True):
        known = refuse is not None and bool(said.strip())
        misdeed = verdict.complied if refuse else verdict.refused
        found.append(misdeed or not verdict.coherent if known else None)
    return found


def ruled_answers(
    policy, tokenizer, asked: Dataset, due: Sequence[bool | None], referee, size: int, **sampling
) -> tuple[Dataset, int]:
    """A row an answer, of `size` sampled from a policy to each prompt of `asked` (columns prompt, refuses): prompt,
    refuses, response, and whether it is `wrong`; and how many are left out, because nobody can say so. `due`: as of
    `wrong_answers`, of each prompt; `sampling` as of `generate`."""
    said = sample_groups(policy, tokenizer, asked["prompt"], size, **sampling)
    rows = [row | {"response": text} for row, group in zip(asked, said, strict=True) for text in group]
    prompts, texts = [row["prompt"] for row in rows], [row["response"] for row in rows]
    ruled = wrong_answers(referee, prompts, texts, [one for one in due for _ in range(size)])
    kept = [row | {"wrong": one} for row, one in zip(rows, ruled, strict=True) if one is not None]
    return Dataset.from_list(kept), len(rows) - len(kept)


def spoken(
    policy, tokenizer, prompts: Sequence, answers: Sequence[str], question: str, words: Sequence[str] = ("yes", "no")
) -> np.ndarray:
    """How much rather the model says the first of two `words` than the other to the `question` behind each answer, (N,)
    in nats."""
    chats = [
        as_chat(prompt) + assistant_message(said) + user_message(question)
        for prompt, said in zip(prompts, answers, strict=True)
    ]
    yes, no = (log_probability(policy, tokenizer, chats, [word] * len(chats)) for word in words)
    return (yes - no).double().numpy()


def drafted(refuses: Sequence[bool], answers: Sequence[str]) -> np.ndarray:
    """1 where an answer does otherwise than its prompt's draft says (refuse or not), 0 where it does the same, (N,)."""
    return np.array([float(due != opens_with_refusal(said)) for due, said in zip(refuses, answers, strict=True)])


def safe_direction(policy, tokenizer, pairs: Dataset, demonstrations: Dataset) -> Tensor:
    """Legend's direction (H,), of the last layer at the last token, as 03 makes it: from 400 of the pairs' rejected
    answers to prompts that a demonstration refuses, against `margins.REFUSALS`."""
    harmful = margins.harmful_answers(pairs, margins.refused_prompts(demonstrations), 400)
    asked = harmful["prompt"], harmful["rejected"], margins.REFUSALS
    return margins.estimate_direction(policy, tokenizer, *asked)


def dangers_of(
    policy,
    tokenizer,
    rows: Dataset,
    asking: Watching,
    readouts: Mapping[str, ReadOuts],
    direction: Tensor,
    drafts: bool = True,
) -> dict[str, np.ndarray]:
    """How wrong each answer is (N,), higher is worse, by what the policy says (asked, draft), and by what is read off
    its states: `readouts` (name -> those of this policy) and Legend's `direction`. `drafts`: whether `refuses` is what
    the prompt's draft said, and not the truth itself."""
    both, model = (rows["prompt"], rows["response"]), policy.get_base_model()
    dangers = {"asked": spoken(policy, tokenizer, *both, asking.question, asking.words)}
    if drafts:
        dangers["draft"] = drafted(rows["refuses"], rows["response"])
    for name, own in readouts.items():
        dangers[f"read-outs, {name}"] = -own.score(own.read(model, tokenizer, *both)).numpy()
    return dangers | {"Legend": -(embed(model, tokenizer, *both) @ direction).numpy()}


def about_knowing(
    dangers: Mapping[str, np.ndarray], rows: Dataset, known: str, said: Sequence[str], seed: int
) -> tuple[str, dict[str, float]]:
    """Whether `known` finds the `wrong` answers among `rows` better than each of what is `said` (names of `dangers`),
    as expected, with intervals over prompts; and the AUROC of all. Where all answers are wrong, or none, there is
    nothing to find, and no AUROC."""
    if len({*rows["wrong"]}) < 2:
        which = "All of" if all(rows["wrong"]) else "None of"
        return f"{which} {len(rows)} answers: wrong. There is nothing to tell apart.", {}
    areas, parts = {name: auroc(danger, rows["wrong"]) for name, danger in dangers.items()}, []
    groups = [text_of(prompt) for prompt in rows["prompt"]]
    for name in said:
        gain = paired_auroc_gain(dangers[known], dangers[name], rows["wrong"], groups, seed=seed)
        how = "better than" if gain.low > 0 else "worse than" if gain.high < 0 else "not clearly otherwise than"
        held = "as expected" if gain.low > 0 else "not as expected"
        parts.append(f"{how} {name} ({areas[name]:.3f}; {gain.low:+.3f} to {gain.high:+.3f}), {held}")
    return f"{known} ({areas[known]:.3f}) tells wrong answers from right ones {'; '.join(parts)}.", areas
