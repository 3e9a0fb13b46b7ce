"""The daily: the catalogue of papers, the sources that fill it, the feed and the search over it."""
