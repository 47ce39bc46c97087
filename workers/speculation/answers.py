"""Recent answers, apart for each tenant, so that nobody's text leads to another's drafts."""

from __future__ import annotations

from array import array
from collections import OrderedDict

from workers.speculation.history import History

TENANT_TOKENS = 1 << 16
"""Tokens of one tenant. Beyond it the older half is forgotten."""
TOKENS = 1 << 19
"""Tokens of all tenants, 21 MB at some 40 bytes each. Beyond it, and beyond `TENANTS`, the tenant
is forgotten who was not there for longest."""
TENANTS = 256

SEPARATOR = -1
"""Stands after each answer. No token of a model, so that no match reaches over it."""


class Answers:
    """The answers that each tenant was given last."""

    def __init__(self) -> None:
        self._histories: OrderedDict[str, History] = OrderedDict()
        """The tenant who was there last at the end."""
        self._n_tokens = 0

    def add(self, tenant: str, answer: array[int]) -> None:
        """Append an answer to those of its tenant, or the end of it if it is very long."""
        answer = answer[-TENANT_TOKENS // 2 + 1 :]
        history = self._histories.setdefault(tenant, History())
        self._histories.move_to_end(tenant)
        history.text.extend(answer)
        history.text.append(SEPARATOR)
        self._n_tokens += len(answer) + 1
        if len(history.text) > TENANT_TOKENS:
            self._histories[tenant] = kept = History(history.text[-TENANT_TOKENS // 2 :])
            self._n_tokens -= len(history.text) - len(kept.text)
        while self._n_tokens > TOKENS or len(self._histories) > TENANTS:
            _, forgotten = self._histories.popitem(last=False)
            self._n_tokens -= len(forgotten.text)

    def of(self, tenant: str) -> History | None:
        """Return the answers of a tenant, one after another, or None if there is none."""
        return self._histories.get(tenant)
