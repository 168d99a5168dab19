"""Pictures and pages: PNG, SVG and HTML without scripts."""
