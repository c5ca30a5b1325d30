"""What the study of cost is told (A5): whose weights, which texts, how many rounds, and the goals."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from srmir_lib.settings.base import Device, NotebookSettings, Settings, told
from srmir_lib.settings.reward_models import IN_THE_LAB
from srmir_lib.settings.reward_training import RewardSettings, SizedProbe, names_the_category

Count = Annotated[int, Field(gt=0)]


class Shape(Settings):
    """A decoder with gated feed-forward layers (Llama, Qwen), by its numbers."""

    hidden: int = told("hidden size", gt=0)
    layers: int = told("how many", gt=0)
    heads: int = told("of the attention", gt=0)
    kv_heads: int = told("key-value heads, each shared by heads / kv_heads", gt=0)
    intermediate: int = told("feed-forward size", gt=0)
    vocab: int = told("tokens it knows", gt=0)

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(in, out) of one layer's matrices: q, k, v, o, gate, up, down."""
        kv, d, i = self.hidden // self.heads * self.kv_heads, self.hidden, self.intermediate
        return [(d, d), (d, kv), (d, kv), (d, d), (d, i), (d, i), (i, d)]

    @model_validator(mode="after")
    def _divides(self):
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads: {self.heads} must divide hidden = {self.hidden}, and kv_heads = {self.kv_heads} it"
            )
        return self


class Texts(Settings):
    """What is scored: groups of completions to one prompt."""

    prompt: int = told("P, tokens of a prompt", 128, gt=0)
    completion: int = told("C, tokens of a completion", 256, gt=0)
    shortest: int = told("tokens of the shortest completion where lengths are mixed", 32, gt=0)
    group: int = told("G, completions to one prompt; GRPO needs two", 8, ge=2)
    prompts: int = told("groups that are scored in one call", 1, gt=0)

    @model_validator(mode="after")
    def _mixes(self):
        if self.shortest > self.completion:
            raise ValueError(f"shortest: {self.shortest} is longer than completion = {self.completion}; lower it")
        return self


class Race(Settings):
    """How often all sides take their turn."""

    repeats: int = told("rounds of every race but that of the scores", 7, gt=0)
    scoring_repeats: int = told("rounds of that race, whose ratios lie near their goals", 15, gt=0)
    monitor_every: int = told("steps between two looks at the six idle models", 5, gt=0)
    annotated: int = told("validation pairs whose Legend margins are timed", 96, gt=0)
    ensemble: int = told("reward models whose mean gap would be a margin as well", 5, gt=0)


class Memory(Settings):
    """What is weighed."""

    ours: list[Count] = told("texts scored at once: few and many", [64, 512], min_length=2, max_length=2)
    peer: list[Count] = told(
        "the same by one classifier, which takes more memory", [16, 128], min_length=2, max_length=2
    )
    runs: int = told("processes for each number of texts: the heap of one is never that of the next", 5, gt=0)


class Growth(Settings):
    """The curves, and the lengths of the base model's own race."""

    models: list[Count] = told("values of K", [1, 4, 7, 14, 28], min_length=1)
    completion: list[Count] = told("values of C", [32, 64, 128, 256, 512], min_length=1)
    group: list[Count] = told("values of G", [1, 2, 4, 8, 16], min_length=1)
    lengths: list[Count] = told("values of T on the base model itself, beside the median of the pairs' texts", [1024])


class CostTraining(Settings):
    """How reward models are trained, with either design."""

    shared_budgets: list[Count] = told("updates a shared set is trained with; none: no training", [60, 120, 240])
    separate_budgets: list[Count] = told("the same for seven LoRA models", [60, 120, 240])
    tolerance: float = told(
        "a budget is enough when its validation accuracy is this near to the lower of the two designs' best",
        0.005,
        ge=0,
    )
    batch_size: int = told("preference pairs of an update, as in 02", 8, gt=0)
    learning_rate: float = told("of a shared set", 6.0e-3, gt=0)
    separate_learning_rate: float = told("of seven LoRA models", 4.0e-3, gt=0)
    max_length: int = told("tokens of the longest training text", 192, gt=0)
    unknown_ratio: float = told("pairs of no category, per pair of a model's own", 0.5, ge=0)


class Goals(Settings):
    """What we want to reach: at least where a name says `_vs_`, at most elsewhere."""

    linear_vs_seven: float = told("scoring with all, against TRL's list of seven: times faster", 6.0, gt=0)
    linear_vs_tuned: float = told("the same against the tuned list", 5.0, gt=0)
    routed_vs_seven: float = told("scoring with one a text, against TRL's list", 8.0, gt=0)
    categorized_over_linear: float = told("routed and looking at all, over all: times the cost", 1.05, gt=0)
    scores_over_forward: float = told("all on the base model, over its forward, in units of 1 + K m / T", 1.15, gt=0)
    single_over_one: float = told("all without a shared prompt, over one classifier", 1.3, gt=0)
    rm_training_vs_seven: float = told("training the reward models: times faster", 3.0, gt=0)
    annotation_vs_reference_loop: float = told("Legend's margins: times faster", 2.0, gt=0)
    weights_ratio: float = told("weights of all, over those of one classifier", 1.15, gt=0)
    grpo_step_vs_seven: float = told("a GRPO step without its sampling: times faster", 1.6, gt=0)
    peak_growth: float = told("peak memory of eight times as many texts", 1.05, gt=0)
    score_error_max: float = told("largest difference to PEFT's scores", 1.0e-5, ge=0)
    rank_flips: float = told("pairs of texts in another order than PEFT's", 0.0, ge=0)


ASKED = SizedProbe(**IN_THE_LAB, rank=4, alpha=8)


class CostSettings(NotebookSettings):
    """Notebook A5."""

    base_model: str = told("whose tokenizer writes the texts; trained models and a race stand on it; empty: 01's")
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    dtype: Literal["float32", "bfloat16"] = told("of the random models")
    shape: str = told("which of `shapes` is measured")
    shapes: dict[str, Shape] = told("decoders whose weights are counted")
    num_models: int = told("K, reward models", gt=0)
    batch_tokens: int = told("tokens in one forward pass, ours and the tuned peer's", gt=0)
    texts: Texts = told("what is scored", Texts())
    probe: SizedProbe = told("what is asked, as in 02; the rank is the policy's too", ASKED)
    race: Race = told("how often all take their turn", Race())
    memory: Memory = told("what is weighed", Memory())
    grow: Growth = told("the curves, and other lengths", Growth())
    training: CostTraining = told("how reward models are trained", CostTraining())
    goals: Goals = told("what we want to reach", Goals())

    @model_validator(mode="after")
    def _trains_both(self):
        if bool(self.training.shared_budgets) != bool(self.training.separate_budgets):
            raise ValueError("training: one design has budgets and the other none; give both some, or neither")
        return self

    @model_validator(mode="after")
    def _has_shape(self):
        names_the_category(self.probe)
        if self.shape not in self.shapes:
            raise ValueError(f"shape: {self.shape!r} is none of shapes, which has {', '.join(self.shapes) or 'none'}")
        return self

    def plans(self) -> dict[str, tuple[RewardSettings, list[int]]]:
        """All that training is told but for its updates, and these, by design."""
        size = {"lora_rank": self.probe.rank, "lora_alpha": self.probe.alpha}
        shared = RewardSettings.of(self.training, max_steps=0, probe=self.probe, **size)
        separate = shared.changed(learning_rate=self.training.separate_learning_rate)
        return {
            "shared": (shared, self.training.shared_budgets),
            "separate": (separate, self.training.separate_budgets),
        }
