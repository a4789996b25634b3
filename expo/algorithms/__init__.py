"""From an experience to an update: one algorithm a file, its loss a list of terms (terms), its formulas pure functions
(losses, divergences), its optimizer steps in updates."""
