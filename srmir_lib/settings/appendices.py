"""What the studies of methods are told: token rewards (A1), re-ranking (A2), hardness (A3), and real pairs (A8)."""

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from srmir_lib.errors import InputError
from srmir_lib.settings.base import Device, NotebookSettings, Settings, told
from srmir_lib.settings.data import WHY_REFUSE, Question, data_folder
from srmir_lib.settings.policies import FROM_01, SHOW, DPOSettings, DPOTraining, GRPOSettings, GRPOTraining, Refereed
from srmir_lib.settings.reward_training import (
    EncoderSettings,
    Probe,
    Reading,
    RewardSettings,
    SizedProbe,
    TrunkTraining,
    check_folders,
)
from srmir_lib.taxonomy import CATEGORIES

Objective = Literal["bradley_terry", "ava_d", "ava_p"]
Form = Literal["printed", "stable"]
Readout = Literal["last", "mean", "sum"]
Attention = Literal["none", "printed", "scaled"]
PairSet = Literal["hh-rlhf", "gptfuzz", "diasafety"]
Hardness = Literal["alpha", "inverse", "one", "random", "data", "model"]
Method = Literal["dpo", "rerank", "rerank_pair", "rerank_batch", "rerank_shuffled", "online"]


class TokenObjective(Settings):
    """AVA (Cai et al. 2024), as `papers.ava` has it."""

    form: Form = told("printed as in the paper, or stable: logits, means over tokens, log-sigmoids", "stable")
    alpha: float = told("sharpness of the policy that Q is read from", 1.0, gt=0)
    gamma: float = told("discount; with 1 an answer's rewards add up to Q of its first token", 0.9, ge=0)
    beta: float = told("weight of the likelihoods", 0.1, ge=0)
    lam: float = told("weight of the temporal-difference term (lambda)", 0.01, ge=0)
    attention: Attention = told(
        "weights of the tokens: none, printed (they sum to 1) or scaled (their mean is 1)", "none"
    )


class TokenTraining(Settings):
    """How a token reward is trained, whatever its objective."""

    batch_size: int = told("pairs an update", 8, gt=0)
    learning_rate: float = told("at the first update; falls linearly to zero", 4.0e-3, gt=0)
    lora_rank: int = told("rank of the adapter, the same for every objective", 8, gt=0)
    lora_alpha: int = told("the adapter is scaled by lora_alpha / lora_rank", 16, gt=0)


class TokenSettings(TokenObjective, TokenTraining):
    """All that a token reward is told."""

    objective: Objective = told("ava_d learns from demonstrations, the others from pairs")
    readout: Readout = told("an answer's reward: that of its last token, the mean or the sum over its tokens")
    max_steps: int = told("updates", gt=0)


class BothObjectives(TokenObjective):
    """AVA-p, and where AVA-d differs from it."""

    beta_d: float = told("AVA-d: weight of the likelihood; 1 as in AVRIL's code", 1.0, ge=0)
    lam_d: float = told("AVA-d: weight of the temporal-difference term; 1 as in AVRIL's code", 1.0, ge=0)


class Variant(Settings):
    """Another AVA-p."""

    form: Form = told("of the objective")
    readout: Readout = told("of an answer's reward")
    attention: Attention = told("weights of the tokens")


class TokenReading(Settings):
    """What token rewards read."""

    question: Question = told(
        "what the base model is asked to draft before it judges; empty: nothing",
        WHY_REFUSE,
    )
    max_length: int = told("longest conversation in tokens; a longer one is an error", 192, gt=0)


class TokenPolicyTraining(GRPOTraining):
    """How a policy is trained with token rewards."""

    max_steps: int = told("updates of each policy", 9, gt=0)
    guard: float = told("k of the guarded policy's reward, mean - k sd", 2.0, ge=0)
    readout: Readout = told("an answer's reward for the policies; a sum would pay, or fine, for length", "mean")


