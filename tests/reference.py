"""An independent oracle: a decoder written out edge by edge in plain PyTorch, float64.

Every destination reads  Σ_s C[s, d] · O_s,  with one coefficient per edge; with all coefficients 1 it is the model.
It shares no code with the package: no hooks, no fused kernels, loops over heads. Differentiating the loss with respect to
the coefficients gives the exact first-order effect of every edge, and setting one to 0 its exact ablation.
"""

from __future__ import annotations

import torch


def rms(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def rotate(x, positions, theta):
    half = x.shape[-1] // 2
    angle = positions[:, None] * theta ** (-torch.arange(half, dtype=torch.float64) / half)[None, :]
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def names(level, layers, heads, kv_heads):
    """Sources and destinations, each with the time at which it writes or reads."""
    sources, destinations = [("input", 0)], []
    for l in range(layers):
        t = 2 * l + 1
        sources += [(f"a{l}.h{h}", t) for h in range(heads)] if level == "head" else [(f"a{l}", t)]
        sources.append((f"m{l}", t + 1))
        if level == "block":
            destinations.append((f"a{l}", t))
        elif level == "qkv":
            destinations += [(f"a{l}<{x}>", t) for x in "qkv"]
        else:
            destinations += [(f"a{l}.h{h}<q>", t) for h in range(heads)]
            destinations += [(f"a{l}.kv{h}<{x}>", t) for x in "kv" for h in range(kv_heads)]
        destinations.append((f"m{l}", t + 1))
    return sources, destinations + [("logits", 2 * layers + 1)]


def loss(hf, prompt, answer, level, coefficients=None, added=None, start=None, kept=None):
    """Mean NLL of `answer` given `prompt` (float64 scalar).

    Args:
        coefficients: ``(source, destination)``, all 1 when None.
        added: E ``(source, destination)`` and fixed directions V, one for each source: destination d reads Σ_s E[s, d] V_s more.
        start: what enters the first layer instead of the embeddings.
        kept: a list that gets every source's output.
    """
    config, weights = hf.config, {k: v.detach().double() for k, v in hf.state_dict().items()}
    layers, heads, eps = config.num_hidden_layers, config.num_attention_heads, config.rms_norm_eps
    kv_heads = config.num_key_value_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // heads
    theta = config.rope_parameters["rope_theta"]
    ids = torch.tensor([*prompt, *answer])
    positions = torch.arange(len(ids), dtype=torch.float64)
    sources, destinations = names(level, layers, heads, kv_heads)
    column = {name: i for i, (name, _) in enumerate(destinations)}
    if coefficients is None:
        coefficients = torch.ones(len(sources), len(destinations), dtype=torch.float64)
    outputs = [weights["model.embed_tokens.weight"][ids] if start is None else start]

    def stream(name):
        read = sum(coefficients[s, column[name]] * o for s, o in enumerate(outputs))
        if added is not None:
            read = read + sum(added[0][s, column[name]] * v for s, v in enumerate(added[1][: len(outputs)]))
        return read

    def reader(l, x, h):
        return {"block": f"a{l}", "qkv": f"a{l}<{x}>", "head": f"a{l}.h{h}<q>" if x == "q" else f"a{l}.kv{h}<{x}>"}[level]

    causal = torch.full((len(ids), len(ids)), -torch.inf, dtype=torch.float64).triu(1)
    for l in range(layers):
        at = f"model.layers.{l}."
        attention = at + "self_attn."

        def project(x, h):
            normed = rms(stream(reader(l, x, h)), weights[at + "input_layernorm.weight"], eps)
            rows = slice(h * d_head, (h + 1) * d_head)
            out = normed @ weights[f"{attention}{x}_proj.weight"][rows].T
            bias = weights.get(f"{attention}{x}_proj.bias")
            return out if bias is None else out + bias[rows]

        keys = [rotate(project("k", h), positions, theta) for h in range(kv_heads)]
        values = [project("v", h) for h in range(kv_heads)]
        heads_out = []
        for h in range(heads):
            group = h // (heads // kv_heads)
            pattern = torch.softmax(rotate(project("q", h), positions, theta) @ keys[group].T / d_head**0.5 + causal, -1)
            w_o = weights[attention + "o_proj.weight"][:, h * d_head : (h + 1) * d_head]
            out = pattern @ values[group] @ w_o.T
            bias = weights.get(attention + "o_proj.bias")
            heads_out.append(out if bias is None else out + bias / heads)
        outputs += heads_out if level == "head" else [sum(heads_out)]
        normed = rms(stream(f"m{l}"), weights[at + "post_attention_layernorm.weight"], eps)
        gate, up, down = (weights[f"{at}mlp.{x}_proj.weight"].T for x in ("gate", "up", "down"))
        outputs.append((torch.nn.functional.silu(normed @ gate) * (normed @ up)) @ down)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    logits = rms(stream("logits"), weights["model.norm.weight"], eps) @ head.T
    logp = torch.log_softmax(logits, -1)
    if kept is not None:
        kept += outputs
    begin = len(prompt)
    return -logp[torch.arange(begin - 1, len(ids) - 1), ids[begin:]].mean()


def exact_scores(hf, prompt, answer, level):
    """− ∂L/∂C of every edge, ``(source, destination)`` float64, NaN where there is no edge."""
    config = hf.config
    sources, destinations = names(level, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
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
    config = hf.config
    sources, destinations = names(level, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    e = torch.zeros(len(sources), len(destinations), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(hf, prompt, answer, level, added=(e, directions), start=start), e)
    edge = torch.tensor([[w < r for _, r in destinations] for _, w in sources])
    return torch.where(edge, -gradient, torch.nan).numpy()
