"""Text that anybody may have written (titles, names, paths), as each format shows it and never runs it.

Control characters become spaces in every format, line breaks too: a name stays on its line.
"""

import re
import unicodedata

_CONTROL = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that are not seen, among them what turns the direction of writing."""

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "○": r"$\circ$",
    "“": "``",
    "”": "''",
}

MATHS = {
    **{letter: rf"\{name}" for letter, name in zip(
        "αβγδεζηθλμρσΔΠΣ∇≤≥≠≈·×⊗→∞‖½",
        ("alpha", "beta", "gamma", "delta", "varepsilon", "zeta", "eta", "theta", "lambda", "mu", "rho", "sigma",
         "Delta", "Pi", "Sigma", "nabla", "le", "ge", "ne", "approx", "cdot", "times", "otimes", "to", "infty", "|",
         "frac12"), strict=True)},
    **{digit: f"_{{{number}}}" for number, digit in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    **{digit: f"^{{{number}}}" for number, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{sign: f"^{{{plain}}}" for sign, plain in zip("⁺⁻⁽⁾ᵏᵀ", ("+", "-", "(", ")", "k", r"\top"), strict=True)},
}  # fmt: skip
"""What statements and headings are written with, and pdfLaTeX has no letter for."""

_MARKDOWN = re.compile(r"([\\`*_{}<>|~$&]|\](?=[(\[:]))")
"""Brackets are markup only where something follows them that makes a link."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that spreadsheets take for a formula."""


def plain(text: str) -> str:
    """The text on one line, without anything that is not seen; nothing else is changed."""
    return "".join(" " if unicodedata.category(letter) in _CONTROL else letter for letter in text)


def latex(text: str) -> str:
    """The text as LaTeX sets it: every character that it reads as a command is written out."""
    return "".join(f"${MATHS[x]}$" if x in MATHS else _LATEX.get(x, x) for x in plain(text))


def markdown(text: str) -> str:
    """The text as Markdown shows it, inside a table too: what would be markup or HTML has a backslash before it."""
    return _MARKDOWN.sub(r"\\\1", plain(text))


def csv_cell(value: object) -> object:
    """A cell of a CSV file: a number as it is; a text that a spreadsheet would run, with an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = plain(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _is_number(text) else text


def metadata(text: str) -> str:
    """The text as the metadata of PNG and PDF hold it."""
    return plain(text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?", text.strip()) is not None
