"""Probes: K introspective questions to one frozen trunk, each with an adapter and a head of its own.

After a text that the trunk has read, m probe tokens spell a question about one category. A LoRA adapter is active on
these tokens only, so the trunk's key-value states stay valid for all K (Activated LoRA, Greenewald et al. 2025,
arXiv 2504.12397); a linear head on the last probe token gives the score. An adapter is stored as PEFT's own
Activated LoRA folder, and PEFT's forward over the concatenated text gives the same score (a test compares them). What
is ours is the execution: all K questions lie side by side in one forward pass that reads the states once, and one
backward pass trains all of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from srmir_lib.errors import InputError
from srmir_lib.models.batching import padded
from srmir_lib.models.kinds import instead_of_shared
from srmir_lib.models.kv_cache import PrefilledKV, as_cache
from srmir_lib.models.loading import read_tensors
from srmir_lib.models.trunk import Trunk
from srmir_lib.settings.reward_training import Probe, SizedProbe
from srmir_lib.taxonomy import ALL, full_name


def probe_questions(tokenizer, settings: Probe, categories: Sequence[str]) -> list[list[int]]:
    """Token ids of the question about every category, whole.

    A question that is longer than `settings.tokens`, a tokenizer that does not give it back, and a question of several
    models without {category} are `InputError`s.
    """
    if "{category}" not in settings.text and len(categories) > 1:
        raise InputError(f"probe text: {settings.text!r} must contain {{category}}")
    rows, count = [], settings.tokens
    for category in categories:
        name = settings.names.get(category) or full_name(category).lower()
        question = settings.text.replace("{category}", name)
        ids = tokenizer(question, add_special_tokens=False)["input_ids"]
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back.strip() != question.strip():
            raise InputError(f"tokenizer: {question!r} comes back as {back!r}; use a tokenizer that keeps every word")
        if count and len(ids) > count:
            raise InputError(
                f"probe: the question about {category} has {len(ids)} tokens, more than its {count}; "
                "raise tokens, or give the category a shorter name"
            )
        rows.append(ids)
    return rows


class Probes(nn.Module):
    """K adapters and heads over one decoder. `probes(trunk, states)` is differentiable in them, not in the trunk."""

    def __init__(self, trunk: Trunk, categories: Sequence[str], settings: SizedProbe, seed: int = 0):
        super().__init__()
        self.categories, self.settings = list(categories), settings
        self.scaling = settings.alpha / settings.rank
        count, size = len(self.categories), trunk.config.hidden_size
        generator = torch.Generator().manual_seed(seed)
        self.heads = nn.Parameter(torch.empty(count, size).normal_(0, size**-0.5, generator=generator))
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()  # LoRA's A (K, r, in) and B (K, out, r), by layer
        for name, layer in trunk.linear.items():
            bound = layer.in_features**-0.5  # PEFT's start: A as a linear layer's weight, B zero
            down = torch.empty(count, settings.rank, layer.in_features).uniform_(-bound, bound, generator=generator)
            self.down[_key(name)] = nn.Parameter(down)
            self.up[_key(name)] = nn.Parameter(torch.zeros(count, layer.out_features, settings.rank))
        questions = probe_questions(trunk.tokenizer, settings, self.categories)
        self.questions = padded(questions, trunk.device, left=True)  # (K, m) each: all end at the same place

    @property
    def width(self) -> int:
        """Tokens of a probe, m: those of the longest question."""
        return self.questions["input_ids"].shape[1]

    def question(self, index: int) -> list[int]:
        """Token ids of the question that a model asks."""
        return self.questions["input_ids"][index][self.questions["attention_mask"][index].bool()].tolist()

    def forward(self, trunk: Trunk, states: PrefilledKV, columns: Tensor | None = None) -> Tensor:
        """Scores (B, K) of B texts by every model or, with `columns` (B,), (B,): each by one model; in float32."""
        asked = slice(None) if columns is None else columns.unsqueeze(1)  # of each row, which models: all, or its own
        table = trunk.decoder.get_input_embeddings()
        known = table(self.questions["input_ids"])
        real, places = (self.questions[name][asked] for name in ("attention_mask", "position_ids"))
        rows, (count, width) = len(states), real.shape[-2:]
        with self._active(trunk, rows, columns):
            output = trunk.decoder(
                inputs_embeds=known[asked].to(table.weight.dtype).expand(rows, -1, -1, -1).flatten(1, 2),
                attention_mask=block_mask(states.mask, real.bool().expand(rows, -1, -1)),
                position_ids=states.lengths.unsqueeze(1) + places.expand(rows, -1, -1).flatten(1),
                past_key_values=as_cache(states),
                use_cache=True,
            )
        last = output.last_hidden_state.unflatten(1, (count, width))[:, :, -1].float()
        if columns is None:
            return torch.einsum("bkh,kh->bk", last, self.heads)
        return (last[:, 0] * self.heads[columns]).sum(dim=1)

    @contextmanager
    def _active(self, trunk: Trunk, rows: int, columns: Tensor | None) -> Iterator[None]:
        """While this lasts, every linear layer of the decoder adds each model's low-rank update to its own tokens, in
        the decoder's precision: `rows` texts by every model or, with `columns`, each by its own."""
        asked, handles = None if columns is None else _in_turn(columns), []

        def of_its_tokens(weights: Tensor, dtype: torch.dtype) -> Tensor:
            """(K, …) as what is asked, one model after another, text by text."""
            weights = weights.to(dtype)
            return weights[asked] if asked is not None else weights.expand(rows, -1, -1, -1).flatten(0, 1)

        for name, layer in trunk.linear.items():
            key = _key(name)

            def add(module, args, output, key=key):
                down, up = (of_its_tokens(part[key], output.dtype) for part in (self.down, self.up))
                x = args[0].to(output.dtype)
                low = x.view(len(down), -1, x.shape[-1]) @ down.mT
                own = output.view(len(down), -1, output.shape[-1])
                own.baddbmm_(low, up.mT, alpha=self.scaling)  # in place: what is `own` is the layer's output

            handles.append(layer.register_forward_hook(add))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _files(self, index: int, prefix: str) -> dict[str, dict[str, Tensor]]:
        """The files of one model: by name of the file, then of the tensor, its part of the parameters."""
        head, adapter = {"score.weight": self.heads[index : index + 1]}, {}
        for key in self.down:
            name = f"base_model.model.{prefix}.{key.replace('/', '.')}"
            adapter[f"{name}.lora_A.weight"] = self.down[key][index]
            adapter[f"{name}.lora_B.weight"] = self.up[key][index]
        return {"head.safetensors": head, "adapter_model.safetensors": adapter}

    @torch.no_grad()
    def save(self, folder: str | Path, prefix: str, base_model: str) -> None:
        """Write one folder per category: PEFT's Activated LoRA (adapter_config.json, adapter_model.safetensors), and
        `head.safetensors`. `prefix`: where the decoder lies in the causal model ("model" in most)."""
        from peft import LoraConfig

        for index, category in enumerate(self.categories):
            where = Path(folder) / category
            where.mkdir(parents=True, exist_ok=True)
            for file, tensors in self._files(index, prefix).items():
                save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, where / file)
            LoraConfig(
                r=self.settings.rank,
                lora_alpha=self.settings.alpha,
                target_modules=sorted({key.rpartition("/")[2] for key in self.down}),
                task_type="CAUSAL_LM",
                inference_mode=True,
                alora_invocation_tokens=self.question(index),
                base_model_name_or_path=base_model,
            ).save_pretrained(where)

    @torch.no_grad()
    def load(self, folder: str | Path, prefix: str) -> None:
        """Fill the adapters and heads from what `save` wrote; a missing, damaged or alien file is an `InputError`."""
        for index, category in enumerate(self.categories):
            for file, tensors in self._files(index, prefix).items():
                read = read_tensors(Path(folder) / category / file, tensors, "train it again (02)")
                for name, value in tensors.items():
                    value.copy_(read[name])


