"""What the users pay for, and where it is kept."""

import os
import random
import sqlite3
from contextlib import closing

TASKS = {
    "strings": ["Reverse the words of a sentence.", "Find the longest palindrome."],
    "lists": ["Merge two sorted lists.", "Remove duplicates, and keep the order."],
}
TABLE = "CREATE TABLE IF NOT EXISTS challenges (user_id TEXT, key TEXT, task TEXT, UNIQUE (user_id, key))"


class GenerationFailed(Exception):
    pass


def generate(topic: str) -> str:
    """Stands for the model that your app calls: it costs you something, and it may fail."""
    if topic not in TASKS:
        raise GenerationFailed(topic)
    return random.choice(TASKS[topic])


def find(user_id: str, key: str) -> str | None:
    """Return the challenge that this user got for this key."""
    with _database() as database:
        row = database.execute("SELECT task FROM challenges WHERE user_id = ? AND key = ?", (user_id, key))
        return next((task for (task,) in row), None)


def save(user_id: str, key: str, task: str) -> None:
    with _database() as database, database:
        database.execute("INSERT INTO challenges VALUES (?, ?, ?)", (user_id, key, task))


def _database() -> closing[sqlite3.Connection]:
    database = sqlite3.connect(os.environ.get("CHALLENGES", "challenges.sqlite3"))
    database.execute(TABLE)
    return closing(database)
