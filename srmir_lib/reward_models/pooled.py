"""The `pooled` design: one pretrained encoder with one output per category reads a (prompt, response) pair.

The encoder is a plain `AutoModelForSequenceClassification(num_labels=K)` folder that anyone can load; `config.json`
beside it says which output is which category and how a pair becomes tokens. Higher scores are safer responses.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from srmir_lib.artifacts import as_written, read_json
from srmir_lib.conversations import GAP, for_each, plain_text, text_of, too_long
from srmir_lib.errors import InputError
from srmir_lib.models.batching import BATCH_TOKENS, by_length
from srmir_lib.models.kinds import pooled_problem
from srmir_lib.models.loading import config_of, expecting, pick_device, quiet, read_tokenizer, try_out
from srmir_lib.settings.reward_training import EncoderSettings, Reading


def load_classifier(model: str | Path, num_labels: int | None = None, **options) -> tuple:
    """(encoder with a classification head, tokenizer) by folder or hub id.

    With `num_labels` a head of another size, or none, is replaced by a new one; otherwise the head must be there.
    `options`: other values of its configuration, where it has such.
    """
    head = {} if num_labels is None else {"num_labels": num_labels, "ignore_mismatched_sizes": True}
    config, tokenizer = config_of(model, "encoder"), read_tokenizer(model)
    if problem := pooled_problem(config, tokenizer):
        raise InputError(f"{model}: {problem}")
    with expecting("encoder", model), quiet():
        known = {name: value for name, value in options.items() if hasattr(config, name)}
        classifier = AutoModelForSequenceClassification.from_pretrained(str(model), **head, **known).eval()
        try_out(classifier)
    return classifier, tokenizer


class PairTokenizer(Reading):
    """How a (prompt, response) pair becomes encoder input.

    A prompt longer than `prompt_tokens` keeps its head and tail, and so does a response that does not fit in what is
    left of `max_tokens`.
    """

    def encode(self, tokenizer, prompts: Sequence, responses: Sequence) -> list[dict]:
        """N pairs -> N rows of the encoder's inputs, as lists of integers.

        Prompts are texts or conversations (all turns are read, the last ones kept); responses texts or `[assistant]`.
        """
        if self.max_tokens > tokenizer.model_max_length:
            raise InputError(f"max_tokens: {self.max_tokens}; this encoder reads at most {tokenizer.model_max_length}")
        questions = _cut(tokenizer, for_each(plain_text, prompts), [self.prompt_tokens] * len(prompts))
        limits = [self._left(tokenizer) - len(spans) for spans in _offsets(tokenizer, questions)]
        answers = _cut(tokenizer, for_each(text_of, responses), limits)
        cut = {"truncation": "only_second", "max_length": self.max_tokens}
        encoded = tokenizer(questions, answers, split_special_tokens=True, **cut)
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]

    def _left(self, tokenizer) -> int:
        """Tokens that prompt and response may have together: all but special ones, and one for the gap in each."""
        return self.max_tokens - tokenizer.num_special_tokens_to_add(pair=True) - 2

    def too_long(self, tokenizer, prompts: Sequence, responses: Sequence) -> list[str]:
        """Of each pair what `encode` would cut, or ""."""
        texts = for_each(plain_text, prompts), for_each(text_of, responses)
        sizes = [[len(spans) for spans in _offsets(tokenizer, part)] for part in texts]
        return [
            too_long(asked, self.prompt_tokens, "tokens of the prompt")
            or too_long(asked + said, self._left(tokenizer), "tokens of prompt and response")
            for asked, said in zip(*sizes, strict=True)
        ]


def load_pooled_settings(folder: str | Path) -> tuple[PairTokenizer, EncoderSettings]:
    """What a pooled set in `folder` was trained with, so that another set can be trained alike."""
    config = read_json(Path(folder) / "config.json")
    with as_written(Path(folder) / "config.json", "no settings", "train the set again (02)"):
        return PairTokenizer(**config["reading"]), EncoderSettings(**config["settings"])


def collate(rows: Sequence[dict], tokenizer) -> dict[str, Tensor]:
    """Right-padded encoder inputs (B, T) of encoded pairs."""
    return dict(tokenizer.pad(list(rows), padding_side="right", return_tensors="pt"))


class PooledScorer:
    """Scores of a `pooled` set of reward models, for `ShadowRewardModels`."""

    def __init__(self, folder: str | Path, device: str = "auto"):
        """Read `config.json` and `encoder/` of a `shadow_rms/` folder; what is missing or unfit is an `InputError`."""
        folder, self.device = Path(folder), pick_device(device)
        config = read_json(folder / "config.json")
        with as_written(folder / "config.json", "not a pooled set of reward models", "train the set again (02)"):
            self.categories, self.pair_tokenizer = list(config["categories"]), PairTokenizer(**config["reading"])
        if not (folder / "encoder").is_dir():
            raise InputError(f"{folder}/encoder: no such folder; run 02_shadow_reward_models")
        model, self.tokenizer = load_classifier(folder / "encoder")
        if model.config.num_labels != len(self.categories):
            found = f"{model.config.num_labels} outputs for {len(self.categories)} categories"
            raise InputError(f"{folder}/encoder: {found}; train the set again")
        self.pair_tokenizer.encode(self.tokenizer, ["a"], ["b"])  # refuses what the two cannot read together
        self.model, self.tokens_per_batch = model.to(self.device).eval(), BATCH_TOKENS

    @torch.no_grad()
    def score(self, prompts: Sequence, completions: Sequence, columns: Tensor | None = None) -> Tensor:
        """Raw scores (N, K) or, with `columns`, row i by model `columns[i]`, (N,); float32 on the CPU. A score does not
        depend on what else is in the batch: rows of similar length are read together, as many as `tokens_per_batch`."""
        rows = self.pair_tokenizer.encode(self.tokenizer, prompts, completions) if len(prompts) else []
        scores = torch.zeros(len(rows), len(self.categories))
        for chosen in by_length(range(len(rows)), [len(row["input_ids"]) for row in rows], self.tokens_per_batch):
            inputs = collate([rows[at] for at in chosen], self.tokenizer)
            read = {name: value.to(self.device) for name, value in inputs.items()}
            scores[chosen] = self.model(**read).logits.float().cpu()
        return scores if columns is None else scores[torch.arange(len(scores)), columns]


def _offsets(tokenizer, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Where each token lies in its text, without special tokens and without a limit."""
    with quiet():  # texts longer than the encoder reads are expected here
        spans = tokenizer(list(texts), add_special_tokens=False, truncation=False, return_offsets_mapping=True)
    return spans["offset_mapping"]


def _cut(tokenizer, texts: Sequence[str], limits: Sequence[int]) -> list[str]:
    """Texts of more tokens than their limit lose their middle."""
    out = []
    for text, spans, limit in zip(texts, _offsets(tokenizer, texts), limits, strict=True):
        if len(spans) > limit:
            head, tail = limit - limit // 2, limit // 2
            text = text[: spans[head - 1][1]] + GAP + text[spans[-tail][0] :]
        out.append(text)
    return out
