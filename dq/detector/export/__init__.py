"""Export a detector for engines: networks, box decoding, NMS."""
