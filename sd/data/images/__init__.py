"""Image files to pixels: open, limit, orient, convert, resize."""