class TokenRewardSettings(Refereed):
    """Notebook A1."""

    base_model: str = told(FROM_01)
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    show_text: bool = told(SHOW)
    seeds: int = told("fits per objective: seed, seed + 1, …; an interval needs two", ge=2)
    max_steps: int = told("updates of each fit", gt=0)
    readout: Readout = told("an answer's reward: of its last token as in the paper, or over all of them")
    variants: list[Variant] = told("AVA-p otherwise, with the first seed")
    held_out: Literal[*CATEGORIES] = told("category that no fit ever sees")
    max_prompts: int = told("test prompts that the policies answer, drawn with the seed; 0: all", ge=0)
    reading: TokenReading = told("what is read", TokenReading())
    training: TokenTraining = told("how a fit is trained", TokenTraining())
    objective: BothObjectives = told("what AVA maximises", BothObjectives())
    grpo: TokenPolicyTraining = told(
        "how the two policies are trained",
        TokenPolicyTraining(
            num_generations=4, micro_batch=40, learning_rate=4.0e-3, beta=0.05, monitor_every=0, checkpoint_every=0
        ),
    )

    def fits(self) -> dict[str, TokenSettings]:
        """All that each objective is told, by its name."""
        own = {"readout": self.readout, "max_steps": self.max_steps}
        pairs = TokenSettings.of(dict(self.training) | dict(self.objective), objective="ava_p", **own)
        likelihood = {"beta": self.objective.beta_d, "lam": self.objective.lam_d}
        return {
            "bradley_terry": pairs.changed(objective="bradley_terry"),
            "ava_p": pairs,
            "ava_d": pairs.changed(objective="ava_d", **likelihood),
        }

    def tried(self) -> dict[str, TokenSettings]:
        """The same for every variant."""
        pairs = self.fits()["ava_p"]
        return {f"ava_p_{v.form}_{v.readout}_{v.attention}": pairs.changed(**dict(v)) for v in self.variants}

    def policies(self) -> GRPOSettings:
        """All that `train_grpo` is told."""
        return GRPOSettings.of(dict(self.grpo), seed=self.seed, device=self.device)


class ReadoutTraining(Settings):
    """How read-outs of a policy's states learn (Deng et al. 2025)."""

    pooling: Literal["last", "mean"] = told("which states: the last token's, or the mean over an answer's", "last")
    layer: int = told("the one layer that all layers are held against; -1 is the last", -1)
    epochs: int = told("passes over the labelled pairs", 50, gt=0)
    learning_rate: float = told("of Adam", 1.0e-3, gt=0)
    more_epochs: int = told("passes over the present policy's states before each later round; 0: none", 2, ge=0)
    more_learning_rate: float = told("of Adam in those", 1.0e-2, gt=0)


class Pool(Settings):
    """The answers that are ranked again and again, sampled once."""

    prompts: int = told("practice prompts, drawn with the seed", 240, gt=1)
    size: int = told("answers to each", 8, ge=2)
    temperature: float = told("of the sampling, and of the distributions whose KL is told", 1.0, gt=0)
    max_new_tokens: int = told("tokens of an answer at most", 36, gt=0)


class Watching(Settings):
    """What is read to follow a policy over training, and of it at the end, and what is timed."""

    course_pools: int = told("pools of the hypothesis: order and distance of every round are read on these", 60, gt=1)
    cost_pools: int = told("pools of which one costing is", 16, gt=0)
    cost_rounds: int = told("rounds of the race, interleaved; the median is told", 7, gt=0)
    prompts: int = told("test prompts that the policies answer, drawn with the seed; 0: all", 400, ge=0)
    samples: int = told("answers to each validation prompt for says against knows", 4, gt=0)
    question: str = told("what is asked behind each of these, a yes or no question", "is this wrong ?", min_length=1)
    words: list[str] = told("the two answers, yes first", ["yes", "no"], min_length=2, max_length=2)


