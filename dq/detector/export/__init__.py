"""Write a detector for engines: networks, decoded boxes, suppression."""
