"""Nipype interfaces, thin: load, call one pure function, save."""
