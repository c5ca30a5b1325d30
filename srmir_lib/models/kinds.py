"""What a model can do, told by its configuration and its tokenizer: no weights, no forward pass.

Every rule takes a model or its configuration and returns why not and what to do instead, in one line, or "" if nothing
stands against it. Who loads a model raises what they say, and `abilities` makes a table of it before hours are spent.
"""

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

ATTENTION = {"full_attention", "sliding_attention"}
"""Kinds of layers that keep a key and a value of every token."""


READ_IN_PARTS = ("gpt_neox",)
"""Types that design shared reads although their configuration has no `num_key_value_heads` (tested)."""


NEITHER = "use design pooled with an encoder, or another causal model (Llama, Mistral, Qwen, Gemma, …)"


def is_causal(model) -> bool:
    """Whether it was saved as a causal language model (by its architecture's name)."""
    config = _config(model)
    looks_ahead = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    return not looks_ahead and any(part in _name(model) for part in ("CausalLM", "LMHead"))  # a BERT, whatever its head


def window_of(model) -> int | None:
    """Tokens that a token sees, itself counted, where a layer sees no more than the last so many; None: all."""
    config = _config(model).get_text_config()
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not window or not getattr(config, "use_sliding_window", True):
        return None
    return window if kinds is None or "sliding_attention" in kinds else None


def language_problem(model) -> str:
    """Why a model says nothing and is not read token by token."""
    if is_causal(model):
        return ""
    config, name, instead = _config(model), _name(model), "use a causal model, or design pooled in 02"
    if config.is_encoder_decoder:
        return f"{name}: an encoder-decoder, which reads a text at once and says another; {instead} with an encoder"
    if config.get_text_config() is not config:
        return f"{name}: reads more than text; use a checkpoint of its language model alone (…ForCausalLM)"
    kind = type(config)
    if "MaskedLM" not in name and kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING:
        return f"{name}: has no language-model head; use the checkpoint that it was made from (…ForCausalLM)"
    seen = "its state of a token has seen what follows, so nothing can be asked or scored token by token"
    return f"{name}: an encoder: {seen}; {instead}"


def shared_problem(model) -> str:
    """Why what a model has read cannot be kept for later tokens, as design shared does."""
    if problem := language_problem(model):
        return problem
    why = _unreadable(model)
    return f"{_name(model)}: {why}, so probes cannot read on behind a text; {instead_of_shared(model)}" if why else ""


def instead_of_shared(model) -> str:
    """What to use where design shared does not serve."""
    return "use design separate" if _has_classifier(model) else NEITHER


def separate_problem(model) -> str:
    """Why there is no classifier on the decoder, as design separate trains it."""
    if problem := language_problem(model):
        return problem
    instead = NEITHER if _unreadable(model) else "use design shared"
    why = "transformers has no sequence classifier of this type"
    return "" if _has_classifier(model) else f"{_name(model)}: {why}; {instead}"


def pooled_problem(model, tokenizer) -> str:
    """Why a model does not read a pair of texts with several outputs, as design pooled does."""
    name = _name(model)
    if _config(model).is_encoder_decoder:
        return f"{name}: an encoder-decoder, which has no state of the whole text; use an encoder"
    if not _has_classifier(model):
        return f"{name}: transformers has no sequence classifier of this type; use an encoder (BERT, ModernBERT, …)"
    if tokenizer.sep_token_id is None:
        return f"{name}: its tokenizer has no separator token, so it cannot read pairs; use an encoder"
    return pad_problem(tokenizer)


def margins_problem(model, tokenizer) -> str:
    """Why no margin can be read off a model's hidden states."""
    if is_causal(model):
        return tokenizer_problem(tokenizer)
    config = _config(model)
    if config.is_encoder_decoder or config.get_text_config() is not config:
        return language_problem(model)
    return pad_problem(tokenizer)


def tokenizer_problem(tokenizer) -> str:
    """Why a causal model's tokenizer cannot write conversations, or several of them side by side."""
    if tokenizer.chat_template is None:
        return "the tokenizer has no chat template; use an instruction-tuned model or add one (chat_template.jinja)"
    return pad_problem(tokenizer)


def pad_problem(tokenizer) -> str:
    """Why a tokenizer cannot pad; an end-of-sequence token serves, for what is padded is masked."""
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        return "the tokenizer has neither pad nor eos token; set pad_token in its tokenizer_config.json"
    return ""


def end_problem(ends) -> str:
    """Why an answer would never end."""
    if ends:
        return ""
    return (
        "nothing ends an answer: neither generation_config.json nor the tokenizer has an eos token, and the chat "
        "template ends a turn with no special token; set eos_token in tokenizer_config.json"
    )


def _config(model):
    return getattr(model, "config", model)


def _name(model) -> str:
    """The architecture that it was saved as."""
    return ", ".join(_config(model).architectures or [type(model).__name__])


def _has_classifier(model) -> bool:
    return type(_config(model)) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def _unreadable(model) -> str:
    """What keeps probes from reading on behind a text that a causal model has read."""
    config = _config(model)
    text, kind = config.get_text_config(), MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    layers = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    if other := set(layers) - ATTENTION:
        return f"has {', '.join(sorted(other))}, which keeps no key and value of every token"
    if not hasattr(text, "num_key_value_heads") and text.model_type not in READ_IN_PARTS:
        return f"{text.model_type} places or stores its tokens in a way of its own"
    if getattr(text, "kv_lora_rank", None):
        return "keeps keys and values of different sizes (latent attention)"
    return "" if kind is None or kind._supports_sdpa else "its attention takes no mask but its own"
