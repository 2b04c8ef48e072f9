"""The two things that httpx does not offer on both trio and asyncio: to sleep, and to tell one event loop from another.

Neither library is imported here on its own account: whoever runs trio has imported it, and asyncio is only asked where
it runs. So the SDK needs nothing beyond httpx and msgspec.
"""

from __future__ import annotations

import sys
from typing import Any

from ._errors import WrongEventLoop


def _running_trio() -> Any:
    """The module trio, if its event loop runs the caller."""
    trio = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_run() else None


async def sleep(seconds: float) -> None:
    """Wait, in whichever event loop runs the caller."""
    trio = _running_trio()
    if trio is not None:
        await trio.sleep(seconds)
    else:
        import asyncio  # noqa: PLC0415 - 20 ms that nobody on trio needs

        await asyncio.sleep(seconds)


def current_loop() -> object:
    """Something that stands for the event loop that runs the caller: the same object for as long as it runs."""
    trio = _running_trio()
    if trio is not None:
        token: object = trio.lowlevel.current_trio_token()
        return token
    import asyncio  # noqa: PLC0415 - as above

    return asyncio.get_running_loop()


class LoopGuard:
    """Holds a client to the event loop that it was first used in, to which its connections belong."""

    def __init__(self) -> None:
        self._loop: object = None

    def check(self) -> None:
        """Raises WrongEventLoop."""
        loop = current_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise WrongEventLoop(
                "this client was first used in another event loop; open a client of its own inside each "
                "trio.run() or asyncio.run()"
            )
