"""A table's plan, its runs (sweep), what is aggregated over seeds (aggregate), and how it is drawn."""
