"""What surrounds a backend's ensemble sampler: batches over cases, progress, files.

The sampler itself (`sample_util.EnsembleSampler`) turns images into masks; nothing here depends
on a framework.
"""
import sys
import time

import numpy as np
from tqdm import tqdm

from guided_diffusion_core.fusion import fuse_mean
from guided_diffusion_core.outputs import CaseWriter


def example_key(example):
    """The name of an example on the noise tape: its case, and for volumes its slice."""
    return example.case if example.slice_index is None else f"{example.case}/{example.slice_index}"


def run_sampling(sampler, dataset, out_dir, batch_size, threshold):
    """Sample every case of a dataset and write its files as soon as all its examples are done.

    sampler:    function of (images (N, C, S, S), keys) that returns (members, N, S, S).
    batch_size: examples per batch; each brings its whole ensemble.
    threshold:  probability from which on a pixel belongs to the mask.
    Returns the seconds that the sampler took, a float.
    """
    writer = CaseWriter(out_dir)
    queue = [(case, index) for case in dataset.cases() for index in case.indices]
    cases = len(dataset.cases())
    tqdm.write(f"sampling {len(queue)} images of {cases} cases; masks go to {out_dir}", file=sys.stderr)
    done, seconds = {}, 0.0
    with tqdm(total=len(queue), unit="image", desc="sampling", dynamic_ncols=True) as bar:
        for start in range(0, len(queue), batch_size):
            batch = queue[start:start + batch_size]
            examples = [dataset[index] for _, index in batch]
            began = time.perf_counter()
            members = sampler(np.stack([example.image for example in examples]), list(map(example_key, examples)))
            seconds += time.perf_counter() - began
            probability, uncertainty = fuse_mean(members)
            for position, (case, _) in enumerate(batch):
                fused = done.setdefault(case.name, [])
                fused.append((probability[position], uncertainty[position]))
                if len(fused) == len(case.indices):
                    planes, spread = map(np.stack, zip(*done.pop(case.name)))
                    writer.write(case, planes, spread, threshold)
            bar.update(len(batch))
    return seconds
