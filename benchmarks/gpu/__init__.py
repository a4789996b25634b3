"""`make gpu-check`: what can be known of a GPU on a GPU alone, in parts of at most eight minutes, with random weights
and no network."""
