"""Report the results of runs: a table in Markdown or text, and an HTML page.

results.py and runs.py read what decoding and training wrote, table.py compares systems,
charts.py draws training metrics, page.py renders the page.
"""
