"""The settings that are paths. A checkpoint, which may be shared, holds only the last part of each."""

import dataclasses
import os
from pathlib import Path, PurePosixPath

from guided_diffusion_core.config.sections import SECTIONS

_HOME = "home"  # in place of the name of the user's own folder


def path_settings():
    """Return a dict: name of each setting that is a path -> its section."""
    return {
        field.name: section
        for section, cls in SECTIONS.items()
        for field in dataclasses.fields(cls)
        if field.metadata["path"]
    }


def last_name(path):
    """Return the last part of a path, which tells neither where it lies nor who its user is; "" for no path."""
    if not path:
        return ""
    if "://" in path:  # a path in a bucket
        return PurePosixPath(path).name
    absolute = os.path.abspath(os.path.expanduser(path))
    if Path(absolute) == Path.home():
        return _HOME
    # a path of Windows is one name elsewhere
    return os.path.basename(absolute).rpartition("\\")[2] or os.sep


def without_paths(config):
    """Return a `Config` with the last part of each path."""
    for name, section in path_settings().items():
        settings = getattr(config, section)
        short = last_name(getattr(settings, name))
        config = dataclasses.replace(config, **{section: dataclasses.replace(settings, **{name: short})})
    return config
