"""The images on which a search for a recipe measures its candidates."""
