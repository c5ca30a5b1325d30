"""The reference forward that GRPO's KL needs anyway, read by the reward models as well.

With its adapters off the policy is the reference, and the reference is the trunk of the `shared` design: what it has
read of prompts and answers are the states that the probes ask. torch's hooks around a module's forward hand them over,
so that the trainer stays as it is. Texts are known by their tokens: an answer that the tokenizer would spell otherwise
than the policy did is read again.
"""

from collections.abc import Sequence

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from srmir_lib.models.kv_cache import FillingCache, States
from srmir_lib.models.trunk import room_behind

ENDING = 8
"""A text is known if at most so many of its last tokens are not: a template ends an answer that was cut off."""


def adapters_of(policy) -> list[BaseTunerLayer]:
    """The adapted layers of a PEFT model's decoder."""
    return [module for module in policy.get_base_model().base_model.modules() if isinstance(module, BaseTunerLayer)]


class ReferenceStates:
    """What a policy's base model reads while its adapters are off: kept until the policy itself reads again."""

    def __init__(self, policy, layers: int, keep_gb: float, least: int = 1, room: int = 0):
        """`policy`: a PEFT model of so many `layers`. `keep_gb`: what would take more is not kept. `least`: nor is a
        pass of fewer tokens. `room`: places for so many tokens of probes, behind the texts. `lent` counts the texts
        that were not read again."""
        self.decoder, self.adapters = policy.get_base_model().base_model, adapters_of(policy)
        self.layers, self.keep_bytes, self.least, self.room = layers, keep_gb * 1e9, least, room
        self.hooks = (
            self.decoder.register_forward_pre_hook(self._before, with_kwargs=True),
            self.decoder.register_forward_hook(self._after, with_kwargs=True),
        )
        self.lent, self.filling = 0, None
        self.clear()

    def clear(self) -> None:
        self.passes: list[States] = []
        self.places: dict[tuple[int, ...], tuple[int, int]] = {}  # a text's tokens -> its pass, its row there

    def remove(self) -> None:
        """Listen no longer, and let go what was kept."""
        for hook in self.hooks:
            hook.remove()
        self.clear()

    def find(self, ids: Sequence[Sequence[int]]) -> dict[int, tuple[int, int, int]]:
        """Rows of `ids` that were read, all but a few last tokens: row -> pass, row there, tokens read.

        Where none of them was, what is read here is not what is asked for, and nothing more is kept.
        """
        found = {}
        for row, tokens in enumerate(map(tuple, ids) if self.places else ()):
            for end in range(len(tokens), max(0, len(tokens) - ENDING - 1), -1):
                if (place := self.places.get(tokens[:end])) is not None:
                    found[row] = (*place, end)
                    break
        if self.places and ids and not found:
            self.remove()
        return found

    def _before(self, module, args, kwargs):
        """Give the reference's pass over whole texts a cache of ours to fill."""
        self.filling = None
        if torch.is_grad_enabled() or not all(adapter.disable_adapters for adapter in self.adapters):
            self.clear()  # the policy reads: what the reference has read before is of another step
            return None
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        own = module.training and (module.is_gradient_checkpointing or getattr(module.config, "attention_dropout", 0))
        if own or kwargs.get("past_key_values") is not None or ids is None or not torch.is_tensor(mask):
            return None
        kept = sum(part.nbytes for states in self.passes for part in (*states.keys, *states.values))
        if mask.shape != ids.shape or ids.numel() < self.least or kept + self._bytes(*ids.shape) > self.keep_bytes:
            return None
        self.filling = FillingCache(self.layers, None, None, stop=False, room=room_behind(ids.shape[1], self.room))
        return args, kwargs | {"past_key_values": self.filling, "use_cache": True}

    def _after(self, module, args, kwargs, output) -> None:
        cache, self.filling = self.filling, None
        if cache is None or cache.keys is None or {cache.keys.dtype, cache.values.dtype} != {module.dtype}:
            return  # not ours, not filled, or read in another precision (autocast) than the trunk would
        ids, mask, positions = kwargs["input_ids"], kwargs["attention_mask"].bool(), kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(mask.shape[1], device=mask.device).unsqueeze(0)
        ends = torch.where(mask, positions, -1).amax(dim=1) + 1
        starts = torch.where(mask, positions, ends.max()).amin(dim=1)
        self.passes.append(States([*cache.keys], [*cache.values], mask, ahead=starts))
        whole = (ends - starts == mask.sum(dim=1)).tolist()  # a text with holes was read as if they were tokens
        for row, (tokens, own) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
            if whole[row]:
                text = tuple(token for token, real in zip(tokens, own, strict=True) if real)
                self.places[text] = len(self.passes) - 1, row

    def _bytes(self, rows: int, width: int) -> int:
        config = self.decoder.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        numbers = 2 * self.layers * rows * (width + room_behind(width, self.room)) * config.num_key_value_heads * size
        return numbers * self.decoder.dtype.itemsize
