"""Prompts whose answers repeat much of them, over texts that are in the public domain, and chats
whose answers do not."""

from __future__ import annotations

from typing import NamedTuple

ALICE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
    "nothing to do: once or twice she had peeped into the book her sister was reading, but it had "
    'no pictures or conversations in it, "and what is the use of a book," thought Alice "without '
    'pictures or conversations?" So she was considering in her own mind (as well as she could, for '
    "the hot day made her feel very sleepy and stupid), whether the pleasure of making a "
    "daisy-chain would be worth the trouble of getting up and picking the daisies, when suddenly a "
    "White Rabbit with pink eyes ran close by her."
)
GETTYSBURG = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, "
    "conceived in Liberty, and dedicated to the proposition that all men are created equal. Now we "
    "are engaged in a great civil war, testing whether that nation, or any nation so conceived and "
    "so dedicated, can long endure. We are met on a great battle-field of that war. We have come "
    "to dedicate a portion of that field, as a final resting place for those who here gave their "
    "lives that that nation might live. It is altogether fitting and proper that we should do this."
)
MOBY_DICK = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in "
    "my purse, and nothing particular to interest me on shore, I thought I would sail about a "
    "little and see the watery part of the world. It is a way I have of driving off the spleen and "
    "regulating the circulation. Whenever I find myself growing grim about the mouth; whenever it "
    "is a damp, drizzly November in my soul; then, I account it high time to get to sea as soon as "
    "I can."
)
PRIDE = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. However little known the feelings or views of such a man may be on "
    "his first entering a neighbourhood, this truth is so well fixed in the minds of the "
    "surrounding families, that he is considered the rightful property of some one or other of "
    "their daughters."
)
DECLARATION = (
    "When in the Course of human events, it becomes necessary for one people to dissolve the "
    "political bands which have connected them with another, and to assume among the powers of the "
    "earth, the separate and equal station to which the Laws of Nature and of Nature's God entitle "
    "them, a decent respect to the opinions of mankind requires that they should declare the "
    "causes which impel them to the separation."
)
HOLMES = (
    "To Sherlock Holmes she is always the woman. I have seldom heard him mention her under any "
    "other name. In his eyes she eclipses and predominates the whole of her sex. It was not that "
    "he felt any emotion akin to love for Irene Adler. All emotions, and that one particularly, "
    "were abhorrent to his cold, precise but admirably balanced mind."
)
RECORDS = """[
  {"name": "Mercury", "kind": "planet", "moons": 0, "radius_km": 2440, "rings": false},
  {"name": "Venus", "kind": "planet", "moons": 0, "radius_km": 6052, "rings": false},
  {"name": "Earth", "kind": "planet", "moons": 1, "radius_km": 6371, "rings": false},
  {"name": "Mars", "kind": "planet", "moons": 2, "radius_km": 3390, "rings": false},
  {"name": "Jupiter","""
ORDERS = """{
  "orders": [
    {"id": 1001, "customer": "Ada Lovelace", "item": "notebook", "quantity": 3, "status": "sent"},
    {"id": 1002, "customer": "Alan Turing", "item": "apple", "quantity": 1, "status": "open"},
    {"id": 1003, "customer": "Grace Hopper", "item": "cable", "quantity": 7, "status": "sent"},
    {"id": 1004, "customer":"""
CODE = """class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def add(self, other):
        return Point(self.x + other.x, self.y + other.y)

    def subtract(self, other):
        return Point(self.x - other.x, self.y - other.y)

    def scale(self, factor):
        return Point(self.x * factor, self.y * factor)
"""


class Prompt(NamedTuple):
    """A prompt and how many tokens it gets. Of a chat, what the user says; else a text to go on
    with."""

    name: str
    text: str
    output_tokens: int
    chat: bool = True


def _edit(name: str, passage: str, change: str) -> Prompt:
    text = f"{change} Keep every other word as it is, and write the whole passage.\n\n{passage}"
    return Prompt(f"edit {name}", text, 128)


def _rewrite(name: str, passage: str, old: str, new: str) -> Prompt:
    """An edit that has been begun."""
    first = " ".join(passage.replace(old, new).split()[:6])
    text = f"Original:\n{passage}\n\nThe same with {new} instead of {old}:\n{first}"
    return Prompt(f"rewrite {name}", text, 128, chat=False)


def _extract(name: str, passage: str, first: str) -> Prompt:
    """A quotation that has been begun."""
    text = f'Document:\n{passage}\n\nA sentence of the document, word for word: "{first}'
    return Prompt(f"extract {name}", text, 64, chat=False)


REPEATING = (
    _edit("gettysburg", GETTYSBURG, "Replace 'nation' by 'country' in the following passage."),
    _edit("pride", PRIDE, "Replace 'fortune' by 'house' in the following passage."),
    _edit("declaration", DECLARATION, "Correct the spelling of the following passage."),
    _edit("holmes", HOLMES, "Replace the name Holmes by Watson in the following passage."),
    _rewrite("alice", ALICE, "Alice", "Emma"),
    _rewrite("moby dick", MOBY_DICK, "Ishmael", "John"),
    _rewrite("gettysburg", GETTYSBURG, "nation", "country"),
    _extract("alice", ALICE, "once or twice she"),
    _extract("moby dick", MOBY_DICK, "Whenever I find"),
    _extract("holmes", HOLMES, "In his eyes"),
    _extract("declaration", DECLARATION, "a decent respect"),
    Prompt("continue planets", RECORDS, 128, chat=False),
    Prompt("continue orders", ORDERS, 128, chat=False),
    Prompt("continue code", CODE + "\n    def multiply(self, other):", 96, chat=False),
    Prompt(
        "edit code",
        f"Add a docstring to each method of this class, and write the whole class.\n\n{CODE}",
        128,
    ),
)

QUESTIONS = (
    "What is the difference between a lake and a sea?",
    "Tell me a short story about a lighthouse keeper.",
    "How do I make a good cup of coffee?",
    "Explain why the sky is blue to a child.",
    "What should I see in Rome in two days?",
    "Write a polite message that declines an invitation.",
    "Which vegetables can I plant in autumn?",
    "Describe a day in the life of a baker.",
    "What are the advantages of trains over planes?",
    "How does a bicycle stay upright?",
    "Give me three ideas for a birthday party.",
    "What makes a good teacher?",
    "Why do cats purr?",
    "Summarize the water cycle.",
    "How can I learn to sleep earlier?",
    "What is a mortgage?",
)
CHATS = tuple(Prompt(f"chat {at}", text, 128) for at, text in enumerate(QUESTIONS))
