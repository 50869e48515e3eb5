"""Building blocks of the HTML reports: templates, figures, and pictures that are part of the page."""

import base64
import io
import warnings

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

LAST_LATIN = 0x24F
# Fonts for other scripts, of Linux, Windows and macOS.
FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "SimHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Arial Unicode MS",
)
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
    _use_fonts_of_all_scripts(figure)
    with matplotlib.rc_context({"svg.hashsalt": "report"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # no font has it: a box is drawn
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={_VARYING_METADATA[kind]: None})
    return buffer.getvalue()


def _use_fonts_of_all_scripts(figure):
    """Let texts of a figure with letters beyond Latin ones use the fonts of this machine that have them."""
    for text in figure.findobj(Text):
        if any(ord(letter) > LAST_LATIN for letter in text.get_text()):
            installed = set(font_manager.get_font_names())
            families = [name for name in FONTS if name in installed]
            text.set_fontfamily([*matplotlib.rcParams["font.sans-serif"][:1], *families])


def data_uri(content, kind="png"):
    """Return the bytes of a "png" or "svg" file as a data URI, which makes the picture part of the page."""
    return f"data:{_MIME_TYPES[kind]};base64,{base64.b64encode(content).decode()}"


def escape_math(text):
    """Return a text that matplotlib shows as it is, and does not take for a formula.

    Bytes of a file name that is no UTF-8 are shown as escapes.
    """
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
