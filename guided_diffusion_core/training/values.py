"""The values of a training step, which stay on the device until they are asked for."""

from collections.abc import Mapping


class StepValues(Mapping):
    """A dict of floats by name that is read from the device when its first value is asked for, and kept.

    read: function that waits for the device and returns the dict. In several processes it gathers their values, so
          that all of them have to ask for the same steps in the same order.

    A training that looks at its losses only now and then therefore waits for the device only then.
    """

    def __init__(self, read):
        self._read = read
        self._values = None

    def _found(self):
        if self._values is None:
            self._values = self._read()
            self._read = None  # frees the tensors
        return self._values

    def __getitem__(self, name):
        return self._found()[name]

    def __iter__(self):
        return iter(self._found())

    def __len__(self):
        return len(self._found())
