"""A reward for every token, with its uncertainty: heads on a causal trunk that reads each prompt once.

The frozen base model reads draft and prompt (`Reader`); from the beginning of the answer on a LoRA adapter is active,
which is PEFT's Activated LoRA (Greenewald et al. 2025, arXiv 2504.12397) with the template's generation prompt as
invocation. Heads on the adapted states give mean and standard deviation of each token's reward; the base model's own
output layer gives the Q-values, so the adapted model is the policy that the objective speaks of. Bradley-Terry and AVA
train the same weights and differ in their objective only (`training`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from srmir_lib.models.batching import by_length
from srmir_lib.models.kv_cache import as_cache
from srmir_lib.models.loading import read_tensors, share_weights
from srmir_lib.papers.ava import (
    TokenBeliefs,
    answer_reward,
    attention_weights,
    ava_log_policy,
    ava_td_error,
    check_beliefs,
    over_tokens,
)
from srmir_lib.settings.appendices import TokenSettings
from srmir_lib.studies.a1_token_rewards.reader import Answers, Reader

LOG_SD = (-5.0, 2.0)
"""Log standard deviations are clamped to this: without a floor the density of one lucky token grows without end."""


DRAWING = Lock()
"""Held while an adapter is drawn: the random numbers it is drawn with belong to the whole process."""


class TokenReward(NamedTuple):
    """The belief about one answer of T tokens: their ids, and mean and standard deviation of each token's reward."""

    tokens: list[int]
    mean: Tensor  # (T,)
    sd: Tensor  # (T,)


class TokenHeads(nn.Module):
    """Mean and log standard deviation of a token's reward from its state, and attention weights for who wants them."""

    def __init__(self, size: int, seed: int, width: int = 16):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, size).normal_(0, size**-0.5, generator=generator))

        self.mean, self.log_sd, self.bias = drawn(1), nn.Parameter(torch.zeros(1, size)), nn.Parameter(torch.zeros(2))
        self.query, self.key = drawn(width), drawn(width)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, H) -> mean and clamped log standard deviation, (B, T) each; a new head has the prior's sd."""
        mean = (states @ self.mean.T).squeeze(-1) + self.bias[0]
        return mean, ((states @ self.log_sd.T).squeeze(-1) + self.bias[1]).clamp(*LOG_SD)

    def weights(self, states: Tensor, mask: Tensor) -> Tensor:
        """Attention weights of the tokens, (B, T), each row summing to 1."""
        return attention_weights(states @ self.query.T / len(self.query) ** 0.5, states @ self.key.T, mask)


