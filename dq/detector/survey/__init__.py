"""Small configs of all that mmdet ships, to try whether each goes the whole way."""
