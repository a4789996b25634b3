"""Work that loads a model: train (fit), evaluate (score), diagnose (measure), pretrain, explain; wiring makes their
parts from a config."""
