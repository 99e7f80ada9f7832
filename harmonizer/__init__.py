"""The science of multi-site harmonization: numbers and volumes, never nipype, never BIDS.

A `Volume` enters, a `Volume` leaves, and its geometry never leaves its side. The plumbing that
finds the images of a BIDS dataset and writes the results lives in `pipelines`, which imports this
package; this package never imports `pipelines`. docs/architecture.md draws rooms and arrows.
"""

__version__ = "0.1.0"
