"""Tiny random models of the supported architectures, with weights large enough that nothing is close to zero."""

from __future__ import annotations

import torch

#: name → class of the model, class of its configuration, and what differs from the common sizes
KINDS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {}),
    "mistral, sliding": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 3}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"head_dim": 16}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 8,
            "sliding_window": 3,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {"head_dim": 12, "query_pre_attn_scalar": 8, "sliding_window": 3, "sliding_window_pattern": 2},
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {"sliding_window": 4}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
    "gpt-neox, sequential": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {"use_parallel_residual": False}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20},
    ),
}
#: those whose query heads all have keys and values of their own
MULTI_HEAD = ("gpt2", "gpt-neox", "gpt-neox, sequential")


def tiny(architecture: str, dtype=torch.float64, layers=3, kv_heads=2, seed=0, **options):
    """A random causal LM of 4 query heads; `architecture` is one of `KINDS`."""
    import transformers

    model, configuration, differs = KINDS[architecture]
    sizes = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=61,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    if architecture in MULTI_HEAD:
        del sizes["num_key_value_heads"]
    torch.manual_seed(seed)
    config = getattr(transformers, configuration)(**{**sizes, **differs, **options})
    hf = getattr(transformers, model)(config).eval()
    with torch.no_grad():
        for key, p in hf.named_parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.15))
    return hf.to(dtype)


class OneCentred(torch.nn.Module):
    """Gemma's norm, x / rms(x) · (1 + weight), in the dtype of its input."""

    def __init__(self, weight, eps):
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * (1 + self.weight)


def in_float64(hf):
    """Replace what computes in float32 inside, so that float64 oracles can be met to float64.

    RMS norms, the softmax of "eager" attention, and the routers of mixtures of experts. Rotary angles stay in float32.
    """
    for parent in list(hf.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "variance_epsilon"):
                norm = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
            elif type(child).__name__ in ("Gemma2RMSNorm", "Gemma3RMSNorm"):
                setattr(parent, name, OneCentred(child.weight, child.eps))
            elif type(child).__name__.endswith("TopKRouter"):
                child.forward = _router(child)
    if hasattr(hf.config, "num_experts_per_tok"):
        hf.set_experts_implementation("eager")  # the default kernel takes no float64
    if hf.config._attn_implementation == "eager":
        _register()
        hf.config._attn_implementation = "float64"
    return hf


def _router(module):
    def forward(x):
        logits = torch.nn.functional.linear(x.reshape(-1, module.hidden_dim), module.weight)
        scores, chosen = torch.softmax(logits, -1).topk(module.top_k, -1)
        if getattr(module, "norm_topk_prob", True):
            scores = scores / scores.sum(-1, keepdim=True)
        return logits, scores, chosen

    return forward


def _register():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def attention(module, query, key, value, attention_mask, scaling, softcap=None, **_kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = query @ key.transpose(2, 3) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        pattern = torch.softmax(scores + attention_mask, -1)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    AttentionInterface.register("float64", attention)
    AttentionMaskInterface.register("float64", eager_mask)


#: models that do not fit, or not at every level
REFUSED = {
    "gpt-j": ("GPTJForCausalLM", "GPTJConfig", {"rotary_dim": 4}),
    "bloom": ("BloomForCausalLM", "BloomConfig", {}),
    "granite, scaled branches": ("GraniteForCausalLM", "GraniteConfig", {"residual_multiplier": 0.5}),
    "gemma3, bidirectional": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"head_dim": 8, "use_bidirectional_attention": True}),
    "mamba": ("MambaForCausalLM", "MambaConfig", {}),
    "gemma2, attention bias": ("Gemma2ForCausalLM", "Gemma2Config", {"head_dim": 8, "attention_bias": True}),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", {}),
}


def refused(kind: str, **options):
    """A random model of `REFUSED`."""
    import transformers

    model, configuration, differs = REFUSED[kind]
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=61)
    torch.manual_seed(0)
    config = getattr(transformers, configuration)(**sizes, pad_token_id=0, bos_token_id=2, eos_token_id=1, **{**differs, **options})
    return getattr(transformers, model)(config).eval()
