"""Building blocks of the HTML reports: templates, figures, and pictures that are part of the page."""

import base64
import io

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_MIME_TYPES = {"png": "image/png", "svg": "image/svg+xml"}
# The field of a picture's metadata that differs between machines or days; without it, equal plots are equal files.
_VARYING_METADATA = {"png": "Software", "svg": "Date"}


def load_template(folder, name, **filters):
    """Return the Jinja template `name` in a folder. A name that the page uses and nobody gives is an error.

    filters: further filters of the template, by name.
    """
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def make_figure(width, height, layout="constrained"):
    """Return an empty matplotlib figure of a size in inches that needs no display."""
    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def figure_bytes(figure, kind="png", dpi=100):
    """Return a figure as the bytes of a "png" or "svg" file, the same in each run."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={_VARYING_METADATA[kind]: None})
    return buffer.getvalue()


def data_uri(content, kind="png"):
    """Return the bytes of a "png" or "svg" file as a data URI, which makes the picture part of the page."""
    return f"data:{_MIME_TYPES[kind]};base64,{base64.b64encode(content).decode()}"


def escape_math(text):
    """Return a text that matplotlib shows as it is, and does not take for a formula."""
    return text.replace("$", r"\$")
