"""The graphs of a page are drawn with every node and every arrow."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.docs.pages import PAGES
from website.drawings import drawn, edges_of, implied, rows_of

GRAPH = "graph BT\n    b --> a\n    c --> a\n    c --> b\n    d --> c\n"


def test_every_arrow_leads_to_an_earlier_row() -> None:
    edges = edges_of(GRAPH)
    assert edges == {"b": ["a"], "a": [], "c": ["a", "b"], "d": ["c"]}
    assert rows_of(edges) == [["a"], ["b"], ["c"], ["d"]]
    assert implied(edges) == {("c", "a")}


def test_a_row_is_in_the_order_of_its_neighbours() -> None:
    edges = edges_of("graph BT\n x --> b\n y --> a\n z --> c\n u --> y\n v --> x\n w --> z\n")
    first, second, third = rows_of(edges)
    assert [edges[n][0] for n in second] == first
    assert [edges[n][0] for n in third] == second


@pytest.mark.parametrize(
    "text", ["graph LR\n a --> b\n", "graph BT\n a --- b\n", "graph BT\n a --> b\n b --> a\n"]
)
def test_a_graph_that_cannot_be_drawn_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="graph"):
        drawn(f"```mermaid\n{text}```\n")


def test_all_graphs_of_the_pages_are_drawn_completely() -> None:
    count = 0
    for page in PAGES:
        text = page.read_text()
        graphs = re.findall(r"^```mermaid\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        images = re.findall(r"<svg.*?</svg>", drawn(text))
        assert len(images) == len(graphs)
        assert "```mermaid" not in drawn(text)
        for graph, image in zip(graphs, images, strict=True):
            root = ElementTree.fromstring(image)
            edges = edges_of(graph)
            names = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
            assert sorted(map(str, names)) == sorted(edges)
            paths = [
                p for p in root.iter("{http://www.w3.org/2000/svg}path") if "marker-end" in p.attrib
            ]
            assert len(paths) == sum(map(len, edges.values())) == graph.count("-->")
            count += 1
    assert count > 3
