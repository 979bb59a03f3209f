"""Reports: what a run found, for people and for programs.

Every function works on a live run too: it shows what is there.

* :func:`text`, :func:`show`: tables for a terminal.
* :func:`write_html`: one self-contained page that works offline.
* :func:`write_png`: one static picture.
* :func:`to_json`, :func:`write_json`: plain data.

The rooms: ``data`` (plain data, names made safe, files replaced in one step); what is worked out
of a run: ``progress``, ``coefficients`` (which mattered), ``leads`` (search against test);
``tables`` (what the tables say), ``terminal`` (how they look there), ``as_json``; ``page``, on
``page_data`` (what it draws), ``markup`` (HTML) and ``web/`` (style and scripts; plotly draws);
``picture`` (matplotlib). ``many``, ``many_tables`` and ``many_page`` put runs side by side.
``doctor`` and ``doctor_picture`` show a diagnosis.
"""

from evomerge.report.as_json import to_json, write_json
from evomerge.report.page import write_html
from evomerge.report.picture import write_png
from evomerge.report.terminal import show, text

__all__ = ["show", "text", "to_json", "write_html", "write_json", "write_png"]
