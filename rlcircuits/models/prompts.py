"""What a model is asked: a question put into a template or a chat, with examples before it, as token ids.

1. The instruction is joined to the question, and to that of every example.
2. In a chat, the tokenizer's own template makes the turns: system text, examples as user and assistant, the question.
   Otherwise each example fills the template, its answer after it, with an empty line before the next.
3. The text is encoded with the special tokens that the tokenizer puts before a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError, argument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
_PLACE = "{question}"


@dataclass(frozen=True)
class Prompt:
    """How questions are put to a model.

    Args:
        template: a text with one ``{question}``, or ``"chat"`` for the tokenizer's own chat template.
        system: the system turn of a chat; what the chat template says by itself when empty.
        instruction: follows the question on a line of its own, or holds ``{question}`` where that belongs.
        examples: questions and their answers, asked and answered before.

    Raises:
        InputError: a template or an instruction that is not as expected, or a system text without a chat.
    """

    template: str = _PLACE
    system: str = ""
    instruction: str = ""
    examples: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for name in ("system", "instruction"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{argument(name)} is {getattr(self, name)!r}: expected a text")
        if self.template != CHAT and not (isinstance(self.template, str) and self.template.count(_PLACE) == 1):
            raise InputError(
                f"{argument('prompt')} is {str(self.template)[:200]!r}: expected a template with one '{{question}}', or 'chat'"
            )
        if self.instruction.count(_PLACE) > 1:
            raise InputError(
                f"{argument('instruction')} is {self.instruction[:200]!r}: expected '{{question}}' once, or not at all"
            )
        if self.system and self.template != CHAT:
            raise InputError(
                f"{argument('system')} is the first turn of a chat: expected {argument('prompt', 'chat')}, or the text in the template"
            )

    @property
    def key(self) -> str | dict[str, Any]:
        """What answers depend on: the template alone where there is nothing else."""
        if self == Prompt(self.template):
            return self.template
        return asdict(self) | {"examples": [list(one) for one in self.examples]}

    def text(self, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
        """The whole prompt, without the special tokens that the tokenizer puts before a text.

        Raises:
            InputError: no chat template, or one that does not take these turns.
        """
        asked = [(self._instructed(said), answer) for said, answer in (*self.examples, (question, ""))]
        if self.template == CHAT:
            return self._chat(tokenizer, asked)
        filled = [(self.template.replace(_PLACE, said), answer) for said, answer in asked]
        return "\n\n".join(
            text + (" " if answer and not text[-1:].isspace() else "") + answer for text, answer in filled
        )

    def _instructed(self, question: str) -> str:
        if _PLACE in self.instruction:
            return self.instruction.replace(_PLACE, question)
        return f"{question}\n{self.instruction}" if self.instruction else question

    def _chat(self, tokenizer: PreTrainedTokenizerBase, asked: Sequence[tuple[str, str]]) -> str:
        from jinja2 import TemplateError

        if not tokenizer.chat_template:
            raise InputError(
                f"{argument('prompt')} is 'chat', but the tokenizer has no chat template: give a template with '{{question}}'"
            )
        turns = [("system", self.system)] if self.system else []
        turns += [turn for said, answer in asked for turn in (("user", said), ("assistant", answer)) if turn[1]]
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            made = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except TemplateError as error:
            instead = (
                f"say it in {argument('instruction')}, not in {argument('system')}"
                if self.system
                else "give a template"
            )
            raise InputError(
                f"the tokenizer's chat template refuses these turns ({str(error)[:100]}): {instead}"
            ) from error
        if self.system and self.system.strip() not in made:
            raise InputError(
                f"the tokenizer's chat template leaves {argument('system')} out: say it in {argument('instruction')}"
            )
        return made


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt | str, question: str) -> tuple[int, ...]:
    """Token ids of a prompt.

    The special tokens that the tokenizer puts before a text are there (once: not when the template spells them out);
    those it would put after the text are not, as the model is to go on from there.

    Args:
        prompt: a `Prompt`, or its template alone.

    Raises:
        InputError: as `Prompt`, no chat template, or nothing to encode.
    """
    prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
    text = prompt.text(tokenizer, question)
    ids = plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    if prompt.template != CHAT:
        ids = tokenizer(text)["input_ids"]
        before = next((k for k in range(len(ids) - len(plain) + 1) if ids[k : k + len(plain)] == plain), None)
        if before is not None:
            ids = ids[: before + len(plain)]
            if tokenizer.bos_token_id is not None and plain[:1] == [tokenizer.bos_token_id] == ids[:1]:
                ids = plain
    if not ids:
        raise InputError(
            f"the prompt {prompt.template!r} with the question {question[:40]!r} has no tokens: expected some text"
        )
    return tuple(int(i) for i in ids)


def decode_prompt(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """A prompt as the model reads it, special tokens spelt out."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
