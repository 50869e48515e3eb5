"""HTML pages, parsed: their tags, texts and pictures."""

from html.parser import HTMLParser

HOSTILE = "a<script>alert('1')</script>&\"$\\frac$"
VOID = ("meta", "img", "col")
TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "h1",
    "h2",
    "h3",
    "p",
    "b",
    "i",
    "strong",
    "code",
    "div",
    "span",
    "ul",
    "li",
    "details",
    "summary",
    "table",
    "colgroup",
    "col",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "figure",
    "figcaption",
    "img",
}


class Page(HTMLParser):
    """A parsed page. modules: name -> (texts of its cells, True if it is folded away)."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags = []
        self.attributes = []
        self.images = []
        self.open = []
        self.text = ""
        self.modules = {}
        self.feed(self.source)
        self.text = " ".join(self.text.split())
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        given = dict(attributes)
        if tag == "img":
            self.images.append(given)
        if tag not in VOID:
            self.open.append((tag, given))
        if given.get("class") == "module":
            self.line = []
        if given.get("class", "").startswith("cell"):
            self.line.append("")

    def handle_endtag(self, tag):
        given = self.open.pop()
        assert given[0] == tag, f"{given} closed by {tag}"
        self.text += " " if tag in ("td", "th") else ""
        if given[1].get("class") == "line":
            # The <details> of a container does not fold the container's own line.
            inside = [attributes for name, attributes in self.open if name == "details"]
            inside = inside[:-1] if self.open[-1][0] == "summary" else inside
            self.modules[self.line[0].strip()] = (self.line[1:], any("open" not in given for given in inside))

    def handle_data(self, data):
        self.text += "" if self.open and self.open[-1][0] == "style" else data
        if any(given.get("class") == "line" for _, given in self.open):
            if any(given.get("class") == "module" for _, given in self.open):
                self.line = ["".join(self.line[:1]) + data]
            elif self.open[-1][1].get("class", "").startswith("cell"):
                self.line[-1] += data
