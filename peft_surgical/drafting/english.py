"""Whether a prompt is in English, which is what the wordings and the frames are in."""

from __future__ import annotations

import re
import unicodedata

from ..errors import FactError, brief
from ..facts import Fact, TrainingFact
from ..texts.text import mentions
from .capitals import REQUESTS
from .reading import Reading, read_prompt

# Words of hardly any other language, and those that others have too: "Was ist …?", "In quale …?".
_ENGLISH = re.compile(
    r"\b(?:the|of|and|or|who|whom|whose|what|which|where|when|why|how|by|from|with|for|about|than|that|this|these|those|"
    r"its|their|does|did|can|could|will|would|should|has|have|had|are|were|been|named|called|tell|name|give)\b",
    re.I,
)
_REQUEST = re.compile(rf"(?:{REQUESTS}|define|identify|state)\b", re.I)
_SHARED = ("a", "an", "is", "was", "in", "on", "at", "as", "to", "be")
# Verbs of other languages, for sentences in these share small words with English: "Die Hauptstadt von Peru ist".
_FOREIGN = re.compile(
    r"\b(?:ist|sind|wurde|wurden|wird|geboren|liegt|heißt|werd|wordt|heeft|été|était|peint|peinte|écrit|écrite"
    r"|fue|está|nació|murió|é|foi|nasceu|è|scritto|är|föddes|født|był|była)\b"
)
# So few words behind the subject may be nouns alone: "Hamlet author". Before it more than one may be "Wer schrieb".
_FEW = 2


def check_english(reading: Reading) -> None:
    """Refuses a prompt in another language, of which nothing but English frames around it could be made.

    Raises:
        FactError: If the prompt is no known wording and has no word that tells English.
    """
    # The subject may have an English name in any language.
    rest = reading.prompt.replace(reading.subject, " ")
    words = re.findall(r"[^\W\d_]+", rest.casefold())
    # A question has more of them than the beginning of a sentence: "Was Hitler a painter?", "Ada Lovelace was born".
    shared = len(set(words).intersection(_SHARED)) >= (2 if reading.prompt.endswith("?") else 1)
    begins = re.match(rf"(?:the )?{re.escape(reading.subject)}", reading.prompt, re.I)
    few = len(words) <= (_FEW if begins else 1) and _is_latin(rest)
    hints = (shared or few or words[:1] == ["do"]) and not _FOREIGN.search(rest)
    if reading.relation.name or _ENGLISH.search(rest) or hints or _REQUEST.match(rest.strip()):
        return
    raise FactError(
        f"the prompt {brief(reading.prompt)} is not in English, and prompts are made in English only; write the fact "
        "file by hand."
    )


def readable(fact: Fact | TrainingFact) -> Reading | None:
    """What a fact's first prompt that names its subject asks; None where there is none, or it is not English."""
    prompt = next((prompt for prompt in fact.prompts if mentions(prompt, fact.subject)), None)
    if prompt is None:
        return None
    try:
        reading = read_prompt(prompt, fact.subject, fact.old, fact.new)
        check_english(reading)
    except FactError:
        return None
    return reading


def _is_latin(text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum("LATIN" in unicodedata.name(letter, "") for letter in letters) >= len(letters)
