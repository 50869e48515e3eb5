"""Define what pickles are read into: stand-ins for the names that they call, and errors for what they must not ask."""

from guided_diffusion_core.errors import UserError, found_expected

_LARGEST_KEY = 2**60  # the hash of a smaller number is the number itself, so that hashes do not collide


class Forbidden(Exception):
    """Raised if a pickle asks for something that no checkpoint needs."""


class Sealed:
    """Base class of all stand-ins: they accept no state and no attributes from the pickle."""

    __slots__ = ()

    def build(self, state):
        """Take the state that the pickle gives."""
        raise Forbidden(f"state for {type(self).__name__}")


class Callable(Sealed):
    """A stand-in that a pickle may call; it passes the call to `function`."""

    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function


class Foreign(Sealed):
    """A placeholder for something of another software: a name, or the object that a call of it would have made.

    name: the name with its module, such as "torch.nn.modules.conv.Conv2d". is_object: it was called.
    """

    __slots__ = ("name", "is_object")

    def __init__(self, name, is_object=False):
        self.name = name
        self.is_object = is_object

    def __repr__(self):
        return self.name

    def build(self, state):
        """Ignore the state of an object."""
        if not self.is_object:
            super().build(state)


class Names(dict):
    """Stand-in for OrderedDict. It ignores the state that torch adds, which is the versions of modules."""

    def build(self, state):
        """Ignore the state."""


def fill(target, items):
    """Set entries of a dict; items: keys and values in turn. Keys that are slow to hash become placeholders."""
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2]):
        is_quick = type(key) is str or (type(key) is int and abs(key) < _LARGEST_KEY)
        target[key if is_quick else Foreign("a key", is_object=True)] = value
    return target


def guarded(read, where):
    """Return `read()`. Any error that a broken or hostile file makes it raise becomes a `UserError`."""
    try:
        return read()
    except UserError:
        raise
    except Forbidden as error:
        raise found_expected(
            where,
            f"a pickle that asks for more than weights: {error}",
            "only the weights of a network; nothing in the file was executed",
            "Do not use this file with other software.",
        ) from error
    except Exception as error:  # a malformed pickle can raise nearly every kind of error
        raise found_expected(
            where,
            f"no readable checkpoint ({type(error).__name__}: {error})",
            "a complete file in the format that its name says",
            "Copy it again.",
        ) from error