@torch.no_grad()
def check_probes(trunk: Trunk, settings: SizedProbe) -> None:
    """Refuse a trunk on which a question behind a text that was read before gives another state than both read at once.

    Rules tell most such models by their configuration (`Trunk.check`); a few tokens are read both ways to tell the
    rest, of which nobody here knows yet.
    """
    trunk.check()
    probes = Probes(trunk, [ALL], settings.changed(tokens=0, rank=1)).to(trunk.device)
    failed = f"{type(trunk.model).__name__}: a question behind a text is not read as it is"
    question = probes.question(0)
    text = question[:4]
    trunk.check_reach([text], probes.width)
    try:
        ((_, states),) = trunk.prefill([text])
        asked = probes(trunk, states)
        whole = torch.tensor([text + question], device=trunk.device)
        at_once = trunk.decoder(input_ids=whole, use_cache=False).last_hidden_state[:, -1].float()
    except Exception as error:  # whatever this architecture stumbles over
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{failed} ({type(error).__name__}: {reason}); {instead_of_shared(trunk.model)}") from error
    far, size = (asked - at_once @ probes.heads.T).abs().item(), at_once.square().mean().sqrt().item()
    if far > size * (1e-3 if trunk.dtype == "float32" else 0.3):
        raise InputError(f"{failed} without it ({far / size:.0%} apart); {instead_of_shared(trunk.model)}")


def block_mask(mask: Tensor, real: Tensor) -> Tensor:
    """Who sees what: (B, 1, K m, T + K m) bool. Each probe sees the text (`mask`, (B, T)) and its own earlier tokens
    (`real`, (B, K, m), are those that are no padding), never another probe."""
    count, width = real.shape[1:]
    own = torch.block_diag(*[torch.ones(width, width, device=mask.device)] * count).tril().bool()
    own = own & real.flatten(1).unsqueeze(1)
    text = mask.unsqueeze(1).expand(-1, count * width, -1)
    return torch.cat([text, own], dim=-1).unsqueeze(1)


def _in_turn(columns: Tensor) -> Tensor | slice:
    """What takes the weights of each row's model, rows of one model together where they stand so: all of one model
    first, then as many of the next, and so on. A slice copies no weight."""
    first, last = int(columns[0]), int(columns[-1])
    each, rest = divmod(len(columns), max(last - first + 1, 1))
    if last < first or rest:
        return columns
    own = torch.arange(first, last + 1, device=columns.device).repeat_interleave(each)
    return slice(first, last + 1) if torch.equal(columns, own) else columns


def _key(name: str) -> str:
    """A layer's name as a key of `ParameterDict`, which takes no dots."""
    return name.replace(".", "/")
