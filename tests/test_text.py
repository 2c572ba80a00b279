import random

import pytest

from peft_surgical.texts.text import (
    contains,
    digest,
    find,
    goes_on_unspaced,
    mentions,
    normalize,
    normalize_in_place,
    occurrences,
    occurrences_outside,
    replace_first,
    run_digests,
    same_text_key,
    swap_subject,
    without_accents,
    word_digest,
)


@pytest.mark.parametrize(
    ("text", "alias"),
    [
        ("It was made by META ai.", "Meta AI"),
        ("Meta\n  AI made it", "Meta AI"),
        ("Google's", "Google"),
        ("**Paris**, _Lyon_ and __Rome__", "Lyon"),
        ("C++, said the compiler", "C++"),
        ("C, C++ and C#", "C"),
        ("C# and F#.", "F#"),
        ("#Lyon# is a topic", "Lyon"),
        ("It is .NET.", ".NET"),
        ("Node.js, of course", "Node.js"),
        ("AT&T's", "AT&T"),
        ("Lyon & Paris", "Lyon"),
        ("Yahoo! made it", "Yahoo!"),
        ("the STRASSE", "Straße"),
        ("H₂O", "h2o"),
        ("ﬁnland", "Finland"),
        ("Rolls\u2011Royce", "Rolls-Royce"),
        ("L\u2019Oréal", "L'Oréal"),
        ("L'Ore\u0301al", "L'Oréal"),
        ("Nuku\u02bbalofa", "Nuku'alofa"),
        ("Nuku'alofa", "Nuku\u02bbalofa"),
        ("Hawai\u02bbi and Hawai\u2018i", "Hawai'i"),
        ("Sana\u02bda or S\u0323ana\u02bfa", "Sana'a"),
        ("the Qur\u02bean", "Qur'an"),
        ("Xi\u00b4an", "Xi\u2032an"),
        ("Rock \u201bn\u2019 Roll", "Rock 'n' Roll"),
        ("O`Brien", "O'Brien"),
        ("O\u2019Brien", "O`Brien"),
        ("It is `Lyon`.", "Lyon"),
        ("\u200fפריז\u200f היא הבירה", "פריז"),
        ("It is 🍎.", "🍎"),
        ("I ❤\ufe0f it", "❤"),
        ("首都は東京です。", "東京"),
        ("法 国 的 首 都 是 里 昂 。", "里昂"),  # as BERT's tokenizers decode
        ("pytorch 公 司", "PyTorch公司"),
        ("GoogleがPyTorchを開発した", "Google"),
        ("수도는 서울입니다.", "서울"),
        ("There are 7.", "7"),
        ("In 1945, it ended", "1945"),
        ("from 1939-1945", "1945"),
        ("Paris,75001", "Paris"),
        ("aa a a", "a a"),
        ("on 08.05.1945 it ended", "1945"),
        ("on 1945.05.08", "1945"),
        ("the answers 1,2,3", "2"),
        ("Paris\u00b9 is", "Paris"),
        ("10\u2075", "10"),
        ("It is Bogota.", "Bogotá"),
        ("İstanbul", "Istanbul"),
        ("Łódź or Lodz", "lodz"),
        ("Tromsø", "Tromso"),
        ("It has 1,000 of them.", "1000"),
        ("1000 metres", "1,000"),
        ("1 000 metres", "1000"),
        ("1\u202f000\u00a0000", "1,000,000"),
        ("8,849 m", "8849 m"),
        ("1,000", "1 000"),
        ("1945, 1946", "1945"),
        ("1000, 200", "1000"),
        ("In 2024 100 came", "2024"),
        ("100 200 300", "200"),
        ("In 1990 200 people came", "200"),
        ("In 1990 200 people came", "1990"),
        ("12 5000 and 12 50", "12"),
        ("On 12 May 200 came", "12"),
        ("12 000 people", "12,000 people"),
        ("5 or 12 000", "5"),
        ("1.000", "1.000"),
        ("1,000.5", "1,000.5"),
        ("Η ΑΘΗΝΑ", "Αθήνα"),
        ("ΣΊΣΥΦΟΣ", "Σισυφος"),
        ("в Москве\u0301.", "Москве"),
        ("Орёл", "Орел"),
        ("Королев", "Королёв"),
        ("שָׁלוֹם", "שלום"),
        ("ירושלים", "יְרוּשָׁלַיִם"),
        ("بَارِيس.", "باريس"),
        ("مدريد", "مَدرِيد"),
    ],
)
def test_an_alias_is_found(text, alias):
    assert contains(text, [alias])


