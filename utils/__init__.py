"""Tools that know nothing of ReID models or datasets; the lowest layer."""
