"""How an energy is evaluated fast while a chain runs: frozen weights, fused layers, layouts."""
