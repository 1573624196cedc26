"""Signals that end a command let it clean up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt here, so that what is open is closed and cleaned up."""
    before: dict[int, Any] = {}

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for other in before:  # what cleans up is not interrupted again
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")

    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")):
            if (
                number is not None and signal.getsignal(number) == signal.SIG_DFL
            ):  # nohup ignores one
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
