"""The layers of a model by name, without the wrappers around them."""

from torch import nn

# A container that another one of a known kind holds under this name is a wrapper, not a layer.
_WRAPPED = {
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",  # of Lightning Fabric
}
_WRAPPERS = {"DistributedDataParallel", "DataParallel", "AveragedModel"}


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return every submodule by the name it has without wrappers: data parallel, compile and FSDP.

    A single layer is a model, too, and goes by the name of its class.
    """
    named = {}
    at = dict(model.named_modules(remove_duplicate=False))
    for path, module in model.named_modules():
        segments = path.split(".") if path else []
        names = []
        for depth, segment in enumerate(segments):
            holder = at[".".join(segments[:depth])]
            wrapper = segment in _WRAPPED or (
                segment == "module" and type(holder).__name__ in _WRAPPERS
            )
            if not wrapper:
                names.append(segment)
        if names:
            named[".".join(names)] = module  # the innermost of a wrapped module comes last
    root = innermost(model)
    return named or {type(root).__name__: root}


def innermost(model: nn.Module) -> nn.Module:
    """Return the user's own module inside compile and parallel wrappers."""
    while True:
        for name, child in model.named_children():
            if name in _WRAPPED or (name == "module" and type(model).__name__ in _WRAPPERS):
                model = child
                break
        else:
            return model
