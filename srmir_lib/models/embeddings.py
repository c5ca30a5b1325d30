"""Hidden states of a frozen model as embeddings of text.

One forward per text, no language-model head, no key-value cache, explicit positions: an embedding does not depend on
the padding side, on the amount of padding, or on what else is in the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from srmir_lib.conversations import answer_starts, check_answers, check_lengths, conversation_ids, plain_text, text_of
from srmir_lib.errors import InputError, RowError
from srmir_lib.models.batching import by_length, counted, padded, token_budget
from srmir_lib.models.kv_cache import StopForward
from srmir_lib.models.loading import is_causal


def pool(states: Tensor, mask: Tensor, starts: Sequence[int] | None = None) -> Tensor:
    """States (B, T, H), mask (B, T) -> (B, H): the last token that the mask keeps or, with `starts`, the mean over
    those that it keeps from these places on, in float32."""
    place = torch.arange(mask.shape[1], device=mask.device)
    if starts is None:
        return states[torch.arange(len(states), device=states.device), (mask * place).argmax(dim=1)]
    first = torch.tensor(starts, device=mask.device).unsqueeze(1)
    weights = (mask * (place >= first)).unsqueeze(-1).float()
    return (states.float() * weights).sum(dim=1) / weights.sum(dim=1)


@torch.no_grad()
def embed(
    model,
    tokenizer,
    prompts: Sequence,
    responses: Sequence | None = None,
    layer: int = -1,
    pooling: str = "last",
) -> Tensor:
    """Embeddings (N, H), float32 on the CPU, of prompts or of prompts with their responses; one forward each.

    `layer` counts hidden states: 0 is the token embedding, -1 the last. `pooling` is "last" (Legend, Feng et al. 2024:
    the last token of the chat) or "mean" (over the response's tokens when there are responses, to the end of its turn).
    A causal language model reads the chat template; an encoder reads the last user message, or the pair of all that is
    said before and the response, cut at its longest input. An empty response is an `InputError`.
    """
    check_layer(model, layer, pooling)
    if responses is not None:
        check_answers(responses)
    causal = is_causal(model)
    if causal:
        ids = conversation_ids(tokenizer, prompts, responses)
        check_lengths(ids, longest_text(model))
        starts = [0] * len(ids)
        if responses is not None and pooling == "mean":
            starts = answer_starts(tokenizer, prompts, responses, ids)
    else:
        ids, starts = encoder_ids(tokenizer, prompts, responses, longest_text(model, tokenizer))
    trunk = model.base_model if causal else model
    layers = model.config.get_text_config().num_hidden_layers
    embeddings = torch.zeros(len(ids), model.config.get_text_config().hidden_size)
    batches = by_length(range(len(ids)), [len(row) for row in ids], token_budget(model.device))
    for rows in counted(batches, len(ids), "embeddings"):
        inputs = padded([ids[row] for row in rows], model.device, tokenizer.pad_token_id)
        mask = inputs["attention_mask"]
        if causal:
            inputs["use_cache"] = False
        else:
            inputs.pop("position_ids")  # encoders count positions themselves, and right padding does not shift them
        states = hidden_states(trunk, inputs, layer % (layers + 1), layers)
        means = [starts[row] for row in rows] if pooling == "mean" else None
        pooled = pool(states, mask, means).float().cpu()
        if pooled.shape[1] != embeddings.shape[1]:  # some project their last state to another size
            embeddings = torch.zeros(len(ids), pooled.shape[1])
        embeddings[rows] = pooled
    return checked(embeddings)


@torch.no_grad()
def embed_layers(
    model, tokenizer, prompts: Sequence, responses: Sequence, layers: Sequence[int], pooling: str = "last"
) -> Tensor:
    """Embeddings (N, L, H), float32 on the CPU, of prompts with their responses, at each of L `layers` of a causal
    model, in one forward each; the rest as in `embed`.
    """
    for layer in layers:
        check_layer(model, layer, pooling)
    if len(layers) == 1:  # what lies behind it need not run
        return embed(model, tokenizer, prompts, responses, layers[0], pooling).unsqueeze(1)
    check_answers(responses)
    ids = conversation_ids(tokenizer, prompts, responses)
    check_lengths(ids, longest_text(model))
    starts = answer_starts(tokenizer, prompts, responses, ids) if pooling == "mean" else None
    embeddings = torch.zeros(len(ids), len(layers), model.config.get_text_config().hidden_size)
    batches = by_length(range(len(ids)), [len(row) for row in ids], token_budget(model.device))
    for rows in counted(batches, len(ids), "embeddings"):
        inputs = padded([ids[row] for row in rows], model.device, tokenizer.pad_token_id)
        states = model.base_model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        means = None if starts is None else [starts[row] for row in rows]
        for place, layer in enumerate(layers):
            embeddings[rows, place] = pool(states[layer], inputs["attention_mask"], means).float().cpu()
    return checked(embeddings)


def hidden_states(trunk, inputs: dict, layer: int | None, layers: int) -> Tensor | None:
    """Hidden states (B, T, H) of number `layer`, 0 to `layers`; what lies behind that layer does not run. None if a
    cache among the `inputs` stops the pass once it has what it takes."""
    with ending_before(trunk, layer, layers):
        try:
            return trunk(**inputs).last_hidden_state
        except StopForward as stop:
            return stop.hidden


@contextmanager
def ending_before(trunk, layer: int | None, layers: int) -> Iterator[None]:
    """While this lasts, a forward pass ends before block `layer` of `layers`, with a `StopForward` of its input; a
    `layer` of None or `layers` lets it run to its end."""
    if layer is None or layer == layers:
        yield
        return
    stacks = (part for part in trunk.modules() if isinstance(part, nn.ModuleList))
    block = next(stack for stack in stacks if len(stack) == layers)[layer]

    def stop(module, arguments, options):
        raise StopForward(arguments[0] if arguments else options["hidden_states"])

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def check_layer(model, layer: int, pooling: str) -> None:
    """Refuse a layer that the model does not have, and a pooling that nobody has."""
    layers = model.config.get_text_config().num_hidden_layers
    if not -layers - 1 <= layer <= layers:
        raise InputError(f"layer: {layer} asked for, but this model has hidden states 0 to {layers}")
    if pooling not in ("last", "mean"):
        raise InputError(f"pooling: {pooling!r} is neither last nor mean")


def checked(embeddings: Tensor) -> Tensor:
    """The same (N, H) or (N, L, H), if all are finite."""
    if not embeddings.isfinite().all():
        row = int((~embeddings.isfinite()).flatten(1).any(dim=1).nonzero()[0])
        raise RowError("embedding of {row} is not finite; check the model's weights", row)
    return embeddings


def longest_text(model, tokenizer=None) -> int | None:
    """Tokens of the longest text that a model reads, None without a limit; with an encoder's `tokenizer`, also what
    that allows."""
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    if tokenizer is not None:
        tables = (part for name, part in model.named_modules() if name.endswith("position_embeddings"))
        table = next((part for part in tables if isinstance(part, nn.Embedding)), None)
        padding = getattr(table, "padding_idx", None)
        before = 0 if padding is None else padding + 1  # RoBERTa counts from behind the padding's place
        limits = [limit and limit - before for limit in limits] + [tokenizer.model_max_length]
    return min((limit for limit in limits if limit and limit > 0), default=None)


def encoder_ids(
    tokenizer, prompts: Sequence, responses: Sequence | None, limit: int | None = None
) -> tuple[list[list[int]], list[int]]:
    """Token ids of texts or text pairs, cut at `limit`, and where in each the response starts (0 without responses). A
    special token that a text spells out is read as the letters it is."""
    texts = [text_of(prompt) if responses is None else plain_text(prompt) for prompt in prompts]
    pairs = [text_of(response) for response in responses] if responses is not None else None
    cut = {"truncation": limit is not None, "max_length": limit}
    encoded = tokenizer(texts, pairs, split_special_tokens=True, **cut) if texts else {"input_ids": []}
    ids = encoded["input_ids"]
    if responses is None:
        return ids, [0] * len(ids)
    return ids, [encoded.sequence_ids(row).index(1) for row in range(len(ids))]
