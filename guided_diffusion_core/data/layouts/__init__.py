"""The layouts of data sets: one module for each, which defines it as `LAYOUT`.

A new layout needs only a new module in this folder.
"""

import importlib
import pkgutil


def find_layouts():
    """Import every module in this folder and return their layouts.

    Returns a dict of `--data_name` value -> `layout.Layout`, in the order of the help texts.
    """
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    layouts = sorted((module.LAYOUT for module in modules), key=lambda layout: (layout.order, layout.name))
    names = [layout.name for layout in layouts]
    if len(set(names)) < len(names):
        raise ValueError(f"two modules in data/layouts define a layout of the same name: {', '.join(names)}")
    return dict(zip(names, layouts))


LAYOUTS = find_layouts()


def help_text():
    """Return the names and summaries of all layouts, for the help text of `--data_name`."""
    return ", ".join(f"{name} ({layout.summary})" for name, layout in LAYOUTS.items())
