"""The page: one HTML file that holds its plots, so that it opens without a network and can be sent to anybody."""

import base64
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2

PAGE_NAME = "explanation.html"


@dataclass
class Card:
    """One image: its name, a line about it, whether it is a mistake, and the names of its two plots."""

    name: str
    caption: str
    wrong: bool
    maps: str
    heads: str


@dataclass
class Section:
    """A part of the page.

    Args:
        name: its anchor.
        title: its heading.
        texts: paragraphs: how to read the plot.
        source: what the plot follows: paper, section, figure.
        plot: name of the PNG, in the folder of the page. Empty: none.
        cards: images with maps.
        left_out: what is not shown, and why.
    """

    name: str
    title: str
    texts: list[str]
    source: str = ""
    plot: str = ""
    cards: list[Card] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def write_page(folder: Path, sections: list[Section], **texts) -> None:
    """Write the page into the folder of its plots. All texts are escaped.

    Args:
        folder: holds the plots.
        sections: from top to bottom.
        texts: `model`, its name; `facts`, a dict of lines at the top; `origin`, what the images are; `warning`,
            whether this is a warning.
    """

    def data_uri(name: str) -> str:
        return "data:image/png;base64," + base64.b64encode((folder / name).read_bytes()).decode("ascii")

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(
        resources.files("hf_vit_scratch.explanation").joinpath("page.html").read_text(encoding="utf-8")
    )
    page = template.render(sections=sections, data_uri=data_uri, **texts)
    (folder / PAGE_NAME).write_text(page, encoding="utf-8", errors="replace")
