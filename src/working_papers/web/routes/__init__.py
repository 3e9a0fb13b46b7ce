"""The addresses of the site, a file a family of pages."""