class TokenRewardModel:
    """Adapter and heads over a `Reader`: beliefs about the tokens of answers, and one reward an answer."""

    def __init__(self, reader: Reader, settings: TokenSettings, seed: int = 0):
        """`seed`: of adapter and heads. The reader's weights are shared, not copied."""
        self.reader, self.settings = reader, settings
        with DRAWING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shape = {"r": settings.lora_rank, "lora_alpha": settings.lora_alpha}
            lora = LoraConfig(**shape, target_modules="all-linear", task_type="CAUSAL_LM")
            self.adapted = get_peft_model(share_weights(reader.trunk.model), lora).eval()
        self.causal = self.adapted.get_base_model()
        self.heads = TokenHeads(self.causal.config.get_text_config().hidden_size, seed).to(self.causal.device)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the adapter's and the heads' weights."""
        return [p for p in self.adapted.parameters() if p.requires_grad] + list(self.heads.parameters())

    def beliefs(self, answers: Answers, rows: Sequence[int], with_q: bool = True) -> TokenBeliefs:
        """Beliefs about the answers `rows`; differentiable in adapter and heads, not in the reader.

        `with_q=False` leaves the Q-values at 0 and spares the output layer.
        """
        before, device = self.reader.read([answers.prompts[row] for row in rows]), self.causal.device
        tails = [torch.tensor(answers.tails[row]) for row in rows]
        ids = pad_sequence(tails, batch_first=True).to(device)
        lengths = torch.tensor([len(tail) for tail in tails], device=device).unsqueeze(1)
        place = torch.arange(ids.shape[1], device=device)
        states = self.causal.base_model(
            input_ids=ids,
            attention_mask=torch.cat([before.mask, place < lengths], dim=1).long(),
            position_ids=torch.minimum(place, lengths - 1) + before.lengths.unsqueeze(1),
            past_key_values=as_cache(before),
            use_cache=True,
        ).last_hidden_state
        start, settings = self.reader.opening, self.settings
        mask, own = (place < lengths)[:, start:], states[:, start:].float()
        mean, log_sd = self.heads(own)  # the state that has consumed a token holds its reward; the one before, its Q
        q_values = torch.zeros_like(mean)
        if with_q:
            logits = self.causal.get_output_embeddings()(states[:, start - 1 : -1]).float()
            log_policy = ava_log_policy(logits, settings.alpha, settings.form)
            q_values = log_policy.gather(2, ids[:, start:].unsqueeze(2)).squeeze(2)
        if settings.attention == "none":
            return TokenBeliefs(q_values, mean, log_sd, mask)
        weights = self.heads.weights(own, mask)
        weights = weights * mask.sum(dim=1, keepdim=True) if settings.attention == "scaled" else weights
        return TokenBeliefs(q_values * weights, mean * weights, log_sd + weights.clamp(min=1e-6).log(), mask)

    @torch.no_grad()
    def _read(self, answers: Answers, with_q: bool = False) -> Iterator[tuple[list[int], TokenBeliefs]]:
        """(rows, their beliefs) until every answer was read; beliefs that are not finite are an `InputError`."""
        lengths = [len(prompt) + len(tail) for prompt, tail in zip(answers.prompts, answers.tails, strict=True)]
        for rows in by_length(range(len(lengths)), lengths, self.reader.trunk.batch_tokens):
            beliefs = self.beliefs(answers, rows, with_q)
            check_beliefs(beliefs, rows)
            yield rows, TokenBeliefs(*(part.cpu() for part in beliefs))

    def summary(self, answers: Answers, k: float = 0.0, readout: str | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of each answer (N,): its reward with the guard k, without it, and the mean standard deviation of its tokens.

        `readout`: another one than the settings'.
        """
        columns, readout = torch.zeros(3, len(answers.tails)), readout or self.settings.readout
        for rows, beliefs in self._read(answers):
            sd = over_tokens(beliefs.log_sd.exp(), beliefs.mask, "stable")
            columns[:, rows] = torch.stack([answer_reward(beliefs, readout, k), answer_reward(beliefs, readout), sd])
        return tuple(columns)

    def rewards(self, answers: Answers) -> Tensor:
        """Each answer's reward (N,): the posterior mean, by the settings' readout."""
        return self.summary(answers)[0]

    def rewards_and_implied(self, answers: Answers) -> tuple[Tensor, Tensor]:
        """Each answer's reward (N,), and the mean over its tokens (N,) of delta, the reward that Q implies without
        asking the posterior."""
        rewards, implied = torch.zeros(len(answers.tails)), torch.zeros(len(answers.tails))
        for rows, beliefs in self._read(answers, with_q=True):
            delta = ava_td_error(beliefs.q_values, beliefs.mask, self.settings.gamma)
            rewards[rows] = answer_reward(beliefs, self.settings.readout)
            implied[rows] = over_tokens(delta, beliefs.mask, "stable")
        return rewards, implied

    def tokens(self, answers: Answers) -> list[TokenReward]:
        """What is believed about every token of every answer, the end-of-turn token included."""
        found: list = [None] * len(answers.tails)
        for rows, (_, mean, log_sd, mask) in self._read(answers):
            for place, row in enumerate(rows):
                real = mask[place]
                ids = answers.tails[row][self.reader.opening :]
                found[row] = TokenReward(ids, mean[place][real], log_sd[place][real].exp())
        return found

    def save(self, folder: str | Path) -> None:
        """Write PEFT's Activated LoRA (adapter_config.json, adapter_model.safetensors) and `heads.safetensors`."""
        config = self.adapted.peft_config["default"]
        config.alora_invocation_tokens = self.reader.invocation
        config.base_model_name_or_path = self.reader.trunk.base_model
        self.adapted.save_pretrained(str(folder))
        config.alora_invocation_tokens = None
        tensors = {name: value.cpu().contiguous() for name, value in self.heads.state_dict().items()}
        save_file(tensors, Path(folder) / "heads.safetensors")

    def load(self, folder: str | Path) -> "TokenRewardModel":
        """Fill adapter and heads with what `save` wrote; a missing, damaged or alien file is an `InputError`."""
        folder, fix, own = Path(folder), "train the token reward again (A1)", get_peft_model_state_dict(self.adapted)
        set_peft_model_state_dict(self.adapted, read_tensors(folder / "adapter_model.safetensors", own, fix))
        self.heads.load_state_dict(read_tensors(folder / "heads.safetensors", self.heads.state_dict(), fix))
        return self


class TokenRewardFunction:
    """A reward function for `GRPOTrainer`: each answer's posterior mean minus `k` standard deviations.

    Logs `belief/mean`, the reward without the guard, and `belief/sd`, the mean standard deviation of a token.
    """

    def __init__(self, model: TokenRewardModel, k: float = 0.0, readout: str | None = None, name: str = ""):
        """`readout`: another one than the model was trained with. `name`: which fit it is, for the fingerprint that a
        resumed run compares."""
        self.model, self.k, self.readout, self.__name__ = model, k, readout, "token_reward"
        weights = hashlib.sha256(b"".join(part.detach().cpu().numpy().tobytes() for part in model.parameters()))
        self.fingerprint = f"token_reward {name} {k} {readout} {model.settings.model_dump()} {weights.hexdigest()}"

    def __call__(self, prompts: list, completions: list, **columns) -> list[float]:
        answers = self.model.reader.answers(prompts, completions, allow_empty=True)  # a policy may say nothing
        rewards, means, sds = self.model.summary(answers, self.k, self.readout)
        if columns.get("log_metric") is not None:
            columns["log_metric"]("belief/mean", means.mean().item())
            columns["log_metric"]("belief/sd", sds.mean().item())
        return rewards.tolist()
