"""Methods that learn from real pairs, each with the settings that are its own: words, encoders, a causal trunk.

Encoders learn the pair objectives of `reward_models.pooled_training`, token rewards on a causal trunk those of
`a1_token_rewards.training`, and on the same trunk either design of reward model those of `RewardSettings`; a counter of
words stands beside all.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from srmir_lib.conversations import assistant_message, plain_text, text_of, user_message
from srmir_lib.data.margins import REFUSALS, annotate, estimate_direction, with_margins
from srmir_lib.errors import InputError
from srmir_lib.evaluation.bag_of_words import fit_text_baseline
from srmir_lib.models.loading import fingerprint, load_trunk, pick_device, resolve_encoder
from srmir_lib.models.trunk import Trunk
from srmir_lib.reward_models.fit import SetRun, fit_sets
from srmir_lib.reward_models.pooled import PairTokenizer, PooledScorer
from srmir_lib.reward_models.pooled_training import fit_pooled
from srmir_lib.reward_models.shadow import ShadowRewardModels
from srmir_lib.settings.appendices import TokenSettings
from srmir_lib.settings.reward_training import EncoderSettings, RewardSettings
from srmir_lib.studies.a1_token_rewards.model import TokenRewardModel
from srmir_lib.studies.a1_token_rewards.reader import Reader
from srmir_lib.studies.a1_token_rewards.training import train_token_rewards
from srmir_lib.studies.a8_real_pairs.pairs import PairData
from srmir_lib.taxonomy import ALL

Score = Callable[[Sequence, Sequence], Sequence[float]]
"""Of prompts and answers (N each), one number an answer: higher is better."""


class Method:
    """A way to learn from pairs: `fit(data, seed)` returns a `Score`; `about`: the settings and weights it uses."""

    def __init__(self, about: dict, fit: Callable[[PairData, int], Score]):
        self.about, self.fit = about, fit


WORDS = "words"
"""The method that only counts words; it stands beside all others."""


TEMPLATE_TOKENS = 64
"""What a chat template may add to a prompt and an answer that are cut."""


def words_method() -> Method:
    """TF-IDF and logistic regression on the difference of two answers, tuned on the validation pairs."""
    return Method({"method": WORDS}, lambda data, seed: fit_text_baseline([], data.train, [], data.validation).score)


def encoder_method(encoder: str, reading: PairTokenizer, settings: EncoderSettings, device: str = "auto") -> Method:
    """One encoder with one output, fine-tuned on the pairs; with objective "margin" it reads Legend's margins first."""
    base = resolve_encoder(encoder)

    def fit(data: PairData, seed: int) -> Score:
        pairs = Dataset.from_list(data.train)
        if settings.objective == "margin":
            trunk, options = load_trunk(base, device), {"pooling": "mean"}
            direction = estimate_direction(*trunk, pairs["prompt"], pairs["rejected"], REFUSALS, **options)
            pairs = with_margins(pairs, annotate(*trunk, pairs, direction, **options), "unit", "clip")
        with tempfile.TemporaryDirectory() as scratch:
            pairs = pairs.add_column("category", [ALL] * len(pairs))
            fit_pooled(base, [], pairs, f"{scratch}/set", [ALL], reading, settings, seed, device, progress=False)
            scorer = PooledScorer(f"{scratch}/set", device)
        return lambda prompts, answers: scorer.score(prompts, answers)[:, 0].numpy()

    about = {"encoder": fingerprint(base), "reading": reading.model_dump(), "settings": settings.model_dump()}
    return Method(about | {"device": pick_device(device).type}, fit)


