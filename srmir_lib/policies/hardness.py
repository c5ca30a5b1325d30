r"""DR-IRL's scaled advantages (Cheng & Cao 2025, arXiv 2503.18991, version 3 on) through TRL's public reward function.

TRL subtracts each group's mean from its rewards and, with `scale_rewards` none, divides by nothing. `HardnessReward`
pays advantages: rewards that are normalised within their group and then multiplied by the prompt's $\alpha$. Their mean
is zero, so what the trainer makes of them is they again, $A_i=\alpha\hat A_i$.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import TrainerCallback

from srmir_lib.artifacts import read_json, write_json
from srmir_lib.conversations import text_of
from srmir_lib.errors import InputError
from srmir_lib.models.embeddings import embed
from srmir_lib.models.loading import fingerprint
from srmir_lib.papers.dr_irl import (
    MODES,
    data_hardness,
    kept_gaps,
    model_hardness,
    scale_of,
    scaled_advantages,
    sentence_distance,
    sub_sentences,
)

ALPHA, DATA, MODEL = "alpha/", "hardness_data/", "hardness_model/"
"""Keys in a history, prefixes before the value of the column `difficulty` (without it: `all`): mean of what scaled the
advantages of such prompts, and of both factors."""

PAID, KEPT = "unscaled_reward", "kept_gaps"
"""Keys in a history: the mean reward before it is normalised, and the share of the gaps that are no outliers."""

RUNNING = 0.9
"""What a running mean keeps of itself at an update, as at the origin of the method, DAMA."""

STATE = "hardness.json"


class SentenceEncoder:
    """Texts -> embeddings (N, H): the mean of the last hidden states of a causal model or an encoder, read as `embed`
    reads a prompt. `source`: the id or folder that the model came from."""

    def __init__(self, model, tokenizer, source: str | Path):
        self.model, self.tokenizer, self.fingerprint = model, tokenizer, fingerprint(source)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return embed(self.model, self.tokenizer, texts, pooling="mean")


class HardnessReward(TrainerCallback):
    """`reward` for `train_grpo`, normalised within each group and scaled by the prompt's hardness.

    The prompts need the columns `demonstration` (a text, or `[assistant]`), `category`, and what `reward` reads; by a
    column `difficulty` the hardness is logged. Distances and gaps of a prompt are those of its G completions to its
    demonstration; $\\bar\\delta_j$ and $\\bar g_j$ are running means of the category, before the batch they are
    compared with (a category that is seen first is compared with itself). A killed run goes on with the same means.
    """

    def __init__(self, reward: Callable, encode: Callable, mode: str, tau: float, num_generations: int, seed: int):
        """`encode`: texts -> embeddings (N, H), with a `fingerprint`, as has `reward`; `mode`: one of
        `papers.dr_irl.MODES`; `tau` in squared units of the reward; `seed` of the mode random."""
        if mode not in MODES:
            raise InputError(f"mode: {mode!r} is none of {', '.join(MODES)}")
        self.reward, self.encode, self.mode, self.tau, self.seed = reward, encode, mode, tau, seed
        self.num_generations = num_generations
        self.means: dict[str, list[float]] = {}  # category -> running means of distance and gap
        self.__name__ = f"hardness_{mode}"
        self.fingerprint = f"hardness {mode} {tau} {num_generations} {seed} {encode.fingerprint} {reward.fingerprint}"

    def on_train_begin(self, args, state, control, **kwargs):
        if args.scale_rewards != "none":
            raise InputError(f"scale_rewards: {args.scale_rewards} would take the hardness off again; set it to none")
        if args.num_generations != self.num_generations:
            raise InputError(f"num_generations: {args.num_generations}, but hardness is told {self.num_generations}")
        saved = Path(args.output_dir, f"checkpoint-{state.global_step}", STATE)
        self.means = read_json(saved) if state.global_step else {}

    def on_save(self, args, state, control, **kwargs):
        write_json(Path(args.output_dir, f"checkpoint-{state.global_step}", STATE), self.means)

    def __call__(self, prompts: list, completions: list, **columns) -> list[float]:
        """The scaled advantages of N completions, groups of G behind one another."""
        # in double precision: of answers worth nearly the same, rounding would leave the advantages a mean
        rewards = torch.tensor(self.reward(prompts=prompts, completions=completions, **columns), dtype=torch.float64)
        data, model, kept = self.hardness(prompts, completions, rewards.float(), **columns)
        state = columns.get("trainer_state")
        step = state.global_step if state is not None else 0
        scale = scale_of(self.mode, data, model, torch.Generator().manual_seed(self.seed * 1_000_003 + step))
        if "log_metric" in columns:
            columns["log_metric"](PAID, rewards.mean().item())
            columns["log_metric"](KEPT, kept)
            kinds = columns.get("difficulty", ["all"] * len(prompts))[:: self.num_generations]
            for kind in sorted(set(kinds)):
                rows = [row for row, other in enumerate(kinds) if other == kind]
                for key, values in ((ALPHA, scale), (DATA, data), (MODEL, model)):
                    columns["log_metric"](key + kind, values[rows].mean().item())
        return scaled_advantages(rewards, self.num_generations, scale).tolist()

    def hardness(self, prompts: list, completions: list, rewards: Tensor, **columns) -> tuple[Tensor, Tensor, float]:
        """Data hardness and model hardness of P prompts, (P,) each, and the share of the gaps kept, of N = P * G
        completions and their `rewards` (N,); the running means move on."""
        size = self.num_generations
        if len(prompts) % size:
            raise InputError(f"completions: {len(prompts)} are no groups of {size}; give as many to each prompt")
        if missing := {"demonstration", "category"} - columns.keys():
            raise InputError(f"{self.__name__}: the prompts have no column {', '.join(sorted(missing))}; add it")
        first = {name: column[::size] for name, column in columns.items() if isinstance(column, list)}
        best = self.reward(prompts=prompts[::size], completions=first["demonstration"], **first)
        gaps = torch.tensor(best).float().unsqueeze(1) - rewards.view(-1, size)
        groups = [completions[start : start + size] for start in range(0, len(completions), size)]
        return self._compared(self._distances(first["demonstration"], groups), gaps, first["category"])

    def _compared(self, distances: Tensor, gaps: Tensor, categories: Sequence[str]) -> tuple[Tensor, Tensor, float]:
        """The same of distances and gaps (P, G), category by category."""
        data, model, kept = torch.ones(len(gaps)), torch.ones(len(gaps)), 0
        for name in dict.fromkeys(categories):
            rows = [row for row, other in enumerate(categories) if other == name]
            far, gap = distances[rows].mean(dim=1), gaps[rows].flatten()
            now = [far.mean().item(), gap.mean().item()]
            means = self.means.get(name, now)
            data[rows] = data_hardness(far, means[0])
            model[rows] = model_hardness(gap, means[1], self.tau)
            kept += int(kept_gaps(gap, means[1], self.tau).sum())
            self.means[name] = [RUNNING * old + (1 - RUNNING) * new for old, new in zip(means, now, strict=True)]
        return data, model, kept / gaps.numel()

    def _distances(self, demonstrations: Sequence, groups: Sequence[Sequence]) -> Tensor:
        """Distances (P, G) of completions from their prompt's demonstration."""
        rows = [[best, *group] for best, group in zip(demonstrations, groups, strict=True)]
        said = [[sub_sentences(text_of(text)) for text in row] for row in rows]
        parts = sorted({part for texts in said for own in texts for part in own})
        place = {part: row for row, part in enumerate(parts)}
        embedded = self.encode(parts) if parts else torch.zeros(0, 1)
        states = [[embedded[[place[part] for part in own]] for own in texts] for texts in said]
        return torch.stack([sentence_distance(best, group) for best, *group in states])
