"""Commands about the launcher itself: the machine, the configs that ship."""
