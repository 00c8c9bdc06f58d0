"""
The README's pictures: what a terminal of 80 columns and 24 lines shows of real runs, as SVG.

`python -m tests.pictures` makes them anew, `python -m tests.pictures NAME …` some of them.
"""
