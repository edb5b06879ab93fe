"""An independent oracle: a decoder written out edge by edge in plain PyTorch, float64.

Every destination reads  Σ_s C[s, d] · O_s,  with one coefficient per edge; with all coefficients 1 it is the model.
It shares no code with the package: no hooks, no fused kernels, loops over heads. Differentiating the loss with respect to
the coefficients gives the exact first-order effect of every edge, and setting one to 0 its exact ablation.
"""

from __future__ import annotations

import torch


def rms(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def layer_norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdim=True)
    return rms(x, weight, eps) + bias


def rotate(x, positions, theta):
    half = x.shape[-1] // 2
    angle = positions[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)[None, :]
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class Decoder:
    """A model's parts as plain functions of float64 tensors; this one is Llama's, Mistral's, Qwen 2's and Qwen 3's."""

    parallel = False
    one = 0.0  # what is added to a norm's weight

    def __init__(self, hf):
        self.config, self.weights = hf.config, {k: v.detach().double() for k, v in hf.state_dict().items()}
        self.layers, self.heads = self.config.num_hidden_layers, self.config.num_attention_heads
        self.kv_heads = getattr(self.config, "num_key_value_heads", self.heads)
        self.d_head = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.heads

    def norm(self, x, name):
        return rms(x, self.one + self.weights[f"{name}.weight"], self.config.rms_norm_eps)

    def at(self, layer):
        return f"model.layers.{layer}."

    def embed(self, ids):
        return self.weights["model.embed_tokens.weight"][ids]

    def before_attention(self, layer, x):
        return self.norm(x, self.at(layer) + "input_layernorm")

    def linear(self, x, name, rows=slice(None)):
        out, bias = x @ self.weights[f"{name}.weight"][rows].T, self.weights.get(f"{name}.bias")
        return out if bias is None else out + bias[rows]

    def project(self, layer, which, head, x):
        rows = slice(head * self.d_head, (head + 1) * self.d_head)
        return self.linear(x, f"{self.at(layer)}self_attn.{which}_proj", rows)

    def normed_heads(self, layer, which, heads):
        """Queries or keys of all heads after the norm that some models have there."""
        name = f"{self.at(layer)}self_attn.{which}_norm"
        return [self.norm(head, name) for head in heads] if f"{name}.weight" in self.weights else heads

    def theta(self, layer):
        return self.config.rope_parameters["rope_theta"]

    def turned(self, layer, x, positions):
        return rotate(x, positions, self.theta(layer))

    def scores(self, layer, q, k):
        return q @ k.T * self.d_head**-0.5

    def window(self, layer):
        return getattr(self.config, "sliding_window", None) or None

    def head_out(self, layer, head, mixed):
        """What a head gives before any norm, with its equal share of the bias."""
        columns = slice(head * self.d_head, (head + 1) * self.d_head)
        out = mixed @ self.weights[self.at(layer) + "self_attn.o_proj.weight"][:, columns].T
        bias = self.weights.get(self.at(layer) + "self_attn.o_proj.bias")
        return out if bias is None else out + bias / self.heads

    def heads_written(self, layer, heads):
        """What each head adds to the stream."""
        return heads

    def before_mlp(self, layer, x):
        return self.norm(x, self.at(layer) + "post_attention_layernorm")

    def act(self, x):
        return torch.nn.functional.silu(x)

    def gated(self, x, at):
        return self.linear(self.act(self.linear(x, at + "gate_proj")) * self.linear(x, at + "up_proj"), at + "down_proj")

    def mlp(self, layer, x):
        return self.gated(x, self.at(layer) + "mlp.")

    def mlp_written(self, layer, x):
        return x

    def logits(self, x):
        return self.norm(x, "model.norm") @ self.weights["lm_head.weight"].T


