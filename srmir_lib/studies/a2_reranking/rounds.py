"""Train in rounds: rank a fixed pool by the present policy's own states, make pairs of it, train on them, begin again.

Deng et al. 2025 (arXiv 2503.10093: RBRM). Each round is a run of TRL's trainer that goes on from the policy before it,
while the reference stays the start (`train_dpo(reference=)`). Ours: Adam's moments begin anew in a round, for methods
that rank again and for those that do not.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor

from srmir_lib.conversations import assistant_message, text_of
from srmir_lib.errors import InputError
from srmir_lib.lab.referee import LabReferee
from srmir_lib.models.embeddings import embed_layers
from srmir_lib.models.loading import load_policy, load_tokenizer
from srmir_lib.papers.rbrm import ALPHA, best_and_worst, pair_confidence
from srmir_lib.policies.groups import sample_groups
from srmir_lib.policies.training import train_dpo
from srmir_lib.reward_models.readouts import ReadOuts
from srmir_lib.settings.appendices import ReadoutTraining
from srmir_lib.settings.policies import DPOSettings

SIDES = ("chosen", "rejected")


def labelled_by(referee: LabReferee, pairs: Dataset) -> Dataset:
    """The same pairs with the better answer, by the referee, as chosen; pairs it finds equally good are left out."""
    prompts = [text_of(prompt) for prompt in pairs["prompt"]]
    worth = [[v.goodness for v in referee(prompts, [text_of(said) for said in pairs[side]])] for side in SIDES]
    chosen, rejected = (torch.tensor(side) for side in worth)
    apart = (chosen != rejected).nonzero().flatten().tolist()
    if not apart:
        raise InputError(f"labels: the referee finds both answers of all {len(pairs)} pairs equally good; give others")
    return reverse(pairs, (chosen < rejected).tolist()).select(apart)


def swap_labels(pairs: Dataset, share: float, seed: int) -> Dataset:
    """The same pairs, `share` of them (rounded) with their answers exchanged; which ones follows from the `seed`."""
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    wrong = {*order[: round(share * len(pairs))].tolist()}
    return reverse(pairs, [row in wrong for row in range(len(pairs))])


def reverse(pairs: Dataset, swap: Sequence[bool]) -> Dataset:
    """Prompt, chosen and rejected of `pairs`, the answers exchanged where `swap` (N,) says so."""
    sides = [(r, c) if one else (c, r) for c, r, one in zip(pairs["chosen"], pairs["rejected"], swap, strict=True)]
    rows = zip(pairs["prompt"], sides, strict=True)
    return Dataset.from_list([{"prompt": prompt, "chosen": c, "rejected": r} for prompt, (c, r) in rows])


def side_states(policy, tokenizer, pairs: Dataset, layers: Sequence[int], pooling: str) -> tuple[Tensor, Tensor]:
    """States (N, L, H) of the chosen and of the rejected answers of pairs, as `embed_layers` reads them."""
    chosen, rejected = (embed_layers(policy, tokenizer, pairs["prompt"], pairs[s], layers, pooling) for s in SIDES)
    return chosen, rejected


def sample_pool(policy, tokenizer, prompts: Sequence, size: int, **sampling) -> tuple[Dataset, int]:
    """A pool (columns prompt, responses: `size` texts) sampled from a policy, `sampling` as of `generate`; and how many
    prompts are left out, because an answer is empty or all are the same: no pair could be made of these."""
    answers = sample_groups(policy, tokenizer, prompts, size, **sampling)
    rows = [
        {"prompt": prompt, "responses": group}
        for prompt, group in zip(prompts, answers, strict=True)
        if all(text.strip() for text in group) and len({*group}) > 1
    ]
    if not rows:
        raise InputError(
            f"pool: no prompt of {len(prompts)} has {size} answers that can be ranked; sample more of them"
        )
    return Dataset.from_list(rows), len(prompts) - len(rows)


def flat(pool: Dataset) -> tuple[list, list[str]]:
    """Prompts and answers of a pool, P * K each, those of a prompt behind one another."""
    size = len(pool[0]["responses"])
    return [prompt for prompt in pool["prompt"] for _ in range(size)], [
        said for own in pool["responses"] for said in own
    ]


def pool_scores(policy, tokenizer, pool: Dataset, readouts: ReadOuts) -> Tensor:
    """Scores (P, K) of a pool, read off the states of `policy`."""
    return readouts.score(readouts.read(policy, tokenizer, *flat(pool))).view(len(pool), -1)


def ranked_pairs(pool: Dataset, scores: Tensor, trust: str, seed: int) -> Dataset:
    """Pairs, best against worst of each pool by `scores` (P, K), with `score_chosen` and `score_rejected`.

    `trust`: pair adds a column `confidence`, `pair_confidence` of these scores; shuffled adds the same numbers, dealt
    out anew to the pairs; batch and none add nothing (a batch's confidence is the trainer's to find).
    """
    places = [at.tolist() for at in best_and_worst(scores)]
    best, worst = (scores.gather(1, torch.tensor(at).unsqueeze(1)).squeeze(1) for at in places)
    columns = {"prompt": pool["prompt"][:]}
    for side, at, found in zip(SIDES, places, (best, worst), strict=True):
        columns[side] = [assistant_message(own[one]) for own, one in zip(pool["responses"], at, strict=True)]
        columns[f"score_{side}"] = found.tolist()
    if trust in ("pair", "shuffled"):
        sure = pair_confidence(best, worst)
        if trust == "shuffled":
            sure = sure[torch.randperm(len(sure), generator=torch.Generator().manual_seed(seed))]
        columns["confidence"] = sure.tolist()
    return Dataset.from_dict(columns)


@dataclass
class Reranker:
    """`Reranker(…)(number, policy)`: the pairs of a round (from 0), by the states of the adapter in the folder `policy`.

    The read-outs are a copy. Before every round but the first they learn on from the `labelled` pairs, as the present
    policy reads them (`told.more_epochs`; 0: they stay as they were). `trust` as of `ranked_pairs`. `seen`: of each
    round, the mean confidence of its pairs and the share of pools whose best answer is another than a round before.
    """

    base_model: str | Path
    pool: Dataset
    labelled: Dataset
    readouts: ReadOuts
    told: ReadoutTraining
    trust: str
    seed: int
    device: str = "auto"
    seen: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.readouts, self.tokenizer = deepcopy(self.readouts), load_tokenizer(self.base_model)
        self.best = None

    def __call__(self, number: int, policy: str | Path) -> Dataset:
        model = load_policy(self.base_model, self.device, adapter=policy).get_base_model()
        if number and self.told.more_epochs:
            sides = side_states(model, self.tokenizer, self.labelled, self.readouts.layers, self.readouts.pooling)
            self.readouts.learn(*sides, self.told.more_epochs, self.told.more_learning_rate, seed=self.seed + number)
        scores = pool_scores(model, self.tokenizer, self.pool, self.readouts)
        best, worst = best_and_worst(scores)
        sure = pair_confidence(*(scores.gather(1, at.unsqueeze(1)).squeeze(1) for at in (best, worst)))
        changed = 0.0 if self.best is None else (best != self.best).float().mean().item()
        self.seen.append({"round": number + 1, "confidence": sure.mean().item(), "another best": changed})
        self.best = best
        return ranked_pairs(self.pool, scores, self.trust, self.seed + number)


def round_folders(output_dir: Path, rounds: int) -> list[Path]:
    """Where the policies of the rounds lie."""
    return [Path(output_dir) / f"round_{number + 1}" for number in range(rounds)]


def train_in_rounds(
    base_model: str | Path,
    start: str | Path,
    pairs_of: Callable[[int, str | Path], Dataset],
    output_dir: str | Path,
    settings: DPOSettings,
    rounds: int,
    resume: bool = False,
    batch: bool = False,
) -> list[dict]:
    """DPO in rounds of `settings.max_steps` updates, each on the pairs that `pairs_of(number, policy)` makes with the
    policy of the round before; the reference of all is `start`.

    Saves the policies in `round_folders`, and returns one history, its steps counted on. `batch`: one confidence for
    each micro-batch (`train_dpo(alpha=)`), by the columns of scores.
    """
    history, policy = [], start
    for number, folder in enumerate(round_folders(Path(output_dir), rounds)):
        how = {"alpha": ALPHA if batch else None, "reference": start}
        pairs, told = pairs_of(number, policy), settings.changed(seed=settings.seed + number)
        rows = train_dpo(base_model, pairs, folder, told, resume, policy, **how)
        history += [row | {"step": row["step"] + number * settings.max_steps} for row in rows]
        policy = folder
    return history
