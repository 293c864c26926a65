"""Report the results of runs: a table in Markdown or text, and an HTML page.

``results.py`` reads the results of decoding, ``runs.py`` those of training.
``table.py`` compares systems, ``charts.py`` draws training metrics, ``page.py`` renders
the page.
"""