class Gemma2(Decoder):
    """Norms before and after both branches, weights around 1, capped scores and logits, windows in some layers."""

    one = 1.0

    def embed(self, ids):
        return super().embed(ids) * self.config.hidden_size**0.5

    def scores(self, layer, q, k):
        scores, cap = q @ k.T * self.config.query_pre_attn_scalar**-0.5, getattr(self.config, "attn_logit_softcapping", None)
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def window(self, layer):
        return self.config.sliding_window if self.config.layer_types[layer] == "sliding_attention" else None

    def heads_written(self, layer, heads):
        """The norm scales all heads alike, by their sum's size."""
        total = sum(heads)
        name = self.at(layer) + "post_attention_layernorm"
        size = torch.sqrt((total * total).mean(-1, keepdim=True) + self.config.rms_norm_eps)
        return [(self.one + self.weights[f"{name}.weight"]) * head / size for head in heads]

    def before_mlp(self, layer, x):
        return self.norm(x, self.at(layer) + "pre_feedforward_layernorm")

    def act(self, x):
        return torch.nn.functional.gelu(x, approximate="tanh")

    def mlp_written(self, layer, x):
        return self.norm(x, self.at(layer) + "post_feedforward_layernorm")

    def logits(self, x):
        logits, cap = super().logits(x), self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)


class Gemma3(Gemma2):
    def theta(self, layer):
        return self.config.rope_parameters[self.config.layer_types[layer]]["rope_theta"]


class Olmo2(Gemma2):
    """Norms after the branches only; queries and keys are normed over all heads together."""

    one = 0.0
    embed, scores, act, logits = Decoder.embed, Decoder.scores, Decoder.act, Decoder.logits

    def window(self, layer):
        return None

    def before_attention(self, layer, x):
        return x

    def before_mlp(self, layer, x):
        return x

    def normed_heads(self, layer, which, heads):
        return self.norm(torch.cat(heads, -1), f"{self.at(layer)}self_attn.{which}_norm").split(self.d_head, -1)


class Phi3(Decoder):
    """Queries, keys and values in one matrix, one after the other; gate and up likewise."""

    def project(self, layer, which, head, x):
        first = {"q": 0, "k": self.heads, "v": self.heads + self.kv_heads}[which] + head
        rows = slice(first * self.d_head, (first + 1) * self.d_head)
        return self.linear(x, self.at(layer) + "self_attn.qkv_proj", rows)

    def mlp(self, layer, x):
        gate, up = self.linear(x, self.at(layer) + "mlp.gate_up_proj").chunk(2, -1)
        return self.linear(self.act(gate) * up, self.at(layer) + "mlp.down_proj")


class GPT2(Decoder):
    """LayerNorm, learned positions, matrices stored as (in, out)."""

    def at(self, layer):
        return f"transformer.h.{layer}."

    def norm(self, x, name):
        return layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.config.layer_norm_epsilon)

    def embed(self, ids):
        return self.weights["transformer.wte.weight"][ids] + self.weights["transformer.wpe.weight"][: len(ids)]

    def before_attention(self, layer, x):
        return self.norm(x, self.at(layer) + "ln_1")

    def project(self, layer, which, head, x):
        first = "qkv".index(which) * self.config.hidden_size + head * self.d_head
        columns = slice(first, first + self.d_head)
        name = self.at(layer) + "attn.c_attn"
        return x @ self.weights[f"{name}.weight"][:, columns] + self.weights[f"{name}.bias"][columns]

    def turned(self, layer, x, positions):
        return x

    def head_out(self, layer, head, mixed):
        rows, name = slice(head * self.d_head, (head + 1) * self.d_head), self.at(layer) + "attn.c_proj"
        return mixed @ self.weights[f"{name}.weight"][rows] + self.weights[f"{name}.bias"] / self.heads

    def before_mlp(self, layer, x):
        return self.norm(x, self.at(layer) + "ln_2")

    def mlp(self, layer, x):
        into, out = (self.at(layer) + f"mlp.{name}" for name in ("c_fc", "c_proj"))
        x = torch.nn.functional.gelu(x @ self.weights[f"{into}.weight"] + self.weights[f"{into}.bias"], approximate="tanh")
        return x @ self.weights[f"{out}.weight"] + self.weights[f"{out}.bias"]

    def logits(self, x):
        return self.norm(x, "transformer.ln_f") @ self.weights["lm_head.weight"].T


