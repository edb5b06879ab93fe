"""Tiny random checkpoints in the published pairs' formats: configuration and tokenizer classes, shards, chat templates, bfloat16.

Their shapes are small and their texts our own; nothing of the published files is copied.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

BEGIN, END, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}User: {{ m['content'] }}\n\n"
    "{% else %}Assistant: {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
THINK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}" + USER + "{{ m['content'] }}"
    "{% else %}" + ASSISTANT + "{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "<think>\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
#: problems in the form of GSM8K, written here
PROBLEMS = [
    ("Ann has 3 boxes with 4 pens each. She gives 2 pens away. How many pens are left?", "3 * 4 = <<3*4=12>>12\n12 - 2 = <<12-2=10>>10\n#### 10"),
    ("A train goes 60 miles an hour for 2 hours. How far does it go?", "60 * 2 = <<60*2=120>>120\n#### 120"),
    ("Tom reads 15 pages a day. How many days does he need for 90 pages?", "90 / 15 = <<90/15=6>>6\n#### 6"),
    ("A shirt costs $25 and a hat $10 less. What do both cost?", "25 - 10 = 15\n25 + 15 = <<25+15=40>>40\n#### 40"),
    ("Of 30 eggs, half are brown and 5 are broken. How many brown ones are there?", "30 / 2 = <<30/2=15>>15\n#### 15"),
    ("Eve saves $125 a month. How much does she save in two years?", "125 * 24 = <<125*24=3000>>3000\n#### 3,000"),
    ("Seven friends share 49 sweets equally. How many does each get?", "49 / 7 = <<49/7=7>>7\n#### 7"),
    ("A jar holds 8 litres. How many jars are filled by 64 litres?", "64 / 8 = <<64/8=8>>8\n#### 8"),
]
#: published pair -> class of the model, of its tokenizer, chat template, kind of tokenizer, special tokens (bos, eos, others)
FORMATS = {
    "deepseek-math": ("llama", "LlamaTokenizerFast", PLAIN, "bytes", (BEGIN, END)),
    "mistral": ("mistral", "LlamaTokenizer", INST, "pieces", ("<s>", "</s>")),
    "distilled-qwen": ("qwen2", "LlamaTokenizerFast", THINK, "bytes", (BEGIN, END, USER, ASSISTANT, "<think>", "</think>")),
    "qwen2.5": ("qwen2", "Qwen2Tokenizer", CHATML, "bytes", (None, "<|im_end|>", "<|endoftext|>", "<|im_start|>")),
}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 1024}


def problems_file(folder: Path) -> Path:
    """The problems as GSM8K's files have them."""
    file = folder / "gsm8k.jsonl"
    rows = [{"question": question, "answer": answer, "idx": i} for i, (question, answer) in enumerate(PROBLEMS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def save(name: str, folder: Path, seed: int = 0, base: Path | None = None, change: float = 0.02) -> Path:
    """Write a checkpoint in the format of a published pair; given a `base`, one whose weights are a little apart from its."""
    import transformers

    kind, tokenizer_class, template, _, _ = FORMATS[name]
    tokens = write_tokenizer(name, folder, tokenizer_class, template)
    torch.manual_seed(seed)
    if base is None:
        config = transformers.AutoConfig.for_model(
            kind,
            **SIZES,
            num_key_value_heads=4 if name == "deepseek-math" else 2,
            vocab_size=len(tokens) + 9,  # padded, as published ones are
            bos_token_id=tokens.get("<s>", tokens.get(BEGIN, tokens.get("<|endoftext|>"))),
            eos_token_id=tokens[FORMATS[name][4][1]],
            tie_word_embeddings=False,
            **({"sliding_window": 512} if name == "mistral" else {}),
        )
        hf = transformers.AutoModelForCausalLM.from_config(config)
    else:
        hf = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
        change = change if base is not None else 0.0
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if base is None else change) * (parameter.ndim > 1))
    write_model(hf.to(torch.bfloat16), folder)
    return folder


def write_model(hf: torch.nn.Module, folder: Path) -> None:
    """In shards, with generation settings made for sampling."""
    hf.generation_config.update(do_sample=True, temperature=0.6, top_p=0.95)
    hf.save_pretrained(folder, max_shard_size="20KB")


def write_tokenizer(name: str, folder: Path, tokenizer_class: str, template: str) -> dict[str, int]:
    """tokenizer.json, tokenizer_config.json and, for Qwen, vocab.json and merges.txt; returns the vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    _, _, _, kind, (bos, eos, *others) = FORMATS[name]
    special = [one for one in (bos, eos, *others) if one is not None]
    inner = _bytes(special, bos) if kind == "bytes" else _pieces(special, bos)
    inner.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": tokenizer_class,
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": "<|endoftext|>" if name == "qwen2.5" else eos,
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        **({"add_bos_token": True, "add_eos_token": False} if bos else {"add_prefix_space": False}),
        **({"unk_token": "<unk>", "legacy": True} if kind == "pieces" else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1))
    if name == "qwen2.5":
        inner.model.save(str(folder))
    return inner.get_vocab()


def _texts() -> list[str]:
    return [text for pair in PROBLEMS for text in pair] + ["Please reason step by step, and put your final answer within \\boxed{}."]


def _bytes(special: list[str], bos: str | None):
    """Byte-level BPE; digits one by one, as these models have them."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}| ?\p{L}+|[^\s\p{L}\p{N}]+|\s+"), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=320, initial_alphabet=sorted(alphabet), show_progress=False))
    inner.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    return _starting_with(inner, bos)


def _pieces(special: list[str], bos: str | None):
    """BPE over pieces with ▁ for a space and bytes for what is unknown, as sentencepiece models are converted."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    first = ["<unk>", *special, *(f"<0x{i:02X}>" for i in range(256))]
    inner.train_from_iterator(_texts(), trainers.BpeTrainer(vocab_size=420, special_tokens=first, show_progress=False))
    data = json.loads(inner.to_str())
    data["added_tokens"] = [one for one in data["added_tokens"] if one["content"] in ("<unk>", *special)]
    inner = Tokenizer.from_str(json.dumps(data))
    inner.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    return _starting_with(inner, bos)


def _starting_with(inner, bos: str | None):
    from tokenizers.processors import TemplateProcessing

    if bos is not None:
        inner.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))])
    return inner
