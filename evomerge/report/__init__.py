"""Reports: what a run found, for people and for programs.

Every function works on a live run too: it shows what is there.

* :func:`text`, :func:`show`: tables for a terminal.
* :func:`write_html`: one self-contained page that works offline.
* :func:`write_png`: one static picture.
* :func:`to_json`, :func:`write_json`: plain data.

The rooms: ``data`` (plain data, names made safe, files replaced in one step), ``tables`` (what the
tables say, and how they look in a terminal), ``figures`` (plotly and matplotlib), ``page`` (HTML);
``doctor`` and ``doctor_picture`` show a diagnosis.
"""

from evomerge.report.data import to_json, write_json
from evomerge.report.figures import write_png
from evomerge.report.page import write_html
from evomerge.report.tables import show, text

__all__ = ["show", "text", "to_json", "write_html", "write_json", "write_png"]
