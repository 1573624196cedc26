"""Who calls: Hugging Face's Trainer tells neither a model nor a callback whose they are."""

import sys
from typing import Any


def trainer_among_callers() -> Any:
    """Return the transformers Trainer one of whose methods is running, or None."""
    return next((frame.f_locals["self"] for frame in _methods_of_trainer()), None)


def labels_taken() -> Any:
    """Return the labels that a Trainer's loss has taken out of the inputs of the model it calls, or None."""
    labels = (frame.f_locals.get("labels") for frame in _methods_of_trainer("compute_loss"))
    return next(labels, None)


def _methods_of_trainer(name: str = "") -> Any:
    module = sys.modules.get("transformers.trainer")
    frame = None if module is None else sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        method = name in ("", code.co_name) and code.co_varnames[:1] == ("self",)
        if method and isinstance(frame.f_locals["self"], module.Trainer):  # type: ignore[union-attr]
            yield frame
        frame = frame.f_back
