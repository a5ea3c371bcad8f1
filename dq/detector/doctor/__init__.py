"""``launcher doctor``: what a training needs, each part tried once in a process of its own."""
