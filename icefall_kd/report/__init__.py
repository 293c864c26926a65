"""What runs have brought: one Markdown table and one page that needs nothing beside it.

results.py and runs.py read what decoding and training wrote, table.py compares, and
curves.py, alignment.py and audio.py fill the page that page.py puts together.
"""
