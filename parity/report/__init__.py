"""Renders a result for people and for CI: terminal text, JUnit XML and one self-contained HTML page.

``page`` needs the ``report`` extra (jinja2, plotly); ``terminal`` and ``junit`` need nothing beyond the base install.
"""
