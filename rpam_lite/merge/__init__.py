"""Apply coefficients to two checkpoints."""