def token_method(reader: Reader, settings: TokenSettings, prompt_tokens: int, answer_tokens: int) -> Method:
    """Token rewards on the reader's causal trunk; longer prompts keep their last tokens, longer answers their first."""

    def fit(data: PairData, seed: int) -> Score:
        model = TokenRewardModel(reader, settings, seed)
        train_token_rewards(model, reader.pairs(shortened.pairs(data.train)), seed)
        return lambda prompts, answers: model.rewards(reader.answers(*shortened(prompts, answers))).numpy()

    shortened = _Shortened(reader.trunk.tokenizer, prompt_tokens, answer_tokens)
    about = {"trunk": reader.trunk.sha256, "settings": settings.model_dump()}
    about |= {"device": reader.trunk.device.type, "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
    return Method(about, fit)


def reward_model_method(
    trunk: Trunk, design: str, settings: RewardSettings, prompt_tokens: int, answer_tokens: int
) -> Method:
    """One reward model on a trunk: a probe (`shared`) or a LoRA model (`separate`); texts are cut as in
    `token_method`."""
    if design not in ("shared", "separate"):
        raise InputError(f"reward_models: design {design!r} is neither shared nor separate")
    shortened = _Shortened(trunk.tokenizer, prompt_tokens, answer_tokens)

    def fit(data: PairData, seed: int) -> Score:
        cut = Dataset.from_dict(shortened.pairs(data.train) | {"category": ["pairs"] * len(data.train)})
        pairs = cut.select([at for at, row in enumerate(cut) if row["chosen"] != row["rejected"]])  # cut too short
        with tempfile.TemporaryDirectory() as scratch:
            run = SetRun(Path(scratch, "set"), [ALL], settings, design, seed=seed)
            fit_sets({"set": run}, trunk, {"train": pairs}, ["pairs"])
            models = ShadowRewardModels.load(run.folder, trunk)
        return lambda prompts, answers: models.score(*shortened(prompts, answers))[:, 0].numpy()

    idle = {"keep_gb"} | ({"probe"} if design == "separate" else set())  # they change no score
    used = {name: value for name, value in settings.model_dump().items() if name not in idle}
    about = {"trunk": trunk.sha256, "design": design, "settings": used}
    about |= {"device": trunk.device.type, "prompt_tokens": prompt_tokens, "answer_tokens": answer_tokens}
    return Method(about, fit)


def trunk_methods(
    base_model: str,
    objectives: Mapping[str, TokenSettings],
    reward_models: Mapping[str, tuple[str, RewardSettings]],
    prompt_tokens: int,
    answer_tokens: int,
    device: str = "auto",
) -> dict[str, Method]:
    """On one causal trunk a `reward_model_method` for each of `reward_models` (name -> design, settings), a
    `token_method` for each of `objectives`."""
    trunk, cut = Trunk.load(base_model, device), (prompt_tokens, answer_tokens)
    methods = {name: reward_model_method(trunk, *own, *cut) for name, own in reward_models.items()}
    if objectives:
        reader = Reader(trunk, "", max_length=sum(cut) + TEMPLATE_TOKENS)
        methods |= {name: token_method(reader, own, *cut) for name, own in objectives.items()}
    return methods


class _Shortened:
    """Conversations whose prompts keep their last and whose answers keep their first tokens."""

    def __init__(self, tokenizer, prompt_tokens: int, answer_tokens: int):
        if min(prompt_tokens, answer_tokens) < 1:
            raise InputError(f"prompt_tokens, answer_tokens: {prompt_tokens}, {answer_tokens}; both must be at least 1")
        self.tokenizer, self.last, self.first = tokenizer, slice(-prompt_tokens, None), slice(answer_tokens)

    def __call__(self, prompts: Sequence, answers: Sequence) -> tuple[list, list]:
        asked = self._cut(list(map(plain_text, prompts)), self.last)
        said = self._cut(list(map(text_of, answers)), self.first)
        return [user_message(text) for text in asked], [assistant_message(text or ".") for text in said]

    def pairs(self, rows: Sequence[dict]) -> dict[str, list]:
        """Columns prompt, chosen, rejected."""
        columns = {name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")}
        prompts, chosen = self(columns["prompt"], columns["chosen"])
        return {"prompt": prompts, "chosen": chosen, "rejected": self(columns["prompt"], columns["rejected"])[1]}

    def _cut(self, texts: list[str], kept: slice) -> list[str]:
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.decode(row[kept]) for row in ids]