class NeoX(Decoder):
    """LayerNorm; queries, keys and values of a head beside each other in one matrix; a quarter of a head's channels turned."""

    def __init__(self, hf):
        super().__init__(hf)
        self.parallel = self.config.use_parallel_residual

    def at(self, layer):
        return f"gpt_neox.layers.{layer}."

    def norm(self, x, name):
        return layer_norm(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.config.layer_norm_eps)

    def embed(self, ids):
        return self.weights["gpt_neox.embed_in.weight"][ids]

    def project(self, layer, which, head, x):
        first = (3 * head + "qkv".index(which)) * self.d_head
        return self.linear(x, self.at(layer) + "attention.query_key_value", slice(first, first + self.d_head))

    def turned(self, layer, x, positions):
        turned = int(self.d_head * self.config.rope_parameters["partial_rotary_factor"])
        return torch.cat([rotate(x[:, :turned], positions, self.theta(layer)), x[:, turned:]], -1)

    def head_out(self, layer, head, mixed):
        columns, name = slice(head * self.d_head, (head + 1) * self.d_head), self.at(layer) + "attention.dense"
        return mixed @ self.weights[f"{name}.weight"][:, columns].T + self.weights[f"{name}.bias"] / self.heads

    def mlp(self, layer, x):
        hidden = torch.nn.functional.gelu(self.linear(x, self.at(layer) + "mlp.dense_h_to_4h"))
        return self.linear(hidden, self.at(layer) + "mlp.dense_4h_to_h")

    def logits(self, x):
        return self.norm(x, "gpt_neox.final_layer_norm") @ self.weights["lm_head.weight"].T


class Mixture(Decoder):
    """Every token goes through its two best experts, one token at a time here."""

    def mlp(self, layer, x):
        at = self.at(layer) + "mlp."
        rows = []
        for token, shares in zip(x, torch.softmax(self.linear(x, at + "gate"), -1)):
            best = sorted(range(len(shares)), key=lambda e: -shares[e].item())[: self.config.num_experts_per_tok]
            total = sum(shares[e] for e in best) if getattr(self.config, "norm_topk_prob", True) else 1.0
            out = 0
            for e in best:
                gate, up = (self.weights[at + "experts.gate_up_proj"][e] @ token).chunk(2)
                out = out + shares[e] / total * (self.weights[at + "experts.down_proj"][e] @ (self.act(gate) * up))
            rows.append(out)
        mixed = torch.stack(rows)
        if at + "shared_expert_gate.weight" in self.weights:
            mixed = mixed + torch.sigmoid(self.linear(x, at + "shared_expert_gate")) * self.gated(x, at + "shared_expert.")
        return mixed


DECODERS = {
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
    "olmo2": Olmo2,
    "phi3": Phi3,
    "gpt2": GPT2,
    "gpt_neox": NeoX,
    "mixtral": Mixture,
    "qwen2_moe": Mixture,
}


def decoder(hf):
    return DECODERS.get(hf.config.model_type, Decoder)(hf)


def names(level, layers, heads, kv_heads, parallel=False):
    """Sources and destinations, each with the time at which it writes or reads."""
    sources, destinations = [("input", 0)], []
    for layer in range(layers):
        t = 2 * layer + 1
        sources += [(f"a{layer}.h{h}", t) for h in range(heads)] if level == "head" else [(f"a{layer}", t)]
        sources.append((f"m{layer}", t + 1))
        if level == "block":
            destinations.append((f"a{layer}", t))
        elif level == "qkv":
            destinations += [(f"a{layer}<{x}>", t) for x in "qkv"]
        else:
            destinations += [(f"a{layer}.h{h}<q>", t) for h in range(heads)]
            destinations += [(f"a{layer}.kv{h}<{x}>", t) for x in "kv" for h in range(kv_heads)]
        destinations.append((f"m{layer}", t if parallel else t + 1))
    return sources, destinations + [("logits", 2 * layers + 1)]


