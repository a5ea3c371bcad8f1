"""The site: what `mkdocs build` adds to the pages in ``docs/``, all of it made from the code."""
