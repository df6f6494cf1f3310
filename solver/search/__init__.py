"""One search: queries that a user names, encoded galleries, ranked answers."""