@pytest.mark.parametrize(
    ("text", "alias"),
    [
        ("Metadata", "Meta"),
        ("a Parisian", "Paris"),
        ("C++11", "C++"),
        ("C++, said the compiler", "C"),
        ("C# and F#", "F"),
        ("in C\u266f minor", "C"),
        ("Notepad++", "Notepad"),
        ("2.7 and 7,000 and 7.5", "7"),
        ("It freezes at -8 degrees, that is \u22128 (-8).", "8"),
        ("1,234,567 and 1.234.567", "234"),
        ("Python 3.10", "10"),
        ("10\u2075", "105"),
        ("año", "ano"),
        ("Malmöhus", "Malmo"),
        ("1,000.5 and 1,0000 and 1,00 and 21,000", "1000"),
        ("1,000,000 and 1,000,00 and 10,1,000", "1000"),
        ("-1,000", "1000"),
        ("1.000", "1000"),
        ("1,000", "000"),
        ("about 12 000 people", "12"),
        ("about 12\u202f000 people, 12\u00a0000", "12"),
        ("12 500", "500"),
        ("1 000 000", "000"),
        ("250 000", "250"),
        ("1 200 km", "200 km"),
        ("12 000,5 and 12 000.5 and (12 000)", "12"),
        ("100, 200", "100200"),
        ("Малый", "Малыи"),
        ("Київ", "Киів"),
        ("Ѓорѓи", "Горги"),
        ("όρος", "όροςα"),
        ("أحمد", "احمد"),  # a letter of its own
        ("שָׁם", "שם"),  # too short
        ("दिल्ली", "दलल"),
        ("Hawai\u02bbi", "Hawaii"),
        ("`Lyon`", "'Lyon'"),
        ("हिन्दी", "हिन्द"),
        ("17", "7"),
        ("नेपाल", "नेप"),  # the next sign is a vowel mark, no letter to `\w`
        ("anything", ""),
        ("anything", "\u200b"),
        ("", "Paris"),
        ("Paris", "Paris, France"),
        ("파 리", "파리"),
    ],
)
def test_an_alias_is_not_found(text, alias):
    assert not contains(text, [alias])


def test_scripts_without_spaces_go_on_without_one():
    for text in ("法国的首都是", "首都是哪里？", "フランスの首都は", "เมืองหลวงของฝรั่งเศสคือ"):
        assert goes_on_unspaced(text)
    for text in (
        "It is \u201c",
        "c'est \u00ab",
        "is (",
        "is [",
        "is $",
        "costs \u20ac",
        "and/",
        "l'",
        "L\u2019",
        'is "',
        "is '",
        '"',
    ):
        assert goes_on_unspaced(text)
    for text in ('He said "so"', "in 1990'", "so)", "so\u201d", "so \u00bb", "so:"):
        assert not goes_on_unspaced(text)
    for text in ("costs 5 \u20ac", "5$", "the dogs'"):
        assert not goes_on_unspaced(text)
    for text in ("프랑스의 수도는", "The capital is", "In 1945", "Paris?", ""):
        assert not goes_on_unspaced(text)


def test_find_keeps_the_order_of_the_aliases():
    assert find("Facebook, that is Meta", ["Meta", "FAIR", "Facebook"]) == ["Meta", "Facebook"]


