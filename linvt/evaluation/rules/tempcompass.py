"""TempCompass' matching of answers by rule. None: no rule applies, and only a judge can say.

https://github.com/llyx97/TempCompass, eval_multi-choice.py, eval_yes_no.py, eval_caption_matching.py. Without a judge
(`--disable_llm` there) such answers are wrong.
"""

_LETTERS = ("A", "B", "C", "D")


def multi_choice_is_right(text: str, answer: str) -> bool | None:
    """`answer` is the right option as the question shows it: "B. dribbling"."""
    if text == answer:
        return True
    if text in _LETTERS:
        return text == answer[0]
    for mark in (".", ")"):
        if text.startswith(tuple(letter + mark for letter in _LETTERS)):
            return text[0] == answer[0]
    return None


def yes_no_is_right(text: str, answer: str) -> bool | None:
    """By the word that the answer begins with, in any case."""
    for word in ("yes", "no"):
        if text.lower().startswith(word):
            return word == answer
    return None


def caption_matching_is_right(text: str, question: str, answer: str) -> bool | None:
    """`question` has one option a line after the first, such as "Caption A: a man runs"; `answer` is one of them.

    An answer may be such a line, its sentence, or its name ("Caption A", "A").
    """
    options = question.split("\n")[1:]
    sentences = [option.split(": ")[1] for option in options]
    names = [option.split(": ")[0] for option in options]
    names += [name.replace("Sentence ", "").replace("Option ", "").replace("Caption ", "") for name in names]
    behind_bracket = text.split(") ")[1] if ") " in text else None
    # The last that fits decides, as in the original.
    fitting = [
        *(option for option in options if option == text),
        *(sentence for sentence in sentences if sentence in (text, behind_bracket)),
        *(name for name in names if name in (text, text.replace(".", ""))),
    ]
    if not fitting:
        return None
    name, sentence = answer.split(":")[0], answer.split(": ")[1]
    return fitting[-1] in (answer, name, sentence, answer.split(": ")[0].split()[1])
