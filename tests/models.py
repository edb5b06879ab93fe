"""Tiny random models of the supported architectures, with weights large enough that nothing is close to zero."""

from __future__ import annotations

import torch


def tiny(architecture: str, dtype=torch.float64, layers=3, kv_heads=2, seed=0, **options):
    """A random causal LM of 4 query heads; `architecture` is "llama", "mistral" or "qwen2"."""
    import transformers

    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2"}[architecture]
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
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**sizes, **options})
    hf = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, p in hf.named_parameters():
            p.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.15))
    return hf.to(dtype)


def in_float64(hf):
    """Replace norms that compute in float32 inside by PyTorch's own, so that float64 oracles can be met to float64."""
    for parent in list(hf.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "variance_epsilon"):
                norm = torch.nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return hf
