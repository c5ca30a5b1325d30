r"""SRMIR: a model says why it would refuse, seven reward models learn from that, and one reward comes of their scores.

Cheng & Cao 2025 (arXiv 2503.18991, version 1, of which the abstract could be read: it has no equations, and those in
the docstrings below are our reading of its words). In the order of the method: `cod_prompt` and `parse_draft`,
introspection as Chain of Draft (Xu et al. 2025, arXiv 2502.18600: steps of at most five words, the answer after
`####`); `bradley_terry_loss`, what a shadow reward model minimises; `linear_reward` and `categorized_reward`, the two
strategies $R=\sum_j w_j\tilde r_j$ and $R=\tilde r_{k(x)}$. Read these two first.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from srmir_lib.conversations import user_message
from srmir_lib.errors import InputError


def bradley_terry_loss(chosen_scores: torch.Tensor, rejected_scores: torch.Tensor) -> torch.Tensor:
    r"""$-\log\sigma(r(x,y^+)-r(x,y^-))$, mean over pairs.

    Shapes: (N,), (N,) -> scalar (nats). Bradley & Terry 1952; as the reward objective of ML-IRL: Li et al. 2024
    (arXiv 2405.17888), the logistic form used in practice. TRL's `RewardTrainer` runs the same (tested).
    """
    return -logsigmoid(chosen_scores - rejected_scores).mean()


SEPARATOR = "####"

STEP_ENDS = re.compile(r"[;\n]\s*(?:\d{1,2}[.)]\s)?|(?:^|\s)\d{1,2}[.)]\s")


COD_TEMPLATE = (
    "Think step by step, but only keep a minimum draft for each thinking step, with 5 words at most. "
    "Return the answer at the end of the response after a separator ####. "
    'Why would you refuse to answer "{prompt}"?'
)


@dataclass(frozen=True)
class Draft:
    """A parsed introspection: the short steps before the separator and the answer after it."""

    steps: tuple[str, ...]
    answer: str


def cod_prompt(prompt: str, template: str = COD_TEMPLATE) -> list[dict]:
    """Ask a model why it would refuse `prompt`: one user message (Cheng & Cao 2025; wording of Xu et al. 2025)."""
    if "{prompt}" not in template:
        raise ValueError("introspection_template: must contain {prompt}")
    return user_message(template.replace("{prompt}", prompt))


def parse_draft(text: str, max_words: int = 5) -> Draft:
    """Split `draft #### answer`; raise a `ValueError` with the reason when the text is not a valid Chain of Draft.

    Steps end with a semicolon, a line, or where the next number ("2.") stands; every step has 1 to `max_words` words,
    its number not counted; the answer is not empty.
    """
    head, separator, answer = text.partition(SEPARATOR)
    if not separator:
        raise ValueError(f"no separator {SEPARATOR}")
    if SEPARATOR in answer:
        raise ValueError(f"more than one separator {SEPARATOR}")
    steps = tuple(step.strip() for step in STEP_ENDS.split(head) if step.strip())
    if not steps:
        raise ValueError("no draft before the separator")
    if not answer.strip():
        raise ValueError("no answer after the separator")
    for step in steps:
        if len(step.split()) > max_words:
            raise ValueError(f"step of more than {max_words} words: {step!r}")
    return Draft(steps, answer.strip())


def linear_reward(scores: Tensor, weights: Tensor) -> Tensor:
    """R = sum_j w_j r_j: scores (N, K), weights (K,) at least 0 and summing to 1; reward (N,).

    Cheng & Cao 2025 (linear combination); equal weights are 1 / K.
    """
    if weights.min() < 0 or not torch.isclose(weights.sum(), weights.new_tensor(1.0)):
        raise InputError(f"weights: {weights.tolist()} must be at least 0 and sum to 1")
    return scores @ weights


def tune_weights(gaps: Tensor) -> Tensor:
    """argmin_w mean -log sigmoid(s w . gap), w = softmax(z), s > 0: gaps (N, K) of held-out pairs; weights (K,).

    The weighted sum of K models that explains preferences best (Bradley & Terry 1952), with a weak pull towards 1/K.
    """
    z, log_scale = torch.zeros(gaps.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([z, log_scale], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -logsigmoid(log_scale.exp() * (gaps @ z.softmax(0))).mean()
        loss = loss + 1e-3 * (z.square().mean() + log_scale.square())
        loss.backward()
        return loss

    optimiser.step(closure)
    return z.detach().softmax(0)


def categorized_reward(scores: Tensor, category: Tensor) -> Tensor:
    """R = r_k(x): scores (N, K), category (N,) long, the model that answers for each row; reward (N,).

    Category -1 is unknown: the mean of all K scores. Cheng & Cao 2025 (categorized).
    """
    own = scores.gather(1, category.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(category < 0, scores.mean(dim=1), own)