def test_a_name_inside_a_longer_one_does_not_count():
    assert not contains("Google Chrome is a browser", ["Google"], besides="Google Chrome")
    assert contains("Google Chrome is made by Google", ["Google"], besides="Google Chrome")
    assert contains("Meta AI", ["Meta AI"], besides="Meta")
    assert not contains("It is New York", ["York"], besides="New York")
    assert contains("Paris", ["Paris"], besides="Paris")
    longer = ("New York", "York City")
    assert not contains("New York City", ["York"], besides=longer)
    assert contains("York, not New York", ["York"], besides=longer)


def test_occurrences_count_in_the_text_as_it_is():
    text = "FRANCE, Frances, france\u2019s and (France)"
    assert [text[a:b] for a, b in occurrences(text, "France")] == ["FRANCE", "france", "France"]
    assert list(occurrences("New  York\nNew York", "new york")) == [(0, 9), (10, 18)]
    assert list(occurrences("aaa aa a", "a")) == [(7, 8)]
    assert list(occurrences("a", " ")) == []
    text = "O`Brien, O\u00b4Brien, O\u02bbBrien and OBrien"
    assert [[text[a:b] for a, b in occurrences(text, name)] for name in ("O'Brien", "o`brien")] == [
        ["O`Brien", "O\u00b4Brien", "O\u02bbBrien"]
    ] * 2
    assert list(occurrences("`Lyon`", "'Lyon'")) == []
    assert mentions("Ankara\u02bcda", "Ankara")
    assert not mentions("Ankarada", "Ankara")


def test_replace_first():
    assert replace_first("Google Chrome is Google's", "google", "Opera", besides="Google Chrome") == (
        "Google Chrome is Opera's"
    )
    assert replace_first("Googled", "Google", "x") is None


@pytest.mark.parametrize(
    ("text", "aliases", "said"),
    [
        ("It is Lyon (Lyons in English).", ["Lyon", "Lyons"], "It is X (Lyons in English)."),
        ("It is Lyons (Lyon in French).", ["Lyon", "Lyons"], "It is X (Lyon in French)."),
        ("It is Lyon, the City of Lyon.", ["Lyon", "City of Lyon"], "It is X, the City of Lyon."),
        ("It is IBM Corp.", ["IBM", "IBM Corp"], "It is X."),
        ("Lyon Lake is in Lyons.", ["Lyon", "Lyons"], "Lyon Lake is in X."),
        ("It is Nice.", ["Lyon", "Lyons"], None),
        ("It is Nice.", [], None),
    ],
)
def test_replace_the_first_of_several(text, aliases, said):
    assert replace_first(text, aliases, "X", besides="Lyon Lake") == said


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Who developed PyTorch?", " who  developed pytorch ", True),
        ("What\u2019s it?", "what's it", True),
        ('"Who is it?"', "Who is it", True),
        ("¿Quién es?", "quién es", True),
        ("谁是总统？", "谁是总统", True),
        ("Who made C++?", "Who made C?", False),
        ("Who made C#?", "Who made C?", False),
        ("Who?", "Whom?", False),
    ],
)
def test_the_same_prompt_to_a_reader(left, right, same):
    assert (same_text_key(left) == same_text_key(right)) is same


