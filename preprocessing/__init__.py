"""Image files and archives to uint8 pixels."""
