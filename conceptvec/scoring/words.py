"""Words: tokens without their marks, and the forms of a word. Nothing here imports torch.

Two kinds of stemming, for two questions. Whether a token **is a form of a listed word** is decided
by endings of declension alone (`ENDINGS`): a stemmer that also strips derivation takes *organic*
for an organ and *animate* for an animal. Whether two tokens outside the lexicon **are forms of one
word** (*install*, *installation*) is decided by the Snowball stemmer for English, where derivation
is wanted.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from conceptvec.concepts import data

YEAR = re.compile(r"1\d{3}|20\d{2}")
NUMERAL = re.compile(
    r"\d+([.,⁄]\d+)*(st|nd|rd|th|er|e|º|%|o|a|-?й|-?я|-?е)?"  # 7, 1,000, 3rd, 2e, 5-й
    r"|(?=..)x{0,3}(ix|iv|v?i{0,3})"  # Roman, from two letters
    r"|第[〇零一二三四五六七八九十百千]+|[〇零一二三四五六七八九十百千万萬亿億两兩]{2,}"
)
# Endings of declension (of nouns and adjectives), by language, and how many letters must be left.
# Over Gemma's vocabulary shorter stems find more fragments than words; the short words are in the
# lexicon with their forms.
ENDINGS = {
    "en": (3, "s es 's"),  # and ies for y; English is stemmed by asking for the singular
    "de": (5, "e en n er ern es s em innen in"),
    "fr": (5, "e es s x"),
    "es": (5, "s es o os a as"),
    "it": (5, "o a i e hi he"),
    "pt": (5, "s es o os a as oes aos aes ao"),
    "pl": (
        5,
        "a i y e ę ą o u ów om ami ach em ie owi ej ego emu ych ym ymi iem ia ię ią iami iach "
        "iom ii",
    ),
    "tr": (
        5,
        "lar ler ı i u ü a e ın in un ün da de dan den ları leri ların lerin yı yi ya ye sı si "
        "nın nin",
    ),
    "ru": (
        4,
        "а я о е ё ы и у ю ь й ой ей ою ею ом ем ём ам ям ами ями ах ях ов ев ёв ью ия ии ию ией "
        "ий ый ая яя ое ее ые ие ого его ому ему ым им ых их ую юю ыми ими",
    ),
    "uk": (
        4,
        "а я о е и і ї у ю ь й ою ею єю ом ем єм ам ям ами ями ах ях ів їв ові еві єві ий ій є "
        "ого ому им их ими ію ією",
    ),
    "hi": (4, "ों ें ां ाँ ियों ियां ियाँ ी ि ा े ो"),
    "ar": (4, "ة ات ه ها هم ين ان ون ي"),
    "ko": (2, "을 를 은 는 이 가 에 의 도 와 과 로 으로 에서 들 들이 들은 들을"),
}
# The stem itself is a form, as in the Slavic genitive plural: собака, собак.
BARE = {"pl", "ru", "uk", "ar"}
ARTICLE = re.compile(r"^(وال|بال|كال|فال|لل|ال)(?=...)")
SCRIPTS = {
    "LATIN": ("en", "de", "fr", "es", "it", "pt", "pl", "tr"),
    "CYRILLIC": ("ru", "uk"),
    "DEVANAGARI": ("hi",),
    "ARABIC": ("ar",),
    "HANGUL": ("ko",),
}
_ACCENTS = str.maketrans("äöüàâáãåèéêëìíîïòóôõùúûçñ", "aouaaaaaeeeeiiiioooouuucn")


def normalise(token: str) -> str:
    """The token's word: ▁, #, spaces and invisible characters off, NFKC, case folded."""
    text = unicodedata.normalize("NFKC", token.replace("▁", " ").replace("Ġ", " ")).casefold()
    if not text.isascii():
        text = "".join(ch for ch in text if unicodedata.category(ch)[0] != "C")
    return text.strip(" #'\"`.,:;!?()[]{}<>*_-/\\|“”«»„‘’、。")


@cache
def _endings(language: str) -> re.Pattern[str]:
    least, endings = ENDINGS[language]
    longest_first = "|".join(sorted(endings.split(), key=len, reverse=True))
    return re.compile(rf"(?<=.{{{least}}})(?:{longest_first})$")


@cache
def _script_of(letter: str) -> str:
    return unicodedata.name(letter, "?").split()[0].removesuffix("-COMPATIBILITY")


def script(word: str) -> str:
    """The script of a normalised word by its first letter, such as ``LATIN``; empty for no word."""
    if not word:
        return ""
    return "LATIN" if word.isascii() else _script_of(word[0])


def languages(word: str) -> tuple[str, ...]:
    """The languages that the word's script may stand for; none where nothing is inflected."""
    return SCRIPTS.get(script(word), ())


def stems(word: str, language: str) -> tuple[str, ...]:
    """What a normalised word may be a form of: its stem, or in English its singulars."""
    if language not in ENDINGS:
        return (word,)
    if language == "en":
        if not word.endswith("s") or word.endswith("ss"):
            return ()
        cut = [word[:-1], word[:-3] + "y" if word.endswith("ies") else "", word.removesuffix("'s")]
        cut += [word[:-2]] if re.search("(s|x|z|o|ch|sh)es$", word) else []
        return tuple(w for w in cut if ENDINGS["en"][0] <= len(w) < len(word))
    if language == "ar":
        word = ARTICLE.sub("", word)  # of three letters and more
    elif language in ("de", "fr", "es", "it", "pt"):
        word = word.translate(_ACCENTS)
    return (_endings(language).sub("", word),)


@cache
def not_forms() -> frozenset[str]:
    """Frequent words that only look like forms of a listed one (*does*, *thus*)."""
    return frozenset(data("not_forms.json")["words"])


@cache
def _stemmer() -> Any:
    import snowballstemmer  # not needed while every token is in the lexicon

    return snowballstemmer.stemmer("english")


@cache
def lemma(word: str) -> str:
    """The key under which the forms of a word outside the lexicon meet; empty for no word.

    A word has a letter (two in an alphabetic script) or is a number. Digits of all scripts are one
    word per value.
    """
    if not word:
        return ""
    if word.isnumeric():
        return "".join(
            str(unicodedata.numeric(ch)).removesuffix(".0") if ch.isdigit() else ch for ch in word
        )
    if not any(ch.isalpha() for ch in word) or (
        len(word) == 1 and unicodedata.category(word) != "Lo"
    ):
        return word if NUMERAL.fullmatch(word) else ""
    if word.isascii():
        return _stemmer().stemWord(word) if word.isalpha() and len(word) > 3 else word
    return next((s for language in languages(word)[:1] for s in stems(word, language)), word)


def is_numeral(word: str) -> bool:
    """Digits of any script but years (they are dates), ordinals, Roman and Chinese numbers."""
    if word.isdigit() or (word.isnumeric() and not unicodedata.category(word[0]).startswith("L")):
        return not YEAR.fullmatch(word)
    return bool(NUMERAL.fullmatch(word)) and word not in ("xx", "xxx")
