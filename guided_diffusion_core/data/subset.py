"""Some of the cases of a dataset, as a dataset of their own."""

import dataclasses


class Subset:
    """Some cases of a `Dataset` (`Dataset`).

    dataset: the whole dataset. cases: the chosen ones of its cases, in the order of this dataset.
    """

    def __init__(self, dataset, cases):
        self.dataset = dataset
        self.in_channels = dataset.in_channels
        self.normalisation = dataset.normalisation
        self.labels = dataset.labels
        self.remarks = dataset.remarks
        self._indices = [index for case in cases for index in case.indices]  # in the whole dataset
        self._cases = []
        start = 0
        for case in cases:
            indices = tuple(range(start, start + len(case.indices)))
            self._cases.append(dataclasses.replace(case, indices=indices))
            start += len(indices)

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self.dataset[self._indices[index]]

    def cases(self):
        """Return the chosen cases."""
        return list(self._cases)
