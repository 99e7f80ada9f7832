"""How good it is: measures on arrays and tables, taken before and after, inside the brain mask."""
