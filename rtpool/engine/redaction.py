"""
Secrets stay secret, also where the other side repeats them: an error page may hold the whole request.
"""

from __future__ import annotations

import base64
import re
import traceback
from collections import deque
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote, urlsplit

from rtpool.errors import RtpoolError
from rtpool.options import PoolOptions

__all__ = ["Redactor", "chain_of", "forget_variables"]

#: What stands for a secret.
HIDDEN = "***"
#: Characters of the shortest text that is taken for one, or for the beginning of one; a shorter one is any word.
SHORTEST = 6
#: Secrets that came later of which so many are known, the newest.
LEARNED = 32
#: JWTs, their beginnings too, and Supabase's keys: whoever's they are.
_TOKENS = re.compile(r"eyJ[\w-]{8,}(?:\.[\w-]*)*|sb_(?:publishable|secret)_[\w-]+")


def chain_of(error: BaseException) -> list[BaseException]:
    """An error, what caused it, what caused that."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and not any(current is other for other in chain):
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def forget_variables(error: BaseException) -> None:
    """
    Take the local variables out of the tracebacks of an error and of its causes: some reporters of errors show them,
    and those of a dial hold the request. Of calls that are not over yet nothing can be taken.
    """
    for each in chain_of(error):
        traceback.clear_frames(each.__traceback__)


class Redactor:
    """
    Knows every text of ours that no error may show, in each form in which a request carries it.

    Args:
        options: whose headers, parameters and proxy may hold some.
        given: keys and tokens.

    Thread-safety: `learn` is one thread's; all else may be called from any.
    """

    def __init__(self, options: PoolOptions, *given: str | None) -> None:
        proxy = urlsplit(options.proxy or "")
        user, password = unquote(proxy.username or ""), unquote(proxy.password or "")
        texts = [*given, proxy.password, password]
        if user or password:  # Proxy-Authorization
            texts.append(base64.b64encode(f"{user}:{password}".encode()).decode("ascii"))
        texts += [value for _, value in (*options.headers, *options.params)]
        texts += [text.split(" ", 1)[1] for text in texts if text and " " in text]  # "Bearer …"
        self._texts = texts
        self._learned: deque[str] = deque(maxlen=LEARNED)
        self._secrets = _forms(texts)

    def learn(self, text: str) -> None:
        """Know a token that came later, of which the last few are known; one that looks like one is anyhow."""
        if text in self._learned or _TOKENS.fullmatch(text):
            return
        self._learned.append(text)
        self._secrets = _forms([*self._texts, *self._learned])

    def __call__(self, text: str) -> str:
        """A text without secrets. To be called before it is cut; one that was cut already may end amid a secret."""
        secrets = self._secrets
        for secret in secrets:
            text = text.replace(secret, HIDDEN)
        for secret in secrets:
            for length in range(min(len(secret) - 1, len(text)), SHORTEST - 1, -1):
                if text.endswith(secret[:length]):
                    return text[:-length] + HIDDEN
        return text

    def hide_all(self, text: str) -> str:
        """A text without secrets of ours, and without anything that looks like a key or token of anybody."""
        return _TOKENS.sub(HIDDEN, self(text))

    def clean(self, error: RtpoolError) -> None:
        """Hide secrets in an error and in what caused it; a cause that cannot be cleaned is left out."""
        above: BaseException | None = None
        for current in chain_of(error):
            self._clean(current)
            if above is not None and any(secret in f"{current} {current!r}" for secret in self._secrets):
                above.__cause__, above.__suppress_context__ = None, True
                break
            above = current
        forget_variables(error)

    def _clean(self, error: BaseException) -> None:
        error.args = tuple(self(arg) if isinstance(arg, str) else arg for arg in error.args)
        if isinstance(error, OSError) and error.strerror:
            error.strerror = self(error.strerror)
        for texts in (vars(error), getattr(error, "_fields", {})):
            for name, value in texts.items():
                if isinstance(value, str):
                    texts[name] = self(value)


def _forms(texts: Iterable[str | None]) -> list[str]:
    """The forms in which requests carry them, the longest first."""
    forms = {form for text in texts if text for form in (text, text.strip(), quote(text, safe=""), quote_plus(text))}
    return sorted((form for form in forms if len(form) >= SHORTEST), key=len, reverse=True)
