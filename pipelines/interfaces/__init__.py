"""Nipype interfaces: each loads its inputs, calls one pure function and saves the result."""