def loss(hf, prompt, answer, level, coefficients=None, added=None, start=None, kept=None):
    """Mean NLL of `answer` given `prompt` (float64 scalar).

    Args:
        coefficients: ``(source, destination)``, all 1 when None.
        added: E ``(source, destination)`` and fixed directions V, one for each source: destination d reads Σ_s E[s, d] V_s more.
        start: what enters the first layer instead of the embeddings.
        kept: a list that gets every source's output.
    """
    model = decoder(hf)
    layers, heads, kv_heads = model.layers, model.heads, model.kv_heads
    ids = torch.tensor([*prompt, *answer])
    positions = torch.arange(len(ids), dtype=torch.float64)
    sources, destinations = names(level, layers, heads, kv_heads, model.parallel)
    column = {name: i for i, (name, _) in enumerate(destinations)}
    if coefficients is None:
        coefficients = torch.ones(len(sources), len(destinations), dtype=torch.float64)
    outputs = [model.embed(ids) if start is None else start]

    def stream(name):
        time = destinations[column[name]][1]
        read = sum(coefficients[s, column[name]] * o for s, o in enumerate(outputs) if sources[s][1] < time)
        if added is not None:
            read = read + sum(added[0][s, column[name]] * v for s, v in enumerate(added[1]) if sources[s][1] < time)
        return read

    def reader(layer, x, h):
        return {"block": f"a{layer}", "qkv": f"a{layer}<{x}>", "head": f"a{layer}.h{h}<q>" if x == "q" else f"a{layer}.kv{h}<{x}>"}[level]

    apart = positions[:, None] - positions[None, :]
    for layer in range(layers):
        hidden = apart < 0
        if model.window(layer) is not None:
            hidden = hidden | (apart >= model.window(layer))
        mask = torch.zeros_like(apart).masked_fill(hidden, -torch.inf)

        def project(x, h):
            return model.project(layer, x, h, model.before_attention(layer, stream(reader(layer, x, h))))

        queries = model.normed_heads(layer, "q", [project("q", h) for h in range(heads)])
        keys = model.normed_heads(layer, "k", [project("k", h) for h in range(kv_heads)])
        values = [project("v", h) for h in range(kv_heads)]
        keys = [model.turned(layer, key, positions) for key in keys]
        heads_out = []
        for h in range(heads):
            group = h // (heads // kv_heads)
            pattern = torch.softmax(model.scores(layer, model.turned(layer, queries[h], positions), keys[group]) + mask, -1)
            heads_out.append(model.head_out(layer, h, pattern @ values[group]))
        heads_out = model.heads_written(layer, heads_out)
        outputs += heads_out if level == "head" else [sum(heads_out)]
        outputs.append(model.mlp_written(layer, model.mlp(layer, model.before_mlp(layer, stream(f"m{layer}")))))
    logp = torch.log_softmax(model.logits(stream("logits")), -1)
    if kept is not None:
        kept += outputs
    begin = len(prompt)
    return -logp[torch.arange(begin - 1, len(ids) - 1), ids[begin:]].mean()


def nodes(hf, level):
    """Sources and destinations of a model with their times, see `names`."""
    model = decoder(hf)
    return names(level, model.layers, model.heads, model.kv_heads, model.parallel)


def exact_scores(hf, prompt, answer, level):
    """− ∂L/∂C of every edge, ``(source, destination)`` float64, NaN where there is no edge."""
    sources, destinations = nodes(hf, level)
    c = torch.ones(len(sources), len(destinations), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(hf, prompt, answer, level, c), c)
    edge = torch.tensor([[w < r for _, r in destinations] for _, w in sources])
    return torch.where(edge, -gradient, torch.nan).numpy()


def outputs_of(hf, prompt, answer, level):
    """Every source's output on the trace."""
    kept = []
    loss(hf, prompt, answer, level, kept=kept)
    return [o.detach() for o in kept]


def directional_scores(hf, prompt, answer, level, directions, start=None):
    """− ∂L/∂E of every edge when each destination reads E[s, d] V_s more, ``(source, destination)``, NaN without an edge."""
    sources, destinations = nodes(hf, level)
    e = torch.zeros(len(sources), len(destinations), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(hf, prompt, answer, level, added=(e, directions), start=start), e)
    edge = torch.tensor([[w < r for _, r in destinations] for _, w in sources])
    return torch.where(edge, -gradient, torch.nan).numpy()
