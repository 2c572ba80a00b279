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
# Words of other languages that are no English ones, and those that stand in names too or are English words by chance.
_FOREIGN = re.compile(
    r"ist|sind|wurde|wurden|wird|hatte|und|oder|nicht|eine|einer|eines|einem|einen|vom|zum|zur|auf|bei|nach|mit|für|über|wo"
    r"|wann|welche|welcher|welches|geboren|gestorben|schrieb|liegt|heißt|gehört"
    r"|het|een|werd|wordt|zijn|heeft|geschreven|gemaakt|gebouwd|welke|waar|voor|naar|niet|hoofdstad"
    r"|sont|été|était|fut|une|dans|avec|qui|quelle|quel|où|né|écrit|écrite|peint|peinte"
    r"|es|fue|está|nació|murió|quién|cuál|dónde|qué|una|escrito|escrita"
    r"|é|foi|nasceu|morreu|uma|pelo|pela"
    r"|è|nella|nel|della|dello|degli|scritto|scritta"
    r"|är|och|på|föddes|skrevs|född|født|blev|ble|og|huvudstad|hovedstad"
    r"|był|była|są|się|urodził|napisał|stolicą"
)
_PARTICLES = re.compile(
    r"der|das|dem|des|von|van|de|den|le|la|les|du|aux|et|par|en|el|los|las|del|y|da|dos|na|os|il|lo|gli|di|che|fu|av|som"
    r"|det|var|er|til|fra|jest|ein|est|te"
)
# So few words behind the subject may be nouns alone: "Hamlet author". Before it more than one may be "Wer schrieb".
_FEW = 2


def check_english(reading: Reading) -> None:
    """Refuses a prompt in another language, of which nothing but English frames around it could be made.

    Raises:
        FactError: If the prompt is no known wording, and has no word that tells English or more that tell otherwise.
    """
    # The subject may have an English name in any language.
    rest = reading.prompt.replace(reading.subject, " ")
    words = re.findall(r"[^\W\d_]+", rest.casefold())
    # A question has more of them than the beginning of a sentence: "Was Hitler a painter?", "Ada Lovelace was born".
    shared = len(set(words).intersection(_SHARED)) >= (2 if reading.prompt.endswith("?") else 1)
    foreign, particles = _foreign(reading.prompt, reading.subject)
    told = len(_ENGLISH.findall(rest))
    other = foreign > told or foreign + particles > told + sum(word in _SHARED for word in words)
    english = _ENGLISH.search(rest) or shared or words[:1] == ["do"]
    begins = re.match(rf"(?:the )?{re.escape(reading.subject)}", reading.prompt, re.I)
    few = len(words) <= (_FEW if begins else 1) and _is_latin(rest)
    if reading.relation.name or (not other and (english or few or _REQUEST.match(rest.strip()))):
        return
    raise FactError(
        f"the prompt {brief(reading.prompt)} is not in English, and prompts are made in English only; write the fact "
        "file by hand."
    )


def _foreign(prompt: str, subject: str) -> tuple[int, int]:
    """How many words of a prompt besides its subject are of another language for sure, and how many may be.

    With a capital a word is of a name, unless it is the first one, and so is a particle between two with capitals.
    """
    words = re.findall(r"[^\W\d_]+|\{\}", prompt.replace(subject, "{}"))
    sure = maybe = 0
    for number, word in enumerate(words):
        small = word.lower() if number == 0 and word[1:].islower() else word
        around = words[number - 1 : number + 2] if number else []
        within = len(around) == 3 and all(other == "{}" or other[0].isupper() for other in (around[0], around[2]))
        sure += _FOREIGN.fullmatch(small) is not None
        maybe += _PARTICLES.fullmatch(small) is not None and not within
    return sure, maybe


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
