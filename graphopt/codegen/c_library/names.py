"""C identifiers made of the names of models and tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

from graphopt.errors import OptionError

# Of C99 and C++20, because the header is read by both.
_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char8_t char16_t
    char32_t class compl concept const consteval constexpr constinit const_cast continue co_await
    co_return co_yield decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
    nullptr operator or or_eq private protected public register reinterpret_cast requires restrict
    return short signed sizeof static static_assert static_cast struct switch template this
    thread_local throw true try typedef typeid typename typeof union unsigned using virtual void
    volatile wchar_t while xor xor_eq
    """,
    )
)

# With _init, _free or _run behind them these are functions of libc.
_TAKEN = re.compile(r"sem|obstack|pthread.*|posix.*")


def identifier(text: str) -> str:
    """A C identifier like `text`: no keyword, and none of the reserved ones."""
    word = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")
    if not word or word[0].isdigit():
        word = f"t{word}"
    return f"{word}_" if word in _KEYWORDS else word


def identifiers(texts: Iterable[str], suffixes: Iterable[str] = ()) -> list[str]:
    """One identifier for each text, distinct even in capitals, which macros are written in.

    Args:
        suffixes: macros end in these too, which no other identifier may look like.
    """
    endings = ["", *suffixes]
    found: list[str] = []
    taken: set[str] = set()
    for text in texts:
        word = base = identifier(text)
        number = 1
        while not taken.isdisjoint(macros := {word.upper() + ending for ending in endings}):
            number += 1
            word = f"{base}_{number}"
        taken |= macros
        found.append(word)
    return found


def library_name(wanted: str) -> str:
    """`wanted` as the prefix of a library's functions.

    Raises:
        OptionError: it is no identifier, or with a suffix would be a function of libc.
    """
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", wanted) and not _TAKEN.fullmatch(wanted):
        return wanted
    raise OptionError(
        "options",
        f"'{wanted}' cannot be the name of a C library, whose functions begin with it.",
        hint=f"use letters, digits and underscores, for example '{_untaken(identifier(wanted))}'.",
    )


def default_library_name(stem: str) -> str:
    """The name of the library of a model whose file is called `stem`."""
    return _untaken(identifier(stem))


def _untaken(word: str) -> str:
    return f"{word}_model" if _TAKEN.fullmatch(word) else word
