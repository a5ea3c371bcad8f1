"""How fast an exported model runs in an engine, beside the same model in float, layer by layer."""
