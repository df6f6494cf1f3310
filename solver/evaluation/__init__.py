"""One evaluation: what is encoded, how it is ranked, what is measured."""
