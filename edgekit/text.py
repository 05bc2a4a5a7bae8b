"""Texts as a model takes them: tokens, by the tokenizer that it was trained with.

BERT's WordPiece is EdgeKit's own, over `vocab.txt` or `tokenizer.json`: a device needs nothing more. Any other
`tokenizer.json` (BPE, Unigram) runs in the `tokenizers` package. The tokenizer's file is part of the bundle.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import msgspec
import numpy as np

from edgekit.errors import UnavailableError, UsageError
from edgekit.tensors import TensorSpec

__all__ = ["ROLES", "Text", "TextStep", "WordPiece", "wordpiece_of"]

#: What a text becomes, and what the model's inputs for it are called unless the step says otherwise.
ROLES = ("input_ids", "attention_mask", "token_type_ids")
#: Longest tokenizer file in bytes of UTF-8: it is a part of the manifest.
LARGEST_FILE = 8 << 20
#: Longest text in tokens.
_LONGEST = 1 << 16
_SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
_LONGEST_WORD = 100


class TextStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="text"):
    """How a text becomes tokens.

    Attributes:
        tokenizer: `tokenizer.json`, or the `vocab.txt` of a BERT, beside the file of the step.
        max_length: Tokens of a text, special ones included: longer ones are cut, shorter ones padded.
        column: The column of a table that holds the texts.
        padding: The side that is padded: `right` or `left`.
        lowercase: With `vocab.txt`: whether the model is uncased (lower case, no accents).
        pad_token: Empty for what the tokenizer says: `[PAD]` of a BERT.
        input_ids: The model's input for the tokens' numbers.
        attention_mask: Its input for 1 where a token is and 0 where padding is; empty for none.
        token_type_ids: Its input for the number of the sentence; empty for none.
        content: The tokenizer's file; read with the step.
    """

    tokenizer: str
    max_length: int
    column: str = "text"
    padding: Literal["right", "left"] = "right"
    lowercase: bool | None = None
    pad_token: str = ""
    input_ids: str | None = None
    attention_mask: str | None = None
    token_type_ids: str | None = None
    content: str = ""


@dataclass(frozen=True)
class Encoded:
    """The tokens of one text with the special ones around it, and the number of the sentence of each."""

    ids: Sequence[int]
    types: Sequence[int]


class Text:
    """The inputs that a text becomes; what cannot fit is refused when it is made.

    Args:
        inputs: What the model takes.
        step: How.

    Attributes:
        specs: Role to the model's input.

    Raises:
        UsageError: An input is missing, of another length or type, or the tokenizer's file is none.
    """

    def __init__(self, inputs: Sequence[TensorSpec], step: TextStep) -> None:
        self.step = step
        if not 3 <= step.max_length <= _LONGEST:
            raise UsageError(
                "preprocess of text: max_length makes no sense",
                got=step.max_length,
                expected=f"3 to {_LONGEST}",
            )
        self.specs = _find_inputs(step, {spec.name: spec for spec in inputs})
        for spec in self.specs.values():
            if np.dtype(spec.dtype if spec.dtype != "bytes" else "O").kind not in "iu":
                raise UsageError(
                    f"input {spec.name!r} cannot take tokens", got=spec.dtype, expected="whole numbers"
                )
            if len(spec.shape) != 2 or spec.shape[1] not in (-1, step.max_length):
                raise UsageError(
                    f"tokens do not fit input {spec.name!r}",
                    got=f"max_length {step.max_length} in preprocess",
                    expected=f"{list(spec.shape)}",
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Inputs of the model that it gives."""
        return tuple(spec.name for spec in self.specs.values())

    def tokens(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the arrays of texts by input name, [N, max_length] in the inputs' types.

        Raises:
            UnavailableError: The tokenizer needs the `tokenizers` package.
        """
        encode, pad = self._tokenizer
        length, left = self.step.max_length, self.step.padding == "left"
        whole = {role: np.zeros((len(texts), length), np.int64) for role in ROLES}
        whole["input_ids"] += pad
        for row, text in enumerate(texts):
            encoded = encode(text)
            n = len(encoded.ids)
            place = slice(length - n, length) if left else slice(0, n)
            whole["input_ids"][row, place] = encoded.ids
            whole["attention_mask"][row, place] = 1
            whole["token_type_ids"][row, place] = encoded.types
        return {spec.name: whole[role].astype(spec.dtype) for role, spec in self.specs.items()}

    @cached_property
    def _tokenizer(self) -> tuple[Callable[[str], Encoded], int]:
        """The function that encodes one text, and the number of the padding token."""
        step = self.step
        words = wordpiece_of(step.content, step.tokenizer, step.lowercase)
        if words is not None:
            pad = words.vocabulary.get(step.pad_token or "[PAD]")
            if pad is None:
                raise UsageError(f"{step.tokenizer} has no token {step.pad_token or '[PAD]'!r}")
            return lambda text: words.encode(text, step.max_length), pad
        return _from_package(step)


def _find_inputs(step: TextStep, inputs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Return the model's input for each role; a role that nobody named is left out where no input is called so."""
    found = {}
    for role in ROLES:
        named = getattr(step, role)
        name = role if named is None else named
        if name in inputs:
            found[role] = inputs[name]
        elif named or role == "input_ids":
            raise UsageError(
                f"the model has no input {name!r} for {role} of the text",
                got=", ".join(inputs),
                hint=f'Name it in --preprocess: {role} = "NAME".',
            )
    return found


def _from_package(step: TextStep) -> tuple[Callable[[str], Encoded], int]:
    try:
        import tokenizers
    except ImportError as error:
        raise UnavailableError(
            f"{step.tokenizer} is no BERT's WordPiece and needs the package tokenizers",
            hint="Run: pip install 'edgekit-deploy[text]'.",
        ) from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(step.content)
    except Exception as error:
        raise UsageError(f"{step.tokenizer} is no tokenizer.json: {error}") from error
    padding = tokenizer.padding or {}
    tokenizer.no_padding()
    tokenizer.enable_truncation(step.max_length)
    pad = tokenizer.token_to_id(step.pad_token) if step.pad_token else padding.get("pad_id")
    if pad is None and not step.pad_token:
        pad = next((i for t in ("[PAD]", "<pad>") if (i := tokenizer.token_to_id(t)) is not None), None)
    if pad is None:
        raise UsageError(
            f"{step.tokenizer} does not say what pads a text",
            hint='Name it in --preprocess: pad_token = "…".',
        )

    def encode(text: str) -> Encoded:
        found = tokenizer.encode(text)
        return Encoded(found.ids, found.type_ids)

    return encode, int(pad)


# WordPiece


@dataclass(frozen=True)
class WordPiece:
    """BERT's tokenizer: clean, split at white space and punctuation, then the longest pieces that the vocabulary has.

    Source: J. Devlin et al., BERT (2018), `tokenization.py` of its release; the same tokens as the `tokenizers`
    package gives for `BertNormalizer`, `BertPreTokenizer` and `WordPiece`.

    Attributes:
        vocabulary: Token to number.
        special: Tokens that are found in the text as they are, before anything else.
        clean: Whether control characters go and every white space becomes a blank.
        chinese: Whether each Chinese character stands alone.
        accents: Whether accents are dropped.
        lowercase: Whether the text becomes lower case.
        unknown: The token of a word that cannot be made of pieces.
        prefix: How a piece inside a word begins.
        longest: A word of more characters is unknown.
        first: The token before a text.
        last: The token after it.
    """

    vocabulary: Mapping[str, int]
    special: tuple[str, ...] = _SPECIAL
    clean: bool = True
    chinese: bool = True
    accents: bool = True
    lowercase: bool = True
    unknown: str = "[UNK]"
    prefix: str = "##"
    longest: int = _LONGEST_WORD
    first: str = "[CLS]"
    last: str = "[SEP]"

    def encode(self, text: str, max_length: int) -> Encoded:
        """Return the tokens of a text, cut so that with the two around it they are no more than `max_length`."""
        ids = [self.vocabulary[token] for token in self.pieces(text)[: max_length - 2]]
        whole = [self.vocabulary[self.first], *ids, self.vocabulary[self.last]]
        return Encoded(whole, [0] * len(whole))

    def pieces(self, text: str) -> list[str]:
        """Return the tokens of a text, without those around it."""
        found: list[str] = []
        for part in self._splitter.split(text):
            if part in self.special:
                found.append(part)
            else:
                found += [piece for word in _words(self._normal(part)) for piece in self._of_word(word)]
        return found

    @cached_property
    def _splitter(self) -> re.Pattern[str]:
        longest_first = sorted(self.special, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if self.special else "(?!)")

    def _normal(self, text: str) -> str:
        if self.clean:
            text = "".join(" " if _is_space(c) else c for c in text if not _is_control(c))
        if self.chinese:
            text = "".join(f" {c} " if _is_chinese(c) else c for c in text)
        if self.accents:
            text = "".join(c for c in unicodedata.normalize("NFD", text) if _category(c) != "Mn")
        # one by one: a sigma at a word's end is no special case here
        return "".join(c.lower() for c in text) if self.lowercase else text

    def _of_word(self, word: str) -> list[str]:
        if len(word) > self.longest:
            return [self.unknown]
        found: list[str] = []
        start = 0
        while start < len(word):
            prefix = self.prefix if start else ""
            piece = next(
                (
                    (end, prefix + word[start:end])
                    for end in range(len(word), start, -1)
                    if prefix + word[start:end] in self.vocabulary
                ),
                None,
            )
            if piece is None:
                return [self.unknown]
            start = piece[0]
            found.append(piece[1])
        return found


#: Marks and punctuation younger than Unicode 8, whose tables the `tokenizers` package has: plain characters to it.
_YOUNGER = (
    "61d 7fd 890-891 898-89f 8ca-8e2 9fd-9fe a76 afa-aff b55 c04 c3c c77 c84 d00 d3b-d3c d81 eba 180f "
    "1885-1886 1abf-1ace 1b7d-1b7e 1df6-1dfb 2e43-2e4f 2e52-2e5d a82c a8c5 a8ff a9bd 10d24-10d27 "
    "10eab-10ead 10f46-10f50 10f55-10f59 10f82-10f89 11070 11073-11074 110c2 110cd 111cf 1123e "
    "1133b 11438-1143f 11442-11444 11446 1144b-1144f 1145a-1145b 1145d-1145e 11660-1166c 116b9 "
    "1182f-11837 11839-1183b 1193b-1193c 1193e 11943-11946 119d4-119d7 119da-119db 119e0 119e2 "
    "11a01-11a0a 11a33-11a38 11a3b-11a47 11a51-11a56 11a59-11a5b 11a8a-11a96 11a98-11a9c 11a9e-11aa2 "
    "11c30-11c36 11c38-11c3d 11c3f 11c41-11c45 11c70-11c71 11c92-11ca7 11caa-11cb0 11cb2-11cb3 "
    "11cb5-11cb6 11d31-11d36 11d3a 11d3c-11d3d 11d3f-11d45 11d47 11d90-11d91 11d95 11d97 11ef3-11ef4 "
    "11ef7-11ef8 11fff 12ff1-12ff2 13430-13438 16e97-16e9a 16f4f 16fe2 16fe4 1cf00-1cf2d 1cf30-1cf46 "
    "1e000-1e006 1e008-1e018 1e01b-1e021 1e023-1e024 1e026-1e02a 1e130-1e136 1e2ae 1e2ec-1e2ef "
    "1e944-1e94a 1e95e-1e95f "
)
#: What Unicode 8 said of characters that have changed since.
_CHANGED = {"\u166d": "Po", "\u1734": "Mn", "\U000111c9": "Po"}


def _younger() -> frozenset[str]:
    ranges = [[int(end, 16) for end in part.split("-")] for part in _YOUNGER.split()]
    return frozenset(chr(code) for ends in ranges for code in range(ends[0], ends[-1] + 1))


_PLAIN = _younger()


@lru_cache(maxsize=1 << 14)
def _category(c: str) -> str:
    """Return a character's category as Unicode 8 has it: the same tokens from every version of Python."""
    return "Lo" if c in _PLAIN else _CHANGED.get(c) or unicodedata.category(c)


def _is_control(c: str) -> bool:
    if c in "\t\n\r":
        return False
    return c in "\0\ufffd" or _category(c) in ("Cc", "Cf", "Co")


def _is_space(c: str) -> bool:
    return c in "\t\n\r" or c.isspace()


def _is_chinese(c: str) -> bool:
    code = ord(c)
    return any(low <= code <= high for low, high in _CHINESE)


_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def _words(text: str) -> list[str]:
    """Return what stands between white space, every punctuation mark as a word of its own."""
    spaced = "".join(f" {c} " if _is_punctuation(c) else " " if c.isspace() else c for c in text)
    return [word for word in spaced.split(" ") if word]


def _is_punctuation(c: str) -> bool:
    code = ord(c)
    ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return ascii_mark or _category(c).startswith("P")


def wordpiece_of(content: str, name: str, lowercase: bool | None = None) -> WordPiece | None:
    """Return the tokenizer of a file; None for a `tokenizer.json` of another kind.

    Args:
        content: The file's text.
        name: Its name: `….json`, or a vocabulary with one token a line.
        lowercase: With a vocabulary: whether the model is uncased.

    Raises:
        UsageError: It is no tokenizer, or `lowercase` is missing or means nothing.
    """
    if name.lower().endswith(".json"):
        if lowercase is not None:
            raise UsageError(f"lowercase means nothing: {name} says so itself", hint="Leave it out.")
        return _from_json(content, name)
    if lowercase is None:
        raise UsageError(
            f"{name} does not say whether the model is uncased",
            hint="Say lowercase = true or false in --preprocess, or give the tokenizer.json.",
        )
    # split at newlines alone: a token may be another line separator of Unicode's
    tokens = content.removesuffix("\n").split("\n")
    vocabulary = {token.removesuffix("\r"): index for index, token in enumerate(tokens)}
    missing = [token for token in _SPECIAL if token not in vocabulary]
    if missing:
        raise UsageError(f"{name} is no vocabulary of a BERT: it has no {missing[0]}")
    return WordPiece(vocabulary, accents=lowercase, lowercase=lowercase)


def _from_json(content: str, name: str) -> WordPiece | None:
    try:
        parts = msgspec.json.decode(content, type=dict[str, Any])
        model, normal, before = (parts[key] or {} for key in ("model", "normalizer", "pre_tokenizer"))
        kinds = model.get("type", "WordPiece"), normal.get("type"), before.get("type")
    except (msgspec.DecodeError, KeyError, AttributeError) as error:
        raise UsageError(f"{name} is no tokenizer.json: {error}") from error
    around = _around(parts.get("post_processor") or {})
    added = parts.get("added_tokens") or []
    plain = all(
        token.get("special") and not (token.get("lstrip") or token.get("rstrip") or token.get("single_word"))
        for token in added
    )
    if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer") or around is None or not plain:
        return None
    lower, accents = bool(normal.get("lowercase")), normal.get("strip_accents")
    return WordPiece(
        vocabulary={**model["vocab"], **{token["content"]: token["id"] for token in added}},
        special=tuple(token["content"] for token in added),
        clean=bool(normal.get("clean_text")),
        chinese=bool(normal.get("handle_chinese_chars")),
        accents=lower if accents is None else bool(accents),
        lowercase=lower,
        unknown=model["unk_token"],
        prefix=model["continuing_subword_prefix"],
        longest=model["max_input_chars_per_word"],
        first=around[0],
        last=around[1],
    )


def _around(processor: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the tokens before and after a text; None where it is not one of each."""
    if processor.get("type") == "BertProcessing":
        return processor["cls"][0], processor["sep"][0]
    single = processor.get("single") if processor.get("type") == "TemplateProcessing" else None
    if not isinstance(single, list) or len(single) != 3 or "Sequence" not in single[1]:
        return None
    if "SpecialToken" not in single[0] or "SpecialToken" not in single[2]:
        return None
    if any(next(iter(part.values())).get("type_id") for part in single):
        return None
    return single[0]["SpecialToken"]["id"], single[2]["SpecialToken"]["id"]
