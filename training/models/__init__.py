"""Models with state: `forward(x, *state) -> (y, *state)`, the same code for a whole signal and for a step."""
