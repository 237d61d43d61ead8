"""How much of the Long parent each part of the model needs: objective, coefficients, joint fit."""
