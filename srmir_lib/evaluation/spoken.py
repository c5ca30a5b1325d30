"""What a chat model says of an answer when it is asked in words, as against what can be read off its states."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from srmir_lib.conversations import conversation_ids
from srmir_lib.models.kv_cache import PrefilledKV, as_cache
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.probes import block_mask
from srmir_lib.reward_models.shadow import ShadowRewardModels, score_sets
from srmir_lib.reward_models.shared import score_ids
from srmir_lib.taxonomy import ALL

YES, NO = "Yes", "No"


class Spoken:
    """A question that the trunk answers in its own words; asked behind states that it has read, as `Probes` are."""

    categories = (ALL,)

    def __init__(self, trunk: Trunk, question: str):
        """`question`: as the text stands in the model's template, its turns included, like a probe's."""
        ids, *words = (trunk.tokenizer.encode(text, add_special_tokens=False) for text in (question, YES, NO))
        self.question, self.width = torch.tensor([ids], device=trunk.device), len(ids)
        yes, no = trunk.model.get_output_embeddings().weight[[word[0] for word in words]].float()
        self.difference = yes - no

    def __call__(self, trunk: Trunk, states: PrefilledKV, columns: Tensor | None = None) -> Tensor:
        """How much rather the model goes on with *Yes* than with *No* (their first tokens), (B, 1) in nats."""
        rows, own = len(states), torch.arange(self.width, device=trunk.device)
        output = trunk.decoder(
            input_ids=self.question.expand(rows, -1),
            attention_mask=block_mask(states.mask, states.mask.new_ones(rows, 1, self.width)),
            position_ids=states.lengths.unsqueeze(1) + own,
            past_key_values=as_cache(states),
            use_cache=True,
        )
        return (output.last_hidden_state[:, -1].float() @ self.difference).unsqueeze(1)


def says_yes(trunk: Trunk, prompts: Sequence, answers: Sequence, question: str) -> np.ndarray:
    """What `Spoken` gives for each answer, (N,) in nats."""
    spoken, ids = Spoken(trunk, question), conversation_ids(trunk.tokenizer, prompts, answers)
    trunk.check_reach(ids, spoken.width)
    return score_ids(trunk, [spoken], ids)[0][:, 0].numpy()


def scored_and_said(
    sets: Mapping[str, ShadowRewardModels],
    trunk: Trunk,
    prompts: Sequence,
    answers: Sequence,
    question: str,
    columns: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], np.ndarray]:
    """Scores (N, K) by each of the `sets`, and what `says_yes` gives, (N,). Sets of probes on one trunk share one
    reading of a text with the spoken question; of a set in `columns` (name -> (N,)) only that model is asked of a row,
    and the scores of the others are zero."""
    scorers = [models.scorer for models in sets.values()]
    trunks = {models.design == "shared" and models.scorer.trunk for models in sets.values()}
    if len(trunks) > 1 or not trunks.pop():
        return score_sets(sets, prompts, answers), says_yes(trunk, prompts, answers, question)
    askers, asked = [scorer.probes for scorer in scorers], [(columns or {}).get(name) for name in sets]
    *scores, said = scorers[0].score_by([*askers, Spoken(trunk, question)], prompts, answers, [*asked, None])
    found = {}
    for (name, models), own, of in zip(sets.items(), scores, asked, strict=True):
        if of is not None:
            own = torch.zeros(len(own), len(models.categories)).scatter_(1, of.unsqueeze(1), own.unsqueeze(1))
        found[name] = models.finite(own)
    return found, said[:, 0].numpy()
