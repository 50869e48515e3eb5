"""Symbolic links in Jittor's cache, which several processes may make at once."""

import os
import tempfile
from pathlib import Path


def replace_link(link, target):
    """Let the Path `link` point to `target`, in one step, in place of another link there."""
    if link.is_symlink() and os.readlink(link) == str(target):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=link.parent, prefix=".") as room:
        made = Path(room) / link.name
        made.symlink_to(target)
        os.replace(made, link)
