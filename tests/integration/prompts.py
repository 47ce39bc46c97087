"""Prompts of mixed lengths and kinds, the same on every machine and in every run."""

from __future__ import annotations

import random
from typing import NamedTuple

from tgi_async.text.tokenizer import Tokenizer

ENGLISH = (
    "The event loop is the heart of every asynchronous program.",
    "A river that rises in the mountains carries stones for a hundred miles before it drops them.",
    "In 1687 Isaac Newton published the laws of motion, and mechanics was never the same again.",
    "She opened the letter slowly, as if the paper itself might tell her what had happened.",
    "Cached pages are evicted in the order in which they were last used, unless they are pinned.",
    "The recipe asks for 250 g of flour, two eggs, a pinch of salt and rather more patience.",
    "Light needs about eight minutes and twenty seconds to travel from the Sun to the Earth.",
    "Nobody in the village remembered when the bridge had been built, or who had paid for it.",
    "To measure is to know; to measure twice is to know how little the first measurement meant.",
    "Paris, Rome and Madrid are capitals, while Milan, Lyon and Porto are merely large cities.",
    "The committee met on Tuesday, argued until Thursday, and adjourned without having voted.",
    "Photosynthesis turns carbon dioxide and water into sugar and oxygen with the help of light.",
)
KOREAN = (
    "이벤트 루프는 비동기 프로그램의 심장이다.",
    "한국 경제는 수출과 제조업을 중심으로 빠르게 성장해 왔다.",
    "서울의 봄은 짧지만 벚꽃이 피는 동안에는 모두가 천천히 걷는다.",
    "김치는 배추와 고춧가루, 마늘, 젓갈로 담그는 발효 음식이다.",
    "세종대왕은 1443년에 훈민정음을 만들었다.",
    "빛은 태양에서 지구까지 오는 데 약 8분 20초가 걸린다.",
    "캐시에 없는 블록은 다시 계산해야 한다.",
)
CODE = (
    "def fibonacci(n: int) -> int:\n    a, b = 0, 1\n    for _ in range(n):\n"
    "        a, b = b, a + b\n    return a\n\n",
    "class Stack:\n    def __init__(self) -> None:\n        self._items: list[int] = []\n\n"
    "    def push(self, item: int) -> None:\n        self._items.append(item)\n\n",
    "async def fetch(session, url):\n    async with session.get(url) as response:\n"
    "        return await response.json()\n\n",
    "SELECT name, COUNT(*) AS n\nFROM orders\nWHERE created > '2024-01-01'\nGROUP BY name;\n\n",
    "for (int i = 0; i < n; ++i) {\n    sum += values[i] * weights[i];\n}\n\n",
    "if __name__ == '__main__':\n    import sys\n    sys.exit(main(sys.argv[1:]))\n\n",
)
QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "파이썬에서 리스트를 뒤집는 방법은?",
    "Name three prime numbers.",
)
FEWEST_TOKENS = 3


class Case(NamedTuple):
    """One prompt, in token ids, and how many tokens to generate at most."""

    prompt: list[int]
    max_new_tokens: int


def chat(question: str) -> str:
    """A question as the embedded model's chat template writes it."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def mixed(tokenizer: Tokenizer, n: int, longest: int, new_tokens: tuple[int, int]) -> list[Case]:
    """`n` cases of up to `longest` prompt tokens: English, Korean, code and chat in turn.

    Lengths are spread evenly over the orders of magnitude. All but the chats begin and end
    wherever it happens to be, in mid-word and in mid-character.
    """
    draw = random.Random(n * longest)
    cases = []
    for i in range(n):
        kind = i % 4
        if kind == 3:
            prompt = tokenizer.encode(chat(draw.choice(QUESTIONS)))
        else:
            length = round(FEWEST_TOKENS * (longest / FEWEST_TOKENS) ** draw.random())
            prompt = _passage(tokenizer, (ENGLISH, KOREAN, CODE)[kind], length, draw)
        cases.append(Case(prompt, draw.randint(*new_tokens)))
    return cases


def branching(
    tokenizer: Tokenizer, n: int, n_shared: int, longest_own: int, max_new_tokens: int
) -> list[Case]:
    """`n` cases with the same first `n_shared` tokens; every third is another's exact copy."""
    draw = random.Random(n_shared)
    shared = _passage(tokenizer, ENGLISH, n_shared, draw)
    cases: list[Case] = []
    for i in range(n):
        own = _passage(tokenizer, CODE, draw.randint(1, longest_own), draw)
        cases.append(cases[-1] if i % 3 == 2 else Case(shared + own, max_new_tokens))
    return cases


def _passage(
    tokenizer: Tokenizer, sentences: tuple[str, ...], length: int, draw: random.Random
) -> list[int]:
    ids: list[int] = []
    offset = draw.randrange(8)
    while len(ids) < length + offset:
        ids += tokenizer.encode(" ".join(draw.sample(sentences, len(sentences))) + "\n")
    return ids[offset : offset + length]
