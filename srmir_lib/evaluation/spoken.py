"""What a chat model says of an answer when it is asked in words, as against what can be read off its states."""

from collections.abc import Sequence

import numpy as np
import torch

from srmir_lib.conversations import conversation_ids
from srmir_lib.models.batching import by_length, counted, padded
from srmir_lib.models.trunk import Trunk

YES, NO = "Yes", "No"


@torch.no_grad()
def says_yes(trunk: Trunk, prompts: Sequence, answers: Sequence, question: str) -> np.ndarray:
    """How much rather the model goes on with *Yes* than with *No* (their first tokens) behind each answer and the
    `question`, (N,) in nats. `question`: as the text stands in the model's template, its turns included, like a
    probe's."""
    tokenizer, model = trunk.tokenizer, trunk.model
    asked = tokenizer.encode(question, add_special_tokens=False)
    ids = [[*row, *asked] for row in conversation_ids(tokenizer, prompts, answers)]
    trunk.check_reach(ids, 0)
    words = [tokenizer.encode(word, add_special_tokens=False)[0] for word in (YES, NO)]
    difference = model.get_output_embeddings().weight[words].float()
    difference, found = difference[0] - difference[1], np.zeros(len(ids))
    batches = by_length(range(len(ids)), list(map(len, ids)), trunk.batch_tokens)
    for rows in counted(batches, len(ids), "asked"):
        inputs = padded([ids[row] for row in rows], trunk.device)
        last = inputs["attention_mask"].sum(1) - 1
        states = trunk.decoder(**inputs, use_cache=False).last_hidden_state
        found[rows] = (states[torch.arange(len(rows)), last].float() @ difference).cpu().numpy()
    return found
