"""The printable characters by which GPT-2 and tokenizer.json files write the bytes of a token."""

from functools import cache


@cache
def letters_of_bytes() -> tuple[str, ...]:
    """Return the character of each byte, as in GPT-2's encoder.py: printable ones stand for themselves."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


def as_letters(token: bytes) -> str:
    """Return a token's bytes as characters."""
    letters = letters_of_bytes()
    return "".join(letters[byte] for byte in token)
