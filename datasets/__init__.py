"""Records, readers, transforms, loaders and the rendered population."""
