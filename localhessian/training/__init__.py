"""Back-matching propagation and scale-amended SGD."""
