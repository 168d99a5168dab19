"""Pages: pictures in PNG and SVG, and HTML without scripts."""