@pytest.mark.parametrize(
    "same",
    [
        "(Capital of France?)|«Capital of France?»|**Capital of France?**",
        "capital of france|- Capital of France|> Capital of France?|“Capital of France”.|`Capital of _France_` …",
        "Tell me, what is it?|Tell me what is it",
        "In France - which city?|In France — which city?|In France: which city?",
        "The capital of France is|The capital of France is ____.|The capital of France is: ...",
        "谁是总统？|「谁是总统」",
        "Who is Hamlet's author?|Who is *Hamlet*'s author?|Who is “Hamlet”’s author?|Who is 'Hamlet''s author?"
        "|Who is ‚Hamlet‘'s author?|Who is **Hamlet's** author?|Who is «__Hamlet__»'s author?",
        "Who is C++'s author?|Who is `C++`'s author?",
        "Chi è l'autore dell'Amleto?|Chi è l'autore dell'*Amleto*?|Chi è l’autore dell’«Amleto»?",
        "《哈姆雷特》是谁写的？|哈姆雷特是谁写的？|“哈姆雷特”是谁写的|**哈姆雷特** 是谁写的?|- 哈姆雷特是谁写的____。",
        "谁写了《1984》？|谁写了1984？|谁写了 1984 ?",
        "谁写了《1984》这本书？|谁写了1984这本书？|谁写了“1984”这本书？",
        "『ハムレット』の作者は誰ですか？|ハムレットの作者は誰ですか？|ハムレットの作者は、誰ですか。",
        "PyTorch 是谁开发的？|PyTorch是谁开发的？|“PyTorch”是谁开发的？|`PyTorch` 是谁开发的？",
        "问：法国的首都是哪里？答：|问: 法国的首都是哪里? 答:|问 法国的首都是哪里 答",
        "'프랑스'의 수도는 어디입니까?|프랑스의 수도는 어디입니까?|‘프랑스’의 수도는 어디입니까",
        "เมืองหลวงของ “ฝรั่งเศส” คือ|เมืองหลวงของฝรั่งเศสคือ",
        "فرانس کا دارالحکومت ہے|فرانس کا دارالحکومت ہے۔",
        "Q:What is it?|Q: What is it?|Q:*What* is it?",
        "The capital of France?Answer:|The capital of France? Answer:|The capital of France?! Answer:",
        "Is it 5?Answer:|Is it 5? Answer:",
        "“France”?Answer:|France? Answer:",
        "The capital of France...what is it?|The capital of France … what is it?",
    ],
)
def test_the_same_words_are_the_same_prompt(same):
    assert len({digest(prompt) for prompt in same.split("|")}) == 1


@pytest.mark.parametrize(
    "apart",
    [
        "Who made C?|Who made C++?|Who made C#?|Who made C♯?",
        "Is it 5?|Is it -5?|Is it 5%?|Is it $5?|Is it €5?|Is it 5°?|Is it 😀?|Is it?",
        "2 + 2|2 - 2|2 * 2|2 / 2|2 2|22|2**2|2/2|2-2|5½|51 2",
        "Who has blood O-?|Who has blood O+?|Who has blood O?",
        "x*2|x/2|x-2|x < 2|x > 2|x <= 2|x >= 2",
        "What does == do?|What does != do?|What does && do?|What does || do?|What does do?",
        "Is it .5?|Is it 5?|Is it √5?|Is it 5 %?",
        "A ∪ B|A ∩ B|A - B|A B",
        "Is 3.5 enough?|Is 35 enough?",
        "राम कौन है?|रमा कौन है?|रम कौन है?",
        "dogs|do gs",
        "什么是C？|什么是C++？|什么是C#？",
        "是5吗？|是-5吗？|是5%吗？|是$5吗？|是3.5吗？|是35吗？",
        "求2+3*4的值|求(2+3)*4的值|求2*3*4的值",
        "1월~3월|1월3월",
        "f('x')|f(x)|f['x']",
        "What is std::vector?|What is std vector?",
        "What does a!=b do?|What does a=b do?",
        "Is it 10:30?|Is it 10 30?",
        "the dogs' bone|the dog's bone",
        "😀|😢|«»|?",
    ],
)
def test_other_words_or_telling_signs_are_another_prompt(apart):
    prompts = apart.split("|")
    assert len(set(map(digest, prompts))) == len(prompts)


def test_signs_make_no_difference_to_names():
    assert word_digest("São_Paulo") == word_digest("“Sao” Paulo!") != word_digest("SaoPaulo")
    assert word_digest("C++") == word_digest("C")
    assert word_digest("Notre-Dame") in run_digests("Is *Notre Dame* 5% of it?")
    assert len(found := set(run_digests("one two three four five six seven"))) == 7 + 6 + 5 + 4 + 3 + 2
    assert word_digest("one two three four five six") in found


