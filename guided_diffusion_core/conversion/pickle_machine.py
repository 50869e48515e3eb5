"""Read pickles without executing anything.

A pickle is a program for a small machine with a stack and a memo. Its instructions build values and call functions of
Python by their names. `parse` runs the instructions itself: it looks a name up in a table of stand-ins, and any other
name becomes a `Foreign`, a placeholder that nothing is called for. So a file can only decide about values. Values may
hold each other in any way, and nothing here walks, hashes or prints such a nest: time and memory grow with the length
of the file alone.
"""

import pickletools

from guided_diffusion_core.conversion.pickles import Callable, Forbidden, Foreign, fill

# Each tensor takes about 25 instructions, and two more tensors of the optimizer belong to it.
MOST_STEPS = 1_000_000
# Other readers allocate memory up to the largest number in the memo.
_LARGEST_MEMO = 1_000_000
_LONGEST_NAME = 500  # characters of a module's and a function's name
# Modules, and names of the built-in module, that run commands or code: no checkpoint has them by chance.
_COMMANDS = (
    "os",
    "posix",
    "nt",
    "subprocess",
    "pty",
    "shutil",
    "socket",
    "sys",
    "importlib",
    "runpy",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "webbrowser",
)
_BUILT_IN = ("builtins", "__builtin__")
_BUILT_IN_COMMANDS = ("eval", "exec", "execfile", "compile", "open", "input", "__import__", "breakpoint")


def parse(stream, names, storage=None):
    """Run the next pickle of a stream and return its value.

    stream:  seekable binary file.
    names:   dict (module, name) -> `Sealed`.
    storage: function that returns the object of a persistent id; None if the format has no such ids.
    Raises `Forbidden`, or nearly any error for a broken pickle: see `guarded`.
    """
    machine = _Machine(names, storage)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MOST_STEPS:
            raise Forbidden(f"more than {MOST_STEPS} steps")
        if opcode.name == "STOP":
            break
        if opcode.name not in _STEPS:
            raise ValueError(f"the instruction {opcode.name}")
        _STEPS[opcode.name](machine, argument)
    return machine.stack.pop()


class _Machine:
    """The state of a running pickle."""

    def __init__(self, names, storage):
        self.names = names
        self.storage = storage
        self.stack = []
        self.marked = []  # the stacks below each mark
        self.memo = {}

    def mark(self):
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self):
        """Return what is above the last mark, and remove both."""
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def top(self, count):
        """Return the last `count` values, and remove them."""
        if len(self.stack) < count:
            raise ValueError("a stack that is empty")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def put(self, place):
        if not 0 <= place <= _LARGEST_MEMO:
            raise Forbidden("memory for billions of objects")
        self.memo[place] = self.stack[-1]

    def find(self, module, name):
        """Return the stand-in of a name."""
        if type(module) is not str or type(name) is not str or len(module) + len(name) > _LONGEST_NAME:
            raise ValueError("a name that is no text, or too long")
        in_built_in = module in _BUILT_IN and name.partition(".")[0] in _BUILT_IN_COMMANDS
        if in_built_in or module.partition(".")[0] in _COMMANDS:
            raise Forbidden(f"{module}.{name}")
        return self.names.get((module, name)) or Foreign(f"{module}.{name}")

    def call(self, function, arguments):
        """Return what a call gives: of a stand-in its result, of anything else a placeholder."""
        if type(arguments) is not tuple:
            raise ValueError("a call without arguments")
        if isinstance(function, Callable):
            return function.function(*arguments)
        # These make an object of the class that is their first argument.
        makers = ("copyreg._reconstructor", "copy_reg._reconstructor", "copyreg.__newobj__")
        if isinstance(function, Foreign) and function.name in makers and arguments:
            function = arguments[0]
        if not isinstance(function, Foreign):
            raise Forbidden("a call of what is no function")
        return Foreign(function.name, is_object=True)

    def build(self):
        state = self.stack.pop()
        self.stack[-1].build(state)

    def append(self, items):
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Foreign):
            raise ValueError("entries of what is no list")

    def set_items(self, items):
        """Set entries of the dict on the stack; items: keys and values in turn."""
        target = self.stack[-1]
        if isinstance(target, dict):
            fill(target, items)
        elif not isinstance(target, Foreign):
            raise ValueError("entries of what is no dict")

    def persistent(self, pid):
        if self.storage is None:
            raise Forbidden("a persistent id")
        return self.storage(pid)


def _push(value):
    """Return the instruction that puts a new value on the stack; value: a function without arguments."""
    return lambda machine, argument: machine.stack.append(value())


def _push_argument(machine, argument):
    machine.stack.append(argument)


def _nothing(machine, argument):
    """Do nothing."""


def _tuple(count):
    return lambda machine, argument: machine.stack.append(tuple(machine.top(count)))


def _collect(make):
    """Return the instruction that makes a value of what is above the mark."""

    def step(machine, argument):
        items = machine.since_mark()
        machine.stack.append(make(items))

    return step


def _some_set(items=None):
    return Foreign("a set", is_object=True)


def _append_one(machine, argument):
    machine.append(machine.top(1))


def _append_many(machine, argument):
    items = machine.since_mark()
    machine.append(items)


def _set_one(machine, argument):
    machine.set_items(machine.top(2))


def _set_many(machine, argument):
    items = machine.since_mark()
    machine.set_items(items)


def _global(machine, argument):
    module, _, name = argument.partition(" ")
    machine.stack.append(machine.find(module, name))


def _stack_global(machine, argument):
    machine.stack.append(machine.find(*machine.top(2)))


def _instance(machine, argument):
    module, _, name = argument.partition(" ")
    arguments = machine.since_mark()
    machine.stack.append(machine.call(machine.find(module, name), tuple(arguments)))


def _object(machine, argument):
    function, *arguments = machine.since_mark()
    machine.stack.append(machine.call(function, tuple(arguments)))


def _reduce(machine, argument):
    machine.stack.append(machine.call(*machine.top(2)))


def _new_object_with_keywords(machine, argument):
    function, arguments, _ = machine.top(3)
    machine.stack.append(machine.call(function, arguments))


def _pop(machine, argument):
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


_VALUES = (
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
)
# name of an instruction (pickletools) -> function of the machine and the instruction's argument
_STEPS = {
    **dict.fromkeys(_VALUES, _push_argument),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: machine.stack.append(machine.memo[place])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, place: machine.put(place)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _reduce),
    "PROTO": _nothing,
    "FRAME": _nothing,
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_LIST": _push(list),
    "EMPTY_DICT": _push(dict),
    "EMPTY_SET": _push(_some_set),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _collect(tuple),
    "LIST": _collect(list),
    "DICT": _collect(lambda items: fill({}, items)),
    "FROZENSET": _collect(_some_set),
    "APPEND": _append_one,
    "APPENDS": _append_many,
    "ADDITEMS": _append_many,
    "SETITEM": _set_one,
    "SETITEMS": _set_many,
    "MARK": lambda machine, argument: machine.mark(),
    "POP": _pop,
    "POP_MARK": lambda machine, argument: machine.since_mark(),
    "DUP": lambda machine, argument: machine.stack.append(machine.stack[-1]),
    "MEMOIZE": lambda machine, argument: machine.put(len(machine.memo)),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "INST": _instance,
    "OBJ": _object,
    "NEWOBJ_EX": _new_object_with_keywords,
    "BUILD": lambda machine, argument: machine.build(),
    "PERSID": lambda machine, pid: machine.stack.append(machine.persistent(pid)),
    "BINPERSID": lambda machine, argument: machine.stack.append(machine.persistent(*machine.top(1))),
}
