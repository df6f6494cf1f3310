"""A gallery that lasts: encoded images in a folder, to which can be added and from which can be removed."""