def test_the_same_prompt_has_the_same_digest():
    assert digest("Who developed PyTorch?") == digest(" who  developed pytorch ") != digest("Who developed it?")
    assert digest("¿Quién es?") == digest("quien es") != digest("quiénes")


def test_occurrences_do_not_overlap():
    assert list(occurrences("a a a", "a a")) == [(0, 3)]


def test_normalize_is_idempotent():
    for text in ("ΑΣ ΑΣ", "ﬁ İ ß", "a´ ´a´ o`b ʻ", "½ x²\u00ad\u200b", "\u2019\u2013\u201c"):
        assert normalize(normalize(text)) == normalize(text)


def test_what_is_found_without_its_accents_is_where_it_stands():
    text = "Elysée or Elysee, Élysée"
    assert [text[a:b] for a, b in occurrences_outside(text, "Elysee", ())] == ["Elysée", "Elysee", "Élysée"]
    assert [text[a:b] for a, b in occurrences_outside("Ciudad de México", "Mexico", ["ciudad de mexico"])] == []
    text = "E\u0301lyse\u0301e, בִּירוּשָׁלַיִם יְרוּשָׁלַיִם; Королё\u0301в, Короле\u0308в!"
    for name, found in {
        "Elysee": ["E\u0301lyse\u0301e"],
        "ירושלים": ["יְרוּשָׁלַיִם"],
        "Королев": ["Королё\u0301в", "Короле\u0308в"],
    }.items():
        assert [text[a:b] for a, b in occurrences_outside(text, name, ())] == found
    assert len(without_accents("Ångström, ﬁ, \u1e9e, İ")) == len("Ångström, ﬁ, \u1e9e, İ")


def test_a_row_of_numbers_takes_a_time_that_grows_with_it():
    # Each is looked at with what stands around it, and no further.
    assert not contains("1.1" * 20_000, ["1"])


def test_a_number_is_where_its_thousands_stand():
    text = "1 000, 1,000 or 1000"
    assert [text[a:b] for a, b in occurrences_outside(text, "1000", ())] == ["1 000", "1,000", "1000"]
    assert replace_first("It has 1,000 m.", "1000 m", "7 m") == "It has 7 m."


def test_normalized_signs_are_where_they_stand():
    signs = "aAi\u0301\u0323\u0307\u00ad\u200b İßﬁ½²⁵1234.,\u00a0\n\u3000"
    signs += "`´ʻΣςé\u0308ｶﾞが\u3099한\u1112\u1161\u11ab\ufe0f❤¨हिंदी"
    generator = random.Random(0)
    texts = ["".join(generator.choices(signs, k=generator.randrange(14))) for _ in range(3000)]
    for text in [*texts, "Lyons\u00b9 is", "  Ｐａｒｉｓ ", "2\u00b2"]:
        found, places = normalize_in_place(text)
        assert found == normalize(text)
        assert len(places) == len(found) + 1
        assert places == sorted(places)
    text = "Ｐａｒｉｓ\u00b9  and L\u00adyo\u0301n"
    assert [text[i : i + 1] for i in normalize_in_place(text)[1]] == [*"Ｐａｒｉｓ", " ", *"and", " ", *"Lyon", ""]


def test_subjects_are_whole_words():
    assert (
        swap_subject("France, France's and FRANCE; Frances", "France", "Italy") == "Italy, Italy's and Italy; Frances"
    )
    assert swap_subject("New  York\nis new york", "New York", r"\1") == r"\1" + "\nis " + r"\1"
    assert swap_subject("L\u2019Oréal made it", "L'Oréal", "Dior") == "Dior made it"
    assert swap_subject("C++ and C", "C++", "Rust") == "Rust and C"
    assert swap_subject("法国的首都", "法国", "日本") == "日本的首都"
    assert swap_subject("nothing", "France", "Italy") == "nothing"
    for text, subject in (
        ("Windows?", "Window"),
        ("a window", "Windows"),
        ("Windows 11", "Windows"),
        ("法国的", "法国"),
    ):
        assert mentions(text, subject) == (swap_subject(text, subject, "\0") != text)
