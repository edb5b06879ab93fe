"""A decoder of two layers whose every number can be checked with a pencil, as a real Hugging Face Llama.

1. Width 2, one head, one hidden unit in each MLP, two tokens. The prompt is the single token 1, the answer the single
   token 0, so attention looks at one position: its weights are 1, and it writes W_O W_V x̂.
2. With x̂ = x / rms(x), the streams are (1, 1), (1, 7), (7, 7), (1, 7), (7, 7); their root mean squares are 1, 5, 7, 5,
   7.
3. An MLP writes  down · relu(gate · x̂) · (up · x̂), a gated unit with relu in place of SiLU, so that it stays
   rational.
4. The unembedding is the identity: the two logits are the two channels of the last x̂, and the clean loss is ln 2.

`llama` builds it; `TRACE` is its prompt and answer. Its scores are known exactly: that of `a0->m1` is −51/175.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlcircuits.attribution import Trace

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Row = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """The weights of one layer, whole numbers all.

    Args:
        attention: W_O W_V, (2, 2): what the attention writes is this times x̂.
        gate: one row, (2,): opens the MLP's unit where gate · x̂ is positive.
        up: one row, (2,): the value that passes.
        down: one column, (2,): where the unit writes to.
    """

    attention: tuple[Row, Row]
    gate: Row
    up: Row
    down: Row


#: one row for each token: token 1 is the prompt
EMBEDDING: tuple[Row, Row] = ((1, -1), (1, 1))
LAYERS = (
    Layer(attention=((0, 0), (0, 6)), gate=(5, 0), up=(5, 0), down=(6, 0)),
    Layer(attention=((-6, 0), (0, 0)), gate=(5, 0), up=(-5, 5), down=(1, 0)),
)
TRACE = Trace("by-hand", prompt=(1,), answer=(0,))
#: inside the norms' root, so that an empty stream gives 0 rather than 0/0
EPSILON = 1e-12


def llama(dtype: Any = None) -> LlamaForCausalLM:
    """The model, in evaluation mode.

    Args:
        dtype: of its weights; float32 when None. Llama's norms compute in float32 in any case.

    Returns:
        A `LlamaForCausalLM` of 2 layers, width 2 and vocabulary 2, for `attribute` and `ablate`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2,
        intermediate_size=1,
        num_hidden_layers=len(LAYERS),
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=2,
        hidden_act="relu",
        rms_norm_eps=EPSILON,
        max_position_embeddings=8,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1 if "norm" in name else 0)  # queries and keys stay 0: with one position they do not matter
        model.model.embed_tokens.weight.copy_(torch.tensor(EMBEDDING))
        model.lm_head.weight.copy_(torch.eye(2))
        for module, layer in zip(model.model.layers, LAYERS, strict=True):
            module.self_attn.v_proj.weight.copy_(torch.eye(2))
            module.self_attn.o_proj.weight.copy_(torch.tensor(layer.attention))
            module.mlp.gate_proj.weight.copy_(torch.tensor([layer.gate]))
            module.mlp.up_proj.weight.copy_(torch.tensor([layer.up]))
            module.mlp.down_proj.weight.copy_(torch.tensor([layer.down]).T)
    return model.to(dtype) if dtype is not None else model