class RerankingSettings(Refereed):
    """Notebook A2."""

    base_model: str = told(FROM_01)
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    methods: list[Method] = told("what trains a policy each; dpo is the control", min_length=2)
    labels: Literal["referee", "introspection"] = told("who says which answer of a labelled pair is better")
    swapped: float = told("share of the labelled pairs that are reversed", ge=0, lt=1)
    labelled_pairs: int = told("labelled pairs, for read-outs and DPO alike, drawn with the seed", gt=1, le=1000)
    rounds: int = told("how often the pool is ranked again", gt=0)
    max_steps: int = told("updates of each policy, the same number in every round", gt=0)
    batch_size: int = told("pairs in an update", gt=0)
    readouts: ReadoutTraining = told("how read-outs learn", ReadoutTraining())
    pool: Pool = told("what is ranked", Pool())
    watching: Watching = told("what is read beside", Watching())
    training: DPOTraining = told(
        "DPO in every round", DPOTraining(learning_rate=5.0e-4, lr_scheduler="constant", micro_batch=40)
    )

    @model_validator(mode="after")
    def _agrees(self):
        if "dpo" not in self.methods or len({*self.methods}) < len(self.methods):
            raise ValueError(f"methods: {', '.join(self.methods)}; name each once, and dpo, the control, too")
        if not any(name.startswith("rerank") for name in self.methods):
            raise ValueError(f"methods: {', '.join(self.methods)}; none ranks the pool again, add rerank_pair")
        if self.max_steps % self.rounds:
            raise ValueError(f"rounds: {self.rounds} must divide max_steps = {self.max_steps}")
        if self.watching.course_pools > self.pool.prompts or self.watching.cost_pools > self.pool.prompts:
            raise ValueError(f"watching: course_pools and cost_pools are at most pool.prompts = {self.pool.prompts}")
        self.training._divides("batch_size", self.batch_size)
        return self

    def dpo(self) -> DPOSettings:
        """All that `train_dpo` is told in a round."""
        own = {"max_steps": self.max_steps // self.rounds, "batch_size": self.batch_size}
        return DPOSettings.of(dict(self.training), **own, seed=self.seed, device=self.device)


class HardnessSettings(Refereed):
    """Notebook A3."""

    base_model: str = told(FROM_01)
    encoder: str = told("whose states tell sentences apart: folder or hub id of an encoder; empty: the base model's")
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    variants: list[Hardness] = told("what scales the advantage, a policy each; one is the control", min_length=2)
    tau: float = told("squared distance from the mean beyond which a reward gap is an outlier", gt=0)
    max_steps: int = told("updates of each policy", gt=0)
    train_prompts: int = told("demonstrated prompts that all policies train on, drawn with the seed", gt=1)
    max_prompts: int = told("test prompts that the policies answer, drawn with the seed; 0: all", ge=0)
    training: GRPOTraining = told(
        "GRPO, whose advantages come scaled already",
        GRPOTraining(scale_rewards="none", prompts_per_step=10, monitor_every=0, checkpoint_every=0),
    )

    @model_validator(mode="after")
    def _scales_once(self):
        if self.training.scale_rewards != "none":
            scale = self.training.scale_rewards
            raise ValueError(f"training.scale_rewards: {scale} would take the hardness off again; leave it none")
        if "one" not in self.variants or len({*self.variants}) < len(self.variants):
            raise ValueError(f"variants: {', '.join(self.variants)}; name each once, and one, the control, too")
        return self

    def grpo(self) -> GRPOSettings:
        """All that `train_grpo` is told."""
        own = {"max_steps": self.max_steps, "seed": self.seed, "device": self.device}
        return GRPOSettings.of(dict(self.training), **own)


class RealEncoder(Settings):
    """How an encoder learns from real pairs."""

    reading: Reading = told("how a pair becomes tokens", Reading(max_tokens=128, prompt_tokens=48))
    fine_tuning: EncoderSettings = told(
        "how it is trained",
        EncoderSettings(
            epochs=2.0,
            batch_size=16,
            learning_rate=2.0e-4,
            head_learning_rate=1.0e-3,
            mean_weight=0.0,
            averaging=0.9,
        ),
    )


class RealTokens(TokenSettings):
    """How token rewards learn from real pairs."""

    objective: Objective = told("ava_d learns from the better answers, the others from pairs", "bradley_terry")
    readout: Readout = told("an answer's reward: that of its last token, the mean or the sum over its tokens", "mean")
    max_steps: int = told("updates", 150, gt=0)


class RealRewardModel(TrunkTraining):
    """How a reward model of either design learns from real pairs."""

    max_steps: int = told("updates", 150, gt=0)
    learning_rate: float = told("at the first update; falls linearly to zero", 3.0e-3, gt=0)
    center_rewards_coefficient: float = told("pulls the two scores of a pair towards a sum of zero", 0.0, ge=0)
    averaged_fits: int = told("fits in different orders of the pairs whose weights are averaged (WARM)", 1, gt=0)


class RealTrunk(Settings):
    """How a causal trunk is read, and what learns on it."""

    prompt_tokens: int = told("the last so many tokens of a prompt are read", 128, gt=0)
    answer_tokens: int = told("the first so many tokens of an answer are read", 128, gt=0)
    token_rewards: RealTokens = told("a reward for every token", RealTokens())
    reward_model: RealRewardModel = told(
        "one score an answer", RealRewardModel(lora_rank=8, lora_alpha=16, max_length=320, keep_gb=4.0)
    )
    probe: Probe = told("design shared: what is asked", Probe(text="is this harmful : {category} ?"))


class RealPairSettings(NotebookSettings):
    """Notebook A8."""

    data_dir: str = told("folder of the public files; empty: the environment variable SRMIR_DATA")
    base_model: str = told("an encoder (design encoder) or a causal model (design tokens); empty: the one 01 made")
    device: Device = told("auto, cpu, cuda, cuda:1, …")
    trunk_from: Literal["01_data", ""] = told("whose base_model_texts/ the causal model has read; empty: nobody's")
    design: Literal["encoder", "tokens"] = told("one score an answer, or a reward for every token, on a causal trunk")
    sets: list[PairSet] = told("which data", min_length=1)
    seeds: list[int] = told("each draws another split, another start and another order", min_length=2)
    most: dict[PairSet, int] = told("training pairs at most, by data set; not named: all")
    records: str = told("folder of the fits that are done; empty: this notebook's own")
    objectives: dict[str, dict[str, Any]] = told("name -> what differs from encoder.fine_tuning or trunk.token_rewards")
    reward_models: dict[str, dict[str, Any]] = told("design tokens: name -> its design, and what differs")
    show_text: bool = told("print an example of every data set in full; it may offend")
    encoder: RealEncoder = told("design encoder", RealEncoder())
    trunk: RealTrunk = told("design tokens", RealTrunk())

    def look_outside(self, root: Path) -> None:
        data_folder(self.data_dir, root)

    @model_validator(mode="after")
    def _can_be_compared(self):
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds}; give at least two different whole numbers")
        if wrong := [name for name, pairs in self.most.items() if pairs < 0]:
            raise ValueError(f"most: {self.most[wrong[0]]} pairs of {wrong[0]}; give a number above 0, or 0 for all")
        if self.reward_models and self.design == "encoder":
            raise ValueError("reward_models: they need a causal trunk; write design: tokens, or leave them out")
        if not (self.objectives or self.reward_models):
            raise ValueError("objectives: none, and no reward_models; name at least one")
        check_folders("objectives", self.objectives, ("words",))
        check_folders("reward_models", self.reward_models, ("words", *self.objectives))
        if self.design == "encoder":
            self.encoders()
        else:
            self.tokens()
            self.rivals()
        return self

    def encoders(self) -> dict[str, EncoderSettings]:
        """All that `encoder_method` is told of each objective."""
        return self._each(self.encoder.fine_tuning)

    def tokens(self) -> dict[str, TokenSettings]:
        """All that `token_method` is told of each objective."""
        return {name: TokenSettings.of(dict(own)) for name, own in self._each(self.trunk.token_rewards).items()}

    def rivals(self) -> dict[str, tuple[str, RewardSettings]]:
        """The design of each of the reward models, and all that its training is told."""
        found, probe = {}, SizedProbe.of(self.trunk.probe)
        for name, own in self.reward_models.items():
            changes = dict(own)
            if (design := changes.pop("design", "")) not in ("shared", "separate"):
                raise InputError(f"reward_models.{name}: design {design!r} is neither shared nor separate; write one")
            rules = self.trunk.reward_model.changed(f"reward_models.{name}", **changes)
            found[name] = design, RewardSettings.of(rules, probe=probe)
        return found

    def _each(self, plain: Settings) -> dict[str, Any]:
        """`plain` with the changes of each objective."""
        return {name: plain.changed(f"objectives.{name}", **own) for name, own in self.objectives.items()}
